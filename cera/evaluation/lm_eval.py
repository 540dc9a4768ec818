"""lm-evaluation-harness on a run's adapter: its own command line, in a process where PEFT knows CeRA.

    cera lm-eval run --model hf --model_args peft=runs/smol_cera,dtype=bfloat16 ...
    cera lm-eval rescore runs/smol_cera/lm_eval/.../samples_gsm8k_local_....jsonl
    cera lm-eval rescore runs/smol_cera/eval/gsm8k/records.jsonl

All arguments are lm-eval's (``docs/lm_eval.md`` has the whole command). Of ``--model_args``, ``peft`` may name a run
directory, ``pretrained`` is the adapter's base unless it is given, and names a base as ``cera.models.backbone`` does.
``rescore`` holds lm-eval's rule against that of ``cera.evaluation.answers``, on the same answers: those of
``--log_samples``, or of our own records.
"""

import importlib.util
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from cera.data import DataError
from cera.evaluation import answers
from cera.evaluation.records import Record, read
from cera.evaluation.tasks import GSM8K
from cera.models.backbone import BackboneError, locate
from cera.runs.saved_adapter import AdapterError, SavedAdapter

METRIC = "exact_match"
TASKS = Path(__file__).parents[1] / "configs" / "lm_eval"


def main(arguments: list[str]) -> int:
    """Run the command, whose arguments are lm-eval's, and return its exit status: 2 after a user's mistake."""
    try:
        if arguments[:1] != ["rescore"]:
            sys.argv = ["cera lm-eval", *arguments]  # lm-eval reads its arguments from there
            return _harness()
        if len(arguments) != 2:
            raise ValueError(f"rescore takes one file of samples or records, got {arguments[1:]}.")
        print(summary(rescore(arguments[1])))
    except (AdapterError, BackboneError, DataError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _harness() -> int:
    _require_lm_eval()
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    harness = HarnessCLI()
    options = harness.parse_args()
    if getattr(options, "model_args", None):
        options.model_args = located(options.model_args)
    harness.execute(options)
    return 0


def _require_lm_eval() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("lm-evaluation-harness is not installed: pip install 'cera[lm-eval]'")


def located(model_args: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's ``model_args`` with what its ``hf`` model can load in place of a run directory and a base's name.

    Args:
        model_args: With ``pretrained``, ``peft`` or both. A ``peft`` that is no directory is left for PEFT: a hub id.

    Raises:
        AdapterError: ``peft`` is a directory without an adapter.
        BackboneError: The base is not there.
        ValueError: ``peft`` is a run on a quantized base, which lm-eval would load in full precision.
    """
    found = dict(model_args)
    if "peft" in found and Path(found["peft"]).is_dir():
        saved = SavedAdapter.find(found["peft"], found.get("pretrained"))
        if saved.quantization is not None:
            raise ValueError(
                f"peft={found['peft']} was trained on a base in {saved.quantization}: evaluate it by "
                f"`cera evaluate`, or give peft={saved.folder} to have the base in full precision."
            )
        found |= {"peft": str(saved.folder), "pretrained": saved.base}
    if "pretrained" in found:
        found["pretrained"] = locate(found["pretrained"])
    return found


def local_gsm8k(**_: Any) -> dict[str, Dataset]:
    """GSM8K's test problems from ``$CERA_DATA_DIR/gsm8k/test.jsonl``, for a task's ``custom_dataset``.

    Returns:
        The split ``test`` with ``question`` and ``answer``, in the file's order.

    Raises:
        DataError: The variable is not set, or the file is missing or malformed.
    """
    folder = os.environ.get("CERA_DATA_DIR")
    if not folder:
        raise DataError("CERA_DATA_DIR is not set; it must name the folder that holds gsm8k/test.jsonl.")
    task = GSM8K(data_files=str(Path(folder) / "gsm8k" / "test.jsonl"))
    task.check()
    return {"test": Dataset.from_list([{"question": of.question, "answer": of.gold} for of in task.problems()])}


def judge(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Our records of GSM8K by lm-eval's rule, in the form of its ``--log_samples``: a dict a problem and filter.

    The rule is that of ``configs/lm_eval/gsm8k_local.yaml``, which is lm-eval's own; ``$CERA_DATA_DIR`` must be set, as
    the task reads its problems when it is loaded.

    Raises:
        ValueError: lm-eval is not installed.
    """
    _require_lm_eval()
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    task = manager.load(["gsm8k_local"])["tasks"]["gsm8k_local"]
    samples = []
    for ensemble in task._filters:
        for record in records:
            doc = {"question": record["prompt"], "answer": record["gold"]}
            instance = task.construct_requests(doc, "", metadata=("gsm8k_local", 0, 1))
            instance.resps = record["samples"][:1]
            ensemble.apply([instance])
            filtered = instance.filtered_resps[ensemble.name]
            samples.append(
                {
                    "doc_id": record["key"],
                    "target": record["gold"],
                    "resps": [record["samples"][:1]],
                    "filter": ensemble.name,
                    "filtered_resps": [filtered],
                    **task.process_results(doc, [filtered]),
                }
            )
    return samples


def rescore(file: str | Path) -> dict[str, Any]:
    """lm-eval's verdicts against ours, on the same generations.

    Args:
        file: What ``--log_samples`` wrote for a task with ``exact_match``, a line a problem and filter; or the
            ``records.jsonl`` of an evaluation on GSM8K. Of several generations a problem, the first is judged, which is
            what ``take_first`` takes.

    Returns:
        - ``problems``, and ``ours``: the share that ``answers.is_correct`` accepts, in [0, 1];
        - ``filters``: for each, ``lm_eval`` (the share that it accepts) and the numbers of problems that ``both``,
            ``neither``, ``only_ours`` and ``only_lm_eval`` accept;
        - ``disagreements``: a dict for each, with ``doc_id``, ``filter``, ``gold``, ``text``, ``ours`` and ``how``
            (what was extracted and by what, or ``None``), ``lm_eval`` (what its filter extracted) and ``accepted_by``.

    Raises:
        ValueError: The file is missing, empty, or of another kind.
    """
    samples = judge(read(Path(file))) if Path(file).name == "records.jsonl" else _samples(Path(file))
    verdicts: dict[Any, bool] = {}
    counts: dict[str, Counter[str]] = {}
    disagreements = []
    for sample in samples:
        key, text, gold, theirs = sample["doc_id"], sample["resps"][0][0], sample["target"], bool(sample[METRIC])
        if key not in verdicts:
            verdicts[key] = answers.is_correct(text, gold)
        ours = verdicts[key]
        outcome = ("both" if ours else "neither") if ours == theirs else ("only_ours" if ours else "only_lm_eval")
        counts.setdefault(sample["filter"], Counter())[outcome] += 1
        if ours != theirs:
            disagreements.append(_disagreement(sample, "ours" if ours else "lm_eval"))
    outcomes = ("both", "neither", "only_ours", "only_lm_eval")
    return {
        "problems": len(verdicts),
        "ours": sum(verdicts.values()) / len(verdicts),
        "filters": {
            name: {
                "lm_eval": (of["both"] + of["only_lm_eval"]) / of.total(),
                **{outcome: of[outcome] for outcome in outcomes},
            }
            for name, of in counts.items()
        },
        "disagreements": disagreements,
    }


def _disagreement(sample: dict[str, Any], accepted_by: str) -> dict[str, Any]:
    text = sample["resps"][0][0]
    found = answers.extract(text)
    return {
        "doc_id": sample["doc_id"],
        "filter": sample["filter"],
        "gold": sample["target"],
        "text": text,
        "ours": found.answer if found else None,
        "how": found.how if found else None,
        "lm_eval": sample["filtered_resps"][0],
        "accepted_by": accepted_by,
    }


def _samples(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise ValueError(f"rescore: no such file: {file}")
    samples = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            sample = json.loads(line)
            missing = {"doc_id", "target", "resps", "filtered_resps", "filter", METRIC} - set(sample)
        except (ValueError, TypeError) as error:
            raise ValueError(f"rescore: {file}, line {number}, is no sample: {error}") from error
        if missing:
            raise ValueError(
                f"rescore: {file}, line {number}, lacks {', '.join(sorted(missing))}; "
                f"expected lm-eval's --log_samples of a task with {METRIC}."
            )
        samples.append(sample)
    if not samples:
        raise ValueError(f"rescore: {file} is empty.")
    return samples


def summary(report: dict[str, Any]) -> str:
    """``rescore``'s report as text: the scores in percent, then each disagreement with the end of its answer."""
    lines = [f"{report['problems']} problems; ours: {report['ours']:.2%}"]
    for name, of in report["filters"].items():
        lines.append(
            f"{name}: {of['lm_eval']:.2%}; both {of['both']}, neither {of['neither']}, "
            f"only ours {of['only_ours']}, only lm-eval {of['only_lm_eval']}"
        )
    for of in report["disagreements"]:
        gold = answers.extract(of["gold"])
        lines.append(
            f"\nproblem {of['doc_id']}, gold {gold.answer if gold else of['gold']!r}: ours {of['ours']!r} "
            f"({of['how']}), {of['filter']} {of['lm_eval']!r}; accepted by {of['accepted_by']}\n"
            f"  ...{of['text'][-160:]!r}"
        )
    return "\n".join(lines)

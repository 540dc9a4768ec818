"""What ``cera lm-eval`` needs of lm-evaluation-harness: model arguments, a local task, and a comparison of the rules.

``rescore`` compares lm-eval's verdicts with those of ``cera.evaluation.answers`` on the same answers, which come from
lm-eval's ``--log_samples`` or from the records of an evaluation of this project.

Example:
    >>> resolve_model_args({"peft": "runs/smol_cera"})
    {'peft': 'runs/smol_cera/adapter', 'pretrained': '...'}
"""

import importlib.util
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from cera.data import DataError
from cera.data.template import prepare_template
from cera.evaluation import answers
from cera.evaluation.fields import METRIC, SAMPLE, check_fields, parse_object
from cera.evaluation.records import Record, read
from cera.evaluation.tasks import GSM8K
from cera.models.backbone import load_tokenizer, locate
from cera.models.weight_files import check_weight_files
from cera.runs.saved_adapter import SavedAdapter

TASK = "gsm8k_local"
OUTCOMES = {
    (True, True): "both",
    (False, False): "neither",
    (True, False): "only_ours",
    (False, True): "only_lm_eval",
}
"""(whether our rule accepts an answer, whether lm-eval's does) -> the name of that outcome."""
TASKS = Path(__file__).parents[1] / "configs" / "lm_eval"
"""The folder of the package's tasks for lm-eval."""


def require_lm_eval() -> None:
    """Raise ``ValueError``, which names the extra to install, if lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("lm-evaluation-harness is not installed: pip install 'cera[lm-eval]'")


def resolve_model_args(model_args: dict[str, Any]) -> dict[str, Any]:
    """Replace a run directory and the name of a base in ``model_args`` by what lm-eval's ``hf`` model can load.

    Args:
        model_args: Arguments with ``pretrained``, ``peft`` or both. A ``peft`` that is no directory is left to PEFT as
            a hub id. ``pretrained`` defaults to the base of the adapter.

    Raises:
        AdapterError: ``peft`` is a directory without an adapter.
        BackboneError: The base cannot be found.
        ValueError: ``peft`` is a run on a quantized base, which lm-eval would load in full precision.
    """
    resolved = dict(model_args)
    if "peft" in resolved and Path(resolved["peft"]).is_dir():
        saved = SavedAdapter.find(resolved["peft"], resolved.get("pretrained"))
        if saved.quantization is not None:
            raise ValueError(
                f"peft={resolved['peft']} was trained on a base in {saved.quantization}: evaluate it by "
                f"`cera evaluate`, or give peft={saved.folder} to have the base in full precision."
            )
        resolved |= {"peft": str(saved.folder), "pretrained": saved.base}
        if saved.chat_template not in (None, load_tokenizer(saved.base).chat_template):
            resolved.setdefault("tokenizer", str(saved.folder))  # whose template rendered the training data
    if "pretrained" in resolved:
        check_weight_files(resolved["pretrained"])
        resolved["pretrained"] = locate(resolved["pretrained"])
    return resolved


def try_template(model_args: dict[str, Any]) -> None:
    """Try the chat template of the model of ``model_args``, if it is on this machine; see ``prepare_template``.

    Raises:
        TemplateError: The template cannot be used, or does not end.
    """
    name = str(model_args.get("tokenizer") or model_args.get("pretrained"))
    if Path(name).is_dir():
        prepare_template(load_tokenizer(name))


def local_gsm8k(**_: Any) -> dict[str, Dataset]:
    """Read GSM8K's test problems from ``$CERA_DATA_DIR/gsm8k/test.jsonl``, for the ``custom_dataset`` of a task.

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
    rows = [{"question": problem.question, "answer": problem.gold} for problem in task.problems()]
    return {"test": Dataset.from_list(rows)}


def judge_by_lm_eval(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Judge records of GSM8K by lm-eval's rule.

    The rule is that of ``configs/lm_eval/gsm8k_local.yaml``, which is lm-eval's own. ``$CERA_DATA_DIR`` must be set,
    because the task reads its problems when it is loaded.

    Args:
        records: The records of an evaluation on GSM8K.

    Returns:
        A dict for each problem and filter, in the form of lm-eval's ``--log_samples``.

    Raises:
        ValueError: lm-eval is not installed.
    """
    require_lm_eval()
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    task = manager.load([TASK])["tasks"][TASK]
    samples = []
    for ensemble in task._filters:
        for record in records:
            doc = {"question": record["prompt"], "answer": record["gold"]}
            instance = task.construct_requests(doc, "", metadata=(TASK, 0, 1))
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
    """Compare lm-eval's verdicts with those of ``cera.evaluation.answers`` on the same generations.

    Args:
        file: The file that ``--log_samples`` wrote for a task with ``exact_match``, with a line for each problem and
            filter; or the ``records.jsonl`` of an evaluation on GSM8K. Of several generations for a problem, the first
            is judged, as lm-eval's ``take_first`` does.

    Returns:
        - ``problems``: number of problems; ``ours``: the share that ``answers.judge`` accepts, in [0, 1];
        - ``filters``: for each filter of lm-eval, ``lm_eval`` (the share that it accepts) and the numbers of problems
            that ``both``, ``neither``, ``only_ours`` and ``only_lm_eval`` accept;
        - ``disagreements``: for each, ``doc_id``, ``filter``, ``gold``, ``text``, ``ours`` (our extracted answer) and
            ``how`` (the rule that extracted it), ``lm_eval`` (the answer of its filter) and ``accepted_by``.

    Raises:
        ValueError: The file is missing, empty, or of another kind.
    """
    if Path(file).name == "records.jsonl":
        records = read(Path(file), ("prompt", "gold", "samples"))
        if not records:
            raise ValueError(f"rescore: {file} has no records.")
        samples = judge_by_lm_eval(records)
    else:
        samples = _read_samples(Path(file))
    verdicts: dict[Any, answers.Verdict] = {}
    counts: dict[str, Counter[str]] = {}
    disagreements = []
    for sample in samples:
        key, text, gold, theirs = sample["doc_id"], sample["resps"][0][0], sample["target"], bool(sample[METRIC])
        if key not in verdicts:
            verdicts[key] = answers.judge(text, gold)
        ours = verdicts[key].correct
        counts.setdefault(sample["filter"], Counter())[OUTCOMES[ours, theirs]] += 1
        if ours != theirs:
            disagreements.append(_disagreement(sample, verdicts[key]))
    return {
        "problems": len(verdicts),
        "ours": sum(verdict.correct for verdict in verdicts.values()) / len(verdicts),
        "filters": {
            name: {
                "lm_eval": (count["both"] + count["only_lm_eval"]) / count.total(),
                **{outcome: count[outcome] for outcome in OUTCOMES.values()},
            }
            for name, count in counts.items()
        },
        "disagreements": disagreements,
    }


def _disagreement(sample: dict[str, Any], verdict: answers.Verdict) -> dict[str, Any]:
    return {
        "doc_id": sample["doc_id"],
        "filter": sample["filter"],
        "gold": sample["target"],
        "text": sample["resps"][0][0],
        "ours": verdict.answer,
        "how": verdict.extracted_by,
        "lm_eval": sample["filtered_resps"][0],
        "accepted_by": "ours" if verdict.correct else "lm_eval",
    }


def _read_samples(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise ValueError(f"rescore: no such file: {file}")
    samples = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line:
            continue
        where = f"rescore: {file}, line {number}"
        sample = parse_object(line, f"{where}, is no sample")
        if missing := SAMPLE.keys() - sample.keys():
            raise ValueError(
                f"{where}, lacks {', '.join(sorted(missing))}; "
                f"expected lm-eval's --log_samples of a task with {METRIC}."
            )
        check_fields(sample, SAMPLE, SAMPLE.keys(), where)
        samples.append(sample)
    if not samples:
        raise ValueError(f"rescore: {file} is empty.")
    return samples

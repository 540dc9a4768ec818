"""An evaluation: ask every problem of a task, judge the answers, report with intervals; to be stopped and resumed."""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from tqdm import tqdm

from cera.evaluation import answers
from cera.evaluation.generation import Backend, Sample, Sampling, check_lengths
from cera.evaluation.pass_at_k import pass_at_k
from cera.evaluation.prompts import Prompt
from cera.evaluation.records import Record, RecordError, Records
from cera.evaluation.statistics import bootstrap
from cera.evaluation.tasks import Problem, Task
from cera.models.generate import encode
from cera.runs.checkpoints import differences, replacing

OUTLAST = timedelta(days=7)
"""How long ranks wait for the last one's problems."""


@dataclass
class Evaluation:
    """What is asked, how, and how it is judged.

    Args:
        task: The problems.
        prompt: How they are asked.
        sampling: How they are answered.
        name: Folder of the results, below the run's ``eval``.
        batch_size: Sequences that are generated at a time.
        pass_at: The k of each pass@k that is reported; at most ``sampling.samples``.

    Raises:
        ValueError: A setting cannot be; the message names it.
    """

    task: Task
    prompt: Prompt = field(default_factory=Prompt)
    sampling: Sampling = field(default_factory=Sampling)
    name: str = "eval"
    batch_size: int = 16
    pass_at: list[int] = field(default_factory=lambda: [1])

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"evaluation.batch_size must be at least 1, got {self.batch_size}.")
        wrong = [k for k in self.pass_at if not 1 <= k <= self.sampling.samples]
        if wrong or not self.pass_at:
            raise ValueError(
                f"evaluation.pass_at must be numbers between 1 and sampling.samples={self.sampling.samples}, "
                f"got {self.pass_at}."
            )

    def settings(self) -> dict[str, Any]:
        """What the samples depend on, as plain data: ``{"task": "GSM8K", "task.limit": 200, ...}``."""
        kinds: dict[str, Any] = {"task": self.task, "prompt": self.prompt, "sampling": self.sampling}
        fields = {f"{name}.{key}": value for name, of in kinds.items() for key, value in dataclasses.asdict(of).items()}
        return {"task": type(self.task).__name__, **fields}


def prepare(
    evaluation: Evaluation, tokenizer: Any, folder: Path, model: dict[str, Any], config: Any
) -> list[tuple[Problem, str]]:
    """The problems with their prompts; finds what can be wrong before a model is loaded.

    Args:
        evaluation: What to ask.
        tokenizer: Of the model; renders the prompts.
        folder: Of the results.
        model: What is evaluated, as plain data: a folder belongs to one model and one evaluation's settings.
        config: The model's, of transformers.

    Raises:
        RecordError: The folder holds an evaluation of another model or with other settings.
        DataError: The task's problems cannot be read.
        ValueError: A prompt is too long for the model.
    """
    file = folder / "settings.json"
    if file.is_file() and (differing := differences(file.read_text(), json.dumps({**model, **evaluation.settings()}))):
        raise RecordError(
            f"{folder} holds another evaluation ({'; '.join(differing)}). Give this one another evaluation.name."
        )
    if not file.is_file() and any(folder.glob("records*.jsonl")):
        raise RecordError(f"{folder} has records, but no settings.json that says of what.")
    asked = [(one, evaluation.prompt.render(one.question, tokenizer)) for one in evaluation.task.problems()]
    check_lengths({one.key: encode(tokenizer, prompt) for one, prompt in asked}, evaluation.sampling, config)
    return asked


def evaluate(
    evaluation: Evaluation,
    asked: Sequence[tuple[Problem, str]],
    load: Callable[[], Backend],
    folder: Path,
    model: dict[str, Any],
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, Any]:
    """Run an evaluation, or go on with one, and write ``records.jsonl`` and ``eval.json`` to ``folder``.

    A problem's record is on disk as soon as it is judged; one that is there is not asked again. Of several ranks (in a
    process group), each asks its share, and the first joins the records.

    Args:
        evaluation: What to ask.
        asked: As ``prepare`` returns it.
        load: Makes what answers prompts; called if something is left to ask.
        folder: Of the results.
        model: As for ``prepare``.
        rank: This process's number, of ``world_size``.

    Returns:
        The report, as in ``eval.json``; empty on other ranks than the first.
    """
    settings = {**model, **evaluation.settings()}
    group = dist.new_group(backend="gloo", timeout=OUTLAST) if world_size > 1 else None
    if rank == 0 and not (folder / "settings.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "settings.json") as unfinished:
            unfinished.write_text(json.dumps(settings, indent=2) + "\n")
    records = Records(folder, rank)
    done = records.finished()
    # by length, so that each rank has its part of the long ones; what is finished does not move the shares
    share = sorted(asked, key=lambda one: -len(one[1]))[rank::world_size]
    left = [(problem, prompt) for problem, prompt in share if problem.key not in done]
    if left:
        earlier = [done[problem.key] for problem, _ in share if problem.key in done]
        _ask(left, earlier, evaluation, load(), records, rank)
    if group is not None:
        dist.barrier(group)
        dist.destroy_process_group(group)
    if rank > 0:
        return {}
    joined = records.join([problem.key for problem, _ in asked])
    report = {**summarize(joined, evaluation.pass_at), "settings": settings}
    with replacing(folder / "eval.json") as file:
        file.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _ask(
    left: Sequence[tuple[Problem, str]],
    earlier: Sequence[Record],
    evaluation: Evaluation,
    backend: Backend,
    records: Records,
    rank: int,
) -> None:
    """Ask what is left of a rank's share, of which ``earlier`` is done; the bar tells how much of it is right."""
    right, last = sum(float(np.mean(record["correct"])) for record in earlier), time.monotonic()
    total = len(earlier) + len(left)
    with tqdm(total=total, initial=len(earlier), desc=evaluation.name, unit="problem", disable=rank > 0) as bar:
        answered = backend.generate([prompt for _, prompt in left], [one.key for one, _ in left], evaluation.sampling)
        for number, (position, samples) in enumerate(answered, start=len(earlier) + 1):
            record = judge(*left[position], samples)
            now = time.monotonic()
            records.append({**record, "seconds": now - last, "time": datetime.now(UTC).isoformat(timespec="seconds")})
            right, last = right + float(np.mean(record["correct"])), now
            bar.set_postfix_str(f"correct {right / number:.1%}", refresh=False)
            bar.update()


def judge(problem: Problem, prompt: str, samples: Sequence[Sample]) -> Record:
    """A problem's record: what was asked and answered, what was taken for the answer, and whether it is right."""
    extracted = [answers.extract(sample.text) for sample in samples]
    return {
        "key": problem.key,
        "groups": problem.groups,
        "prompt": prompt,
        "gold": problem.gold,
        "samples": [sample.text for sample in samples],
        "answers": [found.answer if found else None for found in extracted],
        "how": [found.how if found else None for found in extracted],
        "correct": [answers.is_correct(sample.text, problem.gold) for sample in samples],
        "tokens": [sample.tokens for sample in samples],
        "finished": [sample.finished for sample in samples],
    }


def scores(records: Sequence[Record], k: int) -> np.ndarray:
    """pass@k of each problem, (problems,) fp64 in [0, 1]."""
    n = np.array([len(record["correct"]) for record in records])
    return np.asarray(pass_at_k(n, np.array([sum(record["correct"]) for record in records]), k))


def summarize(records: Sequence[Record], pass_at: Sequence[int]) -> dict[str, Any]:
    """What ``eval.json`` says: pass@k with its interval, over all problems and in each group, and how it came about."""
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        for name, value in record["groups"].items():
            groups.setdefault(name, {}).setdefault(value, []).append(record)
    samples = sum(len(record["samples"]) for record in records)
    return {
        "problems": len(records),
        "samples": samples,
        "metrics": _metrics(records, pass_at),
        "groups": {
            name: {value: {"problems": len(of), **_metrics(of, pass_at)} for value, of in sorted(values.items())}
            for name, values in sorted(groups.items())
        },
        "extracted": dict(Counter(how or "none" for record in records for how in record["how"])),
        "cut_off": sum(not finished for record in records for finished in record["finished"]) / samples,
        "tokens": sum(sum(record["tokens"]) for record in records),
        "seconds": sum(record["seconds"] for record in records),
    }


def _metrics(records: Sequence[Record], pass_at: Sequence[int]) -> dict[str, Any]:
    found = {}
    for k in pass_at:
        of = scores(records, k)
        interval = bootstrap(of)
        found[f"pass@{k}"] = {"value": float(of.mean()), "low": interval.low, "high": interval.high}
    return found


def table(report: dict[str, Any]) -> str:
    """The report as text: a line for all problems and for each group, in percent with 95% intervals."""
    names = list(report["metrics"])
    rows = [("all", report["problems"], report["metrics"])]
    rows += [
        (f"{name} {value}", metrics["problems"], metrics)
        for name, values in report["groups"].items()
        for value, metrics in values.items()
    ]
    width = max(len(label) for label, _, _ in rows)
    lines = [f"{'':<{width}} {'problems':>8}" + "".join(f"  {name + ' (95% interval)':>26}" for name in names)]
    for label, problems, metrics in rows:
        shown = [f"{m['value']:>8.2%} ({m['low']:.2%}, {m['high']:.2%})" for m in (metrics[name] for name in names)]
        lines.append(f"{label:<{width}} {problems:>8}" + "".join(f"  {cell:>26}" for cell in shown))
    how = ", ".join(f"{name} {count}" for name, count in sorted(report["extracted"].items()))
    lines.append(
        f"\nanswers by: {how}; cut off at max_new_tokens: {report['cut_off']:.1%} of {report['samples']} samples"
    )
    return "\n".join(lines)

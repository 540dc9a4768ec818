"""Runs an evaluation: generates answers to every problem of a task, lets the task score them, and writes the results.

An evaluation can be stopped at any time and resumed: what is on disk is not generated again.

    evaluation = Evaluation(GSM8K("test.jsonl"), name="gsm8k")
    prompted = prepare(evaluation, tokenizer, folder, {"base": name}, model.config)
    report = evaluate(evaluation, prompted, lambda: TransformersBackend(model, tokenizer, 16), folder, {"base": name})
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from cera.evaluation.fields import WHOLE_RECORD, RecordError
from cera.evaluation.generation import Backend, Sample, Sampling, check_lengths
from cera.evaluation.prompts import Prompt
from cera.evaluation.records import Record, Records
from cera.evaluation.report import build_report
from cera.evaluation.tasks import Problem, Task
from cera.foreign_files import read_json_object
from cera.models.generate import encode, max_positions
from cera.progress import StatusBar
from cera.runs.added import without_added
from cera.runs.checkpoints import differences
from cera.runs.files import replacing
from cera.runs.lock import DirectoryInUse, DirectoryLock
from cera.runs.names import check_name

OUTLAST = timedelta(days=7)
"""How long ranks wait for the last one to finish its problems."""

PromptedProblem = tuple[Problem, str]
"""A problem and its rendered prompt."""


@dataclass
class Evaluation:
    """The settings of an evaluation.

    Args:
        task: The problems, and how their answers are scored.
        prompt: How the problems are posed.
        sampling: How answers are generated.
        name: Name of the results' folder below the run's ``eval``.
        batch_size: Number of sequences that are generated at a time.
        pass_at: The k of each pass@k to report; at most ``sampling.samples``.

    Raises:
        ValueError: A setting is out of its range; the message names it.
    """

    task: Task
    prompt: Prompt = field(default_factory=Prompt)
    sampling: Sampling = field(default_factory=Sampling)
    name: str = "eval"
    batch_size: int = 16
    pass_at: list[int] = field(default_factory=lambda: [1])

    def __post_init__(self) -> None:
        check_name(self.name, "evaluation.name")
        if self.batch_size < 1:
            raise ValueError(f"evaluation.batch_size must be at least 1, got {self.batch_size}.")
        wrong = [k for k in self.pass_at if not 1 <= k <= self.sampling.samples]
        if wrong or not self.pass_at:
            raise ValueError(
                f"evaluation.pass_at must be numbers between 1 and sampling.samples={self.sampling.samples}, "
                f"got {self.pass_at}."
            )

    def settings(self) -> dict[str, Any]:
        """Return all that the samples depend on, as JSON values: ``{"task": "GSM8K", "task.limit": 200, ...}``."""
        parts: dict[str, Any] = {"task": self.task, "prompt": self.prompt, "sampling": self.sampling}
        settings: dict[str, Any] = {"task": type(self.task).__name__}
        for name, part in parts.items():
            values = dataclasses.asdict(part, dict_factory=without_added)
            settings |= {f"{name}.{key}": value for key, value in values.items()}
        return settings


def prepare(
    evaluation: Evaluation, tokenizer: Any, folder: Path, model: dict[str, Any], config: Any
) -> list[PromptedProblem]:
    """Render the prompts of all problems, and find mistakes before a model is loaded.

    Args:
        evaluation: The settings.
        tokenizer: The model's tokenizer, which renders the prompts.
        folder: Where the results go. A folder belongs to one model and one evaluation's settings.
        model: What identifies the model, as JSON values.
        config: The model's transformers configuration.

    Raises:
        RecordError: The folder holds an evaluation of another model, with other settings or of other problems, or one
            of its files is broken.
        DataError: The task's problems cannot be read.
        ValueError: A prompt is too long for the model.
    """
    _check_settings(folder, {**model, **evaluation.settings()})
    prompted = [
        (problem, evaluation.prompt.render(problem.question, tokenizer)) for problem in evaluation.task.problems()
    ]
    _check_records(folder, prompted, evaluation.sampling.samples)
    token_ids = {problem.key: encode(tokenizer, prompt, max_positions(config)) for problem, prompt in prompted}
    check_lengths(token_ids, evaluation.sampling, config)
    return prompted


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raise ``RecordError`` if the folder holds an evaluation with other settings."""
    file = folder / "settings.json"
    if not file.is_file():
        if any(folder.glob("records*.jsonl")):
            raise RecordError(f"{folder} has records, but no settings.json that says of what.")
        return
    if differing := differences(json.dumps(read_json_object(file)), json.dumps(settings)):
        raise RecordError(
            f"{folder} holds another evaluation ({'; '.join(differing)}). Give this one another evaluation.name."
        )


def _check_records(folder: Path, prompted: Sequence[PromptedProblem], samples: int) -> None:
    """Raise ``RecordError`` if a record in the folder is broken, or of another problem than those of the task."""
    expected = {problem.key: (prompt, problem.gold) for problem, prompt in prompted}
    for key, record in Records(folder).finished(WHOLE_RECORD).items():
        if expected.get(key) != (record["prompt"], record["gold"]):
            what = "another prompt or gold answer" if key in expected else "a problem that the task does not have"
            raise RecordError(f"{folder}: the record {key!r} is of {what}. Give this evaluation another name.")
        if len(record["samples"]) != samples:
            raise RecordError(f"{folder}: the record {key!r} has {len(record['samples'])} samples, not {samples}.")


def evaluate(
    evaluation: Evaluation,
    prompted: Sequence[PromptedProblem],
    load: Callable[[], Backend],
    folder: Path,
    model: dict[str, Any],
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, Any]:
    """Run or resume an evaluation, and write ``records.jsonl``, ``eval.json`` and the task's figures to ``folder``.

    The record of a problem is on disk as soon as it is scored; a problem with a record is skipped. With several ranks
    (in a process group), each evaluates its share, and the first rank joins the records. A folder has one evaluation at
    a time.

    Args:
        evaluation: The settings.
        prompted: The result of ``prepare``.
        load: Returns the backend that generates answers; called only if a problem is left.
        folder: Where the results go.
        model: What identifies the model, as for ``prepare``.
        rank: The number of this process, out of ``world_size``.

    Returns:
        The report, as in ``eval.json``; empty on other ranks than the first.

    Raises:
        DirectoryInUse: Another process evaluates into the folder.
    """
    group = dist.new_group(backend="gloo", timeout=OUTLAST) if world_size > 1 else None
    with _one_writer(folder, rank, group):
        settings = {**model, **evaluation.settings()}
        if rank == 0 and not (folder / "settings.json").is_file():
            with replacing(folder / "settings.json") as unfinished:
                unfinished.write_text(json.dumps(settings, indent=2) + "\n")
        _answer_share(evaluation, prompted, load, Records(folder, rank), rank, world_size)
        if group is not None:
            dist.barrier(group)
            dist.destroy_process_group(group)
        return _write_report(evaluation, prompted, folder, settings) if rank == 0 else {}


@contextmanager
def _one_writer(folder: Path, rank: int, group: Any) -> Iterator[None]:
    """Hold the folder's lock on the first rank; raise ``DirectoryInUse`` on all ranks if another process holds it."""
    lock, refusals = DirectoryLock(folder), [""]
    if rank == 0:
        try:
            lock.acquire()
        except DirectoryInUse as error:
            refusals = [str(error)]
    if group is not None:
        dist.broadcast_object_list(refusals, 0, group)
    if refusals[0]:
        raise DirectoryInUse(refusals[0])
    try:
        yield
    finally:
        lock.release()


def _answer_share(
    evaluation: Evaluation,
    prompted: Sequence[PromptedProblem],
    load: Callable[[], Backend],
    records: Records,
    rank: int,
    world_size: int,
) -> None:
    """Answer and score the problems of a rank's share that have no record."""
    finished = records.finished()
    # sorted by length, so that each rank gets its part of the long prompts; finished problems do not move the shares
    share = sorted(prompted, key=lambda pair: -len(pair[1]))[rank::world_size]
    left = [(problem, prompt) for problem, prompt in share if problem.key not in finished]
    if left:
        earlier = [finished[problem.key] for problem, _ in share if problem.key in finished]
        _generate_and_score(left, earlier, evaluation, load(), records, rank)


def _write_report(
    evaluation: Evaluation, prompted: Sequence[PromptedProblem], folder: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """Join the records, write the report and the task's figures, and return the report."""
    joined = Records(folder).join([problem.key for problem, _ in prompted])
    report = {**build_report(joined, evaluation.task, evaluation.pass_at), "settings": settings}
    for name, figure in evaluation.task.figures(joined).items():
        figure.savefig(folder / f"{name}.png")
    with replacing(folder / "eval.json") as file:
        file.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _generate_and_score(
    left: Sequence[PromptedProblem],
    earlier: Sequence[Record],
    evaluation: Evaluation,
    backend: Backend,
    records: Records,
    rank: int,
) -> None:
    """Work through the problems that are left of a rank's share; the progress bar counts the ``earlier`` ones too."""
    correct, last = sum(float(np.mean(record["correct"])) for record in earlier), time.monotonic()
    total = len(earlier) + len(left)
    prompts, keys = [prompt for _, prompt in left], [problem.key for problem, _ in left]
    with StatusBar(None, evaluation.name, "problem", total=total, initial=len(earlier), disable=rank > 0) as bar:
        generated = backend.generate(prompts, keys, evaluation.sampling)
        for number, (position, samples) in enumerate(generated, start=len(earlier) + 1):
            record = score_samples(evaluation.task, *left[position], samples)
            now = time.monotonic()
            records.append({**record, "seconds": now - last, "time": datetime.now(UTC).isoformat(timespec="seconds")})
            correct, last = correct + float(np.mean(record["correct"])), now
            bar.set_postfix_str(f"correct {correct / number:.1%}", refresh=False)
            bar.update()


def score_samples(task: Task, problem: Problem, prompt: str, samples: Sequence[Sample]) -> Record:
    """Return the record of a problem: its prompt, the samples, and the task's score of each."""
    scores = [task.score(sample.text, problem) for sample in samples]
    record: Record = {
        "key": problem.key,
        "groups": problem.groups,
        "prompt": prompt,
        "gold": problem.gold,
        "samples": [sample.text for sample in samples],
        "answers": [score.answer for score in scores],
        "how": [score.extracted_by for score in scores],
        "correct": [score.correct for score in scores],
        "tokens": [sample.tokens for sample in samples],
        "finished": [sample.finished for sample in samples],
    }
    if any(score.details for score in scores):
        record["details"] = [score.details for score in scores]
    return record

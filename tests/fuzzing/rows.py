"""Rows of data files: each becomes a document or a problem, or is refused in one line."""

import json
import random
from pathlib import Path
from typing import Any

from cera.data import ChatDataset, DataError, GSM8KSolutions, MathInstruct, SlimOrca
from cera.data.chat import ChatEncoder
from cera.evaluation.evaluate import score_samples
from cera.evaluation.fields import RECORD, WHOLE_RECORD, check_fields, parse_object
from cera.evaluation.generation import Sample
from cera.evaluation.prompts import Prompt
from cera.evaluation.tasks import GSM8K, MATH, MATH500, Chats, GSMSymbolic, Task
from cera.models.backbone import load_tokenizer
from cera.models.generate import encode
from fuzzing.texts import fuzzed_text, fuzzed_value

COLUMNS = [
    "question", "answer", "problem", "solution", "level", "subject", "type", "unique_id", "messages", "conversations",
    "instruction", "output", "source",
]  # fmt: skip
DATASETS = (ChatDataset, SlimOrca, MathInstruct, GSM8KSolutions)
BENCHMARKS = (GSM8K, GSMSymbolic, MATH, MATH500)


class Rows:
    """Writes a random line to a file, and reads it as a training set or as an evaluation task does.

    Args:
        base: A base model, whose tokenizer renders what is read.
        folder: Where the file is written.
    """

    longest_seconds = 10.0

    def __init__(self, base: str, folder: Path) -> None:
        self.tokenizer = load_tokenizer(base)
        self.encoder = ChatEncoder(self.tokenizer, 512)
        self.folder = folder

    def __call__(self, rng: random.Random) -> str:
        """Read a random row; return the error that it ends in, or an empty text."""
        line = fuzzed_row(rng)
        if rng.random() < 0.5:
            return self._train(rng.choice(DATASETS), line)
        kind = rng.choice((*BENCHMARKS, Chats))
        return self._evaluate(kind, line, fuzzed_text(rng))

    def _train(self, kind: type[ChatDataset], line: str) -> str:
        file = self.folder / "rows.jsonl"
        file.write_text(line + "\n", errors="surrogatepass")
        dataset = kind(data_files=str(file))
        try:
            dataset.check()
        except DataError as error:
            return str(error)
        problems = []
        for raw in dataset.load(streaming=True):
            try:
                messages = dataset.parse(raw)
                document = self.encoder(messages) if messages is not None else None
            except ValueError as error:  # which the stream counts, and reports with the row's number
                problems.append(str(error))
                continue
            assert document is None or 0 < document.n_labels < len(document) <= 512
        return problems[0] if problems else ""

    def _evaluate(self, kind: type[Any], line: str, answer: str) -> str:
        source = ChatDataset("a.jsonl") if kind is Chats else kind("a.jsonl")
        task: Task = Chats(dataset=source) if kind is Chats else source
        source.load = lambda streaming=None: [{"text": line}]
        try:
            [problem] = task.problems()
        except DataError as error:
            return str(error)
        prompt = Prompt().render(problem.question, self.tokenizer)
        assert encode(self.tokenizer, prompt, 8192)
        record = score_samples(task, problem, prompt, [Sample(answer, 1, True)])
        check_fields(parse_object(json.dumps(record), ""), RECORD, {*WHOLE_RECORD} - {"seconds"}, "record")
        return ""


def fuzzed_row(rng: random.Random) -> str:
    """Return a line of a file of problems: an object with some columns of the tasks, something else, or half a line."""
    row = {column: fuzzed_value(rng) for column in rng.sample(COLUMNS, k=rng.randrange(len(COLUMNS) + 1))}
    if rng.random() < 0.7:
        row |= {
            "question": fuzzed_text(rng),
            "problem": fuzzed_text(rng),
            "answer": rng.choice(["5", 5, fuzzed_text(rng)]),
            "solution": fuzzed_text(rng) + rng.choice(["", r"\boxed{7}"]),
            "instruction": fuzzed_text(rng),
            "output": fuzzed_text(rng),
            "source": rng.choice(["data/CoT/x.json", "data/PoT/x.json", "", fuzzed_text(rng)]),
        }
        turns = [(role, fuzzed_text(rng)) for role in ("system", "user", "assistant", "user", "assistant")]
        turns = turns[rng.randrange(2) : rng.choice([3, 5])]
        row["messages"] = [{"role": role, "content": content} for role, content in turns]
        row["conversations"] = [{"from": role, "value": content} for role, content in turns]
    elif rng.random() < 0.3:
        row["messages"] = [{"role": role, "content": fuzzed_value(rng)} for role in ("user", "assistant")]
    line = json.dumps(row)
    kind = rng.randrange(15)
    if kind == 0:
        return line[: rng.randrange(len(line) + 1)]
    if kind == 1:
        return rng.choice(["[" * 100_000, "null", "7", '"text"', "[]", "{" * 2000, "\ufffd", " "])
    return line

"""Records, reports and samples of others: whatever is wrong with one is one line that names the file and the field."""

import json
import random

import pytest
from transformers import LlamaConfig

from cera.evaluation import compare_command, lm_eval_command
from cera.evaluation.evaluate import Evaluation, evaluate, prepare
from cera.evaluation.fields import RECORD, WHOLE_RECORD, RecordError
from cera.evaluation.generation import Sample, Sampling
from cera.evaluation.records import read
from cera.evaluation.report import build_report
from cera.evaluation.tasks import MATH, LogisticMap
from cera.runs.lock import DirectoryInUse

ROWS = [{"problem": f"{i} + {i}?", "answer": str(2 * i), "level": 1 + i % 2} for i in range(4)]
MODEL = {"base": "b"}
ABSENT = object()


class Fours:
    """A backend that answers "4" to everything; ``during`` is called before its last answer."""

    def __init__(self, during=lambda: None):
        self.during = during

    def generate(self, prompts, keys, sampling):
        for position in range(len(prompts)):
            if position == len(prompts) - 1:
                self.during()
            yield position, [Sample("4", 1, True)] * sampling.samples


def run(evaluation, tokenizer, folder, backend=None):
    prompted = prepare(evaluation, tokenizer, folder, MODEL, LlamaConfig())
    return evaluate(evaluation, prompted, lambda: backend or Fours(), folder, MODEL)


@pytest.fixture
def evaluation(tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return Evaluation(MATH(str(file)))


@pytest.fixture
def results(evaluation, tokenizer, tmp_path):
    """The folder of a finished evaluation."""
    run(evaluation, tokenizer, tmp_path / "results")
    return tmp_path / "results"


def change(file, field, value, line=1):
    """Set a field of a JSON object, or of one line of JSON lines; remove it if the value is ``ABSENT``."""
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    content = json.loads(lines[line - 1])
    if value is ABSENT:
        del content[field]
    else:
        content[field] = value
    lines[line - 1] = json.dumps(content)
    file.write_text("\n".join(lines) + "\n")


def fails(main, arguments, capsys):
    """Return the one line with which a command refuses its arguments."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed


WRONG = {
    "key": [ABSENT, 7, None],
    "groups": [ABSENT, [], {"level": 1}],
    "prompt": [ABSENT, None],
    "gold": [ABSENT, 4, float("nan")],
    "samples": [ABSENT, "4", [], [None], ["4", "4"]],
    "answers": [ABSENT, [4], {}],
    "how": [ABSENT, [[]], "boxed"],
    "correct": [ABSENT, True, ["yes"], [1.5], [-1], [float("nan")], [float("inf")], [10**400], [[True]]],
    "tokens": [ABSENT, [-1], [1.5], [True], ["1"]],
    "finished": [ABSENT, [1], [None], [True, True]],
    "seconds": [ABSENT, "1", -1, float("nan"), True],
    "details": ["none", [1], [None]],
}


@pytest.mark.parametrize("field", RECORD)
def test_a_wrong_field_of_a_record_is_named_on_resuming(field, evaluation, results, tokenizer):
    records = (results / "records.jsonl").read_text()
    for value in WRONG[field]:
        (results / "records.jsonl").write_text(records)
        change(results / "records.jsonl", field, value, line=2)
        with pytest.raises(RecordError, match=rf"records\.jsonl, line 2: .*\b{field}|NaN|Infinity") as raised:
            run(evaluation, tokenizer, results)
        assert "\n" not in str(raised.value)
    assert {*WRONG} == {*RECORD} == {*WHOLE_RECORD, "details"}


BROKEN_LINES = [
    b"{}\n",
    b"[1]\n",
    b"null\n",
    b'{"key"\n',
    b"\xff\xfe\n",
    b"[" * 100_000 + b"\n",
    b"7" * 5000 + b"\n",
]


@pytest.mark.parametrize("line", BROKEN_LINES, ids=range(len(BROKEN_LINES)))
def test_a_broken_line_is_named_by_every_reader(line, evaluation, results, tokenizer, tmp_path, capsys):
    whole = (results / "records.jsonl").read_bytes()
    (results / "records.jsonl").write_bytes(whole + line)
    with pytest.raises(RecordError, match=r"records\.jsonl, line 5"):
        run(evaluation, tokenizer, results)
    assert "records.jsonl, line 5" in fails(compare_command.main, [results, results], capsys)
    samples = tmp_path / "samples.jsonl"
    samples.write_bytes(line.strip() + b"\n" if line.strip() else b"null\n")
    assert "samples.jsonl" in fails(lm_eval_command.main, ["rescore", samples], capsys)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metrics", ABSENT),
        ("metrics", {}),
        ("metrics", [1]),
        ("metrics", {"pass@1": 0.5}),
        ("metrics", {"pass@1": {"value": "high", "low": 0, "high": 1}}),
        ("metrics", {"pass@1": {"value": float("nan"), "low": 0, "high": 1}}),
        ("metrics", {"pass@x": {"value": 0, "low": 0, "high": 1}}),
        ("metrics", {"pass@10": {"value": 0, "low": 0, "high": 1}}),
        ("settings", ABSENT),
        ("settings", "none"),
    ],
)
def test_a_wrong_report_is_named(field, value, results, capsys):
    change(results / "eval.json", field, value)
    printed = fails(compare_command.main, [results, results], capsys)
    assert "eval.json" in printed
    assert any(name in printed for name in (field, "metric", "NaN", "pass@10"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"null"])
@pytest.mark.parametrize("name", ["eval.json", "settings.json"])
def test_a_broken_file_is_named(name, content, evaluation, results, tokenizer, capsys):
    (results / name).write_bytes(content)
    if name == "eval.json":
        assert "eval.json" in fails(compare_command.main, [results, results], capsys)
    else:
        with pytest.raises(ValueError, match=r"settings\.json"):
            run(evaluation, tokenizer, results)


def test_results_without_records_or_of_other_metrics_are_named(evaluation, results, tokenizer, tmp_path, capsys):
    two = Evaluation(evaluation.task, sampling=Sampling(samples=2, temperature=1.0), pass_at=[2])
    run(two, tokenizer, tmp_path / "two")
    assert "no metric in common" in fails(compare_command.main, [results, tmp_path / "two"], capsys)
    (results / "records.jsonl").write_text("")
    assert "has no records" in fails(compare_command.main, [results, results], capsys)
    (results / "records.jsonl").unlink()
    assert "records.jsonl" in fails(compare_command.main, [results, results], capsys)


def test_records_of_other_problems_are_not_taken_for_those_of_the_task(evaluation, results, tokenizer):
    with open(evaluation.task.data_files, "w") as file:  # the file was replaced since
        file.writelines(json.dumps({**row, "answer": "9"}) + "\n" for row in ROWS)
    with pytest.raises(RecordError, match=r"'math/0' is of another prompt or gold answer"):
        run(evaluation, tokenizer, results)
    with open(evaluation.task.data_files, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS[:3])
    with pytest.raises(RecordError, match=r"'math/3' is of a problem that the task does not have"):
        run(evaluation, tokenizer, results)
    assert len(read(results / "records.jsonl")) == 4


@pytest.mark.parametrize(
    "details",
    [ABSENT, [{}], [{"score": {}}], {"values": ["a"]}, {"problem": {"r": "a"}}, {"score": {"steps": "a"}}],
)
def test_details_of_another_task_are_named(details, tokenizer):
    task = LogisticMap(size=2, steps=2)
    problem = task.problems()[0]
    score = task.score(problem.gold, problem)
    record = {"key": problem.key, "details": [score.details], "correct": [True]}
    if details is ABSENT:
        del record["details"]
    else:
        record["details"] = details if isinstance(details, list) else [{**score.details, **details}]
    for read_details in (task.summarize, task.figures):
        with pytest.raises(RecordError, match=rf"the record '{problem.key}'.*(details|score|values|problem)"):
            read_details([record])


SAMPLE = {
    "doc_id": 0, "target": "#### 4", "resps": [["4"]], "filtered_resps": ["4"], "filter": "strict", "exact_match": 1.0
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("doc_id", [0]),
        ("target", None),
        ("resps", []),
        ("resps", [[]]),
        ("resps", ["4"]),
        ("resps", [[4]]),
        ("filtered_resps", []),
        ("filter", None),
        ("exact_match", "yes"),
        ("exact_match", float("nan")),
    ],
)
def test_a_wrong_field_of_a_sample_is_named(field, value, tmp_path, capsys):
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps(SAMPLE) + "\n" + json.dumps({**SAMPLE, field: value}) + "\n")
    printed = fails(lm_eval_command.main, ["rescore", file], capsys)
    assert "samples.jsonl, line 2" in printed
    assert field in printed or "NaN" in printed


def test_one_evaluation_at_a_time_writes_to_a_folder(evaluation, tokenizer, tmp_path):
    refused = []

    def second():
        before = sorted((file.name, file.read_bytes()) for file in (tmp_path / "results").iterdir())
        with pytest.raises(DirectoryInUse, match="results is in use by process"):
            run(evaluation, tokenizer, tmp_path / "results")
        refused.append(before == sorted((file.name, file.read_bytes()) for file in (tmp_path / "results").iterdir()))

    report = run(evaluation, tokenizer, tmp_path / "results", Fours(second))
    assert refused == [True]
    assert report["problems"] == len(read(tmp_path / "results" / "records.jsonl")) == 4
    assert run(evaluation, tokenizer, tmp_path / "results") == report  # the lock is free again


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Return a file with some bytes changed, lines repeated or removed, or a JSON value replaced."""
    kind = rng.randrange(4)
    if kind == 0:
        position = rng.randrange(len(content))
        return content[:position] + rng.randbytes(rng.randrange(1, 4)) + content[position + rng.randrange(9) :]
    if kind == 1:
        lines = content.splitlines(keepends=True)
        return b"".join(rng.choices(lines, k=rng.randrange(len(lines) + 2)))
    values = ["null", "NaN", "-1", "1e999", '"x"', "[]", "{}", "true", "[" * 2000, '"\\ud800"', "9" * 400]
    pieces = content.decode().split(":")
    position = rng.randrange(1, len(pieces))
    pieces[position] = ",".join([rng.choice(values), *pieces[position].split(",")[1:]])
    return ":".join(pieces).encode(errors="surrogatepass")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_no_change_to_results_ends_in_a_traceback(seed, evaluation, results, tokenizer, capsys):
    rng = random.Random(seed)
    names = ("records.jsonl", "eval.json", "settings.json")
    whole = {name: (results / name).read_bytes() for name in names}
    outcomes, messages = set(), []
    for _ in range(60):
        for name, content in whole.items():
            (results / name).write_bytes(content)
        name = rng.choice(names)
        (results / name).write_bytes(mutated(whole[name], rng))
        outcomes.add(compare_command.main([str(results), str(results)]))
        try:
            run(evaluation, tokenizer, results)
        except ValueError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)
    assert outcomes == {0, 2}
    assert "Traceback" not in capsys.readouterr().err


def test_a_report_of_checked_records_is_finite(evaluation, results):
    report = build_report(read(results / "records.jsonl", WHOLE_RECORD), evaluation.task, [1])
    json.dumps(report, allow_nan=False)

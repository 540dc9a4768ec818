"""An evaluation from end to end: judged, grouped, stopped and resumed, on several ranks, refused where it must be."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest
import torch
from command_line import command, environment, run, run_here
from conftest import REPOSITORY
from peft import get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

import cera
from cera.callbacks import TaskEvaluation
from cera.cli.evaluation_table import evaluation_table
from cera.evaluation import command as command_module
from cera.evaluation import compare_command
from cera.evaluation.command import main
from cera.evaluation.evaluate import Evaluation, evaluate, prepare
from cera.evaluation.generation import Sample, Sampling
from cera.evaluation.records import RecordError, read
from cera.evaluation.tasks import GSM8K, MATH
from cera.training.module import CausalLM

ROWS = [{"problem": f"{i} + {i}?", "answer": str(2 * i), "level": 1 + i % 2, "subject": "Algebra"} for i in range(8)]


@dataclass
class Scripted:
    """A backend that answers from a list: what to say to each prompt that contains a key of it."""

    says: dict[str, list[str]]
    prompted: list[str] = field(default_factory=list)

    def generate(self, prompts, keys, sampling):
        for position, prompt in reversed(list(enumerate(prompts))):
            question = next(q for q in self.says if q in prompt)
            self.prompted.append(question)
            yield position, [Sample(text, len(text), True) for text in self.says[question]]


@pytest.fixture
def problems(tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(file)


def ask(evaluation, backend, tokenizer, folder, model=None):
    about = model or {"base": "b"}
    prompted = prepare(evaluation, tokenizer, folder, about, LlamaConfig())
    return evaluate(evaluation, prompted, lambda: backend, folder, about)


def test_judged_and_grouped(problems, tokenizer, tmp_path):
    # of two samples: both right for 0..3, one for 4 and 5, none for 6 and 7
    says = {}
    for i, row in enumerate(ROWS):
        right, wrong = rf"so \boxed{{{2 * i}}}", "I think the answer is 1001."
        says[row["problem"]] = [right if i < 6 else wrong, right if i < 4 else wrong]
    evaluation = Evaluation(MATH(problems), sampling=Sampling(samples=2, temperature=1.0), name="test", pass_at=[1, 2])
    report = ask(evaluation, Scripted(says), tokenizer, tmp_path / "eval")
    assert report["metrics"]["pass@1"]["value"] == pytest.approx(5 / 8)
    assert report["metrics"]["pass@2"]["value"] == pytest.approx(6 / 8)
    assert report["metrics"]["pass@1"]["low"] < 5 / 8 < report["metrics"]["pass@1"]["high"]
    assert report["groups"]["level"]["1"]["pass@2"]["value"] == pytest.approx(3 / 4)
    assert report["groups"]["level"]["1"]["problems"] == 4
    assert report["extracted"] == {"boxed": 10, "phrase": 6}
    assert json.loads((tmp_path / "eval" / "eval.json").read_text()) == report

    records = read(tmp_path / "eval" / "records.jsonl")
    assert [record["key"] for record in records] == [f"math/{i}" for i in range(8)]
    assert [record["correct"] for record in records] == [[True] * 2] * 4 + [[True, False]] * 2 + [[False] * 2] * 2
    assert records[7]["answers"] == ["1001", "1001"]
    assert ROWS[7]["problem"] in records[7]["prompt"]
    assert records[7]["seconds"] >= 0
    shown = evaluation_table(report)
    assert "62.50%" in shown
    assert "level 2" in shown
    assert "subject Algebra" in shown


def test_what_is_finished_is_not_asked_again(problems, tokenizer, tmp_path):
    says = {row["problem"]: ["The answer is 4."] for row in ROWS}
    evaluation = Evaluation(MATH(problems))

    class Dying(Scripted):
        def generate(self, prompts, keys, sampling):
            for number, answer in enumerate(super().generate(prompts, keys, sampling)):
                if number == 3:
                    raise MemoryError
                yield answer

    first, second = Dying(says), Scripted(says)
    with pytest.raises(MemoryError):
        ask(evaluation, first, tokenizer, tmp_path / "eval")
    ask(evaluation, second, tokenizer, tmp_path / "eval")
    assert set(second.prompted) == set(says) - set(first.prompted[:3])

    def load():
        raise AssertionError("nothing is left to ask, so no model is needed")

    evaluation, folder, about = Evaluation(MATH(problems), batch_size=3), tmp_path / "eval", {"base": "b"}
    report = evaluate(evaluation, prepare(evaluation, tokenizer, folder, about, LlamaConfig()), load, folder, about)
    assert report["metrics"]["pass@1"]["value"] == pytest.approx(1 / 8)


@pytest.mark.parametrize(
    ("evaluation", "model", "named"),
    [
        ({"sampling": Sampling(max_new_tokens=7)}, {}, "sampling.max_new_tokens: 512 there, 7 here"),
        ({}, {"base": "other"}, "base: b there, other here"),
    ],
)
def test_a_folder_belongs_to_one_evaluation(problems, tokenizer, tmp_path, evaluation, model, named):
    says = {row["problem"]: ["4"] for row in ROWS}
    ask(Evaluation(MATH(problems)), Scripted(says), tokenizer, tmp_path / "eval")
    with pytest.raises(RecordError, match=named):
        ask(Evaluation(MATH(problems), **evaluation), Scripted(says), tokenizer, tmp_path / "eval", model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "evaluation.batch_size"),
        ({"pass_at": [1, 2]}, r"evaluation.pass_at must be numbers between 1 and sampling.samples=1, got \[1, 2\]"),
        ({"pass_at": []}, "evaluation.pass_at"),
    ],
)
def test_mistakes_are_named(problems, settings, message):
    with pytest.raises(ValueError, match=message):
        Evaluation(MATH(problems), **settings)


# The command


@pytest.fixture(scope="module")
def adapter(tiny_llama, tmp_path_factory):
    """A CeRA adapter that changes what the tiny Llama says."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model = get_peft_model(base, cera.CeraConfig(r=8, init_weights=False, scaling=8.0, task_type="CAUSAL_LM"))
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def given(problems, *more):
    return [
        "--config=configs/eval_math.yaml", f"--evaluation.task.init_args.data_files={problems}",
        "--evaluation.sampling.max_new_tokens=12", "--dtype=float32", *map(str, more),
    ]  # fmt: skip


def test_an_adapter_and_its_base(problems, adapter, tiny_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert main(given(problems, f"--adapter={adapter}", f"--out={tmp_path / 'a'}")) == 0
    assert main(given(problems, f"--base={tiny_llama}", f"--out={tmp_path / 'b'}")) == 0
    ours, theirs = (read(tmp_path / name / "eval" / "math" / "records.jsonl") for name in "ab")
    assert [r["prompt"] for r in ours] == [r["prompt"] for r in theirs]
    assert [r["samples"] for r in ours] != [r["samples"] for r in theirs]
    assert "pass@1" in capsys.readouterr().out
    assert compare_command.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "math" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--adapter (a run or an adapter directory) or --base"),
        (["--adapter=nowhere"], "nowhere holds neither a run nor an adapter"),
        (["--base=nowhere", "--evaluation.task.init_args.limit=0"], "task.limit must be at least 1, got 0"),
        (["--base=nowhere", "--evaluation.sampling.temperature=-1"], "sampling.temperature"),
        (["--base=nowhere", "--evaluation.prompt.question=what"], "prompt.question"),
        (["--base=nowhere", "--evaluation.task=cera.evaluation.tasks.GSM8K"], "expects question and answer"),
        (["--base=nowhere", "--evaluation.tusk=1"], "tusk"),
    ],
)
def test_mistakes_end_with_one_error(problems, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert main(given(problems, *arguments)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed


def test_results_of_the_code_before_the_rooms_are_taken_as_they_are(tmp_path, monkeypatch, capsys):
    """tests/fixtures/earlier/README.md says which code wrote them."""
    run_dir = tmp_path / "run"
    shutil.copytree(REPOSITORY / "tests" / "fixtures" / "earlier" / "cera_whole", run_dir)
    folder = run_dir / "eval" / "smol"
    before, report = (folder / "records.jsonl").read_bytes(), json.loads((folder / "eval.json").read_text())
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(command_module, "_load_model", lambda *_: pytest.fail("a model is loaded"))
    arguments = [
        "--config=configs/eval_smol.yaml", "--evaluation.task.init_args.limit=3",
        "--evaluation.sampling.max_new_tokens=8", "--dtype=float32", f"--adapter={run_dir}",
    ]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    assert (folder / "records.jsonl").read_bytes() == before
    again = json.loads((folder / "eval.json").read_text())
    assert again.pop("metrics")["pass@1"] == pytest.approx(report.pop("metrics")["pass@1"], rel=1e-12)
    assert again == report | {"loops": 0.0}  # counted since then


def evaluation_command(problems, tiny_llama, out, *launcher):
    return [
        sys.executable, *launcher, "-m", "cera", "evaluate",
        *given(problems, f"--base={tiny_llama}", f"--out={out}", "--evaluation.batch_size=1"),
    ]  # fmt: skip


def test_two_ranks_say_what_one_says(problems, tiny_llama, tmp_path):
    run(evaluation_command(problems, tiny_llama, tmp_path / "one"))
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    run(evaluation_command(problems, tiny_llama, tmp_path / "two", *torchrun))
    single, two = (read(tmp_path / name / "eval" / "math" / "records.jsonl") for name in ("one", "two"))
    assert [r["key"] for r in two] == [f"math/{i}" for i in range(8)]
    assert [r["samples"] for r in single] == [r["samples"] for r in two]
    assert not list((tmp_path / "two" / "eval" / "math").glob("records-*"))


def test_killed_and_resumed(problems, tiny_llama, tmp_path):
    arguments = [
        *evaluation_command(problems, tiny_llama, tmp_path / "killed"), "--evaluation.sampling.max_new_tokens=60"
    ]  # fmt: skip
    records = tmp_path / "killed" / "eval" / "math" / "records-0.jsonl"
    process = subprocess.Popen(arguments, cwd=REPOSITORY, env=environment(), stderr=subprocess.DEVNULL)
    end = time.monotonic() + 200
    while not (records.is_file() and records.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = read(records)
    assert 2 <= len(before) < 8
    run(arguments)
    after = {r["key"]: r for r in read(records.parent / "records.jsonl")}
    assert len(after) == 8
    assert all(after[r["key"]] == r for r in before)


def test_train_py_test_asks_too(problems, tiny_llama, tmp_path, monkeypatch, capsys):
    fit = command(tiny_llama, tmp_path, "--trainer.max_steps=2", "--trainer.limit_val_batches=1")
    run(fit)
    prompted = [
        "--config=configs/eval_math.yaml", f"--evaluation.task.init_args.data_files={problems}",
        "--evaluation.sampling.max_new_tokens=12", "--ckpt_path=last",
    ]  # fmt: skip
    moved, before = [], []
    to_cpu = CausalLM.cpu
    monkeypatch.setattr(CausalLM, "cpu", lambda self: moved.append(True) or to_cpu(self))
    judged = TaskEvaluation.on_test_end
    monkeypatch.setattr(TaskEvaluation, "on_test_end", lambda *args: before.append(not moved) or judged(*args))
    test = [*fit[:2], "test", *fit[2:], *prompted]
    status, printed = run_here(monkeypatch, capsys, test)
    assert status == 0, printed
    assert "pass@1" in printed
    assert before == [True]  # a GPU's model is still on the GPU
    for override, message in (
        ("sampling.max_new_tokens=13", "sampling.max_new_tokens: 12 there, 13 here"),
        ("name=new --evaluation.sampling.max_new_tokens=100000", "leaves no room for"),
    ):
        status, printed = run_here(monkeypatch, capsys, [*test, *f"--evaluation.{override}".split()])
        assert status == 2
        assert message in printed
        assert "Loading weights" not in printed
    tested = read(tmp_path / "test" / "eval" / "math" / "records.jsonl")
    assert main(given(problems, f"--adapter={tmp_path / 'test'}", "--evaluation.name=again")) == 0
    again = read(tmp_path / "test" / "eval" / "again" / "records.jsonl")
    assert [r["samples"] for r in tested] == [r["samples"] for r in again]


def test_an_empty_answer_is_that_of_the_solution(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"problem": "1 + 1?", "answer": "", "solution": r"It is $\boxed{2}$."}) + "\n")
    (problem,) = MATH(str(file)).problems()
    assert problem.gold == r"It is $\boxed{2}$."


def test_gsm8k_gold_is_right_by_its_own_rule(gsm8k, tokenizer, tmp_path):
    task = GSM8K(str(gsm8k / "test.jsonl"), limit=50)
    says = {problem.question: [problem.gold] for problem in task.problems()}
    report = ask(Evaluation(task), Scripted(says), tokenizer, tmp_path)
    assert report["metrics"]["pass@1"]["value"] == 1.0
    assert report["metrics"]["pass@1"]["low"] < 1
    assert report["extracted"] == {"hashes": 50}

import json

import pytest
import yaml
from written_runs import CERA, LORA, write_run

from cera.foreign_files import FileError
from cera.runs.finished import FinishedRun, RunError, find_runs, labels, siblings
from cera.studies.compare import comparison_row

RUN = b"model: {adapter: {class_path: peft.LoraConfig}, learning_rate: 1.0}\n"
BOMB = b"a0: &a0 [1, 1]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 60))


def test_a_run_tells_adapter_rank_and_learning_rate(tmp_path):
    dora = {"class_path": "peft.LoraConfig", "init_args": {"r": 16, "use_dora": True}}
    hybrid = {"class_path": "cera.CeraConfig", "init_args": {"r": 16, "use_dora": True}}
    adalora = {"class_path": "peft.AdaLoraConfig", "init_args": {"r": 8, "init_r": 12, "use_dora": False}}
    for adapter, name, label in (
        (CERA, "CeRA", "CeRA r=64"),
        (LORA, "LoRA", "LoRA r=64"),
        (dora, "DoRA", "DoRA r=16"),
        (hybrid, "CeRA-DoRA", "CeRA-DoRA r=16"),
        (adalora, "AdaLoRA", "AdaLoRA r=12"),
        ({"class_path": "peft.IA3Config"}, "IA3", "IA3"),
    ):
        run = FinishedRun.read(write_run(tmp_path / label, adapter, learning_rate=5e-5))
        assert (run.adapter, run.label, run.name, run.learning_rate) == (name, label, label, 5e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "No such file"),
        (b"model: {adapter", "while parsing"),
        (b"\xff\xfe\xfa", "decode|unacceptable"),
        (b"", "names no model.adapter"),
        (b"- model", "names no model.adapter"),
        (b"model: text", "names no model.adapter"),
        (b"model: {adapter: class_path}", "names no model.adapter"),
        (b"model: {adapter: {class_path: peft.LoraConfig}}", "no number as model.learning_rate"),
        (b"model: {adapter: {class_path: peft.LoraConfig}, learning_rate: fast}", "no number as model.learning_rate"),
        (b"model: {adapter: {class_path: [1]}, learning_rate: 1}", "names no model.adapter"),
        (RUN + b"trainer: [1]", "trainer must be a mapping, got"),
        (RUN + b"trainer: {max_steps: many}", "trainer.max_steps must be an integer, got 'many'"),
        (
            b"model: {adapter: {class_path: a.B, init_args: {r: four}}, learning_rate: 1}",
            "the adapter's r must be an int",
        ),
        (b"model: {adapter: {class_path: a.B, init_args: 4}, learning_rate: 1}", "init_args must be a mapping, got 4"),
        (RUN + b"data: {1: x, a: y}", "values that no configuration has"),
        (RUN + b"data: 2020-01-01", "values that no configuration has"),
        (RUN + b"data: &data [*data]", "an alias refers to the list"),
        (RUN + BOMB, "its aliases stand for"),
        (b"[" * 100_000, "nesting depth"),
    ],
)
def test_what_is_no_run_is_one_error_and_is_passed_over_among_others(tmp_path, config, message):
    good = write_run(tmp_path / "good")
    (tmp_path / "a_file").write_text("")
    (tmp_path / "bad").mkdir()
    if config is not None:
        (tmp_path / "bad" / "config.yaml").write_bytes(config)
    with pytest.raises(RunError, match=message) as caught:
        FinishedRun.read(tmp_path / "bad")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "bad") in str(caught.value)
    assert [run.path for run in find_runs(tmp_path)] == [good]
    assert [run.path for run in siblings(tmp_path / "bad")] == [good]


def test_a_curve_is_by_steps_done_and_begins_with_the_base(tmp_path):
    path = write_run(tmp_path / "a")
    (path / "metrics.csv").write_text(
        "epoch,step,train/loss,val/perplexity\n"
        ",0,,9.5\n"  # the base
        "0,0,2.5,\n"  # the first step
        "0,49,1.5,\n"
        "0,49,,4.5\n"
    )
    run = FinishedRun.read(path)
    assert run.curve("val/perplexity") == {0: 9.5, 50: 4.5}
    assert run.curve("train/loss") == {1: 2.5, 50: 1.5}
    assert run.curve("not/there") == {}
    assert FinishedRun.read(write_run(tmp_path / "no_metrics")).curve("val/perplexity") == {}


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    path = write_run(tmp_path / "a", curve={50: 4.5, 100: 3.75})
    whole = (path / "metrics.csv").read_bytes()
    for length in range(len(whole) + 1):  # a reader may come at any moment
        (path / "metrics.csv").write_bytes(whole[:length])
        curve = FinishedRun.read(path).curve("val/perplexity")
        assert curve.items() <= {50: 4.5, 100: 3.75}.items()
    assert curve == {50: 4.5, 100: 3.75}
    (path / "metrics.csv").write_bytes(whole + b"0,119,,3.0,99,,2.5.5\r\n0,129,,1.2x\r\n0,\xff\r\n0,139,,3.5\r\n")
    assert FinishedRun.read(path).curve("val/perplexity")[140] == 3.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"metrics.csv must be a file, and is a directory"),
        (b"name,value\na,1\n", r"metrics.csv has no column step"),
        (bytes(range(14, 256)) + b"\n" + bytes(range(14, 256)) + b"\n", r"metrics.csv has no column step"),
        (b"step,val/perplexity\n0," + b"1" * 200_000 + b"\n", r"metrics.csv cannot be read: field larger than"),
    ],
)
def test_metrics_that_are_something_else_are_one_error(tmp_path, content, message):
    path = write_run(tmp_path / "a")
    if content is None:
        (path / "metrics.csv").mkdir()
    else:
        (path / "metrics.csv").write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        FinishedRun.read(path).curve("val/perplexity")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "must hold a JSON object"),
        (b'{"trainable_param', "cannot be read as JSON"),
        (b'{"trainable_parameters": "many"}', "trainable_parameters must be an integer, got 'many'"),
    ],
)
def test_a_broken_record_of_the_environment_is_one_error(tmp_path, content, message):
    path = write_run(tmp_path / "a", curve={50: 4.5})
    (path / "environment.json").write_bytes(content)
    with pytest.raises(FileError, match=rf"environment.json.*{message}"):
        comparison_row(FinishedRun.read(path))


def test_a_run_is_read_as_of_one_moment(tmp_path):
    path = write_run(tmp_path / "a", curve={50: 4.5})
    run = FinishedRun.read(path)
    assert not run.finished
    with (path / "metrics.csv").open("a") as file:
        file.write("0,99,,3.75\n")
    assert run.curve("val/perplexity") == {50: 4.5}
    assert not run.finished
    assert FinishedRun.read(path).finished


def test_identity_is_of_the_study_and_of_the_adapter(tmp_path):
    reference = FinishedRun.read(write_run(tmp_path / "reference")).identity
    replicate = write_run(tmp_path / "replicate", seed=1, learning_rate=1e-3)
    assert FinishedRun.read(replicate).identity == reference
    with_later_fields = {**CERA, "init_args": {**CERA["init_args"], "trainable_token_indices": None}}
    assert FinishedRun.read(write_run(tmp_path / "later", with_later_fields)).identity == reference
    other_adapter = FinishedRun.read(write_run(tmp_path / "lora", LORA)).identity
    assert other_adapter.study == reference.study
    assert other_adapter.adapter != reference.adapter
    for name, options in {"steps": {"max_steps": 50}, "precision": {"precision": "bf16-true"}}.items():
        assert FinishedRun.read(write_run(tmp_path / name, **options)).identity.study != reference.study
    for part, key, value in (("model", "warmup", 0.1), ("data", "batch_size", 8)):
        config = yaml.safe_load((replicate / "config.yaml").read_text())
        config[part][key] = value
        (replicate / "config.yaml").write_text(yaml.safe_dump(config))
        assert FinishedRun.read(replicate).identity.study != reference.study


def test_labels_add_what_sets_adapters_of_one_name_apart(tmp_path):
    adapters = [CERA, {**CERA, "init_args": {"r": 64, "dropout": 0.0}}, LORA]
    runs = [FinishedRun.read(write_run(tmp_path / str(i), adapter)) for i, adapter in enumerate(adapters)]
    assert list(labels(runs).values()) == ["CeRA r=64, dropout=0.1", "CeRA r=64, dropout=0.0", "LoRA r=64"]
    assert list(labels(runs[1:])) == [run.identity.adapter for run in runs[1:]]
    assert list(labels(runs[1:]).values()) == ["CeRA r=64", "LoRA r=64"]


def test_finished(tmp_path):
    assert FinishedRun.read(write_run(tmp_path / "a", curve={0: 9.0, 100: 3.0})).finished
    assert not FinishedRun.read(write_run(tmp_path / "b", curve={0: 9.0, 50: 3.0})).finished
    assert not FinishedRun.read(write_run(tmp_path / "c")).finished
    by_epochs = write_run(tmp_path / "d", curve={0: 9.0}, max_steps=-1, max_epochs=2)
    assert not FinishedRun.read(by_epochs).finished
    for epoch, finished in ((0, False), (1, True)):
        with (by_epochs / "metrics.csv").open("a") as file:
            file.write(f"{epoch},{epoch * 30 + 29},,4.0\n")
        assert FinishedRun.read(by_epochs).finished == finished


def test_divergence(tmp_path):
    assert FinishedRun.read(write_run(tmp_path / "well", curve={0: 9.0, 100: 3.0})).divergence is None
    assert FinishedRun.read(write_run(tmp_path / "new")).divergence is None
    nan = FinishedRun.read(write_run(tmp_path / "nan", curve={0: 9.0, 50: float("nan")}))
    assert nan.divergence == "val/perplexity is nan at step 50"
    assert FinishedRun.read(write_run(tmp_path / "back", curve={50: float("inf"), 100: 3.0})).divergence is None
    stopped = write_run(tmp_path / "stopped", curve={0: 9.0})
    (stopped / "diverged.json").write_text(json.dumps({"step": 7, "reason": "train/loss is nan"}))
    assert FinishedRun.read(stopped).divergence == "train/loss is nan"
    (stopped / "diverged.json").write_text('{"step": 7, "rea')
    assert "diverged.json" in FinishedRun.read(stopped).divergence

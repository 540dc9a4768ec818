"""Outputs of a run grow without losing a row, and a resumed run goes on with those of its checkpoint's step."""

import csv
import os
from pathlib import Path

import pytest

from cera.foreign_files import FileError
from cera.runs import loggers
from cera.runs.files import remove_unfinished
from cera.runs.journal import NOTHING, RUN, VALIDATION, Journal
from cera.runs.loggers import MetricsCSV, RunTensorBoard


def log(run_dir: Path, rows: dict[int, dict[str, float]], resumed: Journal | None = None) -> None:
    """Log as a run does that resumes with the outputs of ``resumed``."""
    if resumed is not None:
        resumed.cut_back(run_dir)
    logger = MetricsCSV(run_dir)
    for step, metrics in rows.items():
        logger.log_metrics(metrics, step)
    logger.save()
    logger.finalize("success")


def table(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value != ""} for row in csv.DictReader(file)]


def test_metrics_are_in_the_run_directory_itself(tmp_path) -> None:
    log(tmp_path / "run", {0: {"loss": 2.0}, 1: {"loss": 1.5}})
    assert table(tmp_path / "run") == [{"loss": "2.0", "step": "0"}, {"loss": "1.5", "step": "1"}]


def test_a_resumed_run_keeps_the_rows_up_to_its_checkpoint_and_writes_the_later_ones_again(tmp_path) -> None:
    log(tmp_path, {step: {"loss": float(step)} for step in range(12)})
    log(tmp_path, {step: {"loss": step + 100.0} for step in range(9, 14)}, Journal.before_step(tmp_path, 9))
    assert [int(row["step"]) for row in table(tmp_path)] == list(range(14))
    assert [float(row["loss"]) for row in table(tmp_path)] == [*range(9), *range(109, 114)]


def test_a_resumed_run_may_log_new_columns(tmp_path) -> None:
    log(tmp_path, {0: {"loss": 2.0}, 1: {"loss": 1.5}})
    log(tmp_path, {2: {"loss": 1.0, "val/loss": 3.0}, 3: {"accuracy": 0.5}}, Journal.before_step(tmp_path, 2))
    assert table(tmp_path) == [
        {"loss": "2.0", "step": "0"},
        {"loss": "1.5", "step": "1"},
        {"loss": "1.0", "val/loss": "3.0", "step": "2"},
        {"accuracy": "0.5", "step": "3"},
    ]


def test_a_resumed_run_may_log_fewer_columns(tmp_path) -> None:
    log(tmp_path, {0: {"a": 1.0, "b": 2.0}})
    log(tmp_path, {1: {"b": 3.0}}, Journal.before_step(tmp_path, 1))
    assert table(tmp_path) == [{"a": "1.0", "b": "2.0", "step": "0"}, {"b": "3.0", "step": "1"}]


@pytest.mark.filterwarnings("error")
def test_the_file_is_never_deleted(tmp_path) -> None:
    log(tmp_path, {0: {"loss": 2.0}, 7: {"loss": 1.0}})
    log(tmp_path, {8: {"loss": 0.5}})  # not said to be resumed: all rows are kept
    assert [row["step"] for row in table(tmp_path)] == ["0", "7", "8"]
    before = (tmp_path / "metrics.csv").read_bytes()
    log(tmp_path, {}, Journal.before_step(tmp_path, 100))
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_every_row_is_in_the_file_at_once(tmp_path) -> None:
    logger = MetricsCSV(tmp_path)
    for step in range(3):
        logger.log_metrics({"loss": 1.0}, step)
        assert len(table(tmp_path)) == step + 1  # a killed run has its last row


def test_a_header_that_grows_never_leaves_half_a_file(tmp_path, monkeypatch) -> None:
    log(tmp_path, {step: {"loss": float(step)} for step in range(100)})
    before = (tmp_path / "metrics.csv").read_bytes()

    class PowerCut(BaseException):
        pass

    class Writer(csv.DictWriter):
        def writerows(self, rows) -> None:
            super().writerows(rows[:50])
            raise PowerCut

    monkeypatch.setattr(loggers.csv, "DictWriter", Writer)
    with pytest.raises(PowerCut):
        log(tmp_path, {100: {"loss": 1.0, "val/loss": 2.0}})
    assert (tmp_path / "metrics.csv").read_bytes() == before
    monkeypatch.undo()
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    log(tmp_path, {100: {"loss": 1.0, "val/loss": 2.0}})
    assert [row["step"] for row in table(tmp_path)] == [str(step) for step in range(101)]


# The journal of a checkpoint


def test_outputs_are_cut_back_to_a_journal(tmp_path) -> None:
    log(tmp_path, {0: {"loss": 2.0}, 1: {"loss": 1.5}})
    (tmp_path / "events.out.tfevents.1").write_bytes(b"12345")
    journal = Journal.take(tmp_path, {RUN, VALIDATION})
    assert journal == Journal(["run", "validation"], rows=2, events={"events.out.tfevents.1": 5})
    whole = (tmp_path / "metrics.csv").read_bytes()
    for name in ("metrics.csv", "events.out.tfevents.1"):
        with (tmp_path / name).open("ab") as file:
            file.write(b"1,2.5\\r\\n1,")
    for _ in range(2):  # a crash meanwhile leaves it to the next process
        journal.cut_back(tmp_path)
        assert (tmp_path / "metrics.csv").read_bytes() == whole
        assert (tmp_path / "events.out.tfevents.1").read_bytes() == b"12345"


def test_rows_are_counted_whatever_columns_came_since(tmp_path) -> None:
    log(tmp_path, {0: {"loss": 2.0}})
    journal = Journal.take(tmp_path, {RUN})
    log(tmp_path, {1: {"loss": 1.0, "accuracy": 0.5}})
    journal.cut_back(tmp_path)
    assert table(tmp_path) == [{"loss": "2.0", "step": "0"}]
    log(tmp_path, {1: {"loss": 1.0, "accuracy": 0.5}})
    assert [row["step"] for row in table(tmp_path)] == ["0", "1"]


def test_a_run_that_starts_again_keeps_no_row(tmp_path) -> None:
    log(tmp_path, {0: {"loss": 2.0}, 1: {"loss": 1.5}})
    NOTHING.cut_back(tmp_path)
    assert table(tmp_path) == []
    (tmp_path / "metrics.csv").write_bytes(b"loss,st")  # killed within the header
    log(tmp_path, {0: {"loss": 2.0}}, NOTHING)
    assert table(tmp_path) == [{"loss": "2.0", "step": "0"}]
    NOTHING.cut_back(tmp_path / "empty")


def test_a_journal_is_read_as_it_was_written(tmp_path) -> None:
    checkpoint = tmp_path / "step=3.ckpt"
    assert Journal.read(checkpoint) is None
    journal = Journal(["validation"], rows=7, events={"events.out.tfevents.1": 5})
    journal.save(checkpoint)
    assert Journal.read(checkpoint) == journal
    assert [path.name for path in tmp_path.iterdir()] == ["step=3.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must hold a JSON object"),
        ('{"left_out": [], "rows": "7", "events": {}}', "rows must be int, got '7'"),
    ],
)
def test_a_damaged_journal_is_named(tmp_path, content, message) -> None:
    (tmp_path / "step=3.json").write_text(content)
    with pytest.raises(FileError, match=rf"step=3\.json.* {message}"):
        Journal.read(tmp_path / "step=3.ckpt")


def test_a_journal_touches_no_file_but_those_of_its_run(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("text")
    Journal([], rows=0, events={"../precious": 0}).cut_back(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "text"


def test_hyperparameters_are_written_as_a_whole(tmp_path, monkeypatch) -> None:
    def killed(path: Path, hparams: dict) -> None:
        Path(path).write_text("adap")
        raise KeyboardInterrupt

    logger = RunTensorBoard(tmp_path)
    logger.hparams.update(adapter="CeRA", r=8)
    with monkeypatch.context() as patch:
        patch.setattr(loggers, "save_hparams_to_yaml", killed)
        with pytest.raises(KeyboardInterrupt):
            logger.save()
    assert not (tmp_path / "hparams.yaml").exists()
    logger.save()
    logger.experiment.close()
    assert (tmp_path / "hparams.yaml").read_text() == "adapter: CeRA\nr: 8\n"


def test_what_a_killed_process_has_left_is_removed(tmp_path) -> None:
    (tmp_path / "checkpoints" / ".step=4.ckpt.unfinished").mkdir(parents=True)
    (tmp_path / ".report.json.unfinished").touch()
    (tmp_path / ".unfinished.txt").touch()
    remove_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".unfinished.txt", "checkpoints"]
    assert list((tmp_path / "checkpoints").iterdir()) == []

"""The runner of a study on a stand-in for ``cera train``: what it starts, what it survives, and what it says."""

import io
import json
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from study_files import stand_in, study

from cera.cli.study_tables import LiveTable, PlannedRun, plan_table, status_table
from cera.runs.lock import DirectoryInUse, DirectoryLock
from cera.runs.signals import Stopped
from cera.studies import processes
from cera.studies.axes import StudyError
from cera.studies.early_stopping import STOPPED_EARLY, StoppedEarly
from cera.studies.measures import CERA, Measure
from cera.studies.state import duration, expected_seconds, progress_line, run_seconds_left, seconds_left


@pytest.fixture(autouse=True)
def trainer(monkeypatch):
    monkeypatch.setattr(processes, "TRAIN", stand_in())


def states(loaded) -> dict[str, str]:
    return {state.run.name: state.state for state in loaded.states()}


def begun(loaded) -> dict[str, list[str]]:
    """How each run was started, each time."""
    files = {run.name: loaded.folder / run.name / "begun" for run in loaded.definition.runs}
    return {name: file.read_text().splitlines() if file.exists() else [] for name, file in files.items()}


def wait_for_steps(run: Path, steps: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        metrics = run / "metrics.csv"
        if metrics.exists() and len(metrics.read_text().splitlines()) > steps:
            return
        time.sleep(0.005)
    raise AssertionError(f"{run} did not come to step {steps}")


def test_all_runs_end_and_are_not_run_again(tmp_path) -> None:
    loaded = study(tmp_path)
    assert set(states(loaded).values()) == {"not begun"}
    seen = []
    assert {state.state for state in loaded.run(parallel=2, watch=lambda states: seen.append(states))} == {"finished"}
    assert {state.state for state in seen[-1]} == {"finished"}
    assert begun(loaded) == {run.name: ["new"] for run in loaded.definition.runs}
    summary = (loaded.folder / "summary.json").read_bytes()
    loaded.run()
    assert begun(loaded) == {run.name: ["new"] for run in loaded.definition.runs}
    assert (loaded.folder / "summary.json").read_bytes() == summary
    first = loaded.states()[0]
    assert (first.step, first.max_steps, first.perplexity) == (6, 6, 2.0)
    assert first.seconds > 0


def test_a_part_of_a_study_is_run_and_reported(tmp_path) -> None:
    loaded = study(tmp_path)
    part = loaded.only("cera-*")
    part.run()
    assert states(loaded) == {
        run.name: "finished" if "cera" in run.name else "not begun" for run in loaded.definition.runs
    }
    assert [run.name for run in part.summary().runs] == ["cera-lr0.01", "cera-lr0.03"]
    assert len(loaded.summary().runs) == 4
    both = loaded.only("cera-*", "lora-lr0.01")
    assert [run.name for run in both.definition.runs] == ["lora-lr0.01", "cera-lr0.01", "cera-lr0.03"]
    with pytest.raises(StudyError, match=r"no run of small has a name like 'dora-\*', such as lora-lr0.01"):
        loaded.only("dora-*")


def test_what_a_study_prepares_comes_before_its_runs(tmp_path, capfd) -> None:
    loaded = study(tmp_path, prepare=["--version"])
    loaded.run()
    assert re.match(r"cera --version\ncera \d", capfd.readouterr().err)
    loaded.run()
    assert "--version" not in capfd.readouterr().err  # all runs have ended
    broken = study(tmp_path / "broken", prepare=["--version", "nothing --here"])
    with pytest.raises(StudyError, match=r"prepare: `cera nothing --here` ended with status 2; nothing was run"):
        broken.run()
    assert set(states(broken).values()) == {"not begun"}


def test_a_failing_and_a_diverging_run_are_recorded_and_the_others_go_on(tmp_path, capsys) -> None:
    axes = {"adapter": {"cera": "cera.yaml"}, "learning_rate": [-1, 10, 0.01]}
    loaded = study(tmp_path, axes=axes)
    loaded.run(watch=LiveTable(1))
    failed, diverged, finished = loaded.states()
    assert (failed.state, failed.reason) == ("failed", "status 1: model.learning_rate must be positive, got -1.0.")
    assert (diverged.state, diverged.reason) == ("diverged", "val/perplexity is nan at step 6")
    assert finished.state == "finished"
    printed = capsys.readouterr().err
    assert f"{failed.run.name} failed: {failed.reason}\n" in printed
    assert "3 runs: 1 finished, 1 diverged, 1 failed; time left: 0:00:00\n" in printed
    loaded.run()  # a failed run is tried again, a diverged one is not
    assert begun(loaded)[diverged.run.name] == ["new"]


def test_a_killed_run_is_resumed_at_once(tmp_path) -> None:
    loaded = study(tmp_path, axes={"learning_rate": [0.01]}, settings={"kills": 1})
    (state,) = loaded.run()
    assert state.state == "finished"
    assert begun(loaded) == {"lr0.01": ["new", "resumed at 1"]}


def test_a_run_that_is_killed_again_and_again_fails_and_the_same_call_goes_on(tmp_path) -> None:
    loaded = study(tmp_path, axes={"learning_rate": [0.01]}, settings={"kills": 2})
    (state,) = loaded.run()
    assert (state.state, state.reason, state.step) == ("failed", "killed by SIGKILL", 2)
    (state,) = loaded.run()
    assert state.state == "finished"
    assert begun(loaded) == {"lr0.01": ["new", "resumed at 1", "resumed at 2"]}


def test_a_killed_runner_leaves_its_runs_and_another_one_waits_for_them(tmp_path) -> None:
    axes = {"adapter": {"cera": "cera.yaml"}, "learning_rate": [0.01, 0.03]}
    loaded = study(tmp_path, axes=axes, settings={"wait": 0.15})
    first, second = loaded.definition.runs
    child = os.fork()
    if child == 0:
        loaded.run()
        os._exit(0)
    wait_for_steps(loaded.folder / first.name, 1)
    with pytest.raises(DirectoryInUse, match="is in use by process"):
        loaded.run()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert states(loaded)[first.name] == "running"
    loaded.run()
    assert set(states(loaded).values()) == {"finished"}
    assert begun(loaded) == {first.name: ["new"], second.name: ["new"]}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_runs_in_good_order_and_the_same_call_goes_on(tmp_path, number) -> None:
    loaded = study(tmp_path, settings={"wait": 0.1})
    runs = loaded.definition.runs

    def send() -> None:
        for run in runs[:2]:
            wait_for_steps(loaded.folder / run.name, 1)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Stopped, match=f"{number.name}: the runs have saved their state"):
        loaded.run(parallel=2)
    sender.join()
    assert list(states(loaded).values()) == ["stopped", "stopped", "not begun", "not begun"]
    loaded.run(parallel=2)
    assert set(states(loaded).values()) == {"finished"}
    assert begun(loaded)[runs[0].name][1].startswith("resumed at ")


def test_settings_that_have_changed_are_refused_before_anything_is_run(tmp_path) -> None:
    axes = {"adapter": {"cera": "cera.yaml"}, "learning_rate": [0.01]}
    study(tmp_path, axes=axes).run()
    loaded = study(tmp_path, axes=axes, settings={"wait": 0.5})
    with pytest.raises(ValueError, match=r"cera-lr0.01 was started with wait=None, and the study has 0.5 now"):
        loaded.run()
    with pytest.raises(ValueError, match="give the study another name"):
        loaded.summary()


def test_an_axis_may_get_more_values_later(tmp_path) -> None:
    axes = {"adapter": {"cera": "cera.yaml"}, "learning_rate": [0.01, 0.03]}
    study(tmp_path, axes=axes, select={"axis": "learning_rate"}).run()
    axes["learning_rate"].insert(0, 0.001)
    loaded = study(tmp_path, axes=axes, select={"axis": "learning_rate"})
    assert list(states(loaded).values()) == ["not begun", "finished", "finished"]
    loaded.run()
    assert list(begun(loaded).values()) == [["new"]] * 3


class Terminal(io.StringIO):
    """A file that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_table_that_is_drawn_anew(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "8")
    loaded = study(tmp_path, axes={"learning_rate": [0.01, 0.02, 0.03, 0.04, 0.05]})
    table = LiveTable(1, Terminal())
    first = loaded.states()
    table(first)
    table([*first[:-1], replace(first[-1], state="running", step=2, max_steps=6)])
    before, after = table.file.getvalue().split("\x1b[6A")
    assert "lr0.01 " in before
    assert "lr0.05 " not in before  # there is no place for it
    assert "running" in after
    assert "2 of 6" in after
    assert "5 runs: 1 running, 4 not begun" in after


class Once(Measure):
    """Writes a file by a command; the values are what it holds."""

    def __init__(self, script: str) -> None:
        self.script = script

    def command(self, run_dir: Path) -> list[str]:
        return [CERA[0], "-c", self.script, str(run_dir / "measured")]

    def values(self, run) -> dict[str, float]:
        file = run.path / "measured"
        return {"measured": float(file.read_text())} if file.exists() else {}


def test_what_is_measured_after_a_run_is_measured_once_and_a_failure_is_the_runs(tmp_path) -> None:
    axes = {"adapter": {"cera": "cera.yaml"}, "learning_rate": [0.01]}
    failing = "import sys; sys.exit('no memory')"
    loaded = study(tmp_path, axes=axes, measure=[{f"{__name__}.Once": {"script": failing}}])
    (state,) = loaded.run()
    assert (state.state, state.reason) == ("failed", "status 1: no memory")
    idle = study(tmp_path, axes=axes, measure=[{f"{__name__}.Once": {"script": "pass"}}])
    (state,) = idle.run()
    assert state.state == "failed"
    assert "ended without an error, and without a result" in state.reason
    writing = "import sys; open(sys.argv[1], 'w').write('7')"
    loaded = study(tmp_path, axes=axes, measure=["perplexity", {f"{__name__}.Once": {"script": writing}}])
    (state,) = loaded.run()
    assert state.state == "finished"
    assert loaded.summary().runs[0].values == {"perplexity": 2.0, "measured": 7.0}
    assert begun(loaded)[state.run.name] == ["new"]


def test_a_run_that_was_stopped_early_is_not_resumed_unless_its_file_is_removed(tmp_path) -> None:
    loaded = study(tmp_path, axes={"learning_rate": [0.01]}, settings={"kills": 2})
    loaded.run()
    run = loaded.folder / "lr0.01"
    StoppedEarly(2, 5.25).save(run)
    (state,) = loaded.run()
    assert (state.state, state.reason) == ("stopped early", "val/perplexity was 5.25 at step 2")
    assert state.share == pytest.approx(2 / 6)
    assert len(begun(loaded)["lr0.01"]) == 2
    (run / STOPPED_EARLY).write_text('{"when": 2}')
    assert loaded.states()[0].reason == f"{run / STOPPED_EARLY} does not say why the run was stopped early."
    (run / STOPPED_EARLY).unlink()
    (state,) = loaded.run()
    assert state.state == "finished"
    StoppedEarly(2, 5.25).save(run)  # which came too late
    assert loaded.states()[0].state == "finished"


def test_a_run_is_no_part_of_the_job_that_its_runner_is_a_part_of(tmp_path, monkeypatch) -> None:
    names = ["RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "CERA_RUN_DIR"]
    for name in (*names, "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "1")
    found = "import os, sys; open(sys.argv[1], 'w').write(str(sum(n in os.environ for n in {names})))"
    for inherited, expected in ((names, 0.0), (["SLURM_JOB_ID"], 1.0)):
        measure = {f"{__name__}.Once": {"script": found.format(names=inherited)}}
        loaded = study(tmp_path / str(expected), axes={"learning_rate": [0.01]}, measure=[measure])
        loaded.run()
        assert loaded.summary().runs[0].values == {"measured": expected}


def test_a_broken_record_is_one_line(tmp_path) -> None:
    loaded = study(tmp_path)
    record = loaded.folder / "study" / f"{loaded.definition.runs[0].name}.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"other": 1}))
    with pytest.raises(ValueError, match=r"lora-lr0.01.json is no record of a run"):
        loaded.states()


def test_one_writer(tmp_path) -> None:
    loaded = study(tmp_path)
    with DirectoryLock(loaded.folder / "study"), pytest.raises(DirectoryInUse):
        loaded.run()
    with pytest.raises(ValueError, match="parallel must be at least 1, got 0"):
        loaded.run(parallel=0)


def test_the_time_that_is_left_by_hand(tmp_path) -> None:
    loaded = study(tmp_path)
    assert seconds_left(loaded.states(), 1) is None
    assert progress_line(loaded.states(), 1) == "4 runs: 4 not begun; time left: unknown"
    one, two, three, four = loaded.states()
    done = replace(one, state="finished", seconds=100.0)
    half = replace(two, state="running", step=3, max_steps=6, seconds=10.0)
    failed = replace(three, state="failed", seconds=5.0)
    assert seconds_left([done, half, failed, four], 1) == pytest.approx(150)
    assert seconds_left([done, half, failed, four], 2) == pytest.approx(100)  # no sooner than the longest run
    assert seconds_left([half], 1) == pytest.approx(10)
    assert duration(3750.4) == "1:02:30"


def test_a_run_lasts_as_long_as_those_of_its_own_method(tmp_path) -> None:
    loaded = study(tmp_path, select={"axis": "learning_rate"})
    lora, lora_too, cera, cera_too = loaded.states()
    ended = replace(lora, state="finished", seconds=100.0)
    assert set(expected_seconds([ended, lora_too, cera, cera_too]).values()) == {100}
    slow = replace(cera, state="finished", seconds=300.0)
    half = replace(cera_too, state="running", step=3, max_steps=6)
    states = [ended, lora_too, slow, half]
    assert list(expected_seconds(states).values()) == [100, 100, 300, 300]
    assert run_seconds_left(states) == {lora_too.run.name: 100, half.run.name: 150}
    assert (seconds_left(states, 1), seconds_left(states, 2)) == (250, 150)
    shown = status_table(states, shown=[slow, half])
    assert re.search(rf"^{half.run.name} .* 0:02:30", shown, re.MULTILINE)
    assert lora_too.run.name not in shown
    assert run_seconds_left(loaded.states()) == expected_seconds(loaded.states()) == {}


def test_plan_shows_the_time_of_each_run_once_one_has_ended(tmp_path) -> None:
    loaded = study(tmp_path, axes={"learning_rate": [0.01, 0.02]}, select={"axis": "learning_rate"})
    planned = [PlannedRun(run, 1000, None) for run in loaded.definition.runs]
    assert "time" not in plan_table(planned, False, {})
    assert re.search(r"^lr0.02 +all +1,000 +0:01:40$", plan_table(planned, False, {"lr0.01": 90, "lr0.02": 100}), re.M)


def test_a_study_looks_among_the_studies_beside_it(tmp_path) -> None:
    loaded = study(tmp_path)
    run = loaded.definition.runs[0]
    assert f"--reuse={tmp_path / 'runs'}" in processes.next_command(loaded.folder, run, loaded.reusing().definition)
    assert not any("reuse" in word for word in processes.next_command(loaded.folder, run, loaded.definition))

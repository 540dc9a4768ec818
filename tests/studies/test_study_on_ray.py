"""A study on a real Ray on this machine: a worker that is killed, runs that are stopped early, and signals."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import yaml
from command_line import command, environment
from conftest import REPOSITORY

from cera.runs.finished import FinishedRun
from cera.studies.axes import StudyError
from cera.studies.early_stopping import STOPPED_EARLY, Resources
from cera.studies.ray_runner import check_nodes
from cera.studies.ray_trial import Driver
from cera.studies.study import Study

ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)]),  # for the module paced
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # other processes of the machine are not Ray's concern here
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray with places for two runs, which leaves no process behind."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in {**environment(), **ENVIRONMENT}.items():
            monkeypatch.setenv(name, value)
        others = psutil.Process().children(recursive=True)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        started = [process for process in psutil.Process().children(recursive=True) if process not in others]
        assert started
        yield
        ray.shutdown()
        _, alive = psutil.wait_procs(started, timeout=30)
        assert not alive


def paced_study(base: str, folder: Path, axes: dict, steps: int, **fields) -> Study:
    """A study of the tiny Llama with ten steps a second, a validation every four and a checkpoint every three."""
    given = dict(argument[2:].split("=", 1) for argument in command(base, folder)[4:])
    for dropped in ("runs", "name", "answer_tokens"):
        del given[dropped]
    settings = {key: yaml.safe_load(value) for key, value in given.items()}
    pace = {"class_path": "paced.Paced", "init_args": {"seconds": 0.1}}
    content = {
        "name": "paced",
        "base": [str(REPOSITORY / "configs" / file) for file in ("parts/smol.yaml", "adapters/cera.yaml")],
        "settings": {**settings, "trainer.max_steps": steps, "trainer.callbacks+": pace},
        "axes": axes,
        **fields,
    }
    path = folder / "paced.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return Study.load(path, folder / "runs")


def wait_for_step(run: Path, step: int) -> None:
    """Wait until a run has written the loss of a step."""
    deadline = time.monotonic() + 400
    while not (run / "config.yaml").exists() or max(FinishedRun.read(run).curve("train/loss"), default=0) < step:
        assert time.monotonic() < deadline, f"{run} did not come to step {step}"
        time.sleep(0.02)


def kill_worker(run: Path, step: int, killed: list[int]) -> None:
    """Kill the worker of a run when the run has done a step; between them is ``cera.studies.tied``."""
    wait_for_step(run, step)
    trainer = int((run / ".lock").read_text().split()[1])
    killed.append(psutil.Process(trainer).parent().ppid())
    os.kill(killed[0], signal.SIGKILL)


def resumed_from(run: Path) -> list[int]:
    """The steps at which a run was resumed."""
    recorded = json.loads((run / "environment.json").read_text())
    return [resumed["from_step"] for resumed in recorded.get("resumed", [])]


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_is_resumed_from_its_checkpoint(cluster, tiny_llama, tmp_path) -> None:
    twins = {"twin": {name: {"seed_everything": 0} for name in ("disturbed", "undisturbed")}}
    study = paced_study(tiny_llama, tmp_path, twins, 16)
    disturbed, undisturbed = (study.folder / name for name in ("disturbed", "undisturbed"))
    killed: list[int] = []
    killer = threading.Thread(target=kill_worker, args=(disturbed, 5, killed))
    killer.start()
    states = study.run(parallel=2, ray="auto")
    killer.join()
    assert [state.state for state in states] == ["finished", "finished"]
    assert len(killed) == 1
    assert killed[0] not in (os.getpid(), 1)
    (step,) = resumed_from(disturbed)
    assert 5 <= step < 16
    assert resumed_from(undisturbed) == []
    for column in ("train/loss", "val/perplexity"):
        curve = FinishedRun.read(disturbed).curve(column)
        assert curve == FinishedRun.read(undisturbed).curve(column)
        assert len(set(curve.values())) == len(curve) >= 4


@pytest.mark.slow
def test_a_run_that_is_clearly_worse_is_stopped_early_and_one_that_fails_is_recorded(
    cluster, tiny_llama, tmp_path
) -> None:
    rates = {"learning_rate": [1e-2, 2e-2, 1e-8, -1]}
    early = {"grace_steps": 8, "reduction": 2}
    study = paced_study(tiny_llama, tmp_path, rates, 24, stop_early=early, select={"axis": "learning_rate"})
    with pytest.raises(StudyError, match="stop_early is for runs on Ray"):
        study.run()
    states = {state.run.name: state for state in study.run(parallel=2, ray="auto")}
    assert "finished" in {states["lr0.01"].state, states["lr0.02"].state}
    worse = states["lr1e-8"]
    assert worse.state == "stopped early"
    assert worse.reason.startswith("val/perplexity was ")
    assert 8 <= json.loads((study.folder / "lr1e-8" / STOPPED_EARLY).read_text())["step"] < 24
    assert worse.step < 24
    assert study.summary().results("all", "perplexity")["lr1e-8"] == {"": None}  # so that it is not chosen
    assert states["lr-1"].state == "failed"
    assert "learning_rate" in states["lr-1"].reason
    before = {name: (study.folder / name / "metrics.csv").read_bytes() for name in states if name != "lr-1"}
    again = {state.run.name: state.state for state in study.run(parallel=2, ray="auto")}  # tries the failed one again
    assert again == {name: state.state for name, state in states.items()}
    assert before == {name: (study.folder / name / "metrics.csv").read_bytes() for name in before}


def test_what_cannot_run_on_a_cluster_is_refused_before_it_is_started(cluster, tmp_path) -> None:
    driver = Driver(tmp_path, "mine")
    with pytest.raises(StudyError, match=f"does not see the study's directory {tmp_path}: give as --runs a directory"):
        check_nodes(driver, Resources(), complete=True)
    (tmp_path / "study").mkdir()
    Driver(tmp_path, "another").write(wants_runs=True)
    with pytest.raises(StudyError, match="does not see the study's directory"):
        check_nodes(driver, Resources(), complete=True)
    driver.write(wants_runs=True)
    check_nodes(driver, Resources(), complete=True)
    with pytest.raises(StudyError, match="has the resources of a run, 1 CPUs and 8 GPUs"):
        check_nodes(driver, Resources(gpus=8), complete=True)


@pytest.mark.slow
def test_a_signal_stops_the_runs_and_a_killed_command_goes_on(tiny_llama, tmp_path) -> None:
    study = paced_study(tiny_llama, tmp_path, {"learning_rate": [1e-2, 2e-2]}, 30)
    first, second = (study.folder / run.name for run in study.definition.runs)
    arguments = [sys.executable, "-m", "cera", "study", "run", str(tmp_path / "paced.yaml"), "--ray=local"]

    def start() -> subprocess.Popen:
        return subprocess.Popen(
            [*arguments, f"--runs={tmp_path / 'runs'}"],
            cwd=REPOSITORY,
            env={**environment(), **ENVIRONMENT},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    process = start()
    wait_for_step(first, 5)
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, printed
    assert "the runs have saved their state; the same command goes on." in printed
    assert [state.state for state in study.states()] == ["stopped", "not begun"]
    assert not psutil.wait_procs(started, timeout=30)[1]
    at = study.states()[0].step

    process = start()
    wait_for_step(first, at + 5)
    started = psutil.Process(process.pid).children(recursive=True)
    trainers = [child for child in started if "train" in child.cmdline()]
    assert trainers
    process.kill()
    process.communicate(timeout=120)
    assert not psutil.wait_procs(trainers, timeout=60)[1]  # Ray's own agents take longer

    process = start()
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert [state.state for state in study.states()] == ["finished", "finished"]
    assert resumed_from(first)[0] == at
    assert len(resumed_from(first)) == 2
    assert resumed_from(second) == []

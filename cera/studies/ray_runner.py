"""Runs a study on a cluster: each run is a trial of Ray Tune, which places it, starts it again and may stop it early.

    RayRunner(definition, Path("/shared/runs/smol_lr"), address="auto", parallel=8).run()

What is known of a run is in its directory, as it is without Ray. So nothing of Ray's is kept: a study that is run again
reports the validations of all runs anew, from which the scheduler decides as if it had never been interrupted.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cera.foreign_files import one_line
from cera.studies.axes import StudyError
from cera.studies.definition import Definition, StudyRun
from cera.studies.early_stopping import Resources, StopEarly, StoppedEarly
from cera.studies.processes import record
from cera.studies.ray_trial import Driver, RunTrial
from cera.studies.runner import Runner, Watch
from cera.studies.state import ENDED

LOCAL = "local"
"""The address that stands for a Ray of this process alone, on this machine."""

MOST_LOST_WORKERS = 3
"""How often a run goes on with another worker when it has lost one."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
"""Environment of Ray: it sends no usage statistics, logs nothing of the trials, and leaves signals to the runner."""

LONGEST_WAIT = 30.0
"""Seconds in which a cluster must answer."""

MOST_STEPS = 10**9
"""More than the optimizer steps of any run: how far ASHA's rungs go."""


class RayRunner(Runner):
    """Brings all runs of a study to their end, on the machines of a Ray cluster.

    Args:
        definition: The study.
        folder: Its directory, on storage that all machines share.
        address: Of the cluster, as Ray takes it, such as ``auto``; ``LOCAL`` starts Ray on this machine. A Ray to which
            this process is connected already is used as it is.
        parallel: Maximum number of runs at a time.
        watch: See ``Watch``.

    Raises:
        StudyError: ``parallel`` is less than 1.
    """

    def __init__(
        self, definition: Definition, folder: Path, address: str, parallel: int = 1, watch: Watch | None = None
    ) -> None:
        super().__init__(definition, folder.absolute(), parallel, watch)
        self.address = address
        self._driver = Driver(self.folder, uuid.uuid4().hex)
        self._search = BasicVariantGenerator(max_concurrent=parallel)

    def _work(self, queue: list[StudyRun]) -> None:
        self._search = BasicVariantGenerator(max_concurrent=self.parallel)
        self._driver.write(wants_runs=True)
        names = [run.name for run in queue]
        if self.definition.stop_early is not None:  # runs that have ended are what the others are compared with
            names = [name for name, state in self.states.items() if state.state in ENDED] + names
        resources = self.definition.resources
        trainable = tune.with_parameters(RunTrial, definition=self.definition, driver=self._driver, cwd=Path.cwd())
        with connected(self.address), tempfile.TemporaryDirectory() as scratch:
            check_nodes(self._driver, resources, self.address == LOCAL)
            tune.Tuner(
                tune.with_resources(trainable, {"cpu": resources.cpus, "gpu": resources.gpus}),
                param_space={"run": tune.grid_search(names)},
                tune_config=tune.TuneConfig(scheduler=scheduler(self.definition.stop_early), search_alg=self._search),
                run_config=tune.RunConfig(
                    name=self.definition.name,
                    storage_path=scratch,  # where Tune keeps what is not needed afterwards
                    verbose=0,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # which runs make themselves
                    failure_config=tune.FailureConfig(max_failures=MOST_LOST_WORKERS),
                    callbacks=[_Watch(self)],
                ),
            ).fit()

    def _stop(self, number: signal.Signals) -> None:
        """Tell the trials to stop their runs, which save their state, and start no others."""
        self._signal = number
        self._search.set_finished()
        self._driver.write(wants_runs=False)

    def watch_trials(self, trials: Sequence[Trial]) -> None:
        """Show how far the runs are."""
        self._refresh([trial.config["run"] for trial in trials if trial.status == Trial.RUNNING])

    def end_trial(self, trial: Trial) -> None:
        """Record that the scheduler has stopped a run, if it has."""
        run = self._run_of(trial)
        self._read(run)
        result = trial.last_result
        if not result.get("ended", True) and self._signal is None and self.states[run.name].state not in ENDED:
            StoppedEarly(result["step"], result["perplexity"]).save(self.folder / run.name)
            self._read(run)

    def fail_trial(self, trial: Trial) -> None:
        """Record that a run has lost too many workers, or that they cannot run it."""
        error = trial.get_error()
        reason = "unknown" if error is None else one_line(getattr(error, "cause", None) or error)
        record(self.folder, self._run_of(trial), 0.0, f"its worker failed: {reason}")

    def _run_of(self, trial: Trial) -> StudyRun:
        return next(run for run in self.definition.runs if run.name == trial.config["run"])


class _Watch(tune.Callback):
    """Passes the events of Tune on to a runner."""

    def __init__(self, runner: RayRunner) -> None:
        self._runner = runner

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._runner.watch_trials(trials)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._runner.end_trial(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._runner.fail_trial(trial)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect this process to a Ray cluster, unless it is connected already.

    Raises:
        StudyError: There is no cluster at this address.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what becomes of a trial is in the record of its run
    if ray.is_initialized():
        yield
        return
    try:
        _require_reachable(address)
        ray.init(address, include_dashboard=False if address == LOCAL else None, log_to_driver=False)
    except (OSError, ValueError) as error:
        raise StudyError(f"there is no Ray at the address {address!r}: {one_line(error)}.") from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_reachable(address: str) -> None:
    """Raise ``OSError`` if nothing listens at HOST:PORT, for which Ray itself waits many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), LONGEST_WAIT).close()


def check_nodes(driver: Driver, resources: Resources, complete: bool) -> None:
    """Check that the machines of the cluster that can take a run see the directory of the study.

    Args:
        driver: This process.
        resources: What a run needs.
        complete: Whether no other machines will come.

    Raises:
        StudyError: A machine does not see it, or none will ever have the resources.
    """
    fitting = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"]
        and node["Resources"].get("CPU", 0) >= resources.cpus
        and node["Resources"].get("GPU", 0) >= resources.gpus
    ]
    if not fitting:
        lacking = f"no machine of Ray's has the resources of a run, {resources.cpus} CPUs and {resources.gpus} GPUs"
        if complete:
            raise StudyError(f"{lacking}.")
        print(f"{lacking}: waiting for one.", file=sys.stderr)
    for node in fitting:
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        try:
            ray.get(_require_shared.options(scheduling_strategy=strategy).remote(driver))
        except ray.exceptions.RayTaskError as error:
            raise StudyError(one_line(error.cause)) from error


@ray.remote(num_cpus=0)
def _require_shared(driver: Driver) -> None:
    driver.require_shared()


def scheduler(stop_early: StopEarly | None) -> TrialScheduler:
    """Return the scheduler of Ray Tune that decides whether a run goes on."""
    if stop_early is None:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="step",
        metric="perplexity",
        mode="min",
        grace_period=stop_early.grace_steps,
        reduction_factor=stop_early.reduction,
        max_t=MOST_STEPS,
        stop_last_trials=False,  # after the last rung, and each run is judged once at a rung
    )

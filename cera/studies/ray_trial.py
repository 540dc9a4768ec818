"""One run of a study on a worker of Ray: a trial of Ray Tune that runs the processes of the run and watches them."""

import json
import math
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from cera.foreign_files import FileError, read_json_object
from cera.runs.files import replacing
from cera.runs.finished import FinishedRun
from cera.runs.lock import in_use
from cera.studies.axes import StudyError
from cera.studies.definition import Definition
from cera.studies.early_stopping import METRIC
from cera.studies.processes import Processes
from cera.studies.state import RECORDS

HEARTBEAT = 1.0
"""Longest time in seconds between two results, and so until a trial does what it is told."""

POLL = 0.1
"""Seconds between two looks at the processes."""

WORST = 1e30
"""Stands for a perplexity that is not finite, which quantiles cannot have."""

DRIVER = "driver.json"
"""The file in the folder of records by which the process that runs the study speaks to its trials."""


@dataclass(frozen=True)
class Driver:
    """The process that runs a study, as its trials know it: by a file in the directory of the study.

    Attributes:
        folder: The directory of the study.
        token: What this process alone has written to the file.
    """

    folder: Path
    token: str

    def write(self, wants_runs: bool) -> None:
        """Tell the trials to go on, or to stop."""
        path = self.folder / RECORDS / DRIVER
        with replacing(path) as file:
            file.write_text(json.dumps({"token": self.token, "wants_runs": wants_runs}) + "\n")

    def wants_runs(self) -> bool:
        """Return whether it still wants the runs: it has not said otherwise, and no other process is in its place."""
        content = self._read()
        return content.get("token") == self.token and bool(content.get("wants_runs"))

    def require_shared(self) -> None:
        """Check that this machine sees the directory of the study.

        Raises:
            StudyError: It does not, or there is another study in its place.
        """
        if self._read().get("token") != self.token:
            raise StudyError(
                f"{socket.gethostname()} does not see the study's directory {self.folder}: give as --runs a directory "
                "on storage that all machines share, under the same path."
            )

    def _read(self) -> dict[str, Any]:
        path = self.folder / RECORDS / DRIVER
        return read_json_object(path) if path.exists() else {}


class RunTrial(tune.Trainable):
    """Brings a run to its end on a worker. A trial that is started again goes on where the run directory stands.

    The worker may die at any moment: its process then saves its state and ends, and the next worker waits for that.

    The results are ``step`` and ``perplexity``, of one validation after the other, those of before a resumption, too;
    and ``ended``, whether the run has ended by itself.
    """

    def setup(  # type: ignore[override]  # with_parameters gives the others
        self, config: dict[str, Any], definition: Definition, driver: Driver, cwd: Path
    ) -> None:
        """Prepare the run ``config["run"]``.

        Args:
            config: The parameters of the trial.
            definition: The study.
            driver: The process that runs the study.
            cwd: The working directory of the run's processes.

        Raises:
            StudyError: This machine does not see the directory of the study.
        """
        driver.require_shared()
        self._run = next(run for run in definition.runs if run.name == config["run"])
        self._processes = Processes(definition, driver.folder, cwd, tied_to_this=True)
        self._driver = driver
        self._path = driver.folder / self._run.name
        self._begun = self._ended = False
        self._unreported: list[tuple[int, float]] = []
        self._last = (-1, math.nan)

    def step(self) -> dict[str, Any]:
        """Return the next validation, or the last one again if none comes for a while."""
        if not self._unreported:
            self._ended = self._work_for_a_while()
            self._unreported = self._new_validations()
        if self._unreported:
            self._last = self._unreported.pop(0)
        ended = self._ended and not self._unreported
        return {"step": self._last[0], "perplexity": self._last[1], "ended": ended, "done": ended}

    def cleanup(self) -> None:
        """Stop the process of the run, if there is one, and wait until it has saved its state."""
        self._processes.stop(signal.SIGTERM)
        while self._processes.running:
            self._processes.collect()
            time.sleep(POLL)

    def _work_for_a_while(self) -> bool:
        """Start and follow the processes of the run, and return whether the last one has ended."""
        until = time.monotonic() + HEARTBEAT
        wanted = self._driver.wants_runs()
        if not wanted:
            self._processes.stop(signal.SIGTERM)
        elif not self._begun and not in_use(self._path):  # by a process that outlived its worker
            self._begun = True
            self._processes.start(self._run)
        while self._processes.running and time.monotonic() < until:
            self._processes.collect()
            time.sleep(POLL)
        if self._begun or not wanted:
            return not self._processes.running
        time.sleep(HEARTBEAT)
        return False

    def _new_validations(self) -> list[tuple[int, float]]:
        """Return step and perplexity of the validations since the last look.

        That of the last step is left out until the run has ended: nothing is saved by stopping it there.
        """
        try:
            run = FinishedRun.read(self._path)
            validations = run.curve(METRIC)
        except FileError:  # not begun yet, or broken, which the record of the run says
            return []
        last = last_step(run.config)
        return [
            (step, value if math.isfinite(value) else WORST)
            for step, value in sorted(validations.items())
            if step > self._last[0] and (self._ended or step < last)
        ]


def last_step(config: Mapping[str, Any]) -> float:
    """Return the number of optimizer steps that a run's configuration sets; infinity if it sets none."""
    steps = (config.get("trainer") or {}).get("max_steps") or -1
    return steps if steps > 0 else math.inf

"""Logs a run to trackio, which has no logger for Lightning of its own.

Example:
    >>> Trainer(logger=TrackioLogger(project="cera", name="smol_cera"))
"""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class TrackioLogger(Logger):
    """Writes metrics and hyperparameters to a trackio project, which `trackio show` displays.

    Args:
        project: Name of the project.
        run_name: Name of the run; trackio makes one up if there is none. A resumed run goes on in the run of its name.
        space_id: A Space on the Hugging Face hub that shows the project; ``None`` keeps it on this machine.
    """

    def __init__(self, project: str = "cera", run_name: str | None = None, space_id: str | None = None) -> None:
        super().__init__()
        self._project = project
        self._run_name = run_name
        self._space_id = space_id
        self._experiment: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str | None:
        """The run in the project."""
        return self._run_name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, created at its first use and on the first rank only."""
        if self._experiment is None:
            import trackio

            self._experiment = trackio.init(
                project=self._project, name=self._run_name, space_id=self._space_id, resume="allow", embed=False
            )
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the metrics of a step."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Add the hyperparameters to the run's configuration."""
        self.experiment.config.update(_flatten_dict(_convert_params(params)))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what is left."""
        if self._experiment is not None:
            import trackio

            trackio.finish()
            self._experiment = None

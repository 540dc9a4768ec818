"""Follows how the adapters of a study depend on the learning rate (paper Section 4.4, Fig. 2)."""

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from cera.foreign_files import FileError
from cera.runs.finished import DIVERGED
from cera.runs.loggers import log_now, tensorboard_loggers
from cera.studies.lr_robustness import Robustness, read_study, robustness_by_adapter
from cera.studies.lr_robustness_figure import figure, save_figure


class LRRobustness(Callback):
    """Compares the run with its siblings that differ only in learning rate, seed or adapter, as far as they have come.

    After each validation, and when training ends or diverges, it draws Fig. 2 over all of them, to
    ``lr_robustness.png`` in the run directory and to TensorBoard, and logs for the adapter of this run

    - ``lr_robustness/final_ppl_spread``: worst minus best final perplexity over the learning rates;
    - ``lr_robustness/area_over_rates``: final perplexity above the best, averaged over the log of the learning rate;
    - ``lr_robustness/area_between_curves``: highest minus lowest perplexity, averaged over the steps;
    - ``lr_robustness/share_within_1_percent``: share of the learning rates within 1% of the best, in [0, 1];
    - ``lr_robustness/divergences``: number of runs that diverged.

    All but the last are computed over finished runs, once there are two learning rates; the first three are infinite if
    one diverged (``cera.studies.lr_robustness``).
    Only the first rank works; it reads ``config.yaml``, ``metrics.csv`` and ``diverged.json`` of each run.
    """

    def __init__(self) -> None:
        self._shown: dict[str, Robustness] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the run has a directory that studies can read.

        Raises:
            cera.runs.finished.RunError: ``trainer.default_root_dir`` has no ``config.yaml``, which ``train.py`` writes.
        """
        if trainer.is_global_zero:
            _, runs = read_study(trainer.default_root_dir)
            if trainer.global_step > 0:  # a resumed run has shown this before
                self._shown = robustness_by_adapter(runs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the comparison. Lightning has passed this validation to the loggers, so ``metrics.csv`` has it."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._show(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the comparison with what other runs have written since."""
        self._show(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Count this run as diverged if ``DivergenceGuard`` stopped it."""
        if (Path(trainer.default_root_dir) / DIVERGED).exists():
            self._show(trainer)

    def _show(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        try:
            this_run, runs = read_study(trainer.default_root_dir)
            results = robustness_by_adapter(runs)
            if results == self._shown:
                return
            self._shown = results
            self._log(trainer, results[this_run.identity.adapter])
            drawn = figure(results.values())
            save_figure(drawn, Path(trainer.default_root_dir) / "lr_robustness.png")
            for logger in tensorboard_loggers(trainer):
                logger.experiment.add_figure("lr_robustness/panels", drawn, trainer.global_step)
        except (OSError, FileError) as error:  # mostly files of other runs, which must not end this run
            rank_zero_warn(f"LRRobustness was not updated: {error}")

    @staticmethod
    def _log(trainer: Trainer, result: Robustness) -> None:
        values = {
            "final_ppl_spread": result.spread,
            "area_over_rates": result.area_over_rates,
            "area_between_curves": result.area_between_curves,
            "share_within_1_percent": result.share_within,
            "divergences": result.divergences,
        }
        defined = {f"lr_robustness/{name}": float(value) for name, value in values.items() if value is not None}
        log_now(trainer, defined)

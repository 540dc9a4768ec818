"""Makes the run read well in TensorBoard: charts, histograms and figures of the spectra, and the HParams tab."""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.tensorboard.summary import hparams

from cera.runs.finished import adapter_label, adapter_name, adapter_rank
from cera.runs.loggers import tensorboard_loggers
from cera.spectral.figures import cumulative_energy_curves, effective_rank_map, spectral_signature
from cera.spectral.files import Spectra, spectra_files
from cera.spectral.layer_names import by_module

SORTED_BY = ("val/perplexity", "spectra/effective_rank/mean", "spectra/auc_90/mean")
"""The metrics of the HParams tab: a run's last value of each."""

CHARTS = {
    "Perplexity (held-out)": {"Validation perplexity": ["Multiline", ["val/perplexity"]]},
    "Spectra of the update (paper Section 3.1)": {
        "Effective rank, mean over layers (Eq. 3)": ["Multiline", ["spectra/effective_rank/mean"]],
        "Effective rank / r": ["Multiline", ["spectra/effective_rank_over_r/mean"]],
        "AUC-90: components that hold 90% of the energy": ["Multiline", ["spectra/auc_90/mean"]],
        "Effective rank by module": ["Multiline", [r"spectra/effective_rank/(?!mean).*"]],
    },
    "Training": {
        "Training loss": ["Multiline", ["train/loss"]],
        "Tokens per second": ["Multiline", ["throughput/tokens_per_second"]],
    },
}
"""The Custom Scalars tab. With ``tensorboard --logdir runs`` each chart has a line per run."""


class Dashboard(Callback):
    """For every TensorBoard logger of the trainer; on the first rank, from the files that ``SpectralTracker`` keeps.

    At the start it lays out the Custom Scalars tab and fills the HParams tab; after each validation it adds histograms
    of the singular values and the spectral figures (paper Fig. 1, 3, 4, and effective rank over layers and steps).
    """

    def __init__(self) -> None:
        self._history: dict[int, Spectra] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the loggers the hyperparameters before the trainer makes them write ``hparams.yaml``."""
        for logger in tensorboard_loggers(trainer) if stage == "fit" else []:
            logger.hparams.update(hyperparameters(pl_module, trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Charts and hyperparameters."""
        parameters = hyperparameters(pl_module, trainer)
        for logger in tensorboard_loggers(trainer):
            logger.experiment.add_custom_scalars(CHARTS)
            for summary in hparams(parameters, dict.fromkeys(SORTED_BY, 0)):  # names only; the values are the scalars'
                logger.experiment._get_file_writer().add_summary(summary)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Histograms and figures of the newest spectra."""
        if not (loggers := tensorboard_loggers(trainer)) or trainer.sanity_checking:
            return
        files = spectra_files(trainer.default_root_dir)
        unseen = [step for step in files if step <= trainer.global_step and step not in self._history]
        if not unseen:  # nothing was measured since
            return
        self._history.update({step: Spectra.read(files[step]) for step in unseen})
        newest = self._history[max(self._history)]
        for logger in loggers:
            _draw(logger.experiment, newest, self._history, adapter_label(*_adapter(pl_module)))


def hyperparameters(module: Any, trainer: Any) -> dict[str, str | int | float]:
    """What a table of runs is sorted by."""
    data, (kind, settings) = trainer.datamodule, _adapter(module)
    r = adapter_rank(settings)
    return {
        "adapter": adapter_name(kind, settings),
        **({} if r is None else {"r": r}),
        "learning_rate": module.learning_rate,
        "steps": module.total_steps,
        "base": Path(module.base).name,
        **({} if data is None else {"data": type(data.dataset).__name__, "seed": data.seed}),
    }


def _adapter(module: Any) -> tuple[str, dict[str, Any]]:
    return type(module.adapter).__name__, vars(module.adapter)


def _draw(writer: Any, newest: Spectra, history: dict[int, Spectra], label: str) -> None:
    update = newest.values.get("update")
    if not update:
        return
    for module, names in by_module(update).items():
        positive = torch.cat([update[name] for name in names.values()]).clamp_min(1e-12).log10()
        writer.add_histogram(f"log10 singular values of the update/{module}", positive, newest.step)
    steps = {step: of.values["update"] for step, of in history.items() if of.values.get("update")}
    figures = {
        "spectral signature": spectral_signature({label: update}),
        "cumulative energy": cumulative_energy_curves({label: update}),
        "effective rank by layer and step": effective_rank_map(steps),
    }
    for title, figure in figures.items():
        writer.add_figure(f"spectra/{title}", figure, newest.step)

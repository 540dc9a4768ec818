"""Makes a run readable in TensorBoard: charts, histograms and figures of the spectra, and the HParams tab."""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.tensorboard.summary import hparams

from cera.callbacks.spectral_tracker import SpectralTracker
from cera.runs.finished import adapter_label, adapter_name, adapter_rank
from cera.runs.loggers import tensorboard_loggers
from cera.runs.settings import arguments, flat_settings
from cera.spectral.figures import cumulative_energy_curves, effective_rank_map, spectral_signature
from cera.spectral.files import Spectra
from cera.spectral.layer_names import by_module
from cera.spectral.measures import MEASURES, Measure

Charts = dict[str, dict[str, list[Any]]]
"""Layout of the Custom Scalars tab: by category, then by title, the kind of chart and its tags."""


PREFIXES = ("spectra", "spectra_centred")
"""First parts of the metrics of the update, as it is and centred."""

SHOWN_AS_OTHER = ("adapter.r", "data.dataset", "data.seed", "trainer.max_steps")
"""Settings that have a shorter name in the HParams tab."""


class Dashboard(Callback):
    """Fills the tabs of every TensorBoard logger of the trainer, on the first rank.

    At the start it lays out the Custom Scalars tab and fills the HParams tab. After each validation it adds histograms
    of the singular values and the spectral figures (paper Fig. 1, 3, 4, and effective rank over layers and steps) that
    the trainer's ``SpectralTracker`` measured. The order of the two callbacks does not matter.
    """

    def __init__(self) -> None:
        self._drawn: int | None = None

    def state_dict(self) -> dict[str, int | None]:
        """Return the step of the spectra drawn last."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state_dict: dict[str, int | None]) -> None:
        """Restore what ``state_dict`` returned."""
        self._drawn = state_dict["drawn"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the loggers the hyperparameters before the trainer makes them write ``hparams.yaml``."""
        if stage == "fit":
            for logger in tensorboard_loggers(trainer):
                logger.hparams.update(hyperparameters(pl_module, trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout of the charts and the hyperparameters."""
        parameters = hyperparameters(pl_module, trainer)
        names = dict.fromkeys(compared_metrics(), 0)  # only the names matter: TensorBoard reads the values from scalars
        for logger in tensorboard_loggers(trainer):
            logger.experiment.add_custom_scalars(charts())
            for summary in hparams(parameters, names):
                logger.experiment._get_file_writer().add_summary(summary)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the newest spectra, if any were measured since the last validation."""
        loggers = tensorboard_loggers(trainer)
        history = _history(trainer)
        if not loggers or not history or trainer.sanity_checking:
            return
        newest = history[max(history)]
        if newest.step == self._drawn:
            return
        self._drawn = newest.step
        for logger in loggers:
            _draw(logger.experiment, newest, history, adapter_label(*_adapter(pl_module)))


def compared_metrics() -> list[str]:
    """Return the metrics in the HParams tab, which shows the last value of each for every run."""
    return ["val/perplexity", *(f"{prefix}/{measure.name}/mean" for prefix in PREFIXES for measure in _detailed())]


def charts() -> Charts:
    """Return the layout of the Custom Scalars tab. With ``tensorboard --logdir runs`` each chart has a line per run."""
    return {
        "Perplexity (held-out)": {"Validation perplexity": ["Multiline", ["val/perplexity"]]},
        "Spectra of the update (paper Section 3.1), not centred": _spectra_charts("spectra"),
        "Spectra of the update, centred": _spectra_charts("spectra_centred"),
        "Training": {
            "Training loss": ["Multiline", ["train/loss"]],
            "Tokens per second": ["Multiline", ["throughput/tokens_per_second"]],
        },
    }


def _spectra_charts(prefix: str) -> dict[str, list[Any]]:
    return {
        **{measure.chart: ["Multiline", [f"{prefix}/{measure.name}/mean"]] for measure in _detailed()},
        "Effective rank by module": ["Multiline", [rf"{prefix}/effective_rank/(?!mean).*"]],
    }


def _detailed() -> list[Measure]:
    return [measure for measure in MEASURES.values() if measure.detailed]


def hyperparameters(module: Any, trainer: Any) -> dict[str, str | int | float]:
    """Return all settings by which the HParams tab sorts and groups runs, without those that are not set.

    The names of further settings are those of ``cera.runs.settings.flat_settings``, such as ``adapter.scaling``.
    """
    kind, settings = _adapter(module)
    parameters: dict[str, Any] = {"adapter": adapter_name(kind, settings)}
    rank = adapter_rank(settings)
    if rank is not None:
        parameters["r"] = rank
    parameters |= {
        "learning_rate": module.learning_rate,
        "steps": module.total_steps,
        "base": Path(module.base).name,
    }
    data = trainer.datamodule
    if data is not None:
        parameters |= {"data": type(data.dataset).__name__, "seed": data.seed}
    config = {"model": arguments(module), "trainer": {**arguments(trainer), "world_size": trainer.world_size}}
    flat = flat_settings(config if data is None else {**config, "data": arguments(data)})
    others = {name: value for name, value in flat.items() if value is not None and name not in SHOWN_AS_OTHER}
    return others | parameters


def _history(trainer: Any) -> dict[int, Spectra]:
    """Return the spectra by step that the trainer's tracker has; empty without a tracker."""
    for callback in trainer.callbacks:
        if isinstance(callback, SpectralTracker):
            return callback.history
    return {}


def _adapter(module: Any) -> tuple[str, dict[str, Any]]:
    return type(module.adapter).__name__, vars(module.adapter)


def _draw(writer: Any, newest: Spectra, history: dict[int, Spectra], label: str) -> None:
    update = newest.values.get("update")
    if not update:
        return
    for module, names in by_module(update).items():
        logarithms = torch.cat([update[name] for name in names.values()]).clamp_min(1e-12).log10()
        writer.add_histogram(f"log10 singular values of the update/{module}", logarithms, newest.step)
    updates = {step: spectra.values["update"] for step, spectra in history.items() if spectra.values.get("update")}
    figures = {
        "spectral signature": spectral_signature({label: update}),
        "cumulative energy": cumulative_energy_curves({label: update}),
        "effective rank by layer and step": effective_rank_map(updates),
    }
    for title, figure in figures.items():
        writer.add_figure(f"spectra/{title}", figure, newest.step)

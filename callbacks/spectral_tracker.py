"""Follows the spectra of an adapter through training (paper Sections 3.1, 4.1, 4.2)."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from cera.runs.files import replacing
from cera.runs.loggers import log_now
from cera.spectral import NonFiniteError, SpectrumAccumulator, effective_rank, energy_rank
from cera.spectral.files import Quantity, Spectra, spectra_files
from cera.spectral.hooks import Branch, find_branches
from cera.spectral.layer_names import by_module


class SpectralTracker(Callback):
    """Measures effective rank and AUC-90 of every layer at each validation, on batches computed anyway.

    Logs, over all adapted layers and per module (``q_proj``, ...), the mean of ``spectra/effective_rank``,
    ``spectra/effective_rank_over_r`` and ``spectra/auc_90``, and each per layer under ``spectra_by_layer``; for other
    quantities than the update the same under ``spectra_latent`` and ``spectra_weight``. ``spectra/cost`` is the
    tracker's share of the run's time so far. Keeps the singular values in ``spectra/step=N.safetensors`` of the run
    directory. A layer whose activations are NaN or infinite has no spectrum: it is named in a warning, nothing is
    logged, and training goes on.

    Args:
        batches: Validation batches to read at each validation, per rank; their padding is left out.
        quantities: Which matrices H (see ``cera.spectral``): ``update``, ``latent``, ``weight``. A quantity that an
            adapter does not have (DoRA a latent, CeRA a weight) is left out for it.
        every_n_steps: Measure a training step's batches instead, at every so many steps. The model is in training mode
            there, so what LoRA's dropout does to the layer's input is in its spectrum; CeRA's latent is taken before
            dropout.

    Raises:
        ValueError: An argument is out of its range; the message names it.
    """

    def __init__(
        self,
        batches: int = 2,
        quantities: Sequence[Quantity] = ("update", "latent"),
        every_n_steps: int | None = None,
    ) -> None:
        if batches < 1:
            raise ValueError(f"SpectralTracker.batches must be at least 1, got {batches}.")
        if not quantities or not set(quantities) <= set(get_args(Quantity)):
            raise ValueError(
                f"SpectralTracker.quantities must be of {', '.join(get_args(Quantity))}, got {list(quantities)}."
            )
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"SpectralTracker.every_n_steps must be at least 1, got {every_n_steps}.")
        self.batches = batches
        self.quantities = quantities
        self.every_n_steps = every_n_steps
        self._branches: list[Branch] = []
        self._streams: dict[str, SpectrumAccumulator] = {}
        self._handles: list[RemovableHandle] = []
        self._mask: Tensor | None = None
        self._not_finite: dict[str, None] = {}  # in the order of the layers
        self._step = 0
        self._seconds = 0.0  # spent here
        self._earlier = 0.0  # spent in the run before it was resumed
        self._started = 0.0

    # When to measure

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock anew; a resumed run writes the spectra after its checkpoint again."""
        self._started = time.perf_counter()
        if trainer.is_global_zero:
            for step, path in spectra_files(trainer.default_root_dir).items():
                if step > trainer.global_step:
                    path.unlink()

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin anew. The base alone, before the first step, has no update to measure."""
        if self.every_n_steps is None and not trainer.sanity_checking:
            self._begin(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Listen to the first batches."""
        if self.every_n_steps is None and self._streams and batch_idx < self.batches:
            self._listen(batch)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop listening."""
        self._stop_listening()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, log and keep."""
        if self.every_n_steps is None and self._streams:
            pl_module.log_dict(self._measure(trainer), sync_dist=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Listen to all micro-batches of the step, if it is time."""
        if self.every_n_steps is not None and (trainer.global_step + 1) % self.every_n_steps == 0:
            if not self._streams:
                self._begin(trainer, pl_module)
            self._listen(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Stop listening before gradient checkpointing runs the forward once more."""
        self._stop_listening()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure at the end of the step, log and keep."""
        if self._streams and trainer.global_step > self._step:
            log_now(trainer, self._measure(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._stop_listening()

    def state_dict(self) -> dict[str, float]:
        """The times that the cost is measured by."""
        return {"seconds": self._seconds, "training": self._earlier + time.perf_counter() - self._started}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """The inverse of ``state_dict``."""
        self._seconds, self._earlier = state_dict["seconds"], state_dict["training"]

    # How

    def _begin(self, trainer: Trainer, pl_module: Any) -> None:
        self._step = trainer.global_step
        self._branches = find_branches(pl_module.model)
        self._streams = {branch.name: SpectrumAccumulator(branch.name) for branch in self._branches}
        self._not_finite = {}

    def _listen(self, batch: Any) -> None:
        self._mask = batch["tokens"]
        for branch in self._branches:
            self._handles += branch.listen(partial(self._receive, branch.name))

    def _stop_listening(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _receive(self, name: str, activations: Tensor) -> None:
        start = time.perf_counter()
        try:
            self._streams[name].update(activations, self._mask)
        except NonFiniteError:
            self._not_finite[name] = None
        self._seconds += time.perf_counter() - start

    def _measure(self, trainer: Trainer) -> dict[str, float]:
        """Add up over the ranks, write the file, and return what is to be logged."""
        start = time.perf_counter()
        streams, self._streams = self._streams, {}
        if trainer.strategy.reduce_boolean_decision(bool(self._not_finite), all=False):
            rank_zero_warn(
                f"No spectra at step {trainer.global_step}: NaN or infinite activations in "
                f"{len(self._not_finite)} layers of this rank, such as {next(iter(self._not_finite), None)}."
            )
            return {}
        spectra: dict[str, dict[str, Tensor]] = {str(quantity): {} for quantity in self.quantities}
        for branch in self._branches:
            streams[branch.name].all_reduce()
            for found, sigma in branch.spectra(streams[branch.name], self.quantities, _whole).items():
                spectra[found][branch.name] = sigma.cpu()
        ranks = {branch.name: branch.rank for branch in self._branches if branch.rank}
        if trainer.is_global_zero:
            self._keep(trainer, Spectra(trainer.global_step, dict(spectra), ranks))
        values = {}
        for quantity, layers in spectra.items():
            values.update(_measures(quantity, layers, ranks))
        self._seconds += time.perf_counter() - start
        values["spectra/cost"] = self._seconds / (self._earlier + time.perf_counter() - self._started)
        return values

    def _keep(self, trainer: Trainer, spectra: Spectra) -> None:
        folder = Path(trainer.default_root_dir) / "spectra"
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / spectra.file_name) as file:
            spectra.save(file)


def _measures(quantity: str, spectra: dict[str, Tensor], ranks: dict[str, int]) -> dict[str, float]:
    """What is logged of one quantity's spectra."""
    if not spectra:
        return {}
    suffix = "" if quantity == "update" else f"_{quantity}"
    modules = by_module(spectra)
    rank = {name: effective_rank(sigma) for name, sigma in spectra.items()}
    per_layer = {
        "effective_rank": rank,
        "effective_rank_over_r": {name: rank[name] / ranks[name] for name in spectra if name in ranks},
        "auc_90": {name: float(energy_rank(sigma)) for name, sigma in spectra.items()},
    }
    groups = {"mean": list(spectra)}
    if len(modules) > 1:
        groups.update({module: list(names.values()) for module, names in modules.items()})
    values = {}
    for measure, of in per_layer.items():
        for module, names in modules.items():
            layers = {f"{number:02d}": of[name] for number, name in names.items() if name in of}
            values.update({f"spectra{suffix}_by_layer/{measure}/{module}/{n}": value for n, value in layers.items()})
        for group, members in groups.items():
            if known := [of[name] for name in members if name in of]:
                values[f"spectra{suffix}/{measure}/{group}"] = fmean(known)
    return values


def _whole(weight: Tensor) -> Tensor:
    """The weight, gathered if ZeRO-3 has partitioned it."""
    if not hasattr(weight, "ds_id"):
        return weight
    from cera.training.deepspeed import gather

    return gather({"weight": weight})["weight"]  # type: ignore[dict-item]

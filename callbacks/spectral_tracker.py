"""Follows the spectra of an adapter through training (paper Sections 3.1, 4.1, 4.2)."""

from functools import partial
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from cera.branches import Branch, find_branches
from cera.spectral import SpectrumAccumulator, effective_rank, energy_rank


class SpectralTracker(Callback):
    """Measures effective rank and AUC-90 of every layer's update at each validation, on batches computed anyway.

    Logs ``spectra/effective_rank/mean`` and ``spectra/auc_90/mean``, and both per layer; keeps the singular values in
    ``spectra/step=N.safetensors`` of the run directory. Validation runs in eval mode, so dropout is out of the picture.

    Args:
        batches: Validation batches to read at each validation, per rank; their padding is left out.
    """

    def __init__(self, batches: int = 2) -> None:
        if batches < 1:
            raise ValueError(f"SpectralTracker.batches must be at least 1, got {batches}.")
        self.batches = batches
        self._branches: list[Branch] = []
        self._streams: dict[str, SpectrumAccumulator] = {}
        self._handles: list[RemovableHandle] = []
        self._mask: Tensor | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin anew. The base alone, before the first step, has no update to measure."""
        if trainer.sanity_checking:
            return
        self._branches = find_branches(pl_module.model)
        self._streams = {branch.name: SpectrumAccumulator(branch.name) for branch in self._branches}

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Listen to the first batches."""
        if batch_idx >= self.batches or not self._streams:
            return
        self._mask = batch["tokens"]
        for branch in self._branches:
            self._handles += branch.listen(partial(self._receive, branch.name))

    def _receive(self, name: str, activations: Tensor) -> None:
        self._streams[name].update(activations, self._mask)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop listening."""
        self._remove_hooks()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up over the ranks, log, and keep the spectra."""
        if not self._streams:
            return
        spectra = {}
        for branch in self._branches:
            stream = self._streams[branch.name]
            stream.all_reduce()
            down = None if branch.down is None else _whole(branch.down)
            spectra[branch.name] = stream.singular_values(down, branch.scaling)
        self._streams = {}
        values = {}
        for measure, of in (("effective_rank", effective_rank), ("auc_90", energy_rank)):
            per_layer = {f"spectra/{measure}/{name}": float(of(sigma)) for name, sigma in spectra.items()}
            values[f"spectra/{measure}/mean"] = sum(per_layer.values()) / len(per_layer)
            values.update(per_layer)
        pl_module.log_dict(values, rank_zero_only=True)
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / "spectra"
            folder.mkdir(parents=True, exist_ok=True)
            save_file({k: v.cpu() for k, v in spectra.items()}, folder / f"step={trainer.global_step}.safetensors")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _whole(weight: Tensor) -> Tensor:
    """The weight, gathered if ZeRO-3 has partitioned it."""
    if not hasattr(weight, "ds_id"):
        return weight.detach()
    from cera.strategies import gather

    return gather({"weight": weight})["weight"]  # type: ignore[dict-item]

"""Follows the spectra of an adapter through training (paper Sections 3.1, 4.1, 4.2)."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cera.runs.files import replacing
from cera.runs.loggers import log_now
from cera.spectral.aggregate import metrics
from cera.spectral.convention import PROTOCOLS, Protocol
from cera.spectral.exact import GatherWeight, unpartitioned
from cera.spectral.files import Quantity, Spectra, spectra_files
from cera.spectral.recorder import NotRecordableError, SpectrumRecorder, describe_unmeasured
from cera.spectral.sample import Tokens


class SpectralTracker(Callback):
    """Measures the spectrum of every adapted layer at each validation, on batches that are computed anyway.

    It works in any Lightning trainer whose module holds a PEFT model, under any attribute name. Padding is recognized
    by the batch's ``tokens`` or ``attention_mask``; other batches are measured in full.

    Each registered measure (``cera.spectral.measures``), such as ``effective_rank`` and ``auc_90``, is logged as a mean
    over all adapted layers and per module under ``spectra/``, and per layer under ``spectra_by_layer/``. These are not
    centred; those of the update minus its mean over the tokens are under ``spectra_centred/``. See
    ``cera.spectral.aggregate.metrics``. ``spectra/cost`` is the tracker's share of the run's time so far. The singular
    values are written to ``spectra/step=N.safetensors`` in the trainer's ``default_root_dir``.

    If activations are NaN or infinite, or an adapter is merged or disabled, a warning says so, nothing is logged, and
    training continues. Layers without a row for each token are named in a warning and left out.

    Args:
        batches: Number of validation batches to measure at each validation, per rank.
        quantities: Which matrices H (see ``cera.spectral``): ``update``, ``latent``, ``weight``. A quantity that an
            adapter does not have (DoRA a latent, CeRA a weight) is left out.
        every_n_steps: Measure the forward passes of every n-th training step instead, with the weights that these read.
            The model is then in training mode, so the effect of LoRA's dropout on the layer's input is in its spectrum;
            CeRA's latent is read before dropout.
        protocol: A convention (``cera.spectral.convention.PROTOCOLS``) whose values are logged beside those of ours, as
            ``spectra_authors/effective_rank/mean``. It decides the tokens, by default.
        tokens: Which positions are measured: ``answer`` (those with a label), ``all`` that are no padding, or
            ``with_padding``, which is little in packed batches. All values that are logged are of these.

    Attributes:
        history: Spectra by step, on the first rank: those of this process, and after a resume those before it.

    Raises:
        ValueError: An argument is out of its range; the message names it.
    """

    def __init__(
        self,
        batches: int = 2,
        quantities: Sequence[Quantity] = ("update", "latent"),
        every_n_steps: int | None = None,
        protocol: Protocol = "ours",
        tokens: Tokens | None = None,
    ) -> None:
        if batches < 1:
            raise ValueError(f"SpectralTracker.batches must be at least 1, got {batches}.")
        if not quantities or not set(quantities) <= set(get_args(Quantity)):
            raise ValueError(
                f"SpectralTracker.quantities must be of {', '.join(get_args(Quantity))}, got {list(quantities)}."
            )
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"SpectralTracker.every_n_steps must be at least 1, got {every_n_steps}.")
        if protocol not in PROTOCOLS:
            raise ValueError(f"SpectralTracker.protocol must be one of {', '.join(PROTOCOLS)}, got {protocol}.")
        usual = PROTOCOLS[protocol].tokens
        if tokens not in (None, *get_args(Tokens)):
            raise ValueError(f"SpectralTracker.tokens must be one of {', '.join(get_args(Tokens))}, got {tokens}.")
        if protocol != "ours" and tokens not in (None, usual):
            raise ValueError(f"SpectralTracker.tokens must be {usual} with protocol {protocol}, got {tokens}.")
        self.protocol: Protocol = protocol
        self.tokens: Tokens = tokens or usual
        self.batches = batches
        self.quantities = quantities
        self.every_n_steps = every_n_steps
        self.history: dict[int, Spectra] = {}
        self._recorder: SpectrumRecorder | None = None  # None when nothing is being measured
        self._first_step = 0  # optimizer steps done when the recorder was made
        self._seconds = 0.0  # spent on measuring, in the whole run
        self._seconds_before_resume = 0.0
        self._started = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock, read the spectra of earlier steps and delete those of steps that will be made again."""
        self._started = time.perf_counter()
        if not trainer.is_global_zero:
            return
        self.history = {}
        for step, path in spectra_files(trainer.default_root_dir).items():
            if step > trainer.global_step:
                path.unlink()
            else:
                self.history[step] = Spectra.read(path)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the recorder. The sanity check is skipped: the base model has no update."""
        if self.every_n_steps is None and not trainer.sanity_checking:
            self._reset(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record the first batches."""
        if self.every_n_steps is None and self._recorder is not None and batch_idx < self.batches:
            self._recorder.attach_batch(batch)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop recording."""
        self._detach()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, log and write the spectra."""
        if self.every_n_steps is None and self._recorder is not None:
            pl_module.log_dict(self._measure(trainer, self._recorder), sync_dist=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Record all micro-batches of a step that is to be measured."""
        if self.every_n_steps is None or (trainer.global_step + 1) % self.every_n_steps != 0:
            return
        if self._recorder is None:
            self._reset(trainer, pl_module)
        if self._recorder is not None:
            self._recorder.attach_batch(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Stop recording before gradient checkpointing repeats the forward pass."""
        self._detach()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, log and write the spectra at the end of the optimizer step."""
        if self.every_n_steps is not None and self._recorder is not None and trainer.global_step > self._first_step:
            log_now(trainer, self._measure(trainer, self._recorder))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove all hooks from the model."""
        if self._recorder is not None:
            self._recorder.discard()

    def state_dict(self) -> dict[str, float]:
        """Return the times that ``spectra/cost`` is computed from."""
        return {"seconds": self._seconds, "training": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Restore the times that ``state_dict`` returned."""
        self._seconds, self._seconds_before_resume = state_dict["seconds"], state_dict["training"]

    def _elapsed(self) -> float:
        return self._seconds_before_resume + time.perf_counter() - self._started

    def _reset(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step = trainer.global_step
        self._recorder = None
        try:
            recorder = SpectrumRecorder(pl_module, self.quantities, _gather_function(pl_module), self.tokens)
        except NotRecordableError as error:
            rank_zero_warn(f"SpectralTracker measures nothing: {error}")
            return
        if not recorder.branches:
            rank_zero_warn(f"SpectralTracker measures nothing: {type(pl_module).__name__} holds no PEFT adapter.")
            return
        self._recorder = recorder

    def _detach(self) -> None:
        if self._recorder is not None:
            self._recorder.detach()

    def _measure(self, trainer: Trainer, recorder: SpectrumRecorder) -> dict[str, float]:
        """Combine the ranks' spectra, write them, and return what is to be logged."""
        start = time.perf_counter()
        self._recorder = None
        self._seconds += recorder.seconds
        if trainer.strategy.reduce_boolean_decision(bool(recorder.errors), all=False):
            rank_zero_warn(
                f"No spectra at step {trainer.global_step}: NaN or infinite activations in "
                f"{len(recorder.errors)} layers of this rank, such as {next(iter(recorder.errors), None)}."
            )
            return {}
        recorder.all_reduce()
        if recorder.unmeasured:
            rank_zero_warn(f"Step {trainer.global_step}: {describe_unmeasured(recorder.unmeasured)}")
        spectra = recorder.spectra(trainer.global_step)
        if trainer.is_global_zero and trainer.state.fn == "fit":  # `validate` leaves the run's spectra as they are
            self.history[spectra.step] = spectra
            _write(spectra, Path(trainer.default_root_dir) / "spectra")
        logged = metrics(spectra, self.protocol)
        self._seconds += time.perf_counter() - start
        logged["spectra/cost"] = self._seconds / self._elapsed()
        return logged


def _write(spectra: Spectra, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / spectra.file_name) as file:
        spectra.save(file)


def _gather_function(module: LightningModule) -> GatherWeight:
    """Return how to get a weight in full: all ranks must gather it if ZeRO-3 has partitioned the module."""
    if not any(hasattr(weight, "ds_id") for weight in module.parameters()):
        return unpartitioned
    from cera.training.deepspeed import gather

    return lambda weight: gather({"weight": weight})["weight"] if hasattr(weight, "ds_id") else weight

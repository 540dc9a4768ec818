"""Records the spectra of an adapter while its model runs.

``measure`` runs a model over batches. ``SpectrumRecorder`` is for those who run it themselves:

    recorder = SpectrumRecorder(model, ["update"])
    with recorder.attached(mask):
        model(input_ids)
    spectra = recorder.spectra(step=100)
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cera.spectral.accumulator import NonFiniteError, SpectrumAccumulator
from cera.spectral.files import LayerSpectra, Quantity, Spectra
from cera.spectral.hooks import GatherWeight, find_branches, unpartitioned


class SpectrumRecorder:
    """Accumulates the activations of all adapted layers of a model.

    Args:
        model: A PEFT model, or a module that holds one anywhere in it. Its active adapter is recorded.
        quantities: Any of ``update``, ``latent`` and ``weight``. A quantity that the adapter does not have (DoRA a
            latent, CeRA a weight) is left out.

    Attributes:
        branches: The adapted layers; empty if the model has no adapter.
        accumulators: What was seen of each layer, by its name.
        errors: For each layer with NaN or infinite activations the error that names it, in order of occurrence.
        seconds: Time spent on accumulating.
    """

    def __init__(self, model: nn.Module, quantities: Collection[Quantity]) -> None:
        self.quantities = quantities
        peft_model = next((module for module in model.modules() if isinstance(module, PeftModel)), None)
        if peft_model is None:  # layers of an adapter may be injected into a model without PEFT's wrapper
            self.branches = find_branches(model)
        else:
            self.branches = find_branches(peft_model, _active_adapter(peft_model))
        self.accumulators = {branch.name: SpectrumAccumulator(branch.name) for branch in self.branches}
        self.errors: dict[str, NonFiniteError] = {}
        self.seconds = 0.0
        self._mask: Tensor | None = None
        self._handles: list[RemovableHandle] = []

    def attach(self, mask: Tensor | None = None) -> None:
        """Record the following forward passes, until ``detach``.

        Args:
            mask: (batch, length) bool; False leaves a position out (padding).
        """
        self._mask = mask
        for branch in self.branches:
            self._handles += branch.attach(partial(self._receive, branch.name))

    def detach(self) -> None:
        """Remove all hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def attached(self, mask: Tensor | None = None) -> Iterator[None]:
        """Record the forward passes of a ``with`` block; see ``attach``."""
        self.attach(mask)
        try:
            yield
        finally:
            self.detach()

    def all_reduce(self) -> None:
        """Combine what the ranks of the default process group recorded, if there is one. Every rank must call this."""
        for branch in self.branches:
            self.accumulators[branch.name].all_reduce()

    def spectra(self, step: int, gather: GatherWeight = unpartitioned) -> Spectra:
        """Return the spectra of all that was recorded.

        Args:
            step: Number of optimizer steps done.
            gather: Returns a weight in full that is partitioned over ranks.
        """
        values: dict[str, LayerSpectra] = {str(quantity): {} for quantity in self.quantities}
        for branch in self.branches:
            spectra = branch.spectra(self.accumulators[branch.name], self.quantities, gather)
            for quantity, sigma in spectra.items():
                values[quantity][branch.name] = sigma.cpu()
        return Spectra(step, values, {branch.name: branch.rank for branch in self.branches if branch.rank})

    def _receive(self, name: str, activations: Tensor) -> None:
        start = time.perf_counter()
        try:
            self.accumulators[name].update(activations, self._mask)
        except NonFiniteError as error:
            self.errors.setdefault(name, error)
        self.seconds += time.perf_counter() - start


@torch.no_grad()
def measure(model: nn.Module, batches: Iterable[Mapping[str, Any]], quantities: Collection[Quantity]) -> Spectra:
    """Return the spectra of the active adapter of ``model`` on ``batches``, without dropout.

    Args:
        model: A PEFT model.
        batches: Mappings with ``input_ids``, ``position_ids`` and ``tokens`` (False is padding), each (batch, length).
        quantities: Any of ``update``, ``latent`` and ``weight``.

    Raises:
        NonFiniteError: A layer's activations are NaN or infinite.
    """
    model.eval()
    recorder = SpectrumRecorder(model, quantities)
    device = next(model.parameters()).device
    for batch in batches:
        ids, positions, mask = (batch[key].to(device) for key in ("input_ids", "position_ids", "tokens"))
        with recorder.attached(mask):
            model(input_ids=ids, position_ids=positions, logits_to_keep=1)
        if recorder.errors:
            raise next(iter(recorder.errors.values()))
    return recorder.spectra(step=0)


def batch_mask(batch: Any) -> Tensor | None:
    """Return which positions of a batch are tokens, (batch, length) bool, or ``None`` if it does not say.

    The mask is ``tokens`` as this package's collator makes it, otherwise a two-dimensional ``attention_mask``.
    """
    if not isinstance(batch, Mapping):
        return None
    for key in ("tokens", "attention_mask"):
        mask = batch.get(key)
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return mask.bool()
    return None


def _active_adapter(model: PeftModel) -> str:
    active = model.active_adapter
    return active if isinstance(active, str) else active[0]

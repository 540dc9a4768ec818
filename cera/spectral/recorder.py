"""Records the spectra of an adapter while its model runs.

``measure`` runs a model over batches. ``SpectrumRecorder`` is for those who run it themselves:

    recorder = SpectrumRecorder(model, ["update"])
    with recorder.attached(mask):
        model(input_ids)
    spectra = recorder.spectra(step=100)
"""

import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cera.spectral.accumulator import NonFiniteError, SpectrumAccumulator, gather_objects
from cera.spectral.exact import GatherWeight, unpartitioned
from cera.spectral.files import LayerSpectra, Quantity, Spectra
from cera.spectral.hooks import BranchWeights, find_branches, is_off
from cera.spectral.sample import Sample, Tokens, digits, fingerprint, measured_tokens, total


class NotRecordableError(ValueError):
    """The model has no adapter whose update a forward pass computes: it is merged or disabled, or one of several."""


class SpectrumRecorder:
    """Accumulates the activations of all adapted layers of a model.

    Args:
        model: A PEFT model, or a module that holds one anywhere in it. Its active adapter is recorded.
        quantities: Any of ``update``, ``latent`` and ``weight``. A quantity that the adapter does not have (DoRA a
            latent, CeRA a weight) is left out.
        gather: Returns a weight in full that is partitioned over ranks.
        tokens: Which positions ``attach_batch`` measures, and the name in ``Spectra.sample``.

    Attributes:
        branches: The adapted layers; empty if the model has no adapter.
        accumulators: What was seen of each layer, by its name.
        errors: For each layer with NaN or infinite activations the error that names it, in order of occurrence.

    Raises:
        NotRecordableError: The adapter is merged or disabled, or several are active.
    """

    def __init__(
        self,
        model: nn.Module,
        quantities: Collection[Quantity],
        gather: GatherWeight = unpartitioned,
        tokens: Tokens = "all",
    ) -> None:
        self.quantities = quantities
        self.tokens = tokens
        self._gather = gather
        peft_model = next((module for module in model.modules() if isinstance(module, PeftModel)), None)
        # layers of an adapter may be injected into a model without PEFT's wrapper
        adapter = "default" if peft_model is None else _active_adapter(peft_model)
        self.branches = find_branches(peft_model or model, adapter, gather)
        if self.branches and all(is_off(branch.layer, adapter) for branch in self.branches):
            raise NotRecordableError(
                f"the adapter {adapter!r} is merged into the base, or disabled: no forward pass computes its update. "
                "Call unmerge_adapter() or enable it first."
            )
        self.accumulators = {branch.name: SpectrumAccumulator(branch.name) for branch in self.branches}
        self.errors: dict[str, NonFiniteError] = {}
        self._accumulating = 0.0  # seconds
        self._shapes: dict[str, tuple[int, ...]] = {}  # of activations without a row for each token
        self._weights: dict[str, BranchWeights | None] = {}
        self._mask: Tensor | None = None
        self._data: int | None = 0  # sum of the batches' fingerprints; unknown once a batch has none
        self._handles: list[RemovableHandle] = []
        # weights that are partitioned cannot be gathered while a forward pass has some of them in use
        self._later: list[Callable[[], None]] | None = None if gather is unpartitioned else []

    @property
    def seconds(self) -> float:
        """Time spent on computing and accumulating activations."""
        return self._accumulating + sum(branch.seconds for branch in self.branches)

    @property
    def unmeasured(self) -> dict[str, str]:
        """The layers of which nothing was recorded, and the reason, by name."""
        return {
            name: (
                f"its activations {self._shapes[name]} have no row for each token"
                if name in self._shapes
                else "its adapter was never run"
            )
            for name, accumulator in self.accumulators.items()
            if not accumulator.rows
        }

    def attach_batch(self, batch: Any) -> None:
        """Record the forward passes of a batch, until ``detach``, at the positions that ``tokens`` says.

        Raises:
            ValueError: The batch does not say which positions these are.
        """
        self.attach(measured_tokens(batch, self.tokens), fingerprint(batch))

    def attach(self, mask: Tensor | None = None, data: int | None = None) -> None:
        """Record the following forward passes, until ``detach``.

        The weights of the adapter are read at the first call. They must not change until all is recorded, as the
        spectra are of one adapter.

        Args:
            mask: (batch, length) bool; False leaves a position out (padding).
            data: Fingerprint of the batch (``cera.spectral.sample.fingerprint``); ``None`` if it is not known.
        """
        start = time.perf_counter()
        self._mask = mask
        self._data = total((self._data, data))
        for branch in self.branches:
            if branch.name not in self._weights:
                self._weights[branch.name] = branch.read_weights(self._gather)
            later = self._later if branch.down is None else None
            self._handles += branch.attach(partial(self._receive, branch.name), later)
        self._accumulating += time.perf_counter() - start

    def detach(self) -> None:
        """Remove all hooks from the model, and compute what had to wait for the end of the forward pass.

        If weights are partitioned, every rank must call this.
        """
        waiting = list(self._later or [])
        self.discard()
        for compute in waiting:
            compute()

    def discard(self) -> None:
        """Remove all hooks from the model, as after an error, without computing anything."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._later is not None:
            self._later.clear()

    @contextmanager
    def attached(self, mask: Tensor | None = None, data: int | None = None) -> Iterator[None]:
        """Record the forward passes of a ``with`` block; see ``attach``."""
        self.attach(mask, data)
        try:
            yield
            self.detach()
        finally:
            self.discard()

    def all_reduce(self) -> None:
        """Combine what the ranks of the default process group recorded, if there is one. Every rank must call this."""
        self._data = total(gather_objects(self._data))
        for branch in self.branches:
            self.accumulators[branch.name].all_reduce()

    def spectra(self, step: int) -> Spectra:
        """Return the spectra of all that was recorded; the layers in ``unmeasured`` are left out.

        Args:
            step: Number of the optimizer step.
        """
        values: dict[str, LayerSpectra] = {str(quantity): {} for quantity in self.quantities}
        shapes = {}
        for branch in self.branches:
            accumulator, weights = self.accumulators[branch.name], self._weights.get(branch.name)
            for matrix, sigma in branch.spectra(accumulator, self.quantities, weights).items():
                values.setdefault(matrix, {})[branch.name] = sigma.cpu()
            if weights is not None and weights.shape is not None and "weight" in self.quantities:
                shapes[branch.name] = weights.shape
        ranks = {branch.name: branch.rank for branch in self.branches if branch.rank}
        return Spectra(step, values, ranks, shapes, self._sample())

    def _sample(self) -> Sample:
        count = max((accumulator.rows for accumulator in self.accumulators.values()), default=0)
        return Sample(self.tokens, count, digits(self._data))

    def _receive(self, name: str, activations: Tensor) -> None:
        start = time.perf_counter()
        mask, positions = self._mask, activations.shape[:-1]
        if mask is not None and positions == (mask.numel(),):
            mask = mask.flatten()  # the layer sees the batch's positions one after the other
        if mask is not None and positions != mask.shape:
            self._shapes[name] = tuple(activations.shape)
            return
        try:
            self.accumulators[name].update(activations, mask)
        except NonFiniteError as error:
            self.errors.setdefault(name, error)
        self._accumulating += time.perf_counter() - start


@torch.no_grad()
def measure(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    quantities: Collection[Quantity],
    tokens: Tokens = "all",
) -> Spectra:
    """Return the spectra of the active adapter of ``model`` on ``batches``, without dropout.

    Args:
        model: A PEFT model.
        batches: Mappings with ``input_ids``, ``position_ids`` and ``tokens`` (False is padding), each (batch, length);
            with ``labels``, too, if the answer's positions are measured.
        quantities: Any of ``update``, ``latent`` and ``weight``.
        tokens: Which positions are measured.

    Raises:
        NonFiniteError: A layer's activations are NaN or infinite.
        NotRecordableError: The adapter is merged or disabled, several are active, or no layer has a row for each token.
    """
    model.eval()
    recorder = SpectrumRecorder(model, quantities, tokens=tokens)
    device = next(model.parameters()).device
    options = {} if _adapts_head(model) else {"logits_to_keep": 1}
    for batch in batches:
        moved = {key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)}
        with recorder.attached(measured_tokens(moved, tokens), fingerprint(moved)):
            model(input_ids=moved["input_ids"], position_ids=moved["position_ids"], **options)
        if recorder.errors:
            raise next(iter(recorder.errors.values()))
    if recorder.branches and len(recorder.unmeasured) == len(recorder.branches):
        name, reason = next(iter(recorder.unmeasured.items()))
        raise NotRecordableError(f"no layer can be measured, such as {name}: {reason}.")
    if recorder.unmeasured:
        warnings.warn(describe_unmeasured(recorder.unmeasured), stacklevel=2)
    return recorder.spectra(step=0)


def describe_unmeasured(unmeasured: Mapping[str, str]) -> str:
    """Return a sentence that names layers without spectra and the reason."""
    first, *others = (f"{name} ({reason})" for name, reason in unmeasured.items())
    return f"No spectra of {first}" + (f" and {len(others)} other layers." if others else ".")


def _active_adapter(model: PeftModel) -> str:
    names = model.active_adapters
    if len(names) != 1:
        raise NotRecordableError(f"exactly one adapter must be active to be measured, got {names}.")
    return names[0]


def _adapts_head(model: Any) -> bool:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return isinstance(head, BaseTunerLayer)

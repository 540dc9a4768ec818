"""The memory of weights, gradients and optimizer state, with and without DeepSpeed's ZeRO.

sizes = Sizes.from_model(model, torch.bfloat16, torch.bfloat16)
ZeRO(stage=2, ranks=8).memory(sizes, activations=2**30).total  # bytes
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import nn

BYTES_PER_WEIGHT = {
    "nf4": 1 / 2 + 1 / 64 + 4 / (64 * 256),  # 4 bits, an 8-bit scale per 64 weights, an fp32 scale per 256 of those
    "int8": 1.0,  # the fp32 scale per row is neglected
}
PERSISTENCE_THRESHOLD = 10**5
"""Under ZeRO-3, tensors of at most this many elements stay on all ranks (``stage3_param_persistence_threshold``).
The default of DeepSpeed and Lightning."""

MAX_LIVE_ELEMENTS = 10**9
"""Under ZeRO-3, at most this many elements are gathered at a time (``stage3_max_live_parameters``), except for a single
larger tensor. The default of DeepSpeed and Lightning."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of the parameters of a model with an adapter.

    Attributes:
        frozen: Element count and bytes per element of each frozen parameter.
        trained: Element count of each trained parameter.
        itemsize: Bytes per element of the trained parameters.
        dequantized: Bytes of the largest weight that a quantized layer dequantizes in its forward pass.
    """

    frozen: Sequence[tuple[int, float]]
    trained: Sequence[int]
    itemsize: int
    dequantized: int = 0

    @classmethod
    def from_model(
        cls, model: Any, frozen: torch.dtype, trained: torch.dtype, quantization: str | None = None
    ) -> "Sizes":
        """Return the sizes of a ``PeftModel``, which may be on the meta device.

        Args:
            model: The model before quantization.
            frozen: Data type of the frozen parameters that are not quantized.
            trained: Data type of the trained parameters.
            quantization: Quantization of the linear layers except the head, by bitsandbytes (``BYTES_PER_WEIGHT``).
        """
        head = model.get_base_model().get_output_embeddings()
        quantized: set[Any] = set()
        if quantization:
            linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
            quantized = {module.weight for module in linear if not module.weight.requires_grad}
        parameters = list(model.parameters())
        return cls(
            [
                (p.numel(), BYTES_PER_WEIGHT[quantization] if quantization and p in quantized else frozen.itemsize)
                for p in parameters
                if not p.requires_grad
            ],
            [p.numel() for p in parameters if p.requires_grad],
            trained.itemsize,
            max((weight.numel() * frozen.itemsize for weight in quantized), default=0),
        )

    def frozen_bytes(self, ranks: int = 1) -> int:
        """Return the bytes of the frozen weights on one rank, with each tensor divided among ``ranks``."""
        return round(sum(math.ceil(elements / ranks) * size for elements, size in self.frozen))

    def trained_elements(self, ranks: int = 1) -> int:
        """Return the trained elements on one rank, with each tensor divided among ``ranks``."""
        return sum(math.ceil(elements / ranks) for elements in self.trained)

    def gathered_bytes(self) -> int:
        """Return the maximum bytes of partitioned weights that ZeRO-3 gathers on one rank at a time."""
        sizes = [*self.frozen, *((elements, self.itemsize) for elements in self.trained)]
        persistent = sum(elements * size for elements, size in sizes if elements <= PERSISTENCE_THRESHOLD)
        partitioned = [(elements, size) for elements, size in sizes if elements > PERSISTENCE_THRESHOLD]
        if not partitioned:
            return round(persistent)
        counts = [elements for elements, _ in partitioned]
        share = min(1.0, max(MAX_LIVE_ELEMENTS, *counts) / sum(counts))
        return round(persistent + share * sum(elements * size for elements, size in partitioned))


@dataclass(frozen=True)
class Memory:
    """The bytes that one process needs at the peak of a training step, from the second micro-batch on.

    Attributes:
        frozen: Weights of the base model.
        adapter: Trained weights, in the data type that the model computes with.
        gradients: Gradients accumulated over earlier micro-batches; those of the next one are added as they arise.
        optimizer: AdamW's two moments, and the fp32 master weights that DeepSpeed keeps.
        activations: Peak of the temporary tensors of a forward and backward pass or, if larger, of the fp32 gradients
            that DeepSpeed makes for the optimizer after that pass.
        buffers: Buffers of the strategy: gradient buckets and gathered weights.
    """

    frozen: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int

    @property
    def total(self) -> int:
        """Sum over all purposes."""
        return sum(astuple(self))


def without_deepspeed(sizes: Sizes, activations: int, devices: int = 1) -> Memory:
    """Return the memory that one of ``devices`` needs without DeepSpeed.

    AdamW's moments have the data type of the weights. On more than one device DDP's buckets hold a second copy of the
    gradients.
    """
    trained = sizes.trained_elements() * sizes.itemsize
    buckets = trained if devices > 1 else 0
    return Memory(sizes.frozen_bytes(), trained, trained, 2 * trained, activations, buckets)


@dataclass(frozen=True)
class ZeRO:
    """DeepSpeed as Lightning's strategy configures it (Rajbhandari et al. 2020; DeepSpeed 0.19).

    - Stage 1 partitions the optimizer state among the ranks, stage 2 also the gradients, stage 3 also all weights.
    - Moments and master weights are fp32. Only at stage 0 do fp32 weights serve as their own master weights.
    - Stages 1 and 2 copy gradients to buckets during the backward pass, two of them if communication overlaps with it;
      stage 3 always holds one bucket, and the weights that are gathered.

    Args:
        stage: 0 to 3.
        ranks: Number of devices.
        bucket: Number of elements in a bucket (``reduce_bucket_size``).
        overlap: Whether there are two buckets (``overlap_comm``).
    """

    stage: int
    ranks: int
    bucket: int = 200_000_000
    overlap: bool = True

    def memory(self, sizes: Sizes, activations: int) -> Memory:
        """Return the memory that one rank needs.

        Args:
            sizes: Sizes of the model.
            activations: Peak bytes of a forward and backward pass.
        """
        weight_ranks, gradient_ranks, state_ranks = (self.ranks if self.stage >= stage else 1 for stage in (3, 2, 1))
        partition = sizes.trained_elements(state_ranks)
        master = 0 if self.stage == 0 and sizes.itemsize == 4 else 4 * partition
        return Memory(
            frozen=sizes.frozen_bytes(weight_ranks),
            adapter=sizes.trained_elements(weight_ranks) * sizes.itemsize,
            gradients=sizes.trained_elements(gradient_ranks) * sizes.itemsize,
            optimizer=8 * partition + master,
            activations=max(activations, master),
            buffers=self._buffers(sizes),
        )

    def _buffers(self, sizes: Sizes) -> int:
        bucket = self.bucket * sizes.itemsize
        if self.stage == 0:
            return 0
        if self.stage == 3:
            return bucket + sizes.gathered_bytes()
        return bucket * (2 if self.overlap else 1)

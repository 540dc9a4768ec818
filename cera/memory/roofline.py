"""A roofline of a training step: the least time that it takes an accelerator, operation by operation.

    micro_batch = trace(module, "bf16-true", rows=2, length=2048)  # on fake tensors, by the run's own model and loss
    micro_batch.seconds(H100)  # of one GPU, without communication

Each operation takes at least the time of its floating-point operations and that of reading its inputs and writing its
output once (Williams et al. 2009). An operation's own workspace, launching it and the gaps between two are free, and no
tensor stays in a cache from one to the next. So the time is that of a run whose layers are not compiled. Rates are
those of a data sheet times ``attainable``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from cera.memory.activations import fake_step
from cera.training.module import CausalLM

ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default: 2,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default: 4,
}
"""Operations of attention on fake tensors, and their products over all pairs; torch's own table lacks them."""

GATHERS = 2
"""Under ZeRO-3, how often a micro-batch is assumed to gather all weights: for the forward and for the backward pass. A
layer that is recomputed keeps its weights until its backward pass, which follows at once."""


@dataclass(frozen=True)
class Accelerator:
    """The constants of a GPU in a cluster.

    Attributes:
        name: Its name.
        flops: Peak operations per second of dense bf16 products.
        memory_bandwidth: Peak bytes per second of its memory.
        node_bandwidth: Bytes per second, in one direction, between a GPU and the others of its node.
        network_bandwidth: Bytes per second, in one direction, between a GPU's network adapter and other nodes.
        memory: Bytes of its memory.
        node: GPUs in a node, each with a network adapter.
        attainable: Share of each of these rates that is assumed to be reached, in (0, 1].
    """

    name: str
    flops: float
    memory_bandwidth: float
    node_bandwidth: float
    network_bandwidth: float
    memory: float
    node: int
    attainable: float

    def product_seconds(self, flops: float) -> float:
        """Return the least time of dense bf16 products with this many operations."""
        return flops / (self.flops * self.attainable)

    def pass_seconds(self, size: float) -> float:
        """Return the least time of reading or writing ``size`` bytes of memory."""
        return size / (self.memory_bandwidth * self.attainable)

    def collective_seconds(self, size: float, ranks: int) -> float:
        """Return the least time of gathering or reduce-scattering ``size`` bytes in all among ``ranks``.

        Every rank receives the shares of all others from its node; across nodes, all adapters of a node together
        receive each byte of the others once. Latency is not counted.
        """
        if ranks == 1:
            return 0.0
        bandwidth = self.node_bandwidth
        if ranks > self.node:
            bandwidth = min(bandwidth, self.node * self.network_bandwidth)
        return size * (ranks - 1) / ranks / (bandwidth * self.attainable)


H100 = Accelerator("H100 80GB SXM", 989.4e12, 3.35e12, 450e9, 50e9, 80 * 2**30, node=8, attainable=0.8)
"""NVIDIA's data sheets: H100 (SXM; dense is half of the rate with sparsity; 900 GB/s of NVLink are both directions
together) and DGX H100 (eight ConnectX-7 adapters of 400 Gb/s). ``attainable`` is an assumption."""


@dataclass(frozen=True)
class Operation:
    """One operation: its floating-point operations (products only), and the bytes that it reads and writes."""

    flops: float
    bytes: float


class Operations(TorchDispatchMode):
    """Lists the operations that run, without those that only make a view or an empty tensor.

    The scores of attention are counted where a query sees a key, which is half of all pairs in a causal row.

    Attributes:
        ran: The operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[Operation] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``operation`` and add it to the list."""
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        inputs, outputs = list(_tensors((args, kwargs))), list(_tensors(result))
        storages = {tensor.untyped_storage()._cdata for tensor in inputs}
        new = [tensor for tensor in outputs if tensor.untyped_storage()._cdata not in storages]
        if (new and inputs) or operation._schema.is_mutable:
            written = outputs if operation._schema.is_mutable else new
            size = sum(_bytes(tensor) for tensor in [*inputs, *written])
            self.ran.append(Operation(_flops(operation, args, kwargs, result), size))
        return result


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, Tensor))


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())  # an expanded one is read once


def _flops(operation: Any, args: Any, kwargs: Any, result: Any) -> float:
    if operation in ATTENTION:
        *batch, queries, width = next(t.shape for t in _tensors(args))
        pairs = queries * (queries + 1) / 2
        return ATTENTION[operation] * 2 * torch.Size(batch).numel() * pairs * width
    count = flop_registry.get(operation._overloadpacket)
    return 0 if count is None else cast(int, count(*args, **kwargs, out_val=result))


@dataclass(frozen=True)
class MicroBatch:
    """The forward and backward pass of one micro-batch.

    Attributes:
        operations: What runs.
        activations: Peak bytes of its temporary tensors; see ``cera.memory.activations``.
    """

    operations: tuple[Operation, ...]
    activations: int

    @property
    def flops(self) -> float:
        """All floating-point operations of products, with those that checkpointing repeats."""
        return sum(operation.flops for operation in self.operations)

    def seconds(self, accelerator: Accelerator, products_only: bool = False) -> float:
        """Return the least time, operation by operation.

        Args:
            accelerator: The constants.
            products_only: Leave out all operations but products, as if the others were fused into them.
        """
        return sum(
            max(accelerator.product_seconds(operation.flops), accelerator.pass_seconds(operation.bytes))
            for operation in self.operations
            if operation.flops or not products_only
        )


def trace(module: CausalLM, precision: str, rows: int, length: int) -> MicroBatch:
    """Return the operations of a micro-batch whose rows are one document each, with loss at all tokens.

    Args:
        module: The module to train; see ``cera.memory.activations``.
        precision: Precision of the trainer.
        rows: Rows in the micro-batch.
        length: Tokens in a row.
    """
    with fake_step(module, precision, rows, length) as (step, live), Operations() as operations:
        step()
    return MicroBatch(tuple(operations.ran), live.peak)


def communication_seconds(
    accelerator: Accelerator, stage: int | None, ranks: int, weights: float, trained: float
) -> tuple[float, float]:
    """Return the least time of the collectives of a micro-batch, and of those of an optimizer step beside them.

    Without DeepSpeed gradients are all-reduced once a step. Stages 1 to 3 reduce-scatter them in each micro-batch;
    stages 1 and 2 gather the updated weights of the adapter once a step, stage 3 all weights ``GATHERS`` times in each
    micro-batch.

    Args:
        accelerator: The constants.
        stage: ZeRO stage; ``None`` without DeepSpeed.
        ranks: Number of GPUs.
        weights: Bytes of all weights of the model.
        trained: Bytes of the adapter's weights, and of their gradients.
    """
    once = accelerator.collective_seconds(trained, ranks)
    if stage is None or stage == 0:
        return 0.0, 2 * once
    if stage == 3:
        return once + GATHERS * accelerator.collective_seconds(weights, ranks), 0.0
    return once, once

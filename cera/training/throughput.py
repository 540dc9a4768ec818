"""Measures training speed: tokens, padding, time, and the floating-point operations that the model requires.

Example:
    >>> flops = TrainingFlops.from_model(model)  # a PeftModel
    >>> flops(batch) / seconds  # operations per second
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cera.data.chat import IGNORE


@dataclass
class Meter:
    """Counts the tokens of training batches and the time they take, in this process.

    The clock runs from the start of the first batch to the end of the last one, including waiting for data and saving.
    Callers pause it for validation.

    Attributes:
        tokens: Number of tokens, without padding.
        positions: Number of positions, with padding.
        seconds: Elapsed time.
    """

    tokens: int = 0
    positions: int = 0
    seconds: float = 0.0
    _started: float | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the clock at the beginning of a batch; do nothing if it is running."""
        if self._started is None:
            self._started = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock until the next ``start``."""
        if self._started is not None:
            self.seconds += time.perf_counter() - self._started
            self._started = None

    def add(self, batch: dict[str, Any]) -> None:
        """Count a finished batch of ``cera.data``."""
        self.pause()
        self.start()
        self.tokens += batch["n_tokens"]
        self.positions += batch["tokens"].numel()

    def reset(self) -> None:
        """Set all counts to zero; a running clock keeps running."""
        self.tokens, self.positions, self.seconds = 0, 0, 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second; NaN before the first batch."""
        return self.tokens / self.seconds if self.seconds else float("nan")


@dataclass(frozen=True)
class TrainingFlops:
    """Number of floating-point operations to train an adapter on a frozen transformer, forward and backward.

    A product with a weight of N elements costs 2 N operations per token in the forward pass and 2 N for the gradient of
    its input. The weight's own gradient, another 2 N, is needed only if the weight is trained. In total:

        tokens * (4 N_frozen + 6 N_trained) + labels * 4 N_head + pairs * 12 * layers * heads * head_dim

    - ``tokens`` excludes padding. ``labels`` is the number of positions at which the head is computed. ``pairs`` is the
      number of (query, key) pairs, causal and within a document; queries by keys and weights by values are 2 products
      of ``2 * heads * head_dim`` operations per pair forward, and 4 backward.
    - Embedding lookups, norms, activations and the optimizer are not counted.
    - Recomputation by gradient checkpointing is not counted: relative to the device's peak this gives the utilization
      of the model (MFU; Chowdhery et al. 2022, App. B), not of the hardware.
    - The gradient is assumed to reach the first layer. Experts fused into one parameter are not counted.

    Attributes:
        frozen: N_frozen, the elements of frozen linear modules without the head.
        trained: N_trained, the trained elements.
        head: N_head, the elements of the head; 0 if it is trained.
        attention: ``12 * layers * heads * head_dim``.
    """

    frozen: int
    trained: int
    head: int
    attention: int

    @classmethod
    def from_model(cls, model: Any) -> "TrainingFlops":
        """Count the elements of a ``PeftModel``, which may be quantized or partitioned by ZeRO-3."""
        head = model.get_base_model().get_output_embeddings()
        linear = {m for m in model.modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad}
        sizes = {module: module.in_features * module.out_features for module in linear}  # nf4 packs the weight itself
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            frozen=sum(size for module, size in sizes.items() if module is not head),
            trained=sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad),
            head=sizes.get(head, 0),
            attention=12 * config.num_hidden_layers * heads * head_dim,
        )

    def count(self, tokens: float, labels: float, pairs: float) -> float:
        """Return the number of operations for these counts; see the class."""
        return tokens * (4 * self.frozen + 6 * self.trained) + labels * 4 * self.head + pairs * self.attention

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        """Return the operations for a batch of ``cera.data``: an fp32 scalar on its device, without synchronization."""
        labels = (batch["labels"][:, 1:] != IGNORE).sum(dtype=torch.float32)
        pairs = ((batch["position_ids"] + 1) * batch["tokens"]).sum(dtype=torch.float32)
        return torch.as_tensor(self.count(batch["n_tokens"], labels, pairs))  # type: ignore[arg-type]

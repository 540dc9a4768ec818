"""How fast training goes: tokens, padding and floating-point operations against the clock."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cera.data.chat import IGNORE


@dataclass
class Meter:
    """Counts the tokens of training batches and the time between them.

    The clock runs from the start of one batch to the end of the last, waiting for data and saving included; it is
    paused for validation. Numbers are those of this process.

    Attributes:
        tokens: Tokens so far, padding left out.
        positions: Places for tokens so far, padding counted.
        seconds: Time so far.
    """

    tokens: int = 0
    positions: int = 0
    seconds: float = 0.0
    _mark: float | None = field(default=None, repr=False)

    def start(self) -> None:
        """A batch begins: start the clock, if it stands still."""
        if self._mark is None:
            self._mark = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock until the next batch begins."""
        if self._mark is not None:
            self.seconds += time.perf_counter() - self._mark
            self._mark = None

    def add(self, batch: dict[str, Any]) -> None:
        """A batch of ``cera.data`` is done."""
        self.pause()
        self.start()
        self.tokens += batch["n_tokens"]
        self.positions += batch["tokens"].numel()

    def reset(self) -> None:
        """Count from here on; the clock runs on."""
        self.tokens, self.positions, self.seconds = 0, 0, 0.0

    @property
    def tokens_per_second(self) -> float:
        """The rate so far; NaN before the first batch."""
        return self.tokens / self.seconds if self.seconds else float("nan")


@dataclass(frozen=True)
class TrainingFlops:
    """Floating-point operations that training an adapter on a frozen transformer asks for, forward and backward.

    A product with a weight of N numbers costs 2 N operations a token, and as much again to pass the gradient through;
    the weight's own gradient, another 2 N, is needed only where it is trained. So

        tokens * (4 N_frozen + 6 N_trained) + labels * 4 N_head + pairs * 12 * layers * heads * head_dim

    - ``tokens`` without padding; ``labels``, the positions that the head is computed at; ``pairs`` of tokens of which
      one attends to the other, within its document and not to the future: queries by keys and weights by values are
      2 products of ``2 * heads * head_dim`` operations forward, and 4 backward;
    - looking up embeddings, norms, activations and the optimizer count nothing;
    - what gradient checkpointing computes again counts nothing either: the share of the peak that this gives is a
      utilization of the model (MFU; Chowdhery et al. 2022, App. B), not of the hardware;
    - the gradient is taken to go down to the first layer, and experts fused into one parameter are overlooked.

    Attributes:
        frozen: N_frozen, in frozen linear modules without the head.
        trained: N_trained.
        head: N_head, 0 if it is trained.
        attention: ``12 * layers * heads * head_dim``.
    """

    frozen: int
    trained: int
    head: int
    attention: int

    @classmethod
    def of(cls, model: Any) -> "TrainingFlops":
        """Count in a ``PeftModel``, quantized or partitioned by ZeRO-3 or not."""
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
        """Operations for that many of each; see the class."""
        return tokens * (4 * self.frozen + 6 * self.trained) + labels * 4 * self.head + pairs * self.attention

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        """Operations for a batch of ``cera.data``, a scalar (fp32) on its device, without waiting for that device."""
        labels = (batch["labels"][:, 1:] != IGNORE).sum(dtype=torch.float32)
        pairs = ((batch["position_ids"] + 1) * batch["tokens"]).sum(dtype=torch.float32)
        return torch.as_tensor(self.count(batch["n_tokens"], labels, pairs))  # type: ignore[arg-type]

"""What a small base model is: its shape, its corpus and its training.

Example:
    >>> Pretraining("tiny", [ReasoningGym(size=100, family="gcd")], steps=10)
"""

from dataclasses import dataclass, field

from transformers import LlamaConfig

from cera.data import ChatDataset
from cera.runs.names import check_name


@dataclass
class Shape:
    """The shape of a Llama. Queries, keys and values have a head each (no grouped-query attention).

    Args:
        hidden_size: Width of the residual stream, a multiple of twice ``heads``.
        intermediate_size: Width of the MLPs.
        layers: Number of layers.
        heads: Number of attention heads.
        positions: Maximum number of tokens.
    """

    hidden_size: int = 192
    intermediate_size: int = 672
    layers: int = 6
    heads: int = 6
    positions: int = 1024

    def config(self, vocabulary: int) -> LlamaConfig:
        """Return transformers' configuration; the input embedding is the output head, too."""
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.positions,
            tie_word_embeddings=True,
            use_cache=False,
        )


@dataclass
class Pretraining:
    """A base model and how it is trained: AdamW, linear warm-up, cosine to zero, loss over all tokens.

    Args:
        name: Name of the model, which other configurations call ``pretrained://NAME``.
        corpus: Data sets of conversations, which are rendered, joined and cut into blocks.
        steps: Number of optimizer steps.
        vocabulary: Number of tokens. Each digit is a token of its own.
        shape: Shape of the model.
        block: Number of tokens of a row.
        batch_size: Number of rows of a step.
        held_out: Share of the rows that are not trained on, in (0, 0.5].
        learning_rate: Peak learning rate.
        warmup: Share of the steps over which it rises.
        weight_decay: Weight decay of matrices.
        precision: Lightning's name of it.
        checkpoint_every: Number of steps between checkpoints.
        seed: Seed of weights and order.

    Raises:
        ValueError: A number is out of its range; the message names it.
    """

    name: str
    corpus: list[ChatDataset]
    steps: int
    vocabulary: int = 512
    shape: Shape = field(default_factory=Shape)
    block: int = 256
    batch_size: int = 16
    held_out: float = 0.01
    learning_rate: float = 3e-3
    warmup: float = 0.02
    weight_decay: float = 0.1
    precision: str = "bf16-mixed"
    checkpoint_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        check_name(self.name, "pretraining.name")
        least = {"steps": 1, "vocabulary": 300, "block": 8, "batch_size": 1, "checkpoint_every": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"pretraining.{name} must be at least {bound}, got {getattr(self, name)}.")
        if not self.corpus:
            raise ValueError("pretraining.corpus must have at least one data set, got [].")
        if not 0 < self.held_out <= 0.5:
            raise ValueError(f"pretraining.held_out must be in (0, 0.5], got {self.held_out}.")
        if self.block > self.shape.positions:
            raise ValueError(
                f"pretraining.block must be at most pretraining.shape.positions={self.shape.positions}, "
                f"got {self.block}."
            )
        if self.shape.hidden_size % (2 * self.shape.heads):
            raise ValueError(
                f"pretraining.shape.hidden_size must be a multiple of twice its heads={self.shape.heads}, "
                f"got {self.shape.hidden_size}."
            )

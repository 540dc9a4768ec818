"""What an effective rank is of: centring, layers, aggregation and tokens. The convention decides the number.

PROTOCOLS["authors"]  # centred, last five layers, spectrum of the mean, tokens with padding
summarize(spectra.values["update_centred"], spectra.ranks, PROTOCOLS["authors"])
"""

from dataclasses import dataclass
from typing import Literal

from cera.spectral.files import CENTRED
from cera.spectral.sample import Tokens

Aggregate = Literal["mean_of_layers", "spectrum_of_mean"]
"""How layers become one number: the mean of their measures, or the measure of the mean of their spectra, each of which
is divided by its sum and cut to the length of the shortest."""

Protocol = Literal["paper", "authors", "ours"]
"""Name of a convention in ``PROTOCOLS``."""


@dataclass(frozen=True)
class Convention:
    """How singular values are measured and aggregated.

    Attributes:
        centre: Whether the mean over tokens is subtracted from each column of H.
        layers: Number of the model's last adapted layers; ``None`` takes all.
        aggregate: How the layers become one number.
        tokens: Which positions are rows of H.
        rows: Number of documents that a command measures on by default.

    Raises:
        ValueError: ``layers`` is out of its range.
    """

    centre: bool = False
    layers: int | None = None
    aggregate: Aggregate = "mean_of_layers"
    tokens: Tokens = "all"
    rows: int = 32

    def __post_init__(self) -> None:
        if self.layers is not None and self.layers < 1:
            raise ValueError(f"layers must be at least 1, got {self.layers}.")

    @property
    def aggregation(self) -> str:
        """What a number is of, in words: which layers, and how they become one."""
        layers = "all layers" if self.layers is None else f"the last {self.layers} layers"
        return f"mean over {layers}" if self.aggregate == "mean_of_layers" else f"mean spectrum of {layers}"


PROTOCOLS: dict[Protocol, Convention] = {
    # Eq. 3 is of H as it is. The paper names neither layers, aggregation nor tokens: these are assumed to be ours.
    "paper": Convention(),
    "authors": Convention(True, layers=5, aggregate="spectrum_of_mean", tokens="with_padding", rows=128),
    "ours": Convention(),
}
"""The conventions by name; docs/spectra.md says where each is from."""


def matrix_name(quantity: str, centre: bool) -> str:
    """Return the name of a matrix in ``Spectra.values``: ``update``, ``update_centred``; a weight has no tokens."""
    return quantity + CENTRED if centre and quantity != "weight" else quantity


def describe_matrix(name: str) -> str:
    """Return the words for a matrix of ``Spectra.values``: ``update, centred``."""
    quantity = name.removesuffix(CENTRED)
    centring = "centred" if name != quantity else "not centred"
    return quantity if quantity == "weight" else f"{quantity}, {centring}"

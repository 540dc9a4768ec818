"""Scores the tokens of given answers under an adapter and under interventions on it.

    scores = cera.interventions.measure(model, batches, fits, [Condition("affine", "full"), Condition("none")])
    scores.nll["affine full"].mean() - scores.nll["whole"].mean()

Answers are teacher-forced: each token is predicted from the prompt and the given tokens before it. Probabilities are
computed in fp64 from the logits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from cera.data.chat import IGNORE
from cera.interventions.affine import LayerFit, Level
from cera.interventions.replacement import InterventionError, Part, intervened
from cera.linearize.fit import Progress, silent
from cera.training.documents import split_documents

FITTED_PARTS: tuple[Part, ...] = ("gain", "offset", "affine", "curvature")
"""The parts that depend on a map, and so on its level."""


class Condition(NamedTuple):
    """A part of the activation in its place.

    Attributes:
        part: The part.
        level: Level of the affine map; ``None`` for the parts that do not depend on one, ``whole`` and ``none``.
    """

    part: Part
    level: Level | None = None

    @property
    def label(self) -> str:
        """Name in tables, such as ``"affine full"``."""
        return self.part if self.level is None else f"{self.part} {self.level}"


def conditions(levels: Sequence[Level]) -> list[Condition]:
    """Return all conditions but ``whole``, with the parts of the maps at some levels."""
    return [Condition("none"), *(Condition(part, level) for level in levels for part in FITTED_PARTS)]


@dataclass(frozen=True)
class TokenScores:
    """What is known of each answer token, in one order; arrays are (tokens,).

    Attributes:
        problem: Number of the document that the token is from.
        base: Negative log-likelihood (NLL) in nats without the adapter: the difficulty of the token.
        nll: NLL by label of the condition, with ``"whole"`` for the unchanged adapter.
        kl: Kullback-Leibler divergence KL(whole || condition) of the predictions, in nats, by label of each
            intervention.
    """

    problem: np.ndarray
    base: np.ndarray
    nll: dict[str, np.ndarray]
    kl: dict[str, np.ndarray]


@torch.no_grad()
def measure(
    model: PeftModel,
    data: Iterable[Mapping[str, Any]],
    fits: Mapping[str, LayerFit],
    interventions: Sequence[Condition],
    adapter: str = "default",
    progress: Progress = silent,
    what: str = "interventions",
) -> TokenScores:
    """Score all labelled tokens of ``data``.

    Args:
        model: The model that was fitted, in eval mode.
        data: Batches with ``input_ids``, ``labels`` and ``position_ids``, each (batch, length). A document is a
            problem; documents without labels are left out.
        fits: The layers to intervene on.
        interventions: The conditions, beside the unchanged adapter.
        adapter: Name of the adapter.
        progress: Shows the progress.
        what: What is being done, for ``progress``.

    Raises:
        InterventionError: The data have no labelled token, or the model is in training mode.
    """
    if model.training:
        raise InterventionError("the model is in training mode, in which dropout blurs what is measured: call eval().")
    documents = labelled_documents(data)
    base: list[np.ndarray] = []
    nll: dict[str, list[np.ndarray]] = {}
    kl: dict[str, list[np.ndarray]] = {}
    for ids, labels in progress(documents, what):
        with model.disable_adapter():
            base.append(_nll(_log_probabilities(model, ids, labels), labels))
        whole = _log_probabilities(model, ids, labels)
        probabilities = whole.exp()
        nll.setdefault("whole", []).append(_nll(whole, labels))
        for condition in interventions:
            with intervened(model, fits, condition.part, condition.level or "full", adapter):
                predicted = _log_probabilities(model, ids, labels)
            nll.setdefault(condition.label, []).append(_nll(predicted, labels))
            divergence = (probabilities * (whole - predicted)).sum(dim=-1)
            kl.setdefault(condition.label, []).append(divergence.cpu().numpy())
    problem = np.repeat(np.arange(len(documents)), [len(scores) for scores in base])
    joined = ({label: np.concatenate(scores) for label, scores in by_label.items()} for by_label in (nll, kl))
    return TokenScores(problem, np.concatenate(base), *joined)


@torch.no_grad()
def adapter_nll(
    model: PeftModel, data: Iterable[Mapping[str, Any]], progress: Progress = silent, what: str = "adapter"
) -> np.ndarray:
    """Return the NLL of each labelled token, in the order of ``measure``; the adapter may be of any method."""
    documents = labelled_documents(data)
    scores = [_nll(_log_probabilities(model, ids, labels), labels) for ids, labels in progress(documents, what)]
    return np.concatenate(scores)


def labelled_documents(data: Iterable[Mapping[str, Any]]) -> list[tuple[Tensor, Tensor]]:
    """Return ids and labels of each document with a labelled token, both (n,).

    Raises:
        InterventionError: There is no such document.
    """
    documents = [
        (ids, labels) for batch in data for ids, labels in split_documents(dict(batch)) if (labels[1:] != IGNORE).any()
    ]
    if not documents:
        raise InterventionError("the data have no answer token to score.")
    return documents


def _log_probabilities(model: PeftModel, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probabilities that predict each labelled token, (labelled, vocabulary) fp64."""
    device = next(model.parameters()).device
    before = (labels[1:] != IGNORE).nonzero().flatten().to(device)
    logits = model(input_ids=ids[None].to(device), logits_to_keep=before).logits[0]
    return logits.double().log_softmax(dim=-1)


def _nll(log_probabilities: Tensor, labels: Tensor) -> np.ndarray:
    """Return the NLL of each labelled token, (labelled,) fp64."""
    targets = labels[1:][labels[1:] != IGNORE].to(log_probabilities.device)
    return -log_probabilities.gather(1, targets[:, None])[:, 0].cpu().numpy()

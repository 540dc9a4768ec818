"""Replaces the activation of a trained adapter by a part of it, and measures what the answers lose.

fits = cera.interventions.fit(model, calibration_batches)
with cera.interventions.intervened(model, fits, "affine", level="full"):
    model(input_ids)  # as if the branches were linear in the pre-activations

scores = measure(model, batches, fits, conditions(["full"]))
for row in Summarizer(scores).conditions():
    print(row.label, row.difference)
"""

from cera.interventions.affine import LEVELS, AffineMap, Energies, LatentFactor, LayerFit, Level
from cera.interventions.fitting import fit
from cera.interventions.replacement import (
    PARTS,
    InterventionError,
    Part,
    Replacement,
    can_intervene,
    intervened,
)
from cera.interventions.scores import Condition, TokenScores, adapter_nll, conditions, measure
from cera.interventions.summary import Summarizer

__all__ = [
    "LEVELS",
    "PARTS",
    "AffineMap",
    "Condition",
    "Energies",
    "InterventionError",
    "LatentFactor",
    "LayerFit",
    "Level",
    "Part",
    "Replacement",
    "Summarizer",
    "TokenScores",
    "adapter_nll",
    "can_intervene",
    "conditions",
    "fit",
    "intervened",
    "measure",
]

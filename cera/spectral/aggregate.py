"""Registered measures of all layers of an adapter, and their aggregates over modules and over the adapter.

Every aggregate of a measure that the package reports is computed here.

    summary = summarize(spectra.values["update"], spectra.ranks)
    summary.means["effective_rank"]["mean"]  # over all layers
    summary.means["effective_rank"]["q_proj"]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

import cera.spectral.further_measures  # noqa: F401  # registers them
from cera.spectral.convention import PROTOCOLS, Convention, Protocol, matrix_name
from cera.spectral.files import CENTRED, LayerSpectra, Spectra
from cera.spectral.layer_names import by_module, layer_labels
from cera.spectral.measures import MEASURES, Measure

ALL_LAYERS = "mean"
"""Name of the group of all layers; the other groups are named after their module, such as ``q_proj``."""

OURS = PROTOCOLS["ours"]

Shapes = Mapping[str, tuple[int, int]]
"""Outputs and inputs (d, in) of the weight by layer name."""


@dataclass(frozen=True)
class SpectralSummary:
    """Measures of the spectra of one adapter at one step.

    Attributes:
        modules: Layer names by module, then by layer number.
        groups: Layer names by group: all layers, then each module.
        by_layer: Values by measure, then by layer name; layers for which a measure is not defined are left out.
        means: One value by measure, then by group: the mean of the layers' values, or the value of their mean spectrum.
            Groups without a value are left out.
    """

    modules: dict[str, dict[int, str]]
    groups: dict[str, list[str]]
    by_layer: dict[str, dict[str, float]]
    means: dict[str, dict[str, float]]


def summarize(
    layers: LayerSpectra, ranks: dict[str, int], convention: Convention = OURS, shapes: Shapes | None = None
) -> SpectralSummary:
    """Compute all registered measures of ``layers`` and their aggregates.

    Args:
        layers: Singular values (k,) by layer name.
        ranks: The adapter's r by layer name, for layers that have one.
        convention: Which layers, and how they become one value.
        shapes: If ``layers`` are those of weights, the shapes.
    """
    layers, shapes = last_layers(layers, convention.layers), shapes or {}
    modules = by_module(layers)
    groups = {ALL_LAYERS: list(layers), **{module: list(names.values()) for module, names in modules.items()}}
    by_layer: dict[str, dict[str, float]] = {}
    for measure in MEASURES.values():
        values = {name: measure(sigma, ranks.get(name), shapes.get(name)) for name, sigma in layers.items()}
        by_layer[measure.name] = {name: value for name, value in values.items() if value is not None}
    if convention.aggregate == "spectrum_of_mean":
        means = {measure.name: _of_means(measure, layers, ranks, groups) for measure in MEASURES.values()}
    else:
        means = {name: _means(values, groups) for name, values in by_layer.items()}
    return SpectralSummary(modules, groups, by_layer, means)


def last_layers(layers: LayerSpectra, count: int | None) -> LayerSpectra:
    """Return the spectra of the last ``count`` numbered layers that have any; all for ``None``."""
    if count is None:
        return layers
    numbers = {name: number for name, (number, _) in layer_labels(layers).items()}
    last = sorted(set(numbers.values()))[-count:]
    return {name: sigma for name, sigma in layers.items() if numbers[name] in last}


def mean_spectrum(spectra: Sequence[Tensor]) -> Tensor:
    """Return the mean of spectra, each divided by its sum, cut to the length of the shortest; zeros are left out.

    Args:
        spectra: (k,) each, descending.
    """
    shares = [sigma / sigma.sum() for sigma in spectra if sigma.any()]
    shortest = min((len(share) for share in shares), default=0)
    return torch.stack([share[:shortest] for share in shares]).mean(0) if shares else torch.zeros(0)


def metrics(spectra: Spectra, protocol: Protocol = "ours") -> dict[str, float]:
    """Return the values that a training run logs.

    The mean of each measure over all layers and over each module is under ``spectra/MEASURE/GROUP``, and its value in
    each layer under ``spectra_by_layer/MEASURE/MODULE/LAYER``; they are not centred. Other matrices have their name
    appended to the first part: ``spectra_latent/effective_rank/mean``, ``spectra_centred/effective_rank/mean``,
    ``spectra_latent_centred``; the centred ones have no values by layer. Measures that are not detailed have only the
    mean over all layers.

    Args:
        spectra: Of one step.
        protocol: If its convention is another, its values are added, as in ``spectra_authors/effective_rank/mean``.
    """
    logged: dict[str, float] = {}
    for matrix, layers in spectra.values.items():
        prefix = metric_prefix(matrix)
        summary = summarize(layers, spectra.ranks, shapes=spectra.shapes if matrix == "weight" else None)
        if CENTRED not in matrix:
            logged |= _layer_metrics(prefix, summary)
        for measure, means in summary.means.items():
            for group, mean in means.items():
                # the mean over the only module is the mean over all layers
                if group == ALL_LAYERS or (len(summary.modules) > 1 and MEASURES[measure].detailed):
                    logged[f"{prefix}/{measure}/{group}"] = mean
    return logged | _protocol_metrics(spectra, protocol)


def metric_prefix(matrix: str) -> str:
    """Return the first part of the metrics' names: ``spectra`` for the update, ``spectra_latent`` for the latent."""
    return "spectra" + "".join(f"_{part}" for part in matrix.split("_") if part != "update")


def _layer_metrics(prefix: str, summary: SpectralSummary) -> dict[str, float]:
    return {
        f"{prefix}_by_layer/{measure}/{module}/{number:02d}": values[name]
        for measure, values in summary.by_layer.items()
        for module, names in summary.modules.items()
        for number, name in names.items()
        if MEASURES[measure].detailed and name in values
    }


def _protocol_metrics(spectra: Spectra, protocol: Protocol) -> dict[str, float]:
    convention = PROTOCOLS[protocol]
    if convention == OURS:
        return {}
    logged = {}
    for quantity in ("update", "latent"):
        layers = spectra.values.get(matrix_name(quantity, convention.centre), {})
        for measure, means in summarize(layers, spectra.ranks, convention).means.items():
            if MEASURES[measure].detailed and ALL_LAYERS in means:
                logged[f"{metric_prefix(quantity)}_{protocol}/{measure}/{ALL_LAYERS}"] = means[ALL_LAYERS]
    return logged


def _means(values: dict[str, float], groups: dict[str, list[str]]) -> dict[str, float]:
    means = {}
    for group, names in groups.items():
        defined = [values[name] for name in names if name in values]
        if defined:
            means[group] = fmean(defined)
    return means


def _of_means(
    measure: Measure, layers: LayerSpectra, ranks: dict[str, int], groups: dict[str, list[str]]
) -> dict[str, float]:
    """Return a measure of each group's mean spectrum; its rank is the smallest of its layers, if all have one."""
    values = {}
    for group, names in groups.items():
        known = [ranks[name] for name in names if name in ranks]
        rank = min(known) if names and len(known) == len(names) else None
        value = measure(mean_spectrum([layers[name] for name in names]), rank)
        if names and value is not None:
            values[group] = value
    return values

"""Registered measures of all layers of an adapter, and their means over modules and over the adapter.

Every mean of a measure that the package reports is computed here.

    summary = summarize(spectra.values["update"], spectra.ranks)
    summary.means["effective_rank"]["mean"]  # over all layers
    summary.means["effective_rank"]["q_proj"]
"""

from dataclasses import dataclass
from statistics import fmean

from cera.spectral.files import LayerSpectra, Spectra
from cera.spectral.layer_names import by_module
from cera.spectral.measures import MEASURES

ALL_LAYERS = "mean"
"""Name of the group of all layers; the other groups are named after their module, such as ``q_proj``."""


@dataclass(frozen=True)
class SpectralSummary:
    """Measures of the spectra of one adapter at one step.

    Attributes:
        modules: Layer names by module, then by layer number.
        groups: Layer names by group: all layers, then each module.
        by_layer: Values by measure, then by layer name; layers for which a measure is not defined are left out.
        means: Arithmetic means of these values by measure, then by group; groups without a value are left out.
    """

    modules: dict[str, dict[int, str]]
    groups: dict[str, list[str]]
    by_layer: dict[str, dict[str, float]]
    means: dict[str, dict[str, float]]


def summarize(layers: LayerSpectra, ranks: dict[str, int]) -> SpectralSummary:
    """Compute all registered measures of ``layers`` and their means.

    Args:
        layers: Singular values (k,) by layer name.
        ranks: The adapter's r by layer name, for layers that have one.
    """
    modules = by_module(layers)
    groups = {ALL_LAYERS: list(layers), **{module: list(names.values()) for module, names in modules.items()}}
    by_layer: dict[str, dict[str, float]] = {}
    for measure in MEASURES.values():
        values = {name: measure(sigma, ranks.get(name)) for name, sigma in layers.items()}
        by_layer[measure.name] = {name: value for name, value in values.items() if value is not None}
    means = {name: _means(values, groups) for name, values in by_layer.items()}
    return SpectralSummary(modules, groups, by_layer, means)


def metrics(spectra: Spectra) -> dict[str, float]:
    """Return the values that a training run logs.

    The mean of each measure over all layers and over each module is under ``spectra/MEASURE/GROUP``, and its value in
    each layer under ``spectra_by_layer/MEASURE/MODULE/LAYER``. Quantities other than the update have their name
    appended to the first part, as in ``spectra_latent/effective_rank/mean``.
    """
    logged = {}
    for quantity, layers in spectra.values.items():
        prefix = metric_prefix(quantity)
        summary = summarize(layers, spectra.ranks)
        for measure, values in summary.by_layer.items():
            for module, names in summary.modules.items():
                for number, name in names.items():
                    if name in values:
                        logged[f"{prefix}_by_layer/{measure}/{module}/{number:02d}"] = values[name]
        for measure, means in summary.means.items():
            for group, mean in means.items():
                # the mean over the only module is the mean over all layers
                if group == ALL_LAYERS or len(summary.modules) > 1:
                    logged[f"{prefix}/{measure}/{group}"] = mean
    return logged


def metric_prefix(quantity: str) -> str:
    """Return the first part of the metrics' names: ``spectra`` for the update, ``spectra_latent`` for the latent."""
    return "spectra" if quantity == "update" else f"spectra_{quantity}"


def _means(values: dict[str, float], groups: dict[str, list[str]]) -> dict[str, float]:
    means = {}
    for group, names in groups.items():
        defined = [values[name] for name in names if name in values]
        if defined:
            means[group] = fmean(defined)
    return means

"""Draws several values of each method side by side, such as a loss by layer or by the difficulty of tokens.

Example:
    >>> profile_figure(summary, {str(k): f"interventions_affine_decile_{k}_loss_difference" for k in range(1, 11)})
"""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from cera.studies.axes import StudyError
from cera.studies.estimates import method_mean
from cera.studies.report_figure import draw_means
from cera.studies.summary import Summary


def profile_figure(
    summary: Summary, metrics: Mapping[str, str], methods: Sequence[str] = (), x: str = "", y: str = ""
) -> Figure:
    """Draw the means of metrics, each method at its own best value, with 95% intervals over the seeds.

    Args:
        summary: The study.
        metrics: The values in the order in which they stand side by side, by their words.
        methods: The methods; all that have such a value by default.
        x: What the metrics differ in.
        y: What they measure.

    Raises:
        StudyError: No method has any of the values.
    """
    drawn = Figure(figsize=(6.4, 3.6), layout="constrained")
    panel = drawn.add_subplot()
    panel.grid(visible=True, alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.axhline(0, color="black", linewidth=0.8)
    seeds = set()
    for index, method in enumerate(methods or summary.methods):
        label = summary.choice(method).value
        means = [method_mean(summary, method, label, metric) for metric in metrics.values()]
        places = [float(place) for place, mean in enumerate(means) if mean is not None]
        if places:
            draw_means(panel, places, means, f"C{index}", method)
        seeds |= {mean.seeds for mean in means if mean is not None}
    if not seeds:
        raise StudyError(f"no method of {summary.study} has any of {', '.join(metrics.values())}.")
    panel.set_xticks(range(len(metrics)), list(metrics), rotation=30 if max(map(len, metrics)) > 3 else 0)
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    over = " or ".join(map(str, sorted(seeds)))
    panel.set_title(f"{summary.study}\nmean over {over} seeds, 95% intervals", fontsize="medium")
    panel.legend(frameon=False, fontsize="small")
    return drawn

"""Draws what interventions cost: NLL and KL of each condition, and NLL by the difficulty of the tokens."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from cera.interventions.summary import ConditionSummary, DecileSummary, Estimate
from cera.spectral.figures import panels


def figure(summaries: Sequence[ConditionSummary], deciles: Sequence[DecileSummary], drawn: Sequence[str]) -> Figure:
    """Draw differences to the whole adapter with 95% intervals: all tokens (left), and by decile (right).

    Args:
        summaries: The conditions, of which ``whole`` is left out.
        deciles: The deciles of the tokens.
        drawn: Labels of the conditions to draw by decile.
    """
    result, (costs, difficulty) = panels(2)
    others = [summary for summary in summaries if summary.label != "whole"]
    for position, summary in enumerate(others):
        options: dict[str, Any] = {"color": f"C{position % 10}", "fmt": "o", "markersize": 4, "capsize": 3}
        costs.errorbar(summary.difference.value, position, xerr=_bars(summary.difference), **options)
    costs.axvline(0, color="0.4", linewidth=1)
    costs.set_yticks(range(len(others)), [summary.label for summary in others])
    costs.invert_yaxis()
    costs.set(title="All answer tokens", xlabel="NLL minus that of the whole adapter (nats per token)")
    for i, label in enumerate(drawn):
        values = [decile.difference[label].value for decile in deciles]
        lows = [decile.difference[label].low for decile in deciles]
        highs = [decile.difference[label].high for decile in deciles]
        numbers = [decile.decile for decile in deciles]
        difficulty.plot(numbers, values, "o-", markersize=3, color=f"C{i}", label=label)
        difficulty.fill_between(numbers, lows, highs, color=f"C{i}", alpha=0.15)
    difficulty.axhline(0, color="0.4", linewidth=1)
    difficulty.set(
        title="By difficulty",
        xlabel="decile of the base's NLL (10: hardest)",
        ylabel="NLL minus that of the whole adapter (nats)",
    )
    difficulty.legend()
    return result


def _bars(estimate: Estimate) -> list[list[float]]:
    return [[max(estimate.value - estimate.low, 0)], [max(estimate.high - estimate.value, 0)]]

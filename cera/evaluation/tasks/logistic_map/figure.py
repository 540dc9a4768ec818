"""Draws true trajectories of the logistic map beside those that a model states."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cera.data.logistic_map import LogisticMapProblem, trajectory
from cera.evaluation.tasks.logistic_map.score import collapse, score


def trajectory_figure(answers: Sequence[tuple[LogisticMapProblem, Sequence[float]]], columns: int = 3) -> Figure:
    """Draw a panel for each problem, with the span of a collapse marked.

    Args:
        answers: Problems and the values that were stated for each.
        columns: Number of panels in a row.

    Raises:
        ValueError: There are no answers.
    """
    if not answers:
        raise ValueError("There must be at least one answer to draw.")
    lines = -(-len(answers) // columns)
    figure = Figure(figsize=(3.8 * columns, 2.6 * lines + 0.4), dpi=100, layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for ax, (problem, values) in zip(axes, answers, strict=False):
        _draw(ax, problem, values)
    for ax in axes[len(answers) :]:
        ax.set_axis_off()
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _draw(ax: Axes, problem: LogisticMapProblem, values: Sequence[float]) -> None:
    truth = trajectory(problem.r, problem.x0, problem.steps)
    stated = list(values[: problem.steps])
    ax.plot(range(problem.steps + 1), [problem.x0, *truth], color="0.6", marker="o", markersize=3, label="truth")
    ax.plot(range(1, len(stated) + 1), stated, color="C0", linestyle="--", marker="x", markersize=5, label="model")
    span = collapse(stated, problem.r, problem.x0, problem.decimals)
    if span is not None:
        ax.axvspan(span[0] + 0.5, span[1] + 0.5, color="C3", alpha=0.15, label="collapse")
    result = score(stated, problem.r, problem.x0, problem.decimals, problem.steps)
    ax.set_title(f"r={problem.r}, $x_0$={problem.x0}: {result.correct}/{result.judged} right", fontsize="medium")
    ax.set(ylim=(-0.03, 1.03), xlim=(-0.3, problem.steps + 0.6))
    ax.grid(visible=True, alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)

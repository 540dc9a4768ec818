"""Formats the report of an evaluation for the terminal."""

from typing import Any

from cera.cli.tables import table


def evaluation_table(report: dict[str, Any]) -> str:
    """Return a row for all problems and for each group, in percent with 95% intervals, and the task's own metrics.

    Args:
        report: The report, as ``cera.evaluation.report.build_report`` returns it.
    """
    names = list(report["metrics"])
    rows = [["all", report["problems"], *_cells(report["metrics"], names)]]
    for group, values in report["groups"].items():
        rows += [[f"{group} {value}", part["problems"], *_cells(part, names)] for value, part in values.items()]
    parts = [table(rows, ["", "problems", *(f"{name} (95% interval)" for name in names)])]
    if summary := report.get("summary"):
        lines = [[name, part["value"], f"{part['low']:.3f} to {part['high']:.3f}"] for name, part in summary.items()]
        parts.append(table(lines, ["", "mean", "95% interval"], floatfmt=".3f"))
    extracted = ", ".join(f"{rule} {count}" for rule, count in sorted(report["extracted"].items()))
    complete = f"; accuracy of the others: {report['complete_accuracy']:.2%}" if "complete_accuracy" in report else ""
    parts.append(
        f"answers by: {extracted}; cut off at max_new_tokens: {report['cut_off']:.1%}, ending in a loop: "
        f"{report['loops']:.1%} of {report['samples']} samples{complete}"
    )
    return "\n\n".join(parts)


def _cells(metrics: dict[str, Any], names: list[str]) -> list[str]:
    return ["{value:.2%} ({low:.2%}, {high:.2%})".format(**metrics[name]) for name in names]

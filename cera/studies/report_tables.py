"""The tables of a study's report, from its summary alone, and their forms as Markdown, LaTeX and CSV.

Cells are text, so that a table says the same in every form.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cera.studies.axes import format_number
from cera.studies.definition import REPLICATES
from cera.studies.estimates import Estimate, method_difference, method_mean
from cera.studies.selection import Choice, Results, complete, finite, holm
from cera.studies.summary import Summary
from cera.studies.two_way_bootstrap import RESAMPLES

LATEX = {"\\": r"\textbackslash{}", **{character: f"\\{character}" for character in "&%$#_{}"}}
LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"}


@dataclass(frozen=True)
class Table:
    """A table with a title.

    Attributes:
        name: Name of its CSV file, and its label in LaTeX.
        title: What it shows, as a sentence.
        headers: Heading of each column.
        rows: Cells of each row; the first column is text and stands to the left.
    """

    name: str
    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(summary: Summary) -> list[Table]:
    """Return the tables of a study, without those that would be empty."""
    choices = {method: summary.choice(method) for method in summary.methods}
    made = [_methods(summary, choices), _differences(summary, choices), _grid(summary), _not_finished(summary)]
    return [table for table in made if table.rows]


def notes(summary: Summary) -> list[str]:
    """Return what a reader must know before trusting the tables, a sentence each."""
    sentences = []
    selection = summary.selection
    if selection is not None and selection.metric in summary.metrics:
        sentences.append(
            f"{selection.metric} chooses the {selection.axis} and is reported, on the same rows: it favours every "
            "method, and more so those with more values."
        )
    for method in summary.methods:
        choice = summary.choice(method)
        if selection is not None and choice.value is None:
            sentences.append(
                f"{method}: at every {selection.axis} a run diverged, failed, was stopped or has not ended."
            )
        elif selection is not None and choice.edge == "only":
            sentences.append(f"{method}: {choice.value} is the only {selection.axis}; there was nothing to choose.")
        elif selection is not None and choice.edge is not None:
            sentences.append(
                f"{method}: its best {selection.axis}, {choice.value}, is the {choice.edge} of its grid; a better one "
                "may lie beyond."
            )
        if selection is not None and choice.value is not None and choice.excluded:
            sentences.append(f"{method}: not chosen, as a run there has no result: {', '.join(choice.excluded)}.")
    if selection is not None and selection.search_seeds:
        sentences.append(
            f"{', '.join(selection.search_seeds)}: the seeds with which the {selection.axis} of each method is chosen; "
            "others were run at that value only."
        )
    seeds = {run.labels[REPLICATES] for run in summary.runs if REPLICATES in run.labels}
    if len(seeds) < 3:
        number = "Two seeds" if len(seeds) == 2 else "One seed"
        sentences.append(f"{number}: intervals are wide or missing, and differences may be chance.")
    bases = [(run.name, run.base_perplexity) for run in summary.runs if run.base_perplexity is not None]
    if bases:
        measured = ", ".join(f"{perplexity:.4g} ({name})" for name, perplexity in bases)
        sentences.append(
            f"Perplexity of the base on the rows of the validation, with the run that measured it: {measured}."
        )
    return sentences


def _methods(summary: Summary, choices: dict[str, Choice]) -> Table:
    """Return a row for each method at its chosen value: its values with intervals, and the paper's numbers."""
    selected = [] if summary.selection is None else [f"best {summary.selection.axis}"]
    paper = [metric for metric in summary.metrics if metric in summary.report.paper]
    headers = [
        "method",
        "parameters",
        *selected,
        "ended",
        "seeds",
        *summary.metrics,
        *(f"{name} (paper)" for name in paper),
    ]
    rows = []
    for method in summary.methods:
        choice, runs = choices[method], [run for run in summary.runs if run.method == method]
        sizes = sorted({run.parameters for run in runs if run.parameters is not None})
        mark = "" if choice.edge in (None, "only") else " (edge)"
        cells = [method, ", ".join(f"{size:,}" for size in sizes) or "-"]
        cells += [f"{choice.value or '-'}{mark}"] if selected else []
        cells.append(f"{sum(run.state == 'finished' for run in runs)} of {len(runs)}")
        means = [method_mean(summary, method, choice.value, metric) for metric in summary.metrics]
        cells += [str(max((mean.seeds for mean in means if mean is not None), default=0)), *map(_estimate, means)]
        numbers = [summary.report.paper[metric].get(method) for metric in paper]
        cells += ["-" if number is None else format_number(number) for number in numbers]
        rows.append(tuple(cells))
    source = f" Columns marked (paper) are the paper's: {summary.report.source}." if paper else ""
    at = "" if not selected or summary.selection is None else f" at the {summary.selection.axis} that is best for it"
    title = f"Each method{at}: mean over the seeds with its 95% interval. {_intervals(summary, choices)}{source}"
    return Table("methods", title, tuple(headers), tuple(rows))


def _differences(summary: Summary, choices: dict[str, Choice]) -> Table:
    """Return the differences of all methods to the reference, paired by seed; each metric is a family of tests."""
    reference = summary.report.reference
    if reference is None:
        return Table("differences", "", (), ())
    at = {method: (method, choice.value) for method, choice in choices.items()}
    rows: list[tuple[str, ...]] = []
    for metric in summary.metrics:
        others = [method for method in summary.methods if method != reference]
        compared = {method: method_difference(summary, at[reference], at[method], metric) for method in others}
        tested = {m: d.p_value for m, d in compared.items() if d is not None and d.p_value is not None}
        adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
        for method, paired in compared.items():
            if paired is not None:
                p_values = ["-", "-"] if paired.p_value is None else [_p(paired.p_value), _p(adjusted[method])]
                problems = "-" if paired.problems is None else str(paired.problems)
                rows.append((method, metric, _estimate(paired, "+"), str(paired.seeds), problems, *p_values))
    title = (
        f"Difference to {reference}, paired by seed (and by problem, where there are any), with its 95% interval. "
        f"{_intervals(summary, choices)} P-values are of Student's paired test or, with problems, the larger of those "
        "of the bootstrap and of a randomization test over problems; those of Holm are adjusted for all comparisons of "
        "a metric."
    )
    headers = ("method", "metric", "difference", "seeds", "problems", "p", "p (Holm)")
    return Table("differences", title, headers, tuple(rows))


def _intervals(summary: Summary, choices: dict[str, Choice]) -> str:
    """Return which intervals the metrics have, in a sentence or two."""
    problems: dict[str, int] = {}
    for method, choice in choices.items():
        for metric in summary.metrics:
            mean = method_mean(summary, method, choice.value, metric)
            if mean is not None and mean.problems is not None:
                problems[metric] = mean.problems
    if not problems:
        return "Intervals are Student's over the seeds."
    listed = ", ".join(f"{metric} ({number} problems)" for metric, number in problems.items())
    others = " Others are Student's over the seeds." if len(problems) < len(summary.metrics) else ""
    return f"Intervals of {listed} are of {RESAMPLES:,} bootstrap resamples of seeds and problems.{others}"


def _grid(summary: Summary) -> Table:
    """Return the mean of the deciding metric by method and value of the selected axis."""
    selection = summary.selection
    if selection is None:
        return Table("grid", "", (), ())
    grids = {method: summary.search_results(method) for method in summary.methods}
    labels = list(dict.fromkeys(label for grid in grids.values() for label in grid))
    numbers = {label: number for method in summary.methods for label, number in summary.grid(method).items()}
    if set(labels) <= numbers.keys():
        labels.sort(key=numbers.__getitem__)
    rows = [(method, *(_cell(grid.get(label)) for label in labels)) for method, grid in grids.items()]
    seeds = ", ".join(selection.search_seeds) or "the seeds"
    title = f"{selection.metric} by {selection.axis}: mean over {seeds}; incomplete where a run has no result."
    return Table("grid", title, ("method", *labels), tuple(rows))


def _not_finished(summary: Summary) -> Table:
    rows = [(run.name, run.state, run.reason or "-") for run in summary.runs if run.state != "finished"]
    return Table("not_finished", "Runs without a result.", ("run", "state", "reason"), tuple(rows))


def _cell(seeds: Results | None) -> str:
    if seeds is None:
        return "-"
    return (
        f"{_average(finite(seeds).values()):.4g}" if complete(seeds) else f"{len(finite(seeds))} of {len(seeds)} runs"
    )


def _estimate(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return "-"
    interval = "" if estimate.low is None else f" [{estimate.low:.4g}, {estimate.high:.4g}]"
    return f"{estimate.mean:{sign}.4g}{interval}"


def _average(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


# Forms


def markdown(table: Table) -> str:
    """Return a table of Markdown with its title above it."""
    rule = ["---", *("---:" for _ in table.headers[1:])]
    return f"{table.title}\n\n{markdown_table(table.headers, table.rows, rule)}"


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]], rule: Sequence[str] | None = None) -> str:
    """Return rows as a table of Markdown; all columns stand to the left, unless ``rule`` says otherwise."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (headers, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in (cells[0], rule or ["---"] * len(headers), *cells[1:])]
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """Return a table of LaTeX with the rules of the package booktabs."""
    header, *rows = [" & ".join(map(_escape, row)) + r" \\" for row in (table.headers, *table.rows)]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_escape(table.title)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.headers) - 1)}}}",
            r"\toprule",
            header,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def csv_text(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV; ``None`` is an empty cell."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows(rows)
    return written.getvalue()


def _escape(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)

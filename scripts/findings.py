"""Writes all that is made from committed summaries, the same bytes each time: the report of each study in results/,
docs/claims.md, docs/findings.md, docs/choosing.md and their figures.

    python scripts/findings.py

The text of a page is its template of Jinja, docs/findings.md.j2 and the like, in which each number, table and figure is
a call of a method of ``Summaries``, such as ``{{ mean("tunnel_table3", "cera", "held_out_perplexity") }}``. So no
number is typed.
"""

import argparse
import math
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from cera.runs.files import replacing
from cera.studies.axes import StudyError
from cera.studies.claim_evidence import log_ratio
from cera.studies.claims import read_claims
from cera.studies.claims_page import Tested, claims_page, examine
from cera.studies.correlation import Over, correlation
from cera.studies.correlation_figure import correlation_figure
from cera.studies.estimates import Estimate, from_seeds, method_difference, method_mean
from cera.studies.factorial import Effect, effects, path
from cera.studies.lr_robustness_figure import save_figure
from cera.studies.profile_figure import profile_figure
from cera.studies.rate_robustness import loss_over_rates
from cera.studies.repetition import largest_difference, repeated_means
from cera.studies.report import write_report
from cera.studies.report_figure import figure
from cera.studies.report_tables import markdown_table
from cera.studies.selection import difference, student
from cera.studies.summary import SUMMARY, Summary
from cera.studies.verdicts import together

REPOSITORY = Path(__file__).parent.parent
PAGES = (REPOSITORY / "docs" / "findings.md", REPOSITORY / "docs" / "choosing.md")
"""The pages; the template of each is beside it."""

COMMITTED = ("report.md", "report.png")
"""The files of a study's report that are committed; the others are made from its summary when they are wanted."""

CALLS = (
    "mean", "difference", "lost_difference", "value", "ratio", "rate", "seeds", "runs",
    "methods", "effects", "path", "robustness", "correlations", "correlation_figure", "figure", "profile",
    "repetitions", "verdict", "verdicts",
)  # fmt: skip
"""What the template may call: methods of ``Summaries``."""


@dataclass(frozen=True)
class Summaries:
    """What the template may ask of committed summaries.

    Attributes:
        results: Directory of ``STUDY/summary.json``.
        benchmarks: Directory of results of benchmarks.
        claims: The file of claims.
        pictures: Directory of figures that are drawn.
    """

    results: Path
    benchmarks: Path
    claims: Path
    pictures: Path

    def summary(self, study: str) -> Summary:
        """Return a study's summary."""
        return _read(self.results / study / SUMMARY)

    def mean(self, study: str, method: str, metric: str) -> str:
        """Return a method's mean at its best rate, with its 95% interval and the seeds."""
        summary = self.summary(study)
        return _written(method_mean(summary, method, self._label(summary, method), metric), with_seeds=True)

    def difference(self, study: str, method: str, reference: str, metric: str, reference_study: str = "") -> str:
        """Return a method's value less that of the reference, paired by seed, with its 95% interval and the seeds.

        Args:
            study: Name of the study.
            method: A method.
            reference: Another one.
            metric: A value of single runs, not of problems, if the reference is of another study.
            reference_study: The study of the reference, of the same base and task; the same study by default.
        """
        summary = self.summary(study)
        if reference_study in ("", study):
            first, second = [(name, self._label(summary, name)) for name in (reference, method)]
            return _written(method_difference(summary, first, second, metric), "+", with_seeds=True)
        other = self.summary(reference_study)
        values = summary.results(method, metric)[self._label(summary, method)]
        others = other.results(reference, metric)[self._label(other, reference)]
        return _written(from_seeds(difference(others, values)), "+", with_seeds=True)

    def lost_difference(self, study: str, method: str, reference: str) -> str:
        """Return what a method loses over the rates, less what the reference does, paired by seed."""
        lost = [loss_over_rates(self.summary(study), name) for name in (reference, method)]
        first, second = [{seed: each.above_best(seed) for seed in each.seeds} for each in lost]
        return _written(from_seeds(difference(first, second)), "+", with_seeds=True)

    def value(self, study: str, run: str, metric: str) -> str:
        """Return what was measured of one run."""
        (found,) = (each for each in self.summary(study).runs if each.name == run)
        return f"{found.values[metric]:.4g}"

    def ratio(self, benchmark: str, what: str) -> str:
        """Return the geometric mean of a benchmark's ratios with its 95% interval and the repetitions."""
        estimate = log_ratio(self.benchmarks / f"{benchmark}.json", what)
        if estimate is None or estimate.low is None or estimate.high is None:
            raise StudyError(f"{benchmark} has no interval of {what}: it has fewer than two repetitions.")
        mean, low, high = (math.exp(each) for each in (estimate.mean, estimate.low, estimate.high))
        return _written(replace(estimate, mean=mean, low=low, high=high), with_seeds=True)

    def rate(self, study: str, method: str) -> str:
        """Return a method's best rate."""
        summary = self.summary(study)
        return f"{summary.grid(method)[self._label(summary, method)]:g}"

    def seeds(self, study: str) -> int:
        """Return the number of seeds of a study."""
        return len({run.labels["seed"] for run in self.summary(study).runs})

    def runs(self, study: str) -> str:
        """Return how many runs of a study have a result, as in ``50``, or ``49 of 50``."""
        runs = self.summary(study).runs
        finished = sum(run.state == "finished" for run in runs)
        return str(finished) if finished == len(runs) else f"{finished} of {len(runs)}"

    def methods(
        self, study: str, metrics: Sequence[str], methods: Mapping[str, str] | None = None, reference: str | None = None
    ) -> str:
        """Return a table of methods at their best rates: a row each, with parameters, rate and metrics.

        Args:
            study: Name of the study.
            metrics: Its columns; a method that lacks one, as LoRA has no activation, has a dash there.
            methods: Words by method; all methods by their names by default.
            reference: A method; a further column has the differences to it in the first metric, paired by seed.
        """
        summary = self.summary(study)
        for metric in metrics:
            if not any(metric in run.values for run in summary.runs):
                raise StudyError(f"{study} has no value {metric}.")
        rows = []
        for method, words in (methods or {method: method for method in summary.methods}).items():
            parameters = {run.parameters for run in summary.runs if run.method == method} - {None}
            label = self._label(summary, method)
            estimates = [method_mean(summary, method, label, metric) for metric in metrics]
            means = ["-" if estimate is None else _written(estimate) for estimate in estimates]
            size = " or ".join(f"{number:,}" for number in sorted(parameters)) or "-"
            if reference is not None:
                pair = (reference, self._label(summary, reference)), (method, label)
                apart = None if method == reference else method_difference(summary, *pair, metrics[0])
                means.append("-" if apart is None else _written(apart, "+"))
            seeds = len(summary.runs_by_seed(method, label))
            rows.append((words, size, self.rate(study, method) + self._edge(summary, method), str(seeds), *means))
        headers = ("method", "parameters", "best rate", "n", *metrics, *([f"less `{reference}`"] if reference else []))
        return markdown_table(headers, rows, ["---", *["---:"] * (len(headers) - 1)])

    def effects(self, study: str, factors: Mapping[str, Sequence[str]], metrics: Sequence[str]) -> str:
        """Return a table of main effects, and of those interactions that any column tells from zero after Holm.

        Effects are on the logarithms of metrics, one a column.
        """
        columns = [effects(self.summary(study), factors, metric, log=True) for metric in metrics]
        rows = list(zip(*columns, strict=True))
        main = sum(len(levels) - 1 for levels in factors.values())  # which come first
        shown = [*rows[:main], *(row for row in rows[main:] if any(map(_significant, row)))]
        return _effects_table("effect", list(zip(*shown, strict=True)), metrics)

    def path(self, study: str, methods: Sequence[str], metrics: Sequence[str]) -> str:
        """Return a table of the steps from one method to another on the logarithms of metrics, one a column."""
        columns = [path(self.summary(study), methods, metric, log=True) for metric in metrics]
        return _effects_table("step", columns, metrics)

    def robustness(self, study: str, methods: Mapping[str, str]) -> str:
        """Return a table of what methods lose over the rates of a study, a row each; see ``LossOverRates``.

        Args:
            study: Name of the study.
            methods: Words by method.
        """
        summary = self.summary(study)
        rows = []
        for method, words in methods.items():
            lost = loss_over_rates(summary, method)
            means = [student([measure(seed) for seed in lost.seeds]) for measure in (lost.above_best, lost.share_good)]
            cells = [_written(from_seeds(mean)) for mean in means]
            span = f"{len(lost.rates)} from {lost.rates[0]:g} to {lost.rates[-1]:g}"
            rows.append((words, span, str(len(lost.seeds)), *cells, str(lost.above_base)))
        headers = ("method", "rates", "n", "nats lost over them", "share of good rates", "runs above the base")
        return markdown_table(headers, rows, ["---", *["---:"] * (len(headers) - 1)])

    def correlations(
        self,
        studies: Sequence[str],
        metrics: Sequence[str],
        predicted: str,
        subsets: Mapping[str, tuple[str, str]] | None = None,
    ) -> str:
        """Return a table of rank correlations of metrics with another one: across methods, within them, of all runs.

        Args:
            studies: Names of the studies, whose runs must be of one base and task.
            metrics: The metrics, one a row.
            predicted: What they may predict.
            subsets: Further columns, across some methods alone: by words, patterns of studies and of methods.
        """
        across: dict[str, tuple[str, str, Over]] = {w: (*each, "across") for w, each in (subsets or {}).items()}
        columns = {
            words: ([self.summary(study) for study in studies if fnmatchcase(study, chosen)], methods, over)
            for words, (chosen, methods, over) in {
                "across methods": ("*", "*", "across"),
                **across,
                "within a method": ("*", "*", "within"),
                "all runs": ("*", "*", "runs"),
            }.items()
        }
        rows = []
        for metric in metrics:
            found = [correlation(some, (metric, predicted), over, methods) for some, methods, over in columns.values()]
            rows.append((f"`{metric}`", *("-" if each is None else _written(each, "+", True) for each in found)))
        headers = (f"rank correlation with `{predicted}`", *columns)
        return markdown_table(headers, rows, ["---", *["---:"] * len(columns)])

    def correlation_figure(
        self, studies: Sequence[str], metrics: tuple[str, str], words: str, groups: Mapping[str, str], above: float
    ) -> str:
        """Draw all runs of studies, one metric over another, and return the figure's place; see the figure's room."""
        drawn = correlation_figure([self.summary(study) for study in studies], metrics, groups, above)
        file = f"findings_{metrics[0]}_{metrics[1]}.png"
        save_figure(drawn, self.pictures / file)
        return f"![{words}](pictures/{file})"

    def repetitions(self, studies: Sequence[str], metric: str) -> str:
        """Return a table of studies that were run twice from scratch, a row each; see ``repeated_means``.

        Args:
            studies: Names of the studies; each has its repetition in ``repeated/STUDY``.
            metric: A metric of single runs, which are compared by it.
        """
        rows = []
        for study in studies:
            reported, repeated = self.summary(study), _read(self.results / "repeated" / study / SUMMARY)
            means = repeated_means(reported, repeated)
            methods = {mean.method: mean.same_rate for mean in means}
            cells = (
                f"{sum(methods.values())} of {len(methods)}",
                f"{sum(mean.inside for mean in means)} of {len(means)}",
                f"{largest_difference(reported, repeated, metric):.1g}",
            )
            rows.append((f"`{study}`", str(sum(run.state == "finished" for run in repeated.runs)), *cells))
        headers = ("study", "runs", "same best rates", "means inside", f"largest change of a run's `{metric}`")
        return markdown_table(headers, rows, ["---", *["---:"] * 4])

    def figure(
        self, study: str, words: str, x: str | None = None, metric: str | None = None, methods: Sequence[str] = ()
    ) -> str:
        """Draw a figure of a study's report, or of some of its methods, and return its place in the text.

        Args:
            study: Name of the study.
            words: Words for who cannot see the figure.
            x: See ``cera.studies.report_figure.figure``.
            metric: See there.
            methods: Those that are drawn; all by default.
        """
        summary = self.summary(study)
        if unknown := sorted(set(methods) - set(summary.methods)):
            raise StudyError(f"{study} has no method {', '.join(unknown)}.")
        chosen = tuple(run for run in summary.runs if not methods or run.method in methods)
        drawn = figure(replace(summary, runs=chosen), x, metric)
        if drawn is None:
            raise StudyError(f"{study} has no values to draw of {metric}.")
        name = "_".join(["findings", study, *([x] if x else []), *([metric] if metric else [])])
        save_figure(drawn, self.pictures / f"{name}.png")
        return f"![{words}](pictures/{name}.png)"

    def profile(self, study: str, name: str, words: str, pattern: str, **options: Any) -> str:
        """Draw several metrics side by side and return the figure's place; see ``profile_figure`` for the options.

        Args:
            study: Name of the study.
            name: What the file's name ends in.
            words: Words for who cannot see the figure.
            pattern: A regular expression that the metrics match; its groups tell them apart, and give their order.
            **options: Those of the figure.
        """
        known = {metric for run in self.summary(study).runs for metric in run.values}
        groups = {match.groups(): match[0] for metric in known if (match := re.fullmatch(pattern, metric))}
        in_order = sorted(groups, key=lambda parts: [part.zfill(9) for part in parts])  # 2 before 10
        metrics = {" ".join(parts): groups[parts] for parts in in_order}
        file = f"findings_{study}_{name}.png"
        save_figure(profile_figure(self.summary(study), metrics, **options), self.pictures / file)
        return f"![{words}](pictures/{file})"

    def verdict(self, claim: str, studies: str = "*") -> str:
        """Return the verdict of a claim, over its tests that have been run, of studies that match a pattern."""
        tested = [each for each in self._examined[claim] if fnmatchcase(each.test.study, studies)]
        return together([each.decision.verdict for each in tested if each.evidence is not None])

    def verdicts(self) -> dict[str, list[str]]:
        """Return the ids of the claims by verdict."""
        by_verdict: dict[str, list[str]] = {}
        for claim in self._examined:
            by_verdict.setdefault(self.verdict(claim), []).append(claim)
        return by_verdict

    @cached_property
    def _examined(self) -> dict[str, list[Tested]]:
        return examine(read_claims(self.claims), self.results, self.benchmarks)

    @staticmethod
    def _label(summary: Summary, method: str) -> str:
        label = summary.choice(method).value
        if label is None:
            known = ", ".join(summary.methods)
            raise StudyError(f"{summary.study} has no best rate of {method}; its methods are {known}.")
        return label

    @staticmethod
    def _edge(summary: Summary, method: str) -> str:
        edge = summary.choice(method).edge
        return "" if edge in (None, "only") else f" ({edge})"


@cache
def _read(path: Path) -> Summary:
    return Summary.read(path)


def _written(estimate: Estimate | None, sign: str = "", with_seeds: bool = False) -> str:
    if estimate is None:
        raise StudyError("no seed has a value for this number.")
    seeds = f" (n={estimate.seeds})" if with_seeds else ""
    if estimate.low is None or estimate.high is None or estimate.high == estimate.low:
        return f"{estimate.mean:{sign}.4g}{seeds}"
    decimals = max(0, 1 - math.floor(math.log10((estimate.high - estimate.low) / 2)))  # two digits of the half-width
    mean, low, high = (f"{number:{sign}.{decimals}f}" for number in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]{seeds}"


def _significant(effect: Effect) -> bool:
    return effect.adjusted is not None and effect.adjusted < 0.05


def _effects_table(heading: str, columns: Sequence[Sequence[Effect]], metrics: Sequence[str]) -> str:
    rows = []
    for row in zip(*columns, strict=True):
        cells = [_written(effect.estimate, "+") + ("*" if _significant(effect) else "") for effect in row]
        rows.append((row[0].name, *cells))
    seeds = {str(effect.estimate.seeds) for column in columns for effect in column if effect.estimate}
    return markdown_table(
        (f"{heading}, n={' or '.join(sorted(seeds))}", *(f"log {metric}" for metric in metrics)),
        rows,
        ["---", *["---:"] * len(metrics)],
    )


def render(template: str, summaries: Summaries) -> str:
    """Return the page, and draw its figures.

    Raises:
        StudyError: The template asks for a method or value that a summary does not have.
        FileError: It asks for a study without a committed summary.
    """
    blocks = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(undefined=StrictUndefined, **blocks)
    return environment.from_string(template).render({name: getattr(summaries, name) for name in CALLS})


def write_committed_report(summary: Path, folder: Path) -> Path:
    """Write the two committed files of a study's report, its tables and its figure, and return the tables' path."""
    with tempfile.TemporaryDirectory() as whole:
        for file in write_report(Summary.read(summary), Path(whole)):
            if file.name in COMMITTED:
                shutil.copyfile(file, folder / file.name)
    return folder / COMMITTED[0]


def template(page: Path) -> str:
    """Return the template of a page."""
    return page.with_name(f"{page.name}.j2").read_text(encoding="utf-8")


def repository(root: Path = REPOSITORY, pictures: Path | None = None) -> Summaries:
    """Return the summaries that are committed."""
    claims = root / "configs" / "claims" / "paper.yaml"
    return Summaries(root / "results", root / "benchmarks" / "results", claims, pictures or root / "docs" / "pictures")


def main() -> None:
    """Write the reports, the pages and their figures."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    ).parse_args()
    known = repository()
    for summary in sorted(known.results.glob(f"*/{SUMMARY}")):
        print(write_committed_report(summary, summary.parent))
    texts = {REPOSITORY / "docs" / "claims.md": claims_page(read_claims(known.claims), known.results, known.benchmarks)}
    texts |= {page: render(template(page), known) for page in PAGES}
    for page, text in texts.items():
        with replacing(page) as file:
            file.write_text(text, encoding="utf-8", newline="\n")
        print(page)


if __name__ == "__main__":
    main()

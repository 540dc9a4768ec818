"""The results of a study as a notebook shows them: from a summary that is committed, or of runs on this machine.

    results = Results.find("tunnel_ceiling", committed="../results", runs="../runs")
    results                    # what it is and how many runs have ended, or which command makes it
    results.table("methods")
    results.figure(x="rank")

A study that has not been run shows a sentence that says so in place of each table and figure.
"""

from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from cera.studies.axes import StudyError
from cera.studies.report_figure import figure
from cera.studies.report_tables import Table, markdown, notes, tables
from cera.studies.status import show_figures_as_png
from cera.studies.summary import SUMMARY, Summary

TABLES = ("methods", "differences", "grid", "not_finished")
"""Names of the tables of a report."""


@dataclass(frozen=True)
class Markdown:
    """Text that a notebook shows as Markdown."""

    text: str

    @classmethod
    def from_table(cls, table: Table) -> "Markdown":
        """Return a table as Markdown."""
        return cls(markdown(table))

    def __repr__(self) -> str:
        return self.text

    _repr_markdown_ = __repr__


@dataclass(frozen=True)
class Results:
    """A study's summary, or the lack of one.

    Attributes:
        study: Name of the study.
        path: The file that the summary was read from, or would be.
        summary: The summary; ``None`` if there is none yet.
    """

    study: str
    path: Path
    summary: Summary | None = field(repr=False)

    @classmethod
    def find(cls, study: str, committed: str | Path = "results", runs: str | Path = "runs") -> "Results":
        """Read the summary of a study: the committed one, or else that of the runs on this machine.

        Args:
            study: Name of the study.
            committed: Directory of committed summaries, ``STUDY/summary.json``.
            runs: Directory of all runs.

        Raises:
            FileError: The file is no summary.
        """
        places = [Path(folder) / study / SUMMARY for folder in (committed, runs)]
        path = next((place for place in places if place.exists()), places[0])
        return cls(study, path, Summary.read(path) if path.exists() else None)

    def _repr_markdown_(self) -> str:
        """Say what the results are, and what a reader must know before trusting them."""
        if self.summary is None:
            file, folder = f"configs/studies/{self.study}.yaml", "/".join(self.path.parts[-3:-1])
            return (
                f"**{self.study} has not been run**: `cera study run {file}`, then `cera study report {file} --out "
                f"{folder}`, makes what belongs here."
            )
        runs = self.summary.runs
        ended = sum(run.state == "finished" for run in runs)
        lines = [f"**{self.study}**: {ended} of {len(runs)} runs have a result (`{self.path.as_posix()}`).", ""]
        return "\n".join([*lines, *(f"- {note}" for note in notes(self.summary))])

    @property
    def _nothing(self) -> Markdown:
        return Markdown(f"*{self.study} has not been run.*")

    def table(self, name: str) -> Markdown:
        """Return a table of the report, one of ``TABLES``.

        Raises:
            StudyError: Reports have no such table.
        """
        if self.summary is None:
            return self._nothing
        if name not in TABLES:
            raise StudyError(f"table must be one of {', '.join(TABLES)}, got {name!r}.")
        made = {table.name: table for table in tables(self.summary)}
        if name not in made:
            return Markdown(f"*{self.study} has nothing for this table.*")
        return Markdown.from_table(made[name])

    def figure(self, x: str | None = None, metric: str | None = None) -> Figure | Markdown:
        """Return a figure; see ``cera.studies.report_figure.figure``."""
        if self.summary is None:
            return self._nothing
        show_figures_as_png()
        return figure(self.summary, x, metric) or Markdown(f"*No run of {self.study} has a value to draw.*")

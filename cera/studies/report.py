"""Writes the report of a study from its summary alone; the same summary gives the same bytes.

    write_report(Summary.read(Path("summary.json")), Path("report"))

``report.md`` has all tables, ``report.tex`` the same with booktabs, ``methods.csv`` and so on one table each,
``runs.csv`` every run with its values, and ``report.png`` and ``report.svg`` the figure.
"""

from pathlib import Path

from cera.runs.files import replacing
from cera.studies.lr_robustness_figure import save_figure
from cera.studies.report_figure import figure
from cera.studies.report_tables import csv_text, latex, markdown, notes, tables
from cera.studies.summary import Summary


def write_report(summary: Summary, folder: Path) -> list[Path]:
    """Write all files of a report into ``folder``, which is made if need be, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = tables(summary)
    drawn = figure(summary)
    picture = "" if drawn is None else f"\n![{summary.study}](report.png)\n"
    texts = {"report.md": report_markdown(summary) + picture, "report.tex": "\n\n".join(map(latex, shown)) + "\n"}
    texts |= {f"{table.name}.csv": csv_text(table.headers, table.rows) for table in shown}
    texts["runs.csv"] = _runs_csv(summary)
    for name, text in texts.items():
        with replacing(folder / name) as file:
            file.write_text(text, encoding="utf-8", newline="\n")
    written = [folder / name for name in texts]
    if drawn is not None:
        for name in ("report.png", "report.svg"):
            save_figure(drawn, folder / name)
            written.append(folder / name)
    return written


def report_markdown(summary: Summary) -> str:
    """Return the report as Markdown, without its figure."""
    listed = "".join(f"- {note}\n" for note in notes(summary))
    parts = [f"# {summary.study}\n", *([listed] if listed else []), *map(markdown, tables(summary))]
    return "\n".join(parts)


def _runs_csv(summary: Summary) -> str:
    metrics = sorted({name for run in summary.runs for name in run.values})
    headers = ["run", *summary.axes, "method", "state", "reason", "parameters", *metrics]
    rows = [
        [
            run.name,
            *(run.labels[axis] for axis in summary.axes),
            run.method,
            run.state,
            run.reason,
            run.parameters,
            *(run.values.get(metric) for metric in metrics),
        ]
        for run in summary.runs
    ]
    return csv_text(headers, rows)

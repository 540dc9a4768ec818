"""Runs the notebooks and writes their outputs into them.

    python scripts/notebooks.py                                # all of notebooks/
    python scripts/notebooks.py notebooks/02_ceiling.ipynb     # only these

A notebook is written only if every cell ran. Left out is what no reader needs: times of execution, the version of
Python, and standard error, which has the progress bars and warnings of libraries. Numbers of fresh runs are those of
this machine.
"""

import argparse
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"

LONGEST = 1800
"""Maximum number of seconds of a cell."""


def execute(path: Path) -> NotebookNode:
    """Return a notebook with the outputs of its cells, run in its own folder; the file is left as it is.

    Raises:
        CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    options = {"timeout": LONGEST, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, resources=resources, **options).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for data in (output.get("data", {}) for output in cell.outputs):
                if len(data) > 1:  # beside the plain form of a table or figure, which no one sees
                    data.pop("text/plain", None)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return notebook


def main() -> None:
    """Run the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    paths = parser.parse_args().notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in paths:
        print(path, file=sys.stderr)
        nbformat.write(execute(path), path)


if __name__ == "__main__":
    main()

"""The check of a machine: what comes of checks that pass, fail, hang or cannot run, the budget, and the page."""

import json
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement

from gpu_check.__main__ import main
from gpu_check.checks import CHECKS, TESTS, Check
from gpu_check.measurements import MEASUREMENTS
from gpu_check.page import page
from gpu_check.runner import run

ROOTS = (
    *("accelerate", "bitsandbytes", "datasets", "deepspeed", "docstring-parser", "gguf", "hypothesis", "jinja2"),
    *("jsonargparse", "lightning", "matplotlib", "omegaconf", "peft", "psutil", "pytest", "pytest-timeout", "pyyaml"),
    *("reasoning-gym", "scipy", "tabulate", "tensorboard", "torchmetrics", "tqdm", "transformers", "trl"),
    *("typeshed-client", "setuptools"),  # of jsonargparse's signatures; of tensorboard
)
"""The packages that gpu_check imports, by itself or through cera."""

ROW = {"what": "time of ours / theirs", "median": 0.5, "ratios": [0.5], "goal": ">= 1", "reached": False}
DETAILS = {"failed": {"TRL": "out of memory"}}
RESULT = f"open(out, 'w').write({json.dumps({'rows': [ROW], 'details': DETAILS})!r})"


@dataclass(frozen=True)
class Program(Check):
    """A check that is a program, which is given the path of its result as ``out``."""

    program: str = ""

    def command(self, python: str, device: str, base: Path, out: Path) -> list[str]:
        return [python, "-c", f"out = {str(out)!r}\n{self.program}"]


@dataclass(frozen=True)
class FileOfTests(Check):
    """A check that is a file of tests."""

    file: str = ""

    def command(self, python: str, device: str, base: Path, out: Path) -> list[str]:
        return [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={out}", self.file]


@pytest.fixture
def outcomes(tmp_path):
    """What comes of checks, by name."""

    def outcomes(*checks: Check, budget: float = 100.0) -> dict:
        reported = []
        results = run(checks, "cpu", tmp_path, tmp_path, budget, reported.append)
        assert reported == results
        assert [outcome.check for outcome in results] == [check.name for check in checks]
        return {outcome.check: outcome for outcome in results}

    return outcomes


def program(name: str, text: str, seconds: float = 60, measures: bool = True) -> Program:
    return Program(name, f"what {name} shows", seconds, measures, text)


def test_no_check_stops_the_others(outcomes) -> None:
    found = outcomes(
        program("missing", RESULT),
        program("good", RESULT.replace("false", "true")),
        program("bad", "raise SystemExit('out of memory')"),
        program("killed", "import os; os.kill(os.getpid(), 9)"),
        program("hanging", "import time; time.sleep(60)", seconds=1),
        program("silent", ""),
        program("last", RESULT.replace("false", "null")),
    )
    states = [outcome.state for outcome in found.values()]
    assert states == ["missed", "passed", "failed", "failed", "failed", "failed", "passed"]
    assert found["missing"].reason == "goals are not reached: time of ours / theirs"
    assert found["bad"].reason == "ended with status 1: out of memory"
    assert found["killed"].reason == "ended with status -9: "
    assert found["hanging"].reason == "stopped after its limit of 1 s"
    assert found["good"].result["rows"][0]["median"] == 0.5


def test_what_does_not_fit_the_budget_is_not_run(outcomes, monkeypatch) -> None:
    monkeypatch.setattr("gpu_check.runner.LEAST", 0.5)
    found = outcomes(program("long", "import time; time.sleep(60)"), program("last", RESULT), budget=1)
    assert {name: outcome.state for name, outcome in found.items()} == {"long": "not run", "last": "not run"}
    assert found["long"].reason == "stopped after 1 s, when the time budget was used up"
    assert found["last"].reason == "the time budget was used up"


def test_tests_are_told_one_by_one(outcomes, tmp_path) -> None:
    content = {
        "mixed": "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('it needs a GPU')\n",
        "skipped": "import pytest\npytest.skip('it needs a GPU', allow_module_level=True)\ndef test_a(): pass\n",
        "failing": "def test_a(): pass\ndef test_b(): assert 1 == 2, 'not alike'\n",
        "broken": "import no_such_module\n",
    }
    for name, text in content.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    found = outcomes(*(FileOfTests(name, name, 60, file=str(tmp_path / f"test_{name}.py")) for name in content))
    assert [outcome.state for outcome in found.values()] == ["passed", "not possible", "failed", "failed"]
    assert found["mixed"].tests == {"test_a": ("passed", ""), "test_b": ("not possible", "it needs a GPU")}
    assert found["skipped"].reason == "1 of 1 tests: it needs a GPU"
    assert found["failing"].reason.startswith("1 of 2 tests: AssertionError: not alike")
    assert found["broken"].reason == "1 of 1 tests: E   ModuleNotFoundError: No module named 'no_such_module'"


def test_the_page_says_what_came_of_each(outcomes) -> None:
    text = page(list(outcomes(program("missing", RESULT), program("bad", "raise SystemExit('a | b')")).values()), {})
    assert "1 missed, 1 failed." in text
    assert "| what missing shows | missed |" in text
    assert r"ended with status 1: a \| b |" in text
    assert "| time of ours / theirs | 0.5 | >= 1 | no |" in text
    assert "Not measured, as it failed: TRL: out of memory" in text
    assert "No GPU has run this" in page([], {"device": "cpu"})
    assert "No GPU has run this" not in page([], {"device": "cuda"})


def test_every_check_exists() -> None:
    files = {path.stem.removeprefix("test_gpu_") for path in (REPOSITORY / TESTS).glob("test_*.py")}
    assert {check.name for check in CHECKS if not check.measures} == files
    assert {check.name for check in CHECKS if check.measures} == MEASUREMENTS.keys()


def test_the_requirements_are_complete() -> None:
    """All that the roots need, as installed here, is listed, and nothing else; torch is the machine's."""
    lines = (REPOSITORY / "gpu_check" / "requirements.txt").read_text().splitlines()
    listed = {normal(line) for line in lines if not line.startswith("#")}
    needed: set[str] = set()
    queue = [*ROOTS]
    while queue:
        name = normal(queue.pop())
        if name not in needed and name not in {"torch", "triton"}:
            needed.add(name)
            requirements = map(Requirement, metadata.requires(name) or [])
            queue += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert listed == needed


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def test_mistakes_are_one_line(capsys) -> None:
    for arguments, message in (
        (["--budget=0"], "--budget must be positive, got 0"),
        (["--device=cuda"], "finds no GPU"),
        (["--only", "layers"], "invalid choice: 'layers'"),
    ):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_cpu_is_checked(tmp_path) -> None:
    assert main(["--device=cpu", "--only", "layer", "quantized", f"--out={tmp_path}"]) == 0
    content = json.loads((tmp_path / "check.json").read_text())
    assert [(check["check"], check["state"]) for check in content["checks"]] == [
        ("layer", "passed"),
        ("quantized", "passed"),
    ]
    assert content["machine"]["python"] == sys.version.split()[0]
    assert content["checks"][0]["result"]["rows"]
    assert "No GPU has run this" in (tmp_path / "check.md").read_text()

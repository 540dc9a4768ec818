"""Forks of a process with everything loaded are like processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cera.studies.measure import CERA
from cera.studies.warm import LOST, WarmFork, WarmForks

SCRIPT = """
import json, os, sys, time
def main(arguments):
    print(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), "group": os.getpgid(0) == os.getpid(),
        "variable": os.environ.get("OF_RUN"), "loaded": "lightning" in sys.modules,
        "spec": sys.modules["__main__"].__spec__.name}), flush=True)
    print("to standard error", file=sys.stderr)
    time.sleep(float(arguments[0]))
    return int(arguments[1])
"""


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> WarmForks:
    return WarmForks(tmp_path_factory.mktemp("forks") / "forks.log")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command of ``cera`` that imports a module which replaces its subcommand ``estimate``."""
    module = "import cera.memory.command\nimport scripted\ncera.memory.command.main = scripted.main\n"
    (tmp_path / "scripted.py").write_text(SCRIPT)
    (tmp_path / "replaced.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    return [*CERA, "estimate", "--import=replaced"]


def wait(process: WarmFork) -> int:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.returncode is not None
    return process.returncode


def test_a_fork_has_arguments_environment_folder_group_and_status_of_its_own(forks, command, tmp_path) -> None:
    environment = {**os.environ, "OF_RUN": "yes"}
    processes = [forks.open([*command, "0", str(status)], tmp_path / f"{status}.log", environment) for status in (0, 3)]
    assert [wait(process) for process in processes] == [0, 3]
    for status in (0, 3):
        said, error = (tmp_path / f"{status}.log").read_text().splitlines()
        assert error == "to standard error"
        assert json.loads(said) == {
            "argv": ["estimate", "--import=replaced", "0", str(status)],
            "cwd": str(tmp_path),
            "group": True,
            "variable": "yes",
            "loaded": True,
            "spec": "cera.__main__",
        }
    again = forks.open([*command, "0", "0"], tmp_path / "again.log", dict(os.environ))
    assert wait(again) == 0
    assert json.loads((tmp_path / "again.log").read_text().splitlines()[0])["variable"] is None


def test_a_killed_fork_says_by_which_signal(forks, command, tmp_path) -> None:
    process = forks.open([*command, "60", "0"], tmp_path / "log", dict(os.environ))
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert wait(process) == -signal.SIGKILL
    process.send_signal(signal.SIGTERM)  # to a process that has ended: nothing happens


def test_forks_outlive_the_process_that_forks_which_is_started_again(command, tmp_path) -> None:
    forks = WarmForks(tmp_path / "forks.log")
    lost = forks.open([*command, "2", "0"], tmp_path / "lost.log", dict(os.environ))
    assert forks._server is not None
    forks._server.kill()
    forks._server.wait()
    assert lost.poll() is None
    assert wait(lost) == LOST  # whether it did its work is seen from its files
    assert wait(forks.open([*command, "0", "5"], tmp_path / "next.log", dict(os.environ))) == 5


def test_no_process_that_forks_is_left_when_it_is_closed(command, tmp_path) -> None:
    forks = WarmForks(tmp_path / "forks.log")
    forks.close()  # nothing has been started
    running = forks.open([*command, "2", "0"], tmp_path / "log", dict(os.environ))
    server = forks._server
    assert server is not None
    forks.close()
    assert server.returncode == 0
    assert running.poll() is None  # it goes on
    assert wait(running) == LOST


def test_a_process_that_does_not_start_is_an_error_that_names_its_log(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cera.studies.warm.sys.executable", "/bin/false")
    with pytest.raises(OSError, match=r"has ended: .*forks.log says why"):
        WarmForks(tmp_path / "forks.log").open([*CERA, "train"], tmp_path / "log", dict(os.environ))


def test_the_process_ends_with_whoever_started_it(tmp_path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from cera.studies.measure import CERA\n"
        "from cera.studies.warm import WarmForks\n"
        f"forks = WarmForks(Path({str(tmp_path / 'forks.log')!r}))\n"
        f"forks.open([*CERA, '--version'], Path({str(tmp_path / 'log')!r}), dict(os.environ))\n"
        "print(forks._server.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    server, deadline = int(started.stdout), time.monotonic() + 30
    while Path(f"/proc/{server}").exists() and "Z" not in Path(f"/proc/{server}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline
        time.sleep(0.05)

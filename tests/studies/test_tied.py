"""A command that is tied to a process ends with it, by one SIGTERM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cera.studies import tied

COUNT = """
import os, pathlib, signal, sys, time
file, signals = pathlib.Path(sys.argv[1]), []
signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
file.write_text("%d begun" % os.getpid())
while not signals:
    time.sleep(0.01)
time.sleep(1)  # for another signal
file.write_text("%d got %d" % (os.getpid(), len(signals)))
"""
"""A command that says how often it got SIGTERM."""

PARENT = """
import os, subprocess, sys, threading, time
for _ in range(8):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
subprocess.Popen([sys.executable, sys.argv[1], str(os.getpid()), *sys.argv[2:]])
time.sleep(60)
"""
"""A process of several threads that starts a tied command."""


def wait_for(file: Path, word: str) -> str:
    deadline = time.monotonic() + 30
    while not (file.exists() and word in file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return file.read_text()


@pytest.mark.parametrize("killed", ["parent", "keeper"])
def test_the_command_gets_one_signal_when_either_process_above_it_is_killed(tmp_path, killed) -> None:
    if killed == "keeper" and sys.platform != "linux":
        pytest.skip("needs the kernel of Linux")
    file = tmp_path / "count"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, tied.__file__, sys.executable, "-c", COUNT, str(file)])
    try:
        command = psutil.Process(int(wait_for(file, "begun").split()[0]))
        keeper = command.parent()
        assert keeper.ppid() == parent.pid
        os.kill(keeper.pid if killed == "keeper" else parent.pid, signal.SIGKILL)
        assert wait_for(file, "got").endswith("got 1")
        assert not psutil.wait_procs([command], timeout=10)[1]
    finally:
        parent.kill()
        parent.wait()


@pytest.mark.parametrize(("script", "status"), [("", 0), ("exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_the_status_is_that_of_the_command(script, status) -> None:
    arguments = [sys.executable, tied.__file__, str(os.getpid()), sys.executable, "-c", script]
    assert subprocess.run(arguments, check=False).returncode == status


def test_a_signal_is_passed_on(tmp_path) -> None:
    file = tmp_path / "count"
    process = subprocess.Popen(
        [sys.executable, tied.__file__, str(os.getpid()), sys.executable, "-c", COUNT, str(file)]
    )
    wait_for(file, "begun")
    process.terminate()
    assert process.wait(timeout=30) == 0
    assert file.read_text().endswith("got 1")

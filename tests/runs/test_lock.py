"""A directory has one writer: it is reserved when it is chosen, and locked for as long as its process lives."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from command_line import command, environment, run_here
from conftest import REPOSITORY

from cera.runs import directory as run_directory
from cera.runs.lock import LOCK, DirectoryInUse, DirectoryLock, in_use

fork = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _no_choice_of_an_earlier_run(monkeypatch):
    monkeypatch.setenv(run_directory.RUN_DIR, "restored at the end, as `reserve` sets it")
    monkeypatch.delenv(run_directory.RUN_DIR)


def hold(folder: Path, ready) -> None:
    """Lock ``folder``, say so, and live on."""
    lock = DirectoryLock(folder)
    lock.acquire()
    ready.set()
    time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock on ``tmp_path / "a"``."""
    ready = fork.Event()
    process = fork.Process(target=hold, args=(tmp_path / "a", ready))
    process.start()
    assert ready.wait(20)
    yield process
    process.kill()
    process.join()


def test_a_second_writer_is_refused_and_told_who_is_the_first(tmp_path, holder) -> None:
    expected = f"{tmp_path / 'a'} is in use by process {holder.pid} on {socket.gethostname()}."
    with pytest.raises(DirectoryInUse, match=re.escape(expected)):
        DirectoryLock(tmp_path / "a").acquire()
    with DirectoryLock(tmp_path / "b"):
        pass


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path, holder) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with DirectoryLock(tmp_path / "a"):
        assert str(os.getpid()) in (tmp_path / "a" / LOCK).read_text()


def test_whether_a_directory_is_in_use_is_seen_without_taking_the_lock(tmp_path, holder) -> None:
    assert in_use(tmp_path / "a")
    assert not in_use(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    holder.kill()
    holder.join()
    assert not in_use(tmp_path / "a")
    with DirectoryLock(tmp_path / "a"):
        assert in_use(tmp_path / "a")


def test_two_locks_of_one_process_exclude_each_other(tmp_path) -> None:
    folder = tmp_path / "a"
    for _ in range(2):
        with DirectoryLock(folder):
            with pytest.raises(DirectoryInUse, match=str(os.getpid())):
                DirectoryLock(folder).acquire()
            (folder / "result").touch()


def test_a_forked_worker_does_not_keep_the_lock_of_a_dead_process(tmp_path) -> None:
    def lock_and_fork(worker_pid) -> None:
        DirectoryLock(tmp_path).acquire()
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
            os._exit(0)
        worker_pid.value = worker
        os._exit(0)

    worker_pid = fork.Value("i", 0)
    parent = fork.Process(target=lock_and_fork, args=(worker_pid,))
    parent.start()
    parent.join()
    os.kill(worker_pid.value, 0)  # the worker lives
    try:
        with DirectoryLock(tmp_path):
            pass
    finally:
        os.kill(worker_pid.value, signal.SIGKILL)


def test_a_directory_that_nothing_was_written_to_is_removed(tmp_path) -> None:
    with DirectoryLock(tmp_path / "mistake"):
        pass
    with DirectoryLock(tmp_path / "run"):
        (tmp_path / "run" / "config.yaml").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def reserve_at(start, runs: Path, chosen, i: int) -> None:
    """Reserve a directory at the moment that all others do."""
    start.wait()
    for _ in range(10):
        os.environ.pop(run_directory.RUN_DIR, None)
        chosen.append(run_directory.reserve(runs, "test", resume=False).path.name)


def test_runs_of_one_name_that_start_together_get_different_directories(tmp_path) -> None:
    start = fork.Barrier(6)
    with multiprocessing.Manager() as manager:
        chosen = manager.list()
        processes = [fork.Process(target=reserve_at, args=(start, tmp_path, chosen, i)) for i in range(6)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert sorted(chosen) == sorted(["test", *(f"test@{n}" for n in range(2, 61))])


def test_a_reserved_directory_stays_taken_when_its_run_dies_before_it_writes(tmp_path) -> None:
    process = fork.Process(target=run_directory.reserve, args=(tmp_path, "test", False))
    process.start()
    process.join()
    assert run_directory.reserve(tmp_path, "test", resume=False).path == tmp_path / "test@2"
    os.environ.pop(run_directory.RUN_DIR)
    assert run_directory.choose(tmp_path, "test", resume=True) == tmp_path / "test@2"


def test_one_of_two_jobs_of_an_outside_launcher_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run_directory.reserve(tmp_path, "test", resume=False) == (tmp_path / "test", None)
    assert not (tmp_path / "test").exists()
    monkeypatch.setenv("RANK", "0")
    first = run_directory.reserve(tmp_path, "test", resume=False)
    with pytest.raises(ValueError, match="test holds a run already"):
        run_directory.reserve(tmp_path, "test", resume=False)
    with pytest.raises(DirectoryInUse, match=f"in use by process {os.getpid()}"):
        run_directory.reserve(tmp_path, "test", resume=True)
    first.lock.release()


def test_a_live_run_cannot_be_resumed_and_a_second_run_gets_its_own_directory(
    tiny_llama, tmp_path, monkeypatch, capsys
) -> None:
    arguments = command(tiny_llama, tmp_path, "--trainer.max_steps=2", "--trainer.limit_val_batches=0")
    live = subprocess.Popen(arguments, cwd=REPOSITORY, env=environment(), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "test" / "config.yaml").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        live.send_signal(signal.SIGSTOP)
        before = sorted(p for p in tmp_path.rglob("*"))
        status, printed = run_here(monkeypatch, capsys, [*arguments, "--ckpt_path=last"])
        assert status == 2
        (line,) = [line for line in printed.splitlines() if line.startswith("error:")]
        assert f"is in use by process {live.pid} on {socket.gethostname()}" in line
        assert sorted(p for p in tmp_path.rglob("*")) == before
        status, printed = run_here(monkeypatch, capsys, arguments)
        assert status == 0, printed
        assert (tmp_path / "test@2" / "checkpoints" / "step=2.ckpt").is_file()
        live.send_signal(signal.SIGCONT)
        assert live.wait(120) == 0
        assert (tmp_path / "test" / "checkpoints" / "step=2.ckpt").is_file()
        status, printed = run_here(monkeypatch, capsys, [*arguments, "--ckpt_path=last"])
        assert status == 0, printed  # nothing holds the lock any more
    finally:
        live.kill()
        live.wait()

"""A lock that an interrupted compilation left in torch's cache is removed or named, and never waited for in silence."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import STRATEGIES, command, run_here
from lightning.pytorch.utilities import rank_zero

from cera.training import compilation
from cera.training.compilation import CompilationLocked, prepare_compilation

OPERATIONS = ["shm_comm"]


@pytest.fixture
def messages(monkeypatch) -> list[str]:
    """Collect the messages that the user sees."""
    lines: list[str] = []
    monkeypatch.setattr(compilation, "rank_zero_info", lines.append)
    return lines


@pytest.fixture(params=["", "py311_cpu"])
def lock(tmp_path, monkeypatch, request) -> Path:
    """A lock in the folder of a compiled operation, in both places where torch may put that."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folder = tmp_path / request.param / "shm_comm"
    folder.mkdir(parents=True)
    (folder / "shm_comm.so").touch()
    (folder / "lock").touch()
    return folder / "lock"


def age(lock: Path, seconds: float) -> None:
    for file in lock.parent.iterdir():
        os.utime(file, (time.time() - seconds,) * 2)


def test_an_old_lock_that_nobody_holds_is_removed(lock, messages):
    age(lock, 2 * 3600)
    prepare_compilation(OPERATIONS)
    assert not lock.exists()
    assert messages == [f"Removed {lock}, which an interrupted compilation left 2.0 hours ago."]


def test_a_young_one_is_an_error_that_names_it(lock, messages):
    age(lock, 60)
    with pytest.raises(CompilationLocked, match=rf"^{lock} says.*Remove it if none does: rm {lock}$") as caught:
        prepare_compilation(OPERATIONS)
    assert "\n" not in str(caught.value)
    assert lock.exists()
    prepare_compilation(OPERATIONS, shared=True)  # another machine of this run may hold it
    assert lock.exists()
    assert messages == [f"Waiting for {lock}; if no machine compiles, an interrupted run left it: remove it then."]


def test_a_folder_that_is_still_written_to_is_young(lock, messages):
    age(lock, 2 * 3600)
    (lock.parent / "shm.o").touch()
    with pytest.raises(CompilationLocked):
        prepare_compilation(OPERATIONS)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not tell who has a file open")
@pytest.mark.parametrize("seconds", [60, 2 * 3600])
def test_one_that_a_process_holds_is_waited_for(lock, messages, seconds):
    age(lock, seconds)
    code = "import sys, time; file = open(sys.argv[1]); print('open', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE) as holder:
        try:
            holder.stdout.readline()
            prepare_compilation(OPERATIONS)
        finally:
            holder.kill()
    assert messages == [f"Waiting for process {holder.pid}, which compiles shm_comm ({lock})."]
    assert lock.exists()


def test_locks_of_other_extensions_are_left_alone(lock, messages):
    age(lock, 60)
    prepare_compilation(["another"])
    assert lock.exists()


def test_compilation_is_announced_until_something_is_compiled(lock, messages, tmp_path):
    lock.unlink()
    prepare_compilation(OPERATIONS)
    assert messages == []
    (lock.parent / "shm_comm.so").unlink()
    prepare_compilation(OPERATIONS)
    assert messages == [
        f"DeepSpeed compiles its operations once, which takes a minute or more, and keeps them in {tmp_path}."
    ]


def test_a_run_is_refused_before_its_model_is_loaded(tiny_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr("cera.training.module.adapted_model", None)
    monkeypatch.setattr(rank_zero.rank_zero_only, "rank", 0, raising=False)
    folder = tmp_path / "deepspeed_shm_comm"
    folder.mkdir()
    (folder / "lock").touch()
    status, printed = run_here(monkeypatch, capsys, command(tiny_llama, tmp_path / "runs", *STRATEGIES["zero2"]))
    assert status == 2
    assert printed.splitlines()[-1].startswith(f"error: {folder / 'lock'} says that deepspeed_shm_comm is being")

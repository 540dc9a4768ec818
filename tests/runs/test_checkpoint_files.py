"""Checkpoint files are whole or refused, and no run overwrites another."""

import multiprocessing
import os
import re
import resource
import signal
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from cera.runs import directory as run_directory
from cera.runs.checkpoint_io import AtomicCheckpointIO
from cera.runs.checkpoints import CheckpointError, newest_checkpoint


def checkpoint(step: int = 3, size: int = 6) -> dict[str, Any]:
    """What a trainer's checkpoint is made of."""
    return {
        "global_step": step,
        "state_dict": OrderedDict(w=torch.arange(float(size)), b=torch.ones(2, dtype=torch.bfloat16)),
        "optimizer_states": [{"state": {0: {"step": torch.tensor(2.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]}],
        "position": {"epoch": 1, "rows": None, "open": [[([1, 2], [-100, 2])]]},
        "cera": {"identity": "{}", "base_perplexity": None},
    }


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints are equal in every tensor and value."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole checkpoint."""
    path = tmp_path / "checkpoints" / "step=3.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(), path)
    return path


# Whole files


def test_what_was_saved_is_loaded(path) -> None:
    assert same(AtomicCheckpointIO().load_checkpoint(path), checkpoint())
    assert same(AtomicCheckpointIO().load_checkpoint(str(path)), checkpoint())
    assert not same(AtomicCheckpointIO().load_checkpoint(path), checkpoint(step=4))


def test_saving_leaves_nothing_else_behind_and_replaces_what_was_there(path) -> None:
    AtomicCheckpointIO().save_checkpoint(checkpoint(step=9), path)
    assert AtomicCheckpointIO().load_checkpoint(path)["global_step"] == 9
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# Broken files


@pytest.mark.parametrize("share", [0, 0.001, 0.25, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, share) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))} .*truncated \({path.stat().st_size} bytes"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_a_file_that_lacks_its_last_byte_is_refused(path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        AtomicCheckpointIO().load_checkpoint(path)


@pytest.mark.parametrize("entry", ["archive/data.pkl", "archive/data/0", "archive/data/1"])
def test_a_flipped_byte_in_the_data_is_refused(path, entry) -> None:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        stored = archive.read(entry)
    assert content.count(stored) == 1
    content[content.index(stored) + len(stored) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))} is damaged: the checksum of {entry}"):
        AtomicCheckpointIO().load_checkpoint(path)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[int, str]:
    """What comes of a checkpoint in which one byte is inverted, for each byte in turn."""
    path = tmp_path_factory.mktemp("damaged") / "step=3.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(), path)
    whole = path.read_bytes()
    outcomes = {}
    for i in range(len(whole)):
        damaged = bytearray(whole)
        damaged[i] ^= 0xFF
        path.write_bytes(damaged)
        try:
            loaded = AtomicCheckpointIO().load_checkpoint(path)
        except CheckpointError:
            outcomes[i] = "refused"
        except Exception as error:
            outcomes[i] = f"{type(error).__name__}: {error}"
        else:
            outcomes[i] = "intact" if same(loaded, checkpoint()) else "other values"
    return outcomes


def test_no_flipped_byte_changes_what_is_loaded(outcomes) -> None:
    assert {"intact", "refused"} <= set(outcomes.values())
    assert [i for i, outcome in outcomes.items() if outcome == "other values"] == []


def test_every_flipped_byte_that_matters_is_a_checkpoint_error(outcomes) -> None:
    expected = ("refused", "intact", "other values")
    assert {i: outcome for i, outcome in outcomes.items() if outcome not in expected} == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"step: 3\n", b"PK\x03\x04 and no more", bytes(range(256)) * 20],
    ids=["empty", "text", "zip", "bytes"],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content) -> None:
    path = tmp_path / "step=1.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step=1\.ckpt is not a checkpoint"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_a_zip_file_of_something_else_is_refused(tmp_path) -> None:
    path = tmp_path / "step=1.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter/content.xml", "<p>Hello</p>")
    with pytest.raises(CheckpointError):
        AtomicCheckpointIO().load_checkpoint(path)


@pytest.mark.parametrize("content", [torch.ones(2), [1], {"state_dict": {}}], ids=["tensor", "list", "other dict"])
def test_what_is_no_checkpoint_of_this_framework_is_refused(tmp_path, content) -> None:
    torch.save(content, tmp_path / "step=1.ckpt")
    with pytest.raises(CheckpointError, match=r"step=1\.ckpt is not a checkpoint of this framework"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "step=1.ckpt")


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.ckpt: no such checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "gone.ckpt")


class Payload:
    """Unpickled, it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class Custom:
    """A class of one's own."""


@pytest.mark.parametrize("weights_only", [None, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, weights_only) -> None:
    path, sign = tmp_path / "step=1.ckpt", tmp_path / "sign"
    torch.save({**checkpoint(), "x": Payload(sign)}, path)
    with pytest.raises(CheckpointError, match=r"holds Python objects .* not read for safety"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert not sign.exists()
    torch.load(path, weights_only=False)
    assert sign.exists()  # it would have run


def test_an_object_of_a_custom_class_is_refused(tmp_path) -> None:
    torch.save({**checkpoint(), "x": Custom()}, tmp_path / "step=1.ckpt")
    with pytest.raises(CheckpointError, match="Custom"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "step=1.ckpt")


# Killed while saving


def _save_and_be_killed(checkpoint: dict[str, Any], path: Path, limit: int, signalled: bool) -> None:
    """Save ``checkpoint`` in a process whose files must not grow past ``limit`` bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if signalled else signal.SIG_IGN)
    try:
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    except Exception:
        os._exit(3)
    os._exit(0)


@pytest.mark.parametrize("limit", [0, 1000, 100_000, 200_000])
@pytest.mark.parametrize(
    ("signalled", "status"), [(True, -signal.SIGXFSZ), (False, 3)], ids=["killed by the kernel", "disk full"]
)
def test_a_save_that_ends_in_the_middle_leaves_the_old_file(path, limit, signalled, status) -> None:
    before, later = path.read_bytes(), checkpoint(step=4, size=50_000)
    arguments = (later, path, limit, signalled)
    process = multiprocessing.get_context("fork").Process(target=_save_and_be_killed, args=arguments)
    process.start()
    process.join(60)
    process.kill()  # if it hangs
    assert process.exitcode == status
    assert path.read_bytes() == before
    assert newest_checkpoint(path.parent) == path
    AtomicCheckpointIO().save_checkpoint(later, path)  # what is left is no obstacle
    assert AtomicCheckpointIO().load_checkpoint(path)["global_step"] == 4
    assert list(path.parent.iterdir()) == [path]


# Which checkpoint


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path) -> None:
    for name in ("step=9.ckpt", "step=10.ckpt", "step=1.ckpt"):
        (tmp_path / name).touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "step=10.ckpt"


def test_other_files_are_no_checkpoints(tmp_path) -> None:
    others = (".step=99.ckpt.unfinished", "step=98.ckpt.unfinished", "step=97-v1.ckpt", "step=.ckpt", "last.ckpt")
    for name in others:
        (tmp_path / name).touch()
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "step=2.ckpt").touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "step=2.ckpt"


def test_a_missing_folder_has_no_newest_checkpoint(tmp_path) -> None:
    assert newest_checkpoint(tmp_path / "gone") is None


# Run directories


LAUNCHER = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS")


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A place for runs, without what an earlier choice left in the environment."""
    monkeypatch.setenv(run_directory.RUN_DIR, "restored at the end, as `choose` sets it")
    monkeypatch.delenv(run_directory.RUN_DIR)
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "runs"


def choose(runs: Path, name: str = "cera", resume: bool = False) -> Path:
    """As a new process would choose."""
    os.environ.pop(run_directory.RUN_DIR, None)
    return run_directory.choose(runs, name, resume)


def used(path: Path, checkpoint_step: int | None = None) -> Path:
    """``path`` as a run leaves it."""
    path.mkdir(parents=True)
    (path / "config.yaml").touch()
    if checkpoint_step is not None:
        (path / "checkpoints").mkdir()
        (path / "checkpoints" / f"step={checkpoint_step}.ckpt").touch()
    return path


def test_the_first_run_has_the_bare_name(runs) -> None:
    assert choose(runs) == runs / "cera"
    assert not runs.exists()  # to choose makes nothing


def test_later_runs_are_numbered_and_overwrite_none(runs) -> None:
    for expected in ("cera", "cera@2", "cera@3"):
        assert used(choose(runs)) == runs / expected
    used(runs / "cera@11")
    assert choose(runs) == runs / "cera@12"


def test_other_names_and_empty_directories_do_not_count(runs) -> None:
    used(runs / "cera_r128")
    used(runs / "lora")
    used(runs / "my-cera-7")
    used(runs / "cera.2x")
    (runs / "cera").mkdir()
    assert choose(runs) == runs / "cera"


def test_a_name_is_no_pattern(runs) -> None:
    used(runs / "caaa")
    assert choose(runs, "ca+") == runs / "ca+"


def test_resume_takes_the_newest_run_that_has_a_checkpoint(runs) -> None:
    used(runs / "cera", 40)
    used(runs / "cera@2", 10)
    used(runs / "cera@10", 5)
    assert choose(runs, resume=True) == runs / "cera@10"
    used(runs / "cera@11")  # ended before its first checkpoint
    assert choose(runs, resume=True) == runs / "cera@10"


def test_without_any_checkpoint_the_newest_run_starts_again(runs) -> None:
    used(runs / "cera")
    used(runs / "cera@2")
    assert choose(runs, resume=True) == runs / "cera@2"


def test_nothing_to_resume(runs) -> None:
    with pytest.raises(CheckpointError, match=r"there is no run of the name 'cera' in .*runs"):
        choose(runs, resume=True)
    assert run_directory.RUN_DIR not in os.environ


@pytest.mark.parametrize("resume", [False, True])
def test_a_started_process_takes_the_directory_that_the_first_one_chose(runs, monkeypatch, resume) -> None:
    used(runs / "cera", 40)
    chosen = choose(runs)
    assert os.environ[run_directory.RUN_DIR] == str(chosen) == str(runs / "cera@2")
    used(chosen)
    assert run_directory.choose(runs, "cera", resume) == chosen
    monkeypatch.setenv(run_directory.RUN_DIR, str(runs / "elsewhere"))
    assert run_directory.choose(runs, "cera", resume) == runs / "elsewhere"


@pytest.fixture(params=[("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")], ids=["torchrun", "slurm"])
def launched(request, runs, monkeypatch):
    """Sets the environment of one of several processes of an outside launcher."""

    def launch(rank: int, world_size: int = 2) -> None:
        for name, value in zip(request.param, (rank, world_size), strict=True):
            monkeypatch.setenv(name, str(value))

    return launch


def test_processes_of_an_outside_launcher_all_choose_the_bare_name(runs, launched) -> None:
    for rank in (0, 1):
        launched(rank)
        assert choose(runs) == runs / "cera"
        assert run_directory.RUN_DIR not in os.environ
        if rank == 0:
            used(runs / "cera")  # the first process may be quicker


def test_an_outside_launcher_does_not_overwrite_a_run(runs, launched) -> None:
    used(runs / "cera")
    launched(rank=0)
    with pytest.raises(ValueError, match=r"runs/cera holds a run already.*--name"):
        choose(runs)


def test_processes_of_an_outside_launcher_resume_the_same_run(runs, launched) -> None:
    used(runs / "cera", 10)
    used(runs / "cera@2", 20)
    for rank in (0, 1):
        launched(rank)
        assert choose(runs, resume=True) == runs / "cera@2"


def test_a_launcher_of_one_process_numbers_its_runs(runs, launched) -> None:
    used(runs / "cera")
    launched(rank=0, world_size=1)
    assert choose(runs) == runs / "cera@2"
    assert os.environ[run_directory.RUN_DIR] == str(runs / "cera@2")

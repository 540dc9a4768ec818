"""What a command writes lies in the run or where `--out` says, replaces nothing in silence, and others can read it."""

import os
import stat
from argparse import Namespace

import pytest
from safetensors.torch import save_file
from torch import ones

from cera.cli.errors import UsageError
from cera.cli.main import main
from cera.cli.outputs import check_outputs
from cera.cli.predictions import check_predictions
from cera.runs.files import replacing


@pytest.fixture
def open_umask():
    earlier = os.umask(0o022)
    yield
    os.umask(earlier)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_that_exists_is_replaced_if_asked_for_only(tmp_path) -> None:
    file = tmp_path / "spectra.png"
    options = Namespace(out=file, csv=None, overwrite=False)
    check_outputs(options, "out", "csv")
    file.touch()
    with pytest.raises(UsageError, match=r"--out: .*spectra.png exists already; .* --overwrite"):
        check_outputs(options, "out", "csv")
    check_outputs(Namespace(out=file, csv=None, overwrite=True), "out", "csv")


def test_a_directory_is_no_file(tmp_path) -> None:
    with pytest.raises(UsageError, match="--out must be a file, got the directory"):
        check_outputs(Namespace(out=tmp_path, overwrite=True), "out")
    (tmp_path / "a").touch()
    with pytest.raises(UsageError, match=r"--out must be a file in a directory, got .*/a/b/c: .*/a is a file"):
        check_outputs(Namespace(out=tmp_path / "a" / "b" / "c", overwrite=True), "out")


COMMANDS = {
    "spectra": (["nowhere"], ["out", "csv"]),
    "overlap": (["--train=nowhere.jsonl", "--test=nowhere.jsonl"], ["out"]),
    "estimate": (["--config=nowhere.yaml"], ["json"]),
    "lr-robustness": (["nowhere"], ["out"]),
}


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in COMMANDS for option in COMMANDS[name][1]])
def test_commands_look_at_their_outputs_before_anything_else(name, option, tmp_path, capsys) -> None:
    file = tmp_path / "mine.png"
    file.write_text("mine")
    assert main([name, *COMMANDS[name][0], f"--{option}={file}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --{option}: {file} exists already")
    assert main([name, *COMMANDS[name][0], f"--{option}={file}", "--overwrite"]) == 2
    assert "exists already" not in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_predictions_of_another_checkpoint_are_not_replaced(tmp_path) -> None:
    check_predictions(tmp_path)
    (tmp_path / "predictions.jsonl").touch()
    with pytest.raises(UsageError, match=r"predictions\.jsonl exists already"):
        check_predictions(tmp_path)


def test_files_have_the_mode_of_new_files(tmp_path, open_umask) -> None:
    with replacing(tmp_path / "ours.safetensors") as unfinished:
        save_file({"sigma": ones(2)}, unfinished)
    assert mode(tmp_path / "ours.safetensors") == 0o644


def test_every_file_of_a_run_can_be_read_by_others(two_runs) -> None:
    files = [path for path in (two_runs / "cera").rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    mask = os.umask(0)
    os.umask(mask)
    assert {path.name: oct(mode(path)) for path in files if mode(path) != 0o666 & ~mask} == {}

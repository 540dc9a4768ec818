import csv
import os
import re
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest
from command_line import command
from conftest import REPOSITORY

from cera.runs.finished import FinishedRun
from cera.spectral.files import Spectra, spectra_files
from cera.spectral.sample import Sample
from cera.studies import compare
from cera.studies.compare_command import main


@pytest.fixture
def options(tiny_llama, tmp_path, monkeypatch):
    """Everything but the files: two adapters' small budget, in this environment."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = command(tiny_llama, tmp_path)[4:]
    dropped = ("--runs", "--name", "--answer_tokens", "--model.adapter")
    return [argument for argument in given if not argument.startswith(dropped)]


def arguments(tmp_path, options, *adapters):
    files = ["configs/parts/smol.yaml", *(f"configs/adapters/{name}.yaml" for name in adapters)]
    return [*files, "--runs", str(tmp_path / "runs"), "--", *options]


def test_one_command_one_table(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    given = arguments(tmp_path, options, "cera", "lora")
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "CeRA r=64" in printed
    assert "LoRA r=64" in printed
    with (tmp_path / "runs" / "compare.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    for name, row in rows.items():
        run = FinishedRun.read(tmp_path / "runs" / name)
        assert int(row["parameters"]) == 4 * 64 * (3 * 64 + 32)
        assert float(row["perplexity"]) == run.curve("val/perplexity")[8]
        assert float(row["effective_rank"]) > 1
        assert float(row["effective_rank_centred"]) != float(row["effective_rank"])
        assert re.fullmatch(r"[\d,]+ tokens of data \w{8}", row["sample"])
        assert all(row[column] for column in row if column not in ("tokens_per_second", "peak_memory_gib"))
    (header,) = [line for line in printed.splitlines() if "PPL" in line]
    assert "ER, centred" in header

    # once more: nothing is trained again
    monkeypatch.setattr(compare, "TRAIN", ("false",))
    assert main(given) == 0
    assert "Not comparable" not in capsys.readouterr().err

    # spectra of other tokens
    file = spectra_files(tmp_path / "runs" / "lora")[8]
    replace(Spectra.read(file), sample=Sample("answer", 7, "0" * 16)).save(file)
    assert main(given) == 0
    assert re.search(
        r"warning: Not comparable: cera was measured on [\d,]+ tokens of data \w{8}, and lora on 7 answer tokens of ",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["configs/parts/smol.yaml", "nowhere.yaml"], "no such configuration: nowhere.yaml"),
        (["configs/parts/smol.yaml", "configs/smol_cera.yaml", "configs/smol_cera.yaml"], "the same name"),
    ],
)
def test_errors(files, message, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert main(files) == 2
    assert message in capsys.readouterr().err


def test_a_failed_run_is_named_and_the_others_are_in_the_table(options, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(REPOSITORY)
    broken = tmp_path / "broken.yaml"
    broken.write_text("model:\n  adapter:\n    class_path: cera.CeraConfig\n    init_args: {r: 0}\n")
    given = ["configs/parts/smol.yaml", str(broken), "configs/adapters/lora.yaml", "--runs", str(tmp_path / "runs")]
    assert main([*given, "--", *options]) == 1
    captured = capfd.readouterr()
    assert "these runs failed, see their messages above: broken" in captured.err
    assert "| lora" in captured.out


SAVES = """
import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(0.5)
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(128 + number)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).write_text("trains")
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_to_the_run_which_saves_and_no_other_is_begun(tmp_path, monkeypatch, capsys, number):
    monkeypatch.chdir(REPOSITORY)
    state = tmp_path / "state"
    monkeypatch.setattr(compare, "TRAIN", (sys.executable, "-c", SAVES, str(state)))

    def send() -> None:
        while not (state.exists() and state.read_text() == "trains"):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    assert main(arguments(tmp_path, [], "cera", "lora")) == 128 + number
    assert state.read_text() == "saved"
    captured = capsys.readouterr()
    assert captured.err == f"\n{number.name}: stopped; the same command resumes where it stopped.\n"
    assert "=== lora ===" not in captured.out

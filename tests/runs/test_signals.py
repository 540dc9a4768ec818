"""The first signal ends a process in good order, the second at once, whatever the process does."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import command, run, run_here
from conftest import REPOSITORY

from cera.data import ChatData, ReasoningGymWordProblems
from cera.runs.signals import (
    SIGNALS,
    Stopped,
    is_command,
    leave_signals_to_parent,
    raise_stopped,
    signals_blocked,
    stop_signals,
)

NUMBERS = pytest.mark.parametrize("number", SIGNALS)
HANGS = {
    "a loop that catches everything": "while True:\n    try:\n        time.sleep(60)\n    except BaseException: pass",
    "code that is not Python's": "lock = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)\n"
    "for _ in range(2): lock[0](lock[1])",
}


@NUMBERS
def test_the_first_signal_raises_and_the_handlers_come_back(number):
    before = [signal.getsignal(n) for n in SIGNALS]
    with pytest.raises(Stopped, match=f"{number.name}: stopped") as caught, stop_signals(raise_stopped):
        os.kill(os.getpid(), number)
    assert caught.value.code == 128 + number
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_an_inner_block_takes_the_first_signal():
    received = []
    with stop_signals(raise_stopped):
        with stop_signals(received.append):
            os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]


def start(body: str) -> subprocess.Popen:
    """Start a process that runs ``body`` within ``stop_signals``, and wait until it does."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    imports = "import ctypes, sys, time\nsys.path.append('cera/runs')\nfrom signals import *"  # without cera's imports
    code = f"{imports}\nwith stop_signals(raise_stopped):\n    print('on', flush=True)\n{lines}"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "on\n"
    return process


@NUMBERS
def test_uncaught_it_is_the_exit_status(number):
    process = start("time.sleep(60)")
    process.send_signal(number)
    assert process.wait(20) == 128 + number


@pytest.mark.parametrize("body", HANGS.values(), ids=HANGS)
def test_the_second_signal_ends_a_process_that_hangs(body):
    process = start(body)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    try:
        assert process.wait(20) == 128 + signal.SIGTERM
    finally:
        process.kill()


def test_a_forked_worker_has_its_own_signals():
    with stop_signals(raise_stopped):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        for _ in range(3):  # of which this process hears nothing
            worker.terminate()
        worker.join(20)
        assert worker.exitcode == -signal.SIGTERM
        time.sleep(0.2)


PHASES = {
    "the checks before": ("fit", "cera.cli.preflight.check"),
    "opening the data": ("fit", "cera.data.ChatData.setup"),
    "loading the model": ("fit", "cera.training.CausalLM.configure_model"),
    "the sanity check": ("fit", "cera.training.CausalLM.validation_step"),
    "validate": ("validate", "cera.training.CausalLM.validation_step"),
    "test": ("test", "cera.training.CausalLM.test_step"),
    "predict": ("predict", "cera.training.CausalLM.predict_step"),
}


@pytest.fixture(scope="module")
def trained(tiny_llama, tmp_path_factory):
    """The command of a run of two steps that has ended, to which options can be added."""
    arguments = command(tiny_llama, tmp_path_factory.mktemp("runs"), "--trainer.max_steps=2", "--checkpoint_every=1")
    run(arguments)
    return arguments


@NUMBERS
@pytest.mark.parametrize(("subcommand", "place"), PHASES.values(), ids=PHASES)
def test_outside_of_training_it_is_one_line_and_the_status(trained, monkeypatch, capsys, number, subcommand, place):
    monkeypatch.setattr(place, lambda *_, **__: os.kill(os.getpid(), number))
    options = ["--trainer.num_sanity_val_steps=1", "--name=other"] if subcommand == "fit" else []
    status, printed = run_here(monkeypatch, capsys, [*trained[:2], subcommand, *trained[2:], *options])
    assert status == 128 + number
    assert [line for line in printed.splitlines() if number.name in line] == [f"{number.name}: stopped."]
    assert printed.splitlines()[-1] == f"{number.name}: stopped."
    assert "Traceback" not in printed


def test_a_second_signal_in_training_ends_it_at_once(tiny_llama, tmp_path):
    probe = {"class_path": "probes.Signals", "init_args": {"step": 1, "times": 2}}
    arguments = command(tiny_llama, tmp_path, f"--trainer.callbacks+={json.dumps([probe])}")
    printed = run(arguments, expect=128 + signal.SIGTERM)
    assert "once more to stop at once" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "test" / "checkpoints").exists()


@pytest.fixture
def batches(tiny_llama):
    """24 held-out batches, which a worker reads, of which one is here."""
    rows = ReasoningGymWordProblems(size=60)
    data = ChatData(rows, tiny_llama, validation_rows=24, max_length=192, batch_size=1, packing=False, num_workers=1)
    data.setup()
    loaded = iter(data.val_dataloader())
    next(loaded)
    return loaded


@NUMBERS
def test_a_signal_that_reaches_a_worker_of_the_data_does_not_end_it(batches, number):
    [worker] = multiprocessing.active_children()
    subprocess.run(["kill", f"-{number:d}", str(worker.pid)], check=True)  # this process is its parent
    assert len(list(batches)) == 23


def leave_signals_and_sleep() -> None:
    leave_signals_to_parent()
    time.sleep(60)


def test_a_process_that_leaves_signals_to_its_parent_is_ended_by_it_alone():
    worker = multiprocessing.get_context("fork").Process(target=leave_signals_and_sleep)
    with signals_blocked():
        worker.start()
    subprocess.run(["kill", str(worker.pid)], check=True)
    worker.join(0.3)
    assert worker.is_alive()
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 128 + signal.SIGTERM


@pytest.mark.parametrize("imported", ["libtorch", "_multiarray", "tokenizers"])
def test_ctrl_c_while_the_package_is_imported_is_one_line(imported):
    process = subprocess.Popen(
        [sys.executable, "-m", "cera", "spectra", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and imported not in maps.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "\nSIGINT: stopped.\n")


@pytest.mark.parametrize(
    ("arguments", "original", "expected"),
    [
        (["/venv/bin/cera", "train"], ["python", "/venv/bin/cera", "train"], True),
        (["-m", "train"], ["python", "-u", "-m", "cera", "train"], True),
        (["-m"], ["python", "-m", "cera_tools"], False),
        (["train.py"], ["python", "train.py"], False),
        ([], ["ipython"], False),
    ],
)
def test_only_the_command_handles_ctrl_c_during_imports(monkeypatch, arguments, original, expected):
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert is_command() == expected

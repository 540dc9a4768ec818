"""What belongs to a step and was left out when the run ended is done when it resumes: no file shows that it ended."""

import os
import signal
from pathlib import Path

import pytest
from compare_runs import differences
from fitting import fit
from lightning import Callback

from cera.callbacks import Checkpoints, GenerationSamples, RunRecord, SpectralTracker
from cera.runs.checkpoints import newest_checkpoint
from cera.runs.journal import NOTHING, Journal


class PowerCut(BaseException):
    """The end of a process, with nothing done after it but what Lightning does for any error."""


class End(Callback):
    """Ends the run in a hook, at a step."""

    def __init__(self, hook: str, step: int, number: signal.Signals | None) -> None:
        def end(trainer, *details) -> None:
            if trainer.global_step == step and not trainer.sanity_checking:
                if number is None:
                    raise PowerCut
                os.kill(os.getpid(), number)

        setattr(self, hook, end)


def train(base: str, folder: Path, *ends: Callback) -> Checkpoints:
    """Train 5 steps with validations at 2, 4 and 5 in ``folder``, or resume what is there."""
    newest = newest_checkpoint(folder / "checkpoints")
    resumed = Journal.read(newest) if newest else NOTHING if folder.exists() else None
    checkpoints = Checkpoints(folder / "checkpoints", 2, resumed)
    callbacks = [RunRecord(folder, resumed), checkpoints, SpectralTracker(), GenerationSamples(1, max_new_tokens=4)]
    fit(base, folder, [*callbacks, *ends], newest, max_steps=5, log_every_n_steps=1)
    return checkpoints


@pytest.fixture(scope="module")
def whole(tiny_llama, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(tiny_llama, folder)
    return folder


MOMENTS = [
    ("on_train_batch_end", 2),  # before the step is logged
    ("on_validation_start", 2),  # between a checkpoint and its validation
    ("on_validation_end", 4),  # after the validation was logged, before that is noted
    ("on_train_batch_start", 4),  # after a step whose validation is done
    ("on_validation_start", 5),  # the last step
    ("on_validation_end", 5),
    ("on_train_end", 5),  # while the run ends
]


@pytest.mark.parametrize(("hook", "step"), MOMENTS)
def test_a_killed_run_makes_up_for_what_it_left_out(tiny_llama, tmp_path, whole, hook, step):
    run = tmp_path / "run"
    with pytest.raises(PowerCut):
        train(tiny_llama, run, End(hook, step, None))
    assert differences(run, whole)
    train(tiny_llama, run)
    assert differences(run, whole) == []


@pytest.mark.parametrize(("hook", "step"), [("on_train_batch_start", 1), ("on_train_batch_start", 4)])
def test_a_validation_that_a_signal_left_out_is_made_up_for(tiny_llama, tmp_path, whole, hook, step):
    run = tmp_path / "run"
    checkpoints = train(tiny_llama, run, End(hook, step, signal.SIGTERM))
    assert checkpoints.stopped_by == signal.SIGTERM
    assert Journal.read(newest_checkpoint(run / "checkpoints")).validated is False
    assert differences(run, whole)
    train(tiny_llama, run)
    assert differences(run, whole) == []


def test_a_run_that_has_ended_has_nothing_left_to_do(tiny_llama, tmp_path, whole):
    run = tmp_path / "run"
    train(tiny_llama, run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert not train(tiny_llama, run).started
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before

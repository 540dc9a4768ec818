"""What belongs to a step and was left out when the run ended is done when it resumes: no file shows that it ended."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from compare_runs import differences
from fitting import fit
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping

from cera.callbacks import AdapterFile, Checkpoints, GenerationSamples, RunRecord, SpectralTracker
from cera.runs.checkpoints import newest_checkpoint
from cera.runs.journal import NOTHING, Journal
from cera.runs.loggers import log_now
from cera.runs.signals import Stopped


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


def train(base: str, folder: Path, *ends: Callback, every: int = 2, **options: Any) -> Checkpoints:
    """Train 5 steps with validations at 2, 4 and 5 in ``folder``, or resume what is there."""
    newest = newest_checkpoint(folder / "checkpoints")
    resumed = Journal.read(newest) if newest else NOTHING if folder.exists() else None
    checkpoints = Checkpoints(folder / "checkpoints", every, resumed)
    callbacks = [
        RunRecord(folder, resumed), AdapterFile(folder), checkpoints, SpectralTracker(),
        GenerationSamples(1, max_new_tokens=4),
    ]  # fmt: skip
    fit(base, folder, [*callbacks, *ends], newest, **({"max_steps": 5} | options))
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


@pytest.mark.parametrize(
    ("hook", "step", "every", "left_out"),
    [
        ("on_train_batch_start", 1, 2, ["run", "validation"]),
        ("on_train_batch_start", 2, 2, ["run"]),
        ("on_validation_batch_start", 2, 3, ["run", "validation"]),  # saved at once, not when the validation is done
        ("on_validation_epoch_end", 2, 3, ["run"]),  # saved when it is done, not after another step
        ("on_validation_epoch_end", 2, 2, ["run", "validation"]),  # saved before
        ("on_train_batch_start", 4, 2, ["epoch", "run", "validation"]),
        ("on_validation_end", 5, 2, ["epoch", "run", "validation"]),
    ],
)
def test_a_run_that_a_signal_stopped_makes_up_for_it(tiny_llama, tmp_path, whole, hook, step, every, left_out):
    run = tmp_path / "run"
    with pytest.raises(Stopped) as caught:
        train(tiny_llama, run, End(hook, step, signal.SIGTERM), every=every)
    assert caught.value.code == 128 + signal.SIGTERM
    newest = newest_checkpoint(run / "checkpoints")
    assert f"stopped at step {newest.stem.removeprefix('step=')}, which is saved" in str(caught.value)
    assert Journal.read(newest).left_out == left_out
    assert differences(run, whole)
    train(tiny_llama, run)
    assert differences(run, whole) == []


def test_a_run_that_has_ended_has_nothing_left_to_do(tiny_llama, tmp_path, whole):
    run = tmp_path / "run"
    train(tiny_llama, run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert not train(tiny_llama, run).started
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("hook", "step"), [("on_train_batch_start", 3), ("on_validation_end", 4), ("on_train_epoch_end", 4)]
)
def test_a_callback_that_stops_training_in_a_validation_does_so_again(tiny_llama, tmp_path, hook, step):
    def stop() -> EarlyStopping:  # at the second validation, as the perplexity falls
        return EarlyStopping("val/perplexity", mode="max", patience=1)

    train(tiny_llama, tmp_path / "whole", stop(), EpochFile(), max_steps=8)
    with pytest.raises(PowerCut):
        train(tiny_llama, tmp_path / "run", stop(), EpochFile(), End(hook, step, None), max_steps=8)
    train(tiny_llama, tmp_path / "run", stop(), EpochFile(), max_steps=8)
    assert [path.name for path in (tmp_path / "whole" / "checkpoints").glob("*.ckpt")] == ["step=4.ckpt"]
    assert differences(tmp_path / "run", tmp_path / "whole") == []


# Ends of epochs

EPOCHS = {
    "steps": {"max_steps": 5, "limit_train_batches": 2, "val_check_interval": 1.0, "check_val_every_n_epoch": 1},
    "epochs": {"max_steps": -1, "max_epochs": 2, "limit_train_batches": 3, "val_check_interval": 2},
}
"""Epochs of 2 steps, each with a validation at its end; and two of 3 steps, with validations within them."""


class EpochFile(Callback):
    """Logs a row and writes a file at the end of each epoch, and adds a row at the start of each."""

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        log_now(trainer, {"started": trainer.current_epoch})

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        log_now(trainer, {"ended": trainer.current_epoch})
        (Path(trainer.default_root_dir) / f"epoch={trainer.current_epoch}").write_text(str(trainer.global_step))


@pytest.fixture(scope="module", params=EPOCHS.values(), ids=EPOCHS)
def whole_epochs(request, tiny_llama, tmp_path_factory) -> tuple[dict[str, Any], Path]:
    """The options of a run with epochs, and its directory."""
    options = {"check_val_every_n_epoch": 1, **request.param}
    folder = tmp_path_factory.mktemp("epochs") / "run"
    train(tiny_llama, folder, EpochFile(), **options)
    assert len(list(folder.glob("epoch=*"))) == {5: 3, -1: 2}[options["max_steps"]]
    return options, folder


@pytest.mark.parametrize("hook", ["on_validation_start", "on_train_epoch_end", "on_train_epoch_start", "on_train_end"])
def test_the_end_of_an_epoch_is_made_up_for(tiny_llama, tmp_path, whole_epochs, hook):
    options, whole = whole_epochs
    run = tmp_path / "run"
    last = options["max_steps"] if options["max_steps"] > 0 else 6
    step = last if hook == "on_train_end" else 2 if options["max_steps"] > 0 or hook == "on_validation_start" else 3
    with pytest.raises(PowerCut):
        train(tiny_llama, run, End(hook, step, None), EpochFile(), **options)
    train(tiny_llama, run, EpochFile(), **options)
    assert differences(run, whole) == []
    assert not train(tiny_llama, run, EpochFile(), **options).started
    assert differences(run, whole) == []

"""Each optimizer step is made of whole micro-batches of one step of the data, whatever cuts epochs and runs short."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fitting import fit
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler

import cera
from cera.runs.checkpoint_io import AtomicCheckpointIO
from cera.training.accumulation import count_steps

NO_DROPOUT = cera.CeraConfig(r=8, dropout=0.0, init_weights=False)  # so that every weight has a gradient at step 1


class Record(Callback):
    """The batches, the gradient of each step, and the loss that is logged for it."""

    def __init__(self) -> None:
        self.batches: list[torch.Tensor] = []
        self.gradients: list[torch.Tensor] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch["input_ids"])

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in module.trainable().values()]))
        self.losses.append(trainer.callback_metrics["train/loss"].item())


class StopAt(Callback):
    """Ends the run after so many micro-batches, as a time limit or an early stop does, and saves it."""

    def __init__(self, micro_batches: int, path: Path) -> None:
        self.left = micro_batches
        self.path = path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.left -= 1
        trainer.should_stop = trainer.should_stop or self.left == 0

    def on_train_end(self, trainer: Any, module: Any) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)


def recorded(base: str, folder: Path, *callbacks: Callback, **options: Any) -> Record:
    record = Record()
    settings = {"adapter": NO_DROPOUT, "learning_rate": 1e-3, "limit_val_batches": 0, "plugins": [AtomicCheckpointIO()]}
    fit(base, folder, [record, *callbacks], **{**settings, **options})
    return record


def assert_same_steps(ours: Record, theirs: Record) -> None:
    assert len(ours.gradients) == len(theirs.gradients)
    for a, b in zip(ours.gradients, theirs.gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)


@pytest.mark.parametrize(("limit", "accumulate", "instead"), [(4, 3, "Use 3 or 6"), (1, 2, "Use 2"), (7, 2, "6 or 8")])
def test_an_epoch_that_ends_within_a_step_is_refused_before_anything_is_loaded(
    tiny_llama, tmp_path, monkeypatch, limit, accumulate, instead
):
    monkeypatch.setattr("cera.training.module.adapted_model", lambda *_: pytest.fail("the base is loaded"))
    with pytest.raises(ValueError, match=rf"limit_train_batches must be a multiple .*got {limit}\. .*{instead}\."):
        fit(tiny_llama, tmp_path, [], limit_train_batches=limit, accumulate_grad_batches=accumulate)


def test_accumulation_that_changes_between_epochs_is_refused(tiny_llama, tmp_path):
    with pytest.raises(ValueError, match=re.escape("must not have GradientAccumulationScheduler")):
        fit(tiny_llama, tmp_path, [GradientAccumulationScheduler({1: 2})])


def test_epochs_that_are_cut_have_the_steps_of_whole_ones(tiny_llama, tmp_path):
    whole = recorded(tiny_llama, tmp_path / "whole", max_steps=4, accumulate_grad_batches=2)
    cut = recorded(tiny_llama, tmp_path / "cut", max_steps=4, accumulate_grad_batches=2, limit_train_batches=4)
    assert_same_steps(cut, whole)
    assert all(map(torch.equal, cut.batches, whole.batches))
    assert len({tuple(batch.flatten().tolist()) for batch in cut.batches}) == len(cut.batches) == 8


@pytest.mark.parametrize(("limit", "epochs", "expected"), [(4, 1, 2), (4, 6, 11), (14, 4, 18), (16, 3, 17)])
def test_steps_of_epochs_that_are_cut_are_counted_with_what_is_left_at_the_end_of_the_data(limit, epochs, expected):
    trainer = Trainer(accelerator="cpu", max_epochs=epochs, accumulate_grad_batches=2, limit_train_batches=limit)
    # 9 steps in the data: 2+2+2+2+1, 7+2 and 8+1
    assert count_steps(trainer, 9) == expected


def test_the_schedule_ends_with_the_run_where_epochs_are_cut(tiny_llama, tmp_path):
    options = {"accumulate_grad_batches": 2, "limit_train_batches": 6, "limit_val_batches": 0}
    module, _, trainer = fit(tiny_llama, tmp_path, [], max_steps=-1, max_epochs=3, **options)
    assert trainer.global_step == module.total_steps == 9
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


@pytest.mark.parametrize("micro_batches", [1, 5, 6])
def test_a_run_that_stops_within_a_step_resumes_at_its_beginning(tiny_llama, tmp_path, micro_batches):
    whole = recorded(tiny_llama, tmp_path / "whole", max_steps=4, accumulate_grad_batches=3)
    path = tmp_path / "stopped.ckpt"
    stop = StopAt(micro_batches, path)
    first = recorded(tiny_llama, tmp_path / "first", stop, max_steps=4, accumulate_grad_batches=3)
    resumed = recorded(tiny_llama, tmp_path / "resumed", ckpt_path=path, max_steps=4, accumulate_grad_batches=3)
    assert len(first.batches) == micro_batches
    assert len(resumed.batches) == 12 - micro_batches // 3 * 3
    first.gradients += resumed.gradients
    first.losses += resumed.losses
    assert_same_steps(first, whole)


class SaveIn(Callback):
    """Saves the run in a hook, the first time after step 2."""

    def __init__(self, hook: str, folder: Path) -> None:
        def save(trainer: Any, *_: Any) -> None:
            path = folder / f"{hook}.ckpt"
            if trainer.global_step == 2 and not path.exists():
                trainer.save_checkpoint(path, weights_only=False)

        setattr(self, hook, save)


HOOKS = ("on_train_batch_end", "on_validation_start", "on_validation_end", "on_train_epoch_end", "on_train_batch_start")
CUT = {"accumulate_grad_batches": 2, "limit_train_batches": 4, "limit_val_batches": 1, "val_check_interval": 4}


@pytest.fixture(scope="module")
def saved(tiny_llama, tmp_path_factory):
    """A run of 4 steps in 2 epochs, and a folder with a checkpoint from each hook."""
    folder = tmp_path_factory.mktemp("saved")
    return recorded(tiny_llama, folder, *(SaveIn(hook, folder) for hook in HOOKS), **CUT), folder


@pytest.mark.parametrize("hook", HOOKS)
def test_a_checkpoint_is_of_a_whole_step_whenever_it_is_written(tiny_llama, tmp_path, saved, hook):
    whole, folder = saved
    resumed = recorded(tiny_llama, tmp_path, ckpt_path=folder / f"{hook}.ckpt", **CUT)
    whole_steps = torch.load(folder / f"{hook}.ckpt")["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert whole_steps["current"]["ready"] == 4
    assert resumed.losses == pytest.approx(whole.losses[2:], rel=1e-4)
    assert all(map(torch.equal, resumed.batches, whole.batches[4:]))
    assert len(resumed.batches) == 4


@pytest.mark.parametrize(("before", "now"), [((2, 3), (6, 1)), ((6, 1), (2, 3)), ((1, 4), (2, 2))])
def test_a_step_may_be_split_in_another_way_when_a_run_resumes(tiny_llama, tmp_path, before, now):
    def options(split: tuple[int, int]) -> dict[str, Any]:
        return {"batch_size": split[0], "accumulate_grad_batches": split[1], "max_steps": 3}

    path = tmp_path / "stopped.ckpt"
    whole = recorded(tiny_llama, tmp_path / "whole", **options(before))
    first = recorded(tiny_llama, tmp_path / "first", StopAt(before[1], path), **options(before))
    resumed = recorded(tiny_llama, tmp_path / "resumed", ckpt_path=path, **options(now))
    assert len(resumed.batches) == 2 * now[1]
    first.gradients += resumed.gradients
    first.losses += resumed.losses
    assert_same_steps(first, whole)

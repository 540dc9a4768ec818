import csv
import json
import math
from itertools import islice

import pytest
import torch
from command_line import command, losses, run, two
from fitting import fit
from lightning.pytorch.callbacks import Callback
from probes import BadBatch, Batches

from cera.callbacks import Checkpoints, Diverged, DivergenceGuard, GenerationSamples, SpectralTracker, Throughput
from cera.data import ChatData, ReasoningGymWordProblems
from cera.runs.finished import DIVERGED


@pytest.fixture(scope="module")
def undisturbed(tiny_llama, tmp_path_factory):
    """A run of 6 steps of 2 micro-batches: its folder, module and batches."""
    folder, batches = tmp_path_factory.mktemp("undisturbed"), Batches()
    module, _, _ = fit(tiny_llama, folder, [batches], max_steps=6, accumulate_grad_batches=2)
    return folder, module, batches.seen


@pytest.mark.parametrize(("where", "reason"), [("loss", "train/loss is nan"), ("gradient", "a gradient is not finite")])
def test_the_state_before_a_bad_batch_is_saved_and_goes_on_behind_it(tiny_llama, tmp_path, undisturbed, where, reason):
    reference, _, all_batches = undisturbed
    batches = Batches()

    def go(*extra: Callback, ckpt_path=None):
        callbacks = [Checkpoints(tmp_path / "checkpoints", every_n_steps=2), batches, *extra, DivergenceGuard()]
        return fit(tiny_llama, tmp_path, callbacks, ckpt_path, max_steps=6, accumulate_grad_batches=2)

    for attempt in (1, 2):  # a batch that is bad again after going on is passed over as well
        ckpt_path = tmp_path / "checkpoints" / "step=3.ckpt" if attempt == 2 else None
        with pytest.raises(Diverged) as caught:
            go(BadBatch(step=3, where=where), ckpt_path=ckpt_path)
        assert {p.name for p in (tmp_path / "checkpoints").glob("*.ckpt")} == {"step=2.ckpt", "step=3.ckpt"}
        record = json.loads((tmp_path / DIVERGED).read_text())
        assert (record["step"], record["reason"]) == (3, reason)
        rates = losses(reference, "train/learning_rate")
        assert record["learning_rate"] == pytest.approx(rates[3])
        if where == "loss":
            assert math.isnan(float(record["loss"]))
        elif attempt == 1:  # it is the loss of this step, and of all its micro-batches
            assert record["loss"] == pytest.approx(losses(reference)[3], rel=1e-6)
        for part in ("after step 3", reason, "step=3.ckpt", "--ckpt_path last", f"{rates[3]:g}"):
            assert part in str(caught.value)
    assert losses(tmp_path) == {step: loss for step, loss in losses(reference).items() if step < 3}

    weights = torch.load(tmp_path / "checkpoints" / "step=3.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(w).all() for w in weights.values())

    _, _, trainer = go(ckpt_path=tmp_path / "checkpoints" / "step=3.ckpt")
    assert trainer.global_step == 6
    assert not (tmp_path / DIVERGED).exists()
    assert sorted(losses(tmp_path)) == list(range(6))
    assert losses(tmp_path, "train/learning_rate") == losses(reference, "train/learning_rate")
    # steps 0-2 and two bad ones as undisturbed, then those that follow, none lost and none twice
    assert batches.seen[:8] == all_batches[:8]
    assert batches.seen[8:10] == [(3, ids) for _, ids in all_batches[8:10]]
    assert batches.seen[10:12] == [(3, ids) for _, ids in all_batches[10:12]]
    assert [p.name for p in (tmp_path / "checkpoints").glob("*.ckpt")] == ["step=6.ckpt"]


def test_a_real_explosion(tiny_llama, tmp_path):
    guard, checkpoints = DivergenceGuard(), Checkpoints(tmp_path / "checkpoints", every_n_steps=1)
    with pytest.raises(Diverged, match=r"train/loss is nan") as caught:
        fit(tiny_llama, tmp_path, [checkpoints, guard], learning_rate=1e37, max_steps=20, val_check_interval=20)
    assert json.loads((tmp_path / DIVERGED).read_text())["step"] == caught.value.step > 0


def test_weights_that_are_not_finite_are_not_saved_over_good_ones(tiny_llama, tmp_path):
    class Overflow(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if trainer.global_step == 3:
                next(iter(pl_module.trainable().values())).data[0, 0] = math.inf

    callbacks = [Checkpoints(tmp_path / "checkpoints", every_n_steps=2), Overflow(), DivergenceGuard()]
    with pytest.raises(Diverged, match=r"weights are not finite.*step=2\.ckpt"):
        fit(tiny_llama, tmp_path, callbacks)
    assert [p.name for p in (tmp_path / "checkpoints").glob("*.ckpt")] == ["step=2.ckpt"]


def test_a_loss_over_the_threshold_before_anything_is_trained(tiny_llama, tmp_path):
    with pytest.raises(Diverged, match=r"train/loss is over max_loss=0\.5 .*Nothing was trained yet"):
        fit(
            tiny_llama,
            tmp_path,
            [Checkpoints(tmp_path / "checkpoints", every_n_steps=2), DivergenceGuard(max_loss=0.5)],
        )
    assert not (tmp_path / "checkpoints").exists()
    assert json.loads((tmp_path / DIVERGED).read_text())["loss"] > 0.5


def test_a_validation_perplexity_that_is_not_finite(tiny_llama, tmp_path):
    class BadValidation(Callback):
        def on_validation_start(self, trainer, pl_module) -> None:
            embedding = pl_module.model.get_input_embeddings()
            self.handle = embedding.register_forward_hook(lambda *hooked: hooked[-1] * float("nan"))

        def on_validation_epoch_end(self, trainer, pl_module) -> None:
            self.handle.remove()

    checkpoints = Checkpoints(tmp_path / "checkpoints", every_n_steps=0)
    with pytest.raises(Diverged, match=r"after step 2: val/perplexity is nan"):
        fit(tiny_llama, tmp_path, [checkpoints, BadValidation(), DivergenceGuard()])
    saved = tmp_path / "checkpoints" / "step=2.ckpt"
    fit(tiny_llama, tmp_path, [checkpoints, DivergenceGuard()], saved)
    assert sorted(losses(tmp_path)) == list(range(4))


def test_watching_changes_no_number_of_the_training(tiny_llama, tmp_path, undisturbed):
    reference, module, _ = undisturbed
    watching = [SpectralTracker(), Throughput(every=1), DivergenceGuard(), GenerationSamples(max_new_tokens=8)]
    watched, _, _ = fit(tiny_llama, tmp_path, watching, max_steps=6, accumulate_grad_batches=2)
    for column in ("train/loss", "val/perplexity"):
        assert losses(tmp_path, column) == losses(reference, column)
    for name, weights in module.trainable().items():
        assert torch.equal(weights, watched.trainable()[name])
    assert watched.model.training


def expected_padding(base: str) -> float:
    """Share of padding in the first two steps of ``command`` on two ranks."""
    data = ChatData(ReasoningGymWordProblems(size=60), base, validation_rows=8, batch_size=2, max_length=256, seed=42)
    data.setup()
    data.train_stream.world_size = 2
    batches = []
    for data.train_stream.rank in (0, 1):
        batches += islice(data.train_stream, 2)
    return 1 - sum(b["n_tokens"] for b in batches) / sum(b["tokens"].numel() for b in batches)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("zero2", marks=pytest.mark.slow)])
def test_two_processes(tiny_llama, tmp_path, strategy):
    guarded = [
        {"class_path": "cera.callbacks.GenerationSamples", "init_args": {"max_new_tokens": 4}},
        {"class_path": "cera.callbacks.Throughput", "init_args": {"every": 2}},
        {"class_path": "cera.callbacks.DivergenceGuard"},
    ]
    bad = {"class_path": "probes.BadBatch", "init_args": {"step": 5, "rank": 1}}  # rank 0's own numbers are good
    arguments = command(tiny_llama, tmp_path, *two(strategy), "--trainer.precision=bf16-true")
    run_dir = tmp_path / "test"

    printed = run([*arguments, f"--trainer.callbacks={json.dumps([bad, *guarded])}"], expect=3)
    assert printed.count("error: training diverged after step 5: train/loss is nan") == 1
    assert "Traceback" not in printed
    assert json.loads((run_dir / DIVERGED).read_text())["step"] == 5
    assert {p.name for p in (run_dir / "checkpoints").glob("*.ckpt")} == {"step=3.ckpt", "step=5.ckpt"}
    assert {p.name for p in (run_dir / "samples").iterdir()} == {"step=0.jsonl", "step=4.jsonl"}
    assert losses(run_dir, "throughput/padding_share")[1] == pytest.approx(expected_padding(tiny_llama), rel=1e-5)
    for name in ("tokens_per_second", "padding_share", "peak_memory_gib"):
        with (run_dir / "metrics.csv").open() as file:  # written once
            assert [row["step"] for row in csv.DictReader(file) if row[f"throughput/{name}"]] == ["1", "3"]
    if strategy == "ddp":
        return  # its checkpoint is that of one process

    run([*arguments, f"--trainer.callbacks={json.dumps(guarded)}", "--ckpt_path=last"])
    assert not (run_dir / DIVERGED).exists()
    assert sorted(losses(run_dir)) == list(range(8))
    assert sorted(losses(run_dir, "throughput/tokens_per_second")) == [1, 3, 5, 7]
    assert {p.name for p in (run_dir / "samples").iterdir()} == {f"step={n}.jsonl" for n in (0, 4, 8)}
    assert [p.name for p in (run_dir / "checkpoints").glob("*.ckpt")] == ["step=8.ckpt"]


def test_errors():
    for wrong in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"DivergenceGuard\.max_loss must be a positive number"):
            DivergenceGuard(max_loss=wrong)

import json
import math
import re
from pathlib import Path

import pytest
import torch
from command_line import command, losses, run, two
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

# dropout differs between ranks by design, so it is off where runs of one and two processes are compared
COMMON = ["--model.adapter.init_args.dropout=0", "--trainer.gradient_clip_val=1.0"]


@pytest.fixture(scope="module")
def alone(tiny_llama, tmp_path_factory):
    """One process, the same global batch: 4 packs a step."""
    values = {}
    for precision in ("32-true", "bf16-true"):
        runs = tmp_path_factory.mktemp("alone")
        run(command(tiny_llama, runs, *COMMON, "--data.batch_size=4", f"--trainer.precision={precision}"))
        values[precision] = runs / "test"
    return values


def assert_close(run_dir: Path, reference: Path, tolerance: float, validation: bool = True) -> None:
    columns = ["train/loss"]
    if validation:
        columns.append("val/perplexity")
    for column in columns:
        ours, theirs = losses(run_dir, column), losses(reference, column)
        assert ours.keys() == theirs.keys()
        assert all(math.isclose(ours[s], theirs[s], rel_tol=tolerance) for s in theirs), (column, ours, theirs)


@pytest.mark.parametrize(
    ("strategy", "precision", "tolerance"),
    [
        ("ddp", "32-true", 1e-5),
        pytest.param("zero2", "bf16-true", 5e-3, marks=pytest.mark.slow),
        ("zero3", "bf16-true", 5e-3),
    ],
)
def test_two_processes_equal_one(tiny_llama, tmp_path, alone, strategy, precision, tolerance):
    options = [*COMMON, *two(strategy), f"--trainer.precision={precision}"]
    probe = ["--trainer.callbacks+=probes.HeldParameters"] if strategy == "zero3" else []
    printed = run(command(tiny_llama, tmp_path / "whole", *options, *probe))
    if strategy == "zero3":
        assert sorted(re.findall(r"rank (\d) holds (\d+) of", printed)) == [("0", "0"), ("1", "0")]
        assert sorted(re.findall(r"rank (\d) ends with (\d+) of the head's", printed)) == [("0", "0"), ("1", "0")]
    whole = tmp_path / "whole" / "test"
    assert_close(whole, alone[precision], tolerance)
    for measure in ("spectra/effective_rank/mean", "spectra/effective_rank/q_proj"):  # of all ranks' tokens
        ours, theirs = losses(whole, measure), losses(alone[precision], measure)
        assert ours.keys() == theirs.keys() == {3, 7}
        assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-4 if strategy == "ddp" else 0.05)

    # export: the adapter loads in plain PEFT and is not the one it started from
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    PeftModel.from_pretrained(base, whole / "adapter")
    weights = load_file(whole / "adapter" / "adapter_model.safetensors")
    assert {tuple(w.shape) for n, w in weights.items() if "q_proj.cera_down" in n} == {(64, 8)}
    assert all(w.abs().max() > 0 for w in weights.values())

    if strategy != "ddp":
        states = next((whole / "checkpoints" / "step=8.ckpt" / "checkpoint").glob("*model_states.pt"))
        saved = torch.load(states, weights_only=False)["module"]  # our own file, in DeepSpeed's pickle
        assert saved
        assert all("cera_" in name for name in saved)
    if strategy == "zero2":
        states.write_bytes(states.read_bytes()[:-500])
        printed = run([*command(tiny_llama, tmp_path / "whole", *options), "--ckpt_path=last"], expect=2)
        assert "is damaged" in printed

    # save and resume: stop at step 6, go on to 8
    shorter = command(tiny_llama, tmp_path / "resumed", *options)
    run([*shorter, "--trainer.limit_train_batches=6", "--trainer.max_epochs=1", "--checkpoint_every=6"])
    run([*shorter, "--ckpt_path=last"])
    resumed = tmp_path / "resumed" / "test"
    assert max(losses(resumed)) == 7
    assert_close(resumed, whole, 1e-6 if strategy == "ddp" else 5e-3)


def test_two_processes_answer_every_prompt_once(tiny_llama, tmp_path):
    run(command(tiny_llama, tmp_path, "--trainer.max_steps=1", "--trainer.limit_val_batches=0"))
    arguments = command(tiny_llama, tmp_path, *two("ddp"), "--model.max_new_tokens=1")
    run([*arguments[:2], "predict", *arguments[2:]])
    prompts = [
        json.loads(line)["prompt"] for line in (tmp_path / "test" / "predictions.jsonl").read_text().splitlines()
    ]
    assert len(prompts) == len(set(prompts)) == 8


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_accumulation_equals_one_large_batch(tiny_llama, tmp_path, alone, strategy):
    precision = "32-true" if strategy == "ddp" else "bf16-true"
    options = [*two(strategy, batch_size=1), "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=8"]
    run(command(tiny_llama, tmp_path, *COMMON, *options, f"--trainer.precision={precision}"))
    assert_close(tmp_path / "test", alone[precision], 1e-5 if strategy == "ddp" else 5e-3, validation=False)


@pytest.mark.slow
def test_updates_are_measured_in_full_under_zero3(tiny_llama, tmp_path):
    """The hybrid's layers are copied with their weights, which no rank holds in full during the forward pass."""
    options = [*COMMON, "--model.adapter.init_args.use_dora=true", "--trainer.precision=bf16-true"]
    run(command(tiny_llama, tmp_path / "one", *options, "--data.batch_size=4"))
    run(command(tiny_llama, tmp_path / "two", *options, *two("zero3")))
    measure = "spectra/effective_rank/mean"
    ours, theirs = (losses(tmp_path / folder / "test", measure) for folder in ("two", "one"))
    assert ours.keys() == theirs.keys() == {3, 7}
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=0.05)

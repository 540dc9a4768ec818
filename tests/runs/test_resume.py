import os
import signal
from pathlib import Path

import pytest
import torch
from command_line import command, losses, run, run_here, start_and_signal
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def uninterrupted(tiny_llama, tmp_path_factory):
    runs = tmp_path_factory.mktemp("uninterrupted")
    run(command(tiny_llama, runs, "--trainer.max_steps=30"))
    return runs / "test"


def assert_same_run(resumed: Path, reference: Path) -> None:
    assert losses(resumed) == losses(reference)
    assert losses(resumed, "train/learning_rate") == losses(reference, "train/learning_rate")
    assert losses(resumed, "val/perplexity") == losses(reference, "val/perplexity")
    ours, theirs = (load_file(d / "adapter" / "adapter_model.safetensors") for d in (resumed, reference))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_asked_to_stop_it_saves_leaves_and_goes_on(tiny_llama, tmp_path, uninterrupted, number):
    arguments = command(tiny_llama, tmp_path, "--trainer.max_steps=30", "--checkpoint_every=1000")
    status, output = start_and_signal(arguments, tmp_path / "test", 5, number)
    assert status == 128 + number, output
    assert "Traceback" not in output
    assert len(list((tmp_path / "test" / "checkpoints").glob("*.ckpt"))) == 1
    run([*arguments, "--ckpt_path=last"])
    assert_same_run(tmp_path / "test", uninterrupted)


@pytest.mark.slow
def test_resume_after_the_first_epoch(tiny_llama, tmp_path):
    # 60 rows are 52 training rows; without packing that is 26 steps an epoch
    options = ["--trainer.max_steps=40", "--data.packing=false", "--trainer.accumulate_grad_batches=1"]
    run(command(tiny_llama, tmp_path / "whole", *options, "--checkpoint_every=100"))
    half = command(tiny_llama, tmp_path / "half", *options, "--checkpoint_every=10")
    status, output = start_and_signal(half, tmp_path / "half" / "test", 31, signal.SIGKILL)
    assert status == -signal.SIGKILL, output
    run([*half, "--ckpt_path=last"])
    assert_same_run(tmp_path / "half" / "test", tmp_path / "whole" / "test")


def test_truncated_and_foreign_checkpoints_are_refused(tiny_llama, tmp_path, uninterrupted, monkeypatch, capsys):
    def refusal(*options: str) -> str:
        status, printed = run_here(monkeypatch, capsys, [*command(tiny_llama, tmp_path / "runs"), *options])
        assert status == 2, printed
        return printed

    whole = next((uninterrupted / "checkpoints").glob("*.ckpt"))
    truncated = tmp_path / "step=9.ckpt"
    truncated.write_bytes(whole.read_bytes()[:-1000])
    assert "truncated" in refusal(f"--ckpt_path={truncated}")
    assert "r: 8 there, 4 here" in refusal(f"--ckpt_path={whole}", "--model.adapter.init_args.r=4")
    assert "learning_rate: 0.01 there, 0.1 here" in refusal(f"--ckpt_path={whole}", "--model.learning_rate=0.1")
    assert "data.max_length: 256 there" in refusal(f"--ckpt_path={whole}", "--data.max_length=128")
    assert "seed_everything: 42 there, 7 here" in refusal(f"--ckpt_path={whole}", "--seed_everything=7")
    assert "there is none at" in refusal("--ckpt_path=best")
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}}, foreign)
    assert "not a checkpoint of this framework" in refusal(f"--ckpt_path={foreign}")
    assert "there is no run of the name" in refusal("--ckpt_path=last", f"--runs={tmp_path / 'none'}")


def test_a_checkpoint_holds_the_adapter_only(uninterrupted):
    path = next((uninterrupted / "checkpoints").glob("*.ckpt"))
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["state_dict"]
    assert all("cera_" in name for name in checkpoint["state_dict"])
    assert os.path.getsize(path) < 1_000_000

"""What every adapter of ``configs/adapters`` must hold, on a small Llama; and, slowly, on SmolLM2 and two processes."""

import re
import sys

import pytest
import torch
from command_line import STRATEGIES, command, losses, run
from conftest import REPOSITORY
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from scripts.adapters_page import Shapes, load, method, names, page, width

SMALL = {"r": 8, "init_r": 8, "target_r": 4}
QUANTIZED = {"qlora", "qcera"}
PLAIN = [name for name in names() if name not in QUANTIZED]  # nf4 is the base's: see test_quantized.py
REPLACES_WEIGHTS = {"pissa"}
"""Takes the principal part out of the base's weights, so is equal to the base to rounding only, and never disabled."""


@pytest.fixture
def base(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@pytest.fixture
def ids():
    return torch.randint(0, 1000, (2, 24), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


@pytest.mark.parametrize("name", PLAIN)
def test_no_op_counted_saved_and_disabled(base, tiny_llama, ids, tmp_path, name):
    config = load(name, **SMALL)
    expected = logits(base, ids)
    count = method(name).count(Shapes.from_config(base.config), width(config)) * base.config.num_hidden_layers
    torch.manual_seed(0)
    model = get_peft_model(base, config).eval()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    if name in REPLACES_WEIGHTS:
        assert torch.allclose(logits(model, ids), expected, atol=1e-3)
    else:
        assert torch.equal(logits(model, ids), expected)

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    trained = logits(model, ids)
    assert not torch.allclose(trained, expected, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), expected) == (name not in REPLACES_WEIGHTS)

    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    loaded = logits(PeftModel.from_pretrained(again, tmp_path).eval(), ids)
    assert torch.allclose(loaded, trained, atol=1e-4) if name in REPLACES_WEIGHTS else torch.equal(loaded, trained)


def test_the_page_is_what_the_code_says():
    assert (REPOSITORY / "docs" / "adapters.md").read_text() == page()


def options(name, tiny_llama, runs, *more):
    """A short run of one adapter, narrow."""
    given = [argument for argument in command(tiny_llama, runs, *more) if "model.adapter" not in argument]
    narrow = {"r": 8} if width(load(name)) else {}
    if name == "adalora":
        narrow = {"init_r": 8, "target_r": 4, "tinit": 1, "tfinal": 2, "deltaT": 1}
    files = ["--config", "configs/parts/smol.yaml", "--config", f"configs/adapters/{name}.yaml"]
    settings = [f"--model.adapter.init_args.{key}={value}" for key, value in narrow.items()]
    return [*given[:2], *files, *given[4:], *settings]


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_zero2_in_two_processes_and_resume(tiny_llama, tmp_path, name):
    zero2 = [*STRATEGIES["zero2"], "--trainer.devices=2", "--trainer.precision=bf16-true", "--checkpoint_every=4"]
    whole = options(name, tiny_llama, tmp_path / "whole", *zero2)
    run(whole)
    assert (tmp_path / "whole" / "test" / "adapter" / "adapter_model.safetensors").exists()
    stopped = options(name, tiny_llama, tmp_path / "stopped", *zero2)
    run([*stopped, "--trainer.limit_train_batches=4", "--trainer.max_epochs=1"])
    run([*stopped, "--ckpt_path=last"])
    ours, theirs = losses(tmp_path / "stopped" / "test"), losses(tmp_path / "whole" / "test")
    assert sorted(ours) == sorted(theirs) == list(range(8))
    assert [ours[step] for step in range(8)] == pytest.approx([theirs[step] for step in range(8)], rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_loss_falls_on_smollm2(tmp_path, name):
    schedule = [f"--model.adapter.init_args.{k}={v}" for k, v in {"tinit": 2, "tfinal": 6, "deltaT": 2}.items()]
    schedule.append("--model.learning_rate=3e-3")  # its E starts at zero beside small A and B: at 3e-4 it hardly moves
    printed = run(
        [
            sys.executable, "train.py", "--config", "configs/parts/smol.yaml",
            "--config", f"configs/adapters/{name}.yaml",
            f"--runs={tmp_path}", "--name=test", "--trainer.max_steps=20", "--trainer.val_check_interval=20",
            "--data.batch_size=2", "--data.dataset.init_args.size=400", "--data.validation_rows=16",
            "--answer_tokens=0", *(schedule if name == "adalora" else []),
        ],
        timeout=1200,
    )  # fmt: skip
    before, after = map(float, re.search(r"perplexity\s+([\d.]+) \(base\) -> ([\d.]+)", printed).groups())
    assert after < before

"""AdaLoRA's penalty and rank schedule, against PEFT's own training loop and over a resume."""

import re

import pytest
import torch
from command_line import command, losses, run, run_here
from fitting import fit
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cera.training.adalora import RankSchedule

SCHEDULE = {"init_r": 8, "target_r": 3, "tinit": 1, "tfinal": 2, "deltaT": 1}
ADAPTER = {**SCHEDULE, "target_modules": ["q_proj", "v_proj"], "orth_reg_weight": 0.5}


def ranks(model) -> list[int]:
    return [int((p != 0).sum()) for n, p in model.named_parameters() if "lora_E" in n]


def test_penalty_is_what_peft_adds_to_a_loss(tiny_llama):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    model = get_peft_model(base, AdaLoraConfig(total_step=10, task_type="CAUSAL_LM", **ADAPTER))
    ids = torch.randint(0, 1000, (1, 12))
    with_penalty = model(ids, labels=ids).loss
    without = model.get_base_model()(ids, labels=ids).loss
    assert RankSchedule(model).penalty().item() == pytest.approx((with_penalty - without).item(), rel=1e-4)


def test_ranks_fall_to_the_target_over_the_run(tiny_llama, tmp_path):
    module, _, _ = fit(tiny_llama, tmp_path, [], adapter=AdaLoraConfig(total_step=8, **ADAPTER), max_steps=8)
    assert sum(ranks(module.model)) == 8 * SCHEDULE["target_r"]  # in all: some layers keep more than others


def adalora(*overrides: str) -> list[str]:
    settings = {**SCHEDULE, "orth_reg_weight": 0.5, "total_step": 8}
    return [
        "--model.adapter=peft.AdaLoraConfig",
        "--model.adapter.init_args.target_modules=[q_proj,v_proj]",
        *(f"--model.adapter.init_args.{key}={value}" for key, value in settings.items()),
        *overrides,
    ]


def arguments(base, runs, *more):
    return [a for a in command(base, runs, *more) if a != "--model.adapter.init_args.r=8"]


def test_resume_goes_on_with_the_same_importances_and_ranks(tiny_llama, tmp_path):
    run(arguments(tiny_llama, tmp_path / "whole", *adalora()))
    shorter = arguments(tiny_llama, tmp_path / "resumed", *adalora("--checkpoint_every=5"))
    run([*shorter, "--trainer.limit_train_batches=5", "--trainer.max_epochs=1"])
    run([*shorter, "--ckpt_path=last"])
    whole, resumed = (tmp_path / name / "test" for name in ("whole", "resumed"))
    assert losses(whole) == losses(resumed)
    ours, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), whole / "adapter")
    assert sum(ranks(loaded)) == 8 * SCHEDULE["target_r"]


def test_the_schedule_must_be_as_long_as_the_run(tiny_llama, tmp_path, monkeypatch, capsys):
    given = arguments(tiny_llama, tmp_path, *adalora("--model.adapter.init_args.total_step=9"))
    status, printed = run_here(monkeypatch, capsys, given)
    assert status == 2
    assert re.search(r"error: model\.adapter\.total_step=9 must be the number of steps of the run, 8", printed)

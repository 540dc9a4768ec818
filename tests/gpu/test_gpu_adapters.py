"""Adapters compute on the device what they compute in fp32 on the CPU: losses, and gradients of their weights."""

import pytest
import torch
from passes import one_pass, relative_error
from peft import LoraConfig, get_peft_model

from cera import CeraConfig
from cera.models.backbone import load_model

pytestmark = pytest.mark.gpu
TARGETS = ["q_proj", "v_proj"]
ADAPTERS = {
    "cera": lambda: CeraConfig(r=8, target_modules=TARGETS, init_weights=False),
    "cera on all": lambda: CeraConfig(r=8, target_modules="all-linear", init_weights=False),
    "cera with dora": lambda: CeraConfig(r=8, target_modules=TARGETS, use_dora=True, init_weights=False),
    "lora": lambda: LoraConfig(r=8, target_modules=TARGETS, init_lora_weights=False),
    "dora": lambda: LoraConfig(r=8, target_modules=TARGETS, use_dora=True, init_lora_weights=False),
}
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 6e-2}
"""Relative errors by norm. Those of bf16 gradients through a random model are a few percent on a CPU, too."""


def adapted(base: str, name: str, dtype: torch.dtype, device: str, seed: int = 1):
    torch.manual_seed(seed)
    model = get_peft_model(load_model(base, torch.float32), ADAPTERS[name](), autocast_adapter_dtype=False)
    return model.to(dtype).to(device).train()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_computes_what_it_computes_on_the_cpu(random_base, device, packed_batch, name, dtype) -> None:
    expected = one_pass(adapted(random_base, name, torch.float32, "cpu"), packed_batch)
    assert (
        relative_error(one_pass(adapted(random_base, name, dtype, device), packed_batch), expected) < TOLERANCES[dtype]
    )


def test_another_adapter_is_found_out(random_base, device, packed_batch) -> None:
    expected = one_pass(adapted(random_base, "cera", torch.float32, "cpu"), packed_batch)
    other = one_pass(adapted(random_base, "cera", torch.bfloat16, device, seed=2), packed_batch)
    assert relative_error(other, expected) > 2 * TOLERANCES[torch.bfloat16]

"""A base in nf4 gives an adapter the gradients that the same base in full, with the rounded weights, gives it."""

import pytest
import torch
from passes import one_pass, relative_error
from peft import get_peft_model

from cera import CeraConfig
from cera.models.backbone import load_model

pytestmark = pytest.mark.gpu
bitsandbytes = pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")


def test_gradients_are_those_of_the_rounded_weights(random_base, device, packed_batch) -> None:
    quantized = load_model(random_base, torch.bfloat16, "nf4").to(device)
    rounded = load_model(random_base, torch.bfloat16).to(device)
    for name, layer in list(quantized.named_modules()):
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            state = layer.weight.quant_state
            weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, state).to(torch.bfloat16)
            full = rounded.get_submodule(name).weight
            assert 0 < float((weight - full).float().norm() / full.float().norm()) < 0.2
            full.data.copy_(weight)
    passes = []
    for model in (quantized, rounded):
        torch.manual_seed(0)
        adapter = CeraConfig(r=8, target_modules=["q_proj", "v_proj"], init_weights=False)
        passes.append(
            one_pass(get_peft_model(model, adapter, autocast_adapter_dtype=False).to(device).train(), packed_batch)
        )
    assert relative_error(*passes) < 6e-2

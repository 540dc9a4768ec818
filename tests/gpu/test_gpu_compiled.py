"""Compiled layers compute what the layers compute, with the same dropout masks."""

import pytest
import torch
from passes import one_pass, relative_error
from peft import get_peft_model
from torch._dynamo.utils import counters

from cera import CeraConfig
from cera.models.backbone import load_model
from cera.models.compiled_layers import compile_layers

pytestmark = pytest.mark.gpu


def test_compiled_layers_equal_plain_ones(random_base, device, packed_batch) -> None:
    def model():
        torch.manual_seed(0)
        adapter = CeraConfig(r=8, dropout=0.1, target_modules=["q_proj", "v_proj"], init_weights=False)
        return (
            get_peft_model(load_model(random_base, torch.float32), adapter, autocast_adapter_dtype=False)
            .to(device)
            .train()
        )

    torch._dynamo.reset()  # which compiles only so many variants of a function
    plain = one_pass(model(), packed_batch)
    compiled = model()
    counters.clear()
    assert compile_layers(compiled) == compiled.config.num_hidden_layers
    assert relative_error(one_pass(compiled, packed_batch), plain) < 1e-3
    assert counters["frames"]["ok"] > 0  # compiled code has run
    assert relative_error(one_pass(compiled, packed_batch, seed=1), plain) > 1e-2  # other masks are found out

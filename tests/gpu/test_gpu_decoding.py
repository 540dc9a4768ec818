"""Decoding with CUDA graphs gives the tokens that decoding without them gives."""

import pytest
import torch
from peft import get_peft_model
from torch._dynamo.utils import counters

from cera import CeraConfig
from cera.models.backbone import load_model

pytestmark = pytest.mark.gpu


def test_tokens_of_cuda_graphs_are_those_of_plain_decoding(random_base, device) -> None:
    if device == "cpu":
        pytest.skip("CUDA graphs need a GPU")
    torch.manual_seed(0)
    adapter = CeraConfig(r=8, target_modules=["q_proj", "v_proj"], init_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(load_model(random_base, torch.float32), adapter).to(device).eval()
    prompt = torch.randint(3, 1000, (2, 16), generator=torch.Generator().manual_seed(0)).to(device)
    options = {"do_sample": False, "min_new_tokens": 24, "max_new_tokens": 24, "cache_implementation": "static"}
    options |= {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "use_cache": True}

    with torch.inference_mode():
        plain = model.generate(**options, disable_compile=True)
        torch._dynamo.reset()
        counters.clear()
        model.generate(**options)  # transformers compiles it with mode="reduce-overhead", which records graphs
        assert torch.equal(model.generate(**options), plain)
    assert counters["frames"]["ok"] > 0

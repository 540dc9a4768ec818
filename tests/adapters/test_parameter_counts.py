"""The trainable parameters the paper reports for Llama-3-8B, counted on the meta device from its configuration."""

import pytest
import torch
from conftest import REPOSITORY
from peft import LoraConfig, get_peft_model

from cera import CeraConfig
from cera.models.backbone import build_skeleton

LLAMA_3_8B = str(REPOSITORY / "configs" / "models" / "llama-3-8b")
BASE = 8_030_261_248
QUERIES_AND_VALUES = {64: 27_262_976, 128: 54_525_952, 512: 218_103_808}


def count(config):
    """Trainable and all parameters of Llama-3-8B with the adapter of ``config``."""
    model = get_peft_model(build_skeleton(LLAMA_3_8B), config, low_cpu_mem_usage=True)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    return model.get_nb_trainable_parameters()


def test_base_model():
    skeleton = build_skeleton(LLAMA_3_8B)
    assert sum(parameter.numel() for parameter in skeleton.parameters()) == BASE
    assert {(parameter.device.type, parameter.dtype) for parameter in skeleton.parameters()} == {
        ("meta", torch.bfloat16)
    }


@pytest.mark.parametrize(("r", "expected"), QUERIES_AND_VALUES.items())
@pytest.mark.parametrize("config", [CeraConfig, LoraConfig])
def test_cera_costs_what_lora_costs(config, r, expected):
    assert count(config(r=r)) == (expected, BASE + expected)
    assert count(config(r=r, target_modules=["q_proj", "v_proj"])) == (expected, BASE + expected)


def test_dora_adds_a_magnitude_per_output():
    magnitudes = 32 * (4096 + 1024)
    assert magnitudes == 163_840
    assert count(LoraConfig(r=64, use_dora=True)) == (27_262_976 + magnitudes, BASE + 27_262_976 + magnitudes)

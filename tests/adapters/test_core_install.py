"""`pip install cera` brings torch, transformers, peft and safetensors alone: CeRA works in PEFT with no more."""

import subprocess
import sys

from conftest import REPOSITORY

PROGRAM = """
import importlib.machinery, sys

EXTRAS = {
    "lightning", "datasets", "matplotlib", "torchmetrics", "jsonargparse", "omegaconf", "tensorboard", "scipy",
    "tabulate", "math_verify", "reasoning_gym", "gguf", "pandas", "trl", "deepspeed", "bitsandbytes", "lm_eval",
    "sklearn", "ray",
}
find_spec = importlib.machinery.PathFinder.find_spec


def hide(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in EXTRAS else find_spec(name, path, target)


importlib.machinery.PathFinder.find_spec = classmethod(hide)

import cera
import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )).eval()

ids = torch.arange(8)[None]
model = get_peft_model(base(), cera.CeraConfig(r=4, init_weights=False)).eval()
model.save_pretrained(sys.argv[1])
loaded = PeftModel.from_pretrained(base(), sys.argv[1]).eval()
torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
assert not torch.allclose(loaded(ids).logits, base()(ids).logits)
try:
    import cera.callbacks
except ImportError as error:
    assert "cera[train]" in str(error), error
else:
    raise AssertionError("cera.callbacks needs Lightning")
"""


def test_cera_works_in_peft_without_any_extra(tmp_path):
    program = tmp_path / "core.py"
    program.write_text(PROGRAM)
    subprocess.run([sys.executable, str(program), str(tmp_path / "adapter")], cwd=REPOSITORY, check=True, timeout=300,
                   env={"PYTHONPATH": str(REPOSITORY), "PATH": "", "HF_HUB_OFFLINE": "1"})  # fmt: skip

"""Packed documents are apart, whichever kernel attends: their losses and gradients are those that they have alone."""

import importlib.util

import pytest
import torch
from packed_rows import difference, random_packs
from passes import one_pass, relative_error
from peft import get_peft_model

from cera import CeraConfig
from cera.models.backbone import load_model

pytestmark = pytest.mark.gpu
TOLERANCES = {  # of losses in nats, by data type
    "eager": (torch.float32, 1e-4),
    "sdpa": (torch.float32, 1e-4),
    "flex_attention": (torch.float32, 1e-4),
    "flash_attention_2": (torch.bfloat16, 0.15),
    "flash_attention_3": (torch.bfloat16, 0.15),
}
SLOW = {"flex_attention": pytest.mark.slow}  # it compiles a kernel for each length
PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
LENGTHS = [[96, 64, 96], [96, 64]]
"""Lengths of the documents of two rows, of which the second one ends in padding."""


@pytest.fixture(params=[pytest.param(name, marks=SLOW.get(name, ())) for name in TOLERANCES])
def kernel(request, device) -> str:
    package = PACKAGES.get(request.param)
    if package is not None and device == "cpu":
        pytest.skip("FlashAttention has no kernels for a CPU")
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    return request.param


def test_documents_have_the_losses_that_they_have_alone(random_base, device, kernel) -> None:
    torch._dynamo.reset()  # which compiles only so many variants of a function
    dtype, tolerance = TOLERANCES[kernel]
    model = load_model(random_base, dtype, attn_implementation=kernel).to(device).eval()
    packs = random_packs(LENGTHS, 1000)
    assert difference(model, packs) < tolerance
    positions = torch.arange(256).expand(2, -1)  # as if each row were one document
    assert difference(model, packs, position_ids=positions) > 4 * tolerance


def test_gradients_are_those_of_sdpa(random_base, device, kernel, packed_batch) -> None:
    if kernel == "flex_attention" and device == "cpu":
        pytest.skip("torch's FlexAttention has no backward pass on a CPU")

    def gradients(implementation: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = load_model(random_base, TOLERANCES[kernel][0], attn_implementation=implementation)
        adapter = CeraConfig(r=8, target_modules=["q_proj", "v_proj"], init_weights=False)
        return one_pass(get_peft_model(model, adapter, autocast_adapter_dtype=False).to(device).train(), packed_batch)

    tolerance = 1e-3 if TOLERANCES[kernel][0] == torch.float32 else 6e-2
    assert relative_error(gradients(kernel), gradients("sdpa")) < tolerance

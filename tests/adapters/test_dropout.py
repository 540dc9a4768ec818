"""Dropout drops what it should, keeps the expectation, and lets the gradient through where it keeps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cera.adapters.dropout import Dropout


@given(
    shape=st.lists(st.integers(0, 9), min_size=0, max_size=3),
    p=st.floats(0, 1, exclude_max=True),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_what_is_kept_is_scaled_and_has_the_gradient(shape, p, dtype, seed):
    torch.manual_seed(seed)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    dropout = Dropout(p)
    torch.manual_seed(seed)
    output = dropout(x)
    (gradient,) = torch.autograd.grad(output.sum(), x)
    torch.manual_seed(seed)
    assert torch.equal(dropout(x), output)
    factors = gradient.unique().tolist()
    dropped = min(max(round(p * 2**16), 1), 2**16 - 1) / 2**16 if p else 0
    allowed = {0.0, torch.tensor(1 / (1 - dropped)).to(dtype).item()}
    assert all(
        any(math.isclose(f, a, rel_tol=1e-2 if dtype == torch.bfloat16 else 1e-6) for a in allowed) for f in factors
    )
    assert torch.equal(output, x * gradient)
    assert output.dtype == dtype
    assert dropout.eval()(x) is x


@pytest.mark.parametrize("p", [0.001, 0.1, 0.3, 0.5, 0.9])
def test_numbers_are_dropped_with_probability_p_and_independently(p):
    torch.manual_seed(0)
    n = 400_000
    survivors = (Dropout(p)(torch.ones(n)) > 0).double()
    deviation = math.sqrt(p * (1 - p) / n)
    assert abs(survivors.mean().item() - (1 - p)) < 5 * deviation
    for distance in (1, 2, 3, 4, 5):  # four neighbours share a random integer
        product = ((survivors[:-distance] - (1 - p)) * (survivors[distance:] - (1 - p))).mean().item()
        assert abs(product) < 5 * p * (1 - p) / math.sqrt(n)
    assert Dropout(p)(torch.ones(n, dtype=torch.float64)).mean().item() == pytest.approx(1, abs=6 * deviation / (1 - p))

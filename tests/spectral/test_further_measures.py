"""The measures beside the paper's, against their definitions in NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cera.spectral import further_measures, weight_spectrum
from cera.spectral.aggregate import summarize
from cera.spectral.further_measures import above_random
from cera.spectral.measures import MEASURES


def entropy_rank(p: np.ndarray) -> float:
    p = p[p > 0] / p.sum()
    return math.exp(-(p * np.log(p)).sum())


def components(values: np.ndarray, fraction: float) -> int:
    values = np.sort(values)[::-1]
    return int(np.argmax(np.cumsum(values) >= fraction * values.sum() * (1 - 1e-12))) + 1


DEFINITIONS = {
    "stable_rank": lambda s: (s**2).sum() / (s**2).max(),
    "participation_ratio": lambda s: (s**2).sum() ** 2 / (s**4).sum(),
    "effective_rank_of_energy": lambda s: entropy_rank(s**2),
    "auc_90_of_sigma": lambda s: components(s, 0.9),
    "nuclear_norm": lambda s: s.sum(),
}


@pytest.mark.parametrize("name", DEFINITIONS)
@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40), zeros=st.integers(0, 5))
def test_a_measure_is_its_definition(name, values, zeros):
    sigma = np.array(values + [0.0] * zeros)
    assert MEASURES[name](torch.tensor(sigma)) == pytest.approx(DEFINITIONS[name](sigma), rel=1e-9)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_zero_matrix_has_none_and_scale_does_not_matter(name):
    measure = MEASURES[name]
    assert measure(torch.zeros(4)) == measure(torch.zeros(0)) == 0
    sigma = torch.rand(20, dtype=torch.float64)
    if name != "nuclear_norm":
        for scale in (1e-200, 1e200):
            assert measure(sigma * scale) == pytest.approx(measure(sigma))


def test_between_one_and_the_number_of_directions():
    for name in DEFINITIONS.keys() - {"nuclear_norm", "auc_90_of_sigma"}:
        assert MEASURES[name](torch.ones(7)) == pytest.approx(7)
        assert MEASURES[name](torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1)


def edge(sigma: np.ndarray, d: int, inputs: int, r: int) -> float:
    variance = (sigma**2).sum() / (d * inputs)
    return float(np.sqrt(variance / r) * (np.sqrt(d) + np.sqrt(r)) * (np.sqrt(r) + np.sqrt(inputs)))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    d=st.integers(30, 120),
    inputs=st.integers(30, 120),
    r=st.integers(4, 16),
    spike=st.floats(0, 20),
)
def test_count_above_random_is_its_definition(seed, d, inputs, r, spike):
    rng = np.random.default_rng(seed)
    down, up = rng.normal(size=(d, r)), rng.normal(size=(r, inputs))
    down[:, 0] *= 1 + spike
    expected = np.linalg.svd(down @ up, compute_uv=False)[:r]
    measured = weight_spectrum(torch.tensor(down), torch.tensor(up))
    assert above_random(measured, r, (d, inputs)) == (expected > edge(expected, d, inputs, r)).sum()


@pytest.mark.parametrize(("d", "inputs", "r"), [(576, 576, 64), (192, 576, 16), (300, 100, 32)])
def test_a_random_adapter_has_nothing_above_and_planted_directions_are_counted(d, inputs, r):
    counts, planted = [], []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        down, up = (torch.randn(size, generator=generator).double() for size in ((d, r), (r, inputs)))
        counts.append(above_random(weight_spectrum(down, up), r, (d, inputs)))
        scale = torch.ones(r).double()
        scale[:3] = 8.0
        planted.append(above_random(weight_spectrum(down * scale, up), r, (d, inputs)))
    assert sum(counts) <= 1
    assert planted == [3] * 10


def test_the_edge_of_one_random_matrix_is_no_yardstick_for_a_product():
    """Of its size and variance: all r directions of a random product of low rank are above it."""
    d, inputs, r = 576, 576, 16
    generator = torch.Generator().manual_seed(0)
    sigma = weight_spectrum(torch.randn(d, r, generator=generator), torch.randn(r, inputs, generator=generator))
    variance = sigma.square().sum().item() / (d * inputs)
    assert (sigma > math.sqrt(variance) * (math.sqrt(d) + math.sqrt(inputs))).sum() == r


def test_only_weights_with_a_rank_have_a_count_above_random():
    sigma = {"model.layers.0.q_proj": torch.tensor([9.0, 1.0, 1.0, 1.0])}
    name = further_measures.above_random.__name__
    assert summarize(sigma, {"model.layers.0.q_proj": 4}).means[name] == {}
    shapes = {"model.layers.0.q_proj": (64, 64)}
    assert summarize(sigma, {}, shapes=shapes).means[name] == {}
    assert summarize(sigma, {"model.layers.0.q_proj": 4}, shapes=shapes).means[name]["mean"] == 1

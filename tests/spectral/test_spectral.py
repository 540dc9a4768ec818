import math
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from cera.spectral import SpectrumAccumulator, cumulative_energy, effective_rank, energy_rank, weight_spectrum


@st.composite
def factored(draw):
    """(Z, W_down, s): a latent with a drawn spectrum down to 1e-6, some of it zero, and its output projection."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, r, d = draw(st.integers(1, 120)), draw(st.integers(1, 24)), draw(st.integers(1, 40))
    k = min(rows, r)
    rank = draw(st.integers(0, k))
    decades = draw(st.floats(0, 5.5))
    sigma = np.zeros(k)
    sigma[:rank] = np.logspace(0, -decades, rank) if rank else []
    u, v = (np.linalg.qr(rng.normal(size=(n, k)))[0] for n in (rows, r))
    return (u * sigma) @ v.T, rng.normal(size=(d, r)), draw(st.floats(0.1, 4.0))


def published(sigma: np.ndarray) -> tuple[float, int]:
    """Effective rank and AUC-90 straight from their definitions, in NumPy."""
    if not sigma.any():
        return 0.0, 0
    p = sigma[sigma > 0] / sigma.sum()
    energy = np.sort(sigma**2)[::-1]
    return math.exp(-(p * np.log(p)).sum()), int(np.searchsorted(energy.cumsum(), 0.9 * energy.sum() * (1 - 1e-12)) + 1)


def assert_same_spectrum(ours: torch.Tensor, matrix: np.ndarray) -> None:
    reference = np.linalg.svd(matrix, compute_uv=False)
    measured = np.zeros_like(reference)
    measured[: len(ours)] = ours.numpy()[: len(reference)]
    large = reference > 1e-6 * reference.max(initial=0)
    np.testing.assert_allclose(measured[large], reference[large], rtol=1e-4)
    reference[~large], measured[~large] = 0, 0
    rank, ninety = published(reference)
    assert effective_rank(torch.tensor(measured)) == pytest.approx(rank, abs=1e-4)
    assert energy_rank(torch.tensor(measured)) == ninety


@settings(max_examples=150, deadline=None)
@given(factored(), st.integers(1, 50))
def test_streamed_spectrum_is_that_of_the_collected_matrix(drawn, chunk):
    z, down, scaling = drawn
    stream = SpectrumAccumulator()
    for start in range(0, len(z), chunk):
        stream.update(torch.tensor(z[start : start + chunk]))
    assert stream.rows == len(z)
    assert_same_spectrum(stream.singular_values(), z)
    assert_same_spectrum(stream.singular_values(torch.tensor(down), scaling), scaling * z @ down.T)


@settings(max_examples=50, deadline=None)
@given(factored())
def test_merged_halves_equal_the_whole(drawn):
    z, down, scaling = drawn
    half = len(z) // 2
    parts = []
    for rows in (z[:half], z[half:]):
        part = SpectrumAccumulator()
        if len(rows):
            part.update(torch.tensor(rows))
        parts.append(part)
    restored = SpectrumAccumulator()
    restored.load_state_dict(parts[0].state_dict())
    restored.merge(parts[1])
    assert restored.rows == len(z)
    assert_same_spectrum(restored.singular_values(torch.tensor(down), scaling), scaling * z @ down.T)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 10), st.integers(1, 30), st.floats(-3, 3))
def test_weight_spectrum_is_that_of_the_product(seed, d, r, k, scaling):
    rng = np.random.default_rng(seed)
    down, up = rng.normal(size=(d, r)), rng.normal(size=(r, k))
    expected = np.linalg.svd(scaling * down @ up, compute_uv=False)[: min(d, r, k)]
    np.testing.assert_allclose(weight_spectrum(torch.tensor(down), torch.tensor(up), scaling), expected, atol=1e-9)


def test_known_values():
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1)
    assert energy_rank(torch.ones(10)) == 9
    assert energy_rank(torch.tensor([1.0, 3.0]), 0.9) == 1  # 9 of 10, exactly the fraction
    assert energy_rank(torch.ones(10), 1.0) == 10
    assert cumulative_energy(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([0.9, 1.0])
    for nothing in (torch.zeros(4), torch.zeros(0)):
        assert effective_rank(nothing) == 0
        assert energy_rank(nothing) == 0


def test_measures_do_not_depend_on_scale():
    sigma = torch.rand(20, dtype=torch.float64)
    for scale in (1e-200, 1e200):
        assert effective_rank(sigma * scale) == pytest.approx(effective_rank(sigma))
        assert energy_rank(sigma * scale) == energy_rank(sigma)


def test_any_leading_shape_dtype_and_mask():
    activations = torch.randn(2, 5, 3).bfloat16()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    stream = SpectrumAccumulator()
    stream.update(activations, mask)
    assert stream.rows == 7
    assert_same_spectrum(stream.singular_values(), activations[mask].double().numpy())


def test_a_single_row_and_more_features_than_outputs():
    stream = SpectrumAccumulator()
    stream.update(torch.tensor([[3.0, 4.0]]))
    assert stream.singular_values().tolist() == pytest.approx([5.0])
    assert stream.singular_values(torch.tensor([[1.0, 1.0]])).tolist() == pytest.approx([7.0])
    assert len(SpectrumAccumulator().singular_values()) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_an_error_naming_the_layer(bad):
    with pytest.raises(ValueError, match=r"layers\.3\.q_proj"):
        SpectrumAccumulator("layers.3.q_proj").update(torch.tensor([[1.0, bad]]))


def test_memory_does_not_grow_with_the_stream():
    stream = SpectrumAccumulator()
    for _ in range(20):
        stream.update(torch.randn(100, 8))
    assert stream.factor.shape == (8, 8)


def test_errors():
    stream = SpectrumAccumulator("q")
    stream.update(torch.ones(2, 3))
    with pytest.raises(ValueError, match="q: 4 features after 3"):
        stream.update(torch.ones(2, 4))
    with pytest.raises(ValueError, match="fraction"):
        energy_rank(torch.ones(3), 0.0)


def on_one_of_two_ranks(rank: int, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows, r, d = rng.integers(2, 60), rng.integers(1, 24), rng.integers(1, 40)
        z = rng.normal(size=(rows, r)) * np.logspace(0, -5 * rng.random(), r)
        down = rng.normal(size=(d, r))
        share = slice(0, rows // 3) if rank == 0 else slice(rows // 3, rows)  # of rank 0 sometimes nothing
        stream = SpectrumAccumulator()
        if len(z[share]):
            stream.update(torch.tensor(z[share]))
        stream.all_reduce()
        assert stream.rows == rows
        assert_same_spectrum(stream.singular_values(torch.tensor(down), 0.5), 0.5 * z @ down.T)
        centred = np.linalg.svd((z - z.mean(axis=0)) @ down.T, compute_uv=False)
        measured = stream.singular_values(torch.tensor(down), centre=True).numpy()
        np.testing.assert_allclose(measured, centred[: len(measured)], atol=1e-9 * centred[0])
    dist.destroy_process_group()


def test_two_ranks_have_the_spectrum_of_all_rows():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(on_one_of_two_ranks, args=(port,), nprocs=2)

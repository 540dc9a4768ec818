"""The spectrum of a stream minus its mean over the rows, in the same pass as that of the stream itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cera.spectral import SpectrumAccumulator, effective_rank


@st.composite
def streams(draw):
    """(Z, W_down): rows with a drawn spectrum down to 1e-4 around a mean of up to 1e4 in each column."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, r, d = draw(st.integers(1, 100)), draw(st.integers(1, 20)), draw(st.integers(1, 30))
    scales = np.logspace(0, -draw(st.floats(0, 4)), r)
    offset = draw(st.sampled_from([0.0, 1.0, 100.0, 1e4])) * rng.normal(size=r)
    return rng.normal(size=(rows, r)) * scales + offset, rng.normal(size=(d, r))


def centred_singular_values(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.svd(matrix - matrix.mean(axis=0), compute_uv=False)


def assert_same(ours: torch.Tensor, expected: np.ndarray, scale: float) -> None:
    """Agreement to 1e-4 of each value above 1e-6 of the largest, and above the rounding of a mean of this size."""
    measured = np.zeros_like(expected)
    measured[: min(len(ours), len(expected))] = ours.numpy()[: len(expected)]
    assert not ours[len(expected) :].any()
    tolerance = 1e-6 * expected.max(initial=0) + 1e-11 * scale
    np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=tolerance)


@settings(max_examples=150, deadline=None)
@given(streams(), st.integers(1, 40))
def test_streamed_centred_spectrum_is_that_of_the_collected_matrix(drawn, chunk):
    z, down = drawn
    stream = SpectrumAccumulator()
    for start in range(0, len(z), chunk):
        stream.update(torch.tensor(z[start : start + chunk]))
    scale = np.abs(z).max() * len(z) ** 0.5
    assert_same(stream.singular_values(centre=True), centred_singular_values(z), scale)
    image = z @ down.T
    measured = stream.singular_values(torch.tensor(down), 0.5, centre=True)
    assert_same(measured, 0.5 * centred_singular_values(image), scale * np.abs(down).sum())
    # the other spectrum, from the same pass
    np.testing.assert_allclose(stream.singular_values()[0], np.linalg.svd(z, compute_uv=False)[0], rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(streams(), st.floats(0, 1))
def test_merged_parts_have_the_mean_of_all_rows(drawn, share):
    z, _ = drawn
    parts = []
    for rows in np.split(z, [round(share * len(z))]):
        part = SpectrumAccumulator()
        if len(rows):
            part.update(torch.tensor(rows))
        restored = SpectrumAccumulator()
        restored.load_state_dict(part.state_dict())
        parts.append(restored)
    parts[0].merge(parts[1])
    assert parts[0].rows == len(z)
    assert_same(parts[0].singular_values(centre=True), centred_singular_values(z), np.abs(z).max() * len(z) ** 0.5)


def test_a_large_mean_costs_no_digits():
    """Where it is subtracted from second moments, nothing is left of the smaller values."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, 6)) * np.logspace(0, -4, 6) + 1e4
    stream = SpectrumAccumulator()
    for rows in np.split(z, 10):
        stream.update(torch.tensor(rows))
    expected = centred_singular_values(z)
    np.testing.assert_allclose(stream.singular_values(centre=True), expected, rtol=1e-6)
    moments = z.T @ z - len(z) * np.outer(z.mean(axis=0), z.mean(axis=0))
    by_moments = np.sqrt(np.abs(np.linalg.eigvalsh(moments)))[::-1]
    assert np.abs(by_moments / expected - 1).max() > 0.1


def test_the_two_conventions_differ():
    z = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) + 5
    stream = SpectrumAccumulator()
    stream.update(z)
    assert effective_rank(stream.singular_values(centre=True)) > 1.5 * effective_rank(stream.singular_values())


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_rows_that_are_all_alike_have_no_centred_spectrum(rows):
    """What rounding leaves is no direction: its effective rank would be that of noise."""
    stream = SpectrumAccumulator()
    stream.update(torch.tensor([[0.1, 0.7, -1.3, 1e-3]]).double().expand(rows, -1))
    assert stream.singular_values()[0] > 1
    assert not stream.singular_values(centre=True).any()
    assert effective_rank(stream.singular_values(centre=True)) == 0

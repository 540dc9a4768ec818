"""The fits are least squares at every level: against NumPy, whatever the rank of the data."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cera.adapters import ACTIVATIONS
from cera.interventions import LEVELS, LatentFactor
from cera.spectral import SpectrumAccumulator


def factor_of(z: np.ndarray, y: np.ndarray, rows: int = 7) -> LatentFactor:
    """Stream [1 z y] in pieces."""
    stream = SpectrumAccumulator()
    for part in torch.as_tensor(np.hstack([np.ones((len(z), 1)), z, y])).split(rows):
        stream.update(part)
    return LatentFactor(stream.factor)


def numpys_prediction(level: str, z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The least-squares fit of NumPy, with a design matrix for each level."""
    n, r = z.shape
    if level == "full":
        design = np.hstack([z, np.ones((n, 1))])
        return design @ np.linalg.lstsq(design, y, rcond=1e-12)[0]
    if level == "diagonal":
        fitted = []
        for column, target in zip(z.T, y.T, strict=True):
            design = np.stack([column, np.ones(n)], axis=1)
            fitted.append(design @ np.linalg.lstsq(design, target, rcond=1e-12)[0])
        return np.stack(fitted, axis=1)
    design = np.hstack([z.reshape(-1, 1), np.tile(np.eye(r), (n, 1))])  # one slope, an offset for each unit
    return (design @ np.linalg.lstsq(design, y.ravel(), rcond=1e-12)[0]).reshape(n, r)


def random_latents(seed: int, n: int, r: int, dependent: int, activation: str) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    z = generator.normal(size=(n, r)) * 2 + generator.normal(size=r)
    z[:, :dependent] = z[:, :1]  # the rank of the data is below r
    return z, ACTIVATIONS[activation]()(torch.as_tensor(z)).numpy()


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 60),
    r=st.integers(1, 8),
    dependent=st.integers(0, 8),
    activation=st.sampled_from(["silu", "relu", "tanh"]),
)
def test_predictions_are_numpys(level, seed, n, r, dependent, activation):
    z, y = random_latents(seed, n, r, min(dependent, r), activation)
    factor = factor_of(z, y)
    fitted = factor.fit(level)
    expected = numpys_prediction(level, z, y)
    np.testing.assert_allclose(fitted(torch.as_tensor(z)).numpy(), expected, atol=1e-8)

    energies, energy = factor.energies(fitted), np.square(y).sum()
    spread = np.square(y - y.mean(axis=0)).sum()
    assert energies.curvature == pytest.approx(np.square(y - expected).sum() / energy if energy else 0, abs=1e-8)
    gain = fitted.gain(torch.as_tensor(z)).square().sum().item()
    assert energies.gain == pytest.approx(gain / energy if energy else 0, rel=1e-6, abs=1e-8)
    offset = n * fitted.offset.square().sum().item()
    assert energies.offset == pytest.approx(offset / energy if energy else 0, rel=1e-6, abs=1e-8)
    if spread > 1e-12:
        assert energies.r_squared == pytest.approx(1 - np.square(y - expected).sum() / spread, abs=1e-7)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), activation=st.sampled_from(["silu", "relu"]))
def test_each_level_keeps_at_least_as_much_as_the_one_before(seed, activation):
    factor = factor_of(*random_latents(seed, 50, 6, 2, activation))
    shares = [factor.energies(factor.fit(level)).r_squared for level in LEVELS]
    assert shares == sorted(shares)
    assert shares[-1] < 1 - 1e-6


@pytest.mark.parametrize("level", LEVELS)
def test_the_identity_is_all_gain(level):
    z, _ = random_latents(0, 100, 5, 0, "identity")
    factor = factor_of(z, z)
    fitted, energies = factor.fit(level), factor.energies(factor.fit(level))
    matrix = fitted.matrix if level == "full" else fitted.matrix * torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(matrix, torch.eye(5, dtype=torch.float64))
    assert fitted.mean_gain == pytest.approx(1)
    assert fitted.offset.abs().max() < 1e-12
    assert energies.r_squared == pytest.approx(1)
    assert energies.gain == pytest.approx(1)
    assert max(energies.offset, energies.curvature) < 1e-12


def test_a_large_mean_does_not_blur_the_fit():
    """Moments about zero would lose all digits of a slope of data at 1e8."""
    generator = np.random.default_rng(0)
    z = generator.normal(size=(200, 3)) + 1e8
    fitted = factor_of(z, 0.5 * z + 7).fit("scalar")
    assert fitted.matrix.item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_what_does_not_vary_has_no_gain(level):
    z = np.full((20, 2), 3.0)
    factor = factor_of(z, 2 * z)
    fitted = factor.fit(level)
    assert fitted.matrix.abs().max() == 0
    np.testing.assert_allclose(fitted.offset, [6, 6])
    assert factor.energies(fitted).r_squared == 1


def test_an_activation_that_is_zero_has_no_energy():
    z, _ = random_latents(0, 20, 3, 0, "silu")
    factor = factor_of(z, 0 * z)
    energies = factor.energies(factor.fit("full"))
    assert vars(energies) == {"r_squared": 1.0, "gain": 0.0, "offset": 0.0, "curvature": 0.0}

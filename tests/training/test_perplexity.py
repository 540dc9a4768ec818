"""Perplexity against NumPy, whatever the batches, the ranks and the precision of what is added."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cera.training.perplexity import Perplexity

LOSSES = st.lists(st.floats(0, 50, width=32), min_size=1, max_size=60)


def batches(losses: list[float], cuts: list[int]) -> list[list[float]]:
    """``losses`` cut into batches, of which some may be empty."""
    edges = [0, *sorted(cut % (len(losses) + 1) for cut in cuts), len(losses)]
    return [losses[start:end] for start, end in pairwise(edges)]


def measured(parts: list[list[float]]) -> Perplexity:
    """The metric after these batches, each the losses of its tokens."""
    metric = Perplexity()
    for part in parts:
        metric.update(torch.tensor(part, dtype=torch.float64).sum(), len(part))
    return metric


@given(LOSSES, st.lists(st.integers(0, 60), max_size=5))
def test_perplexity_is_numpys_whatever_the_batches(losses, cuts) -> None:
    parts = batches(losses, cuts)
    assert [loss for part in parts for loss in part] == losses
    expected = np.exp(np.mean(np.array(losses, dtype=np.float64)))
    assert measured(parts).compute().item() == pytest.approx(expected, rel=1e-12)
    assert measured([losses]).compute().item() == pytest.approx(expected, rel=1e-12)


@given(LOSSES, st.integers(0, 60))
def test_two_ranks_are_summed(losses, cut) -> None:
    first, second = batches(losses, [cut])
    left, right, whole = measured([first]), measured([second]), measured([losses])
    theirs = iter((right.nll, right.tokens))  # what a second rank would answer, in the order of the states
    left.sync(dist_sync_fn=lambda ours, group: [ours, next(theirs)], distributed_available=lambda: True)
    assert left.tokens.item() == whole.tokens.item() == len(losses)
    assert left.nll.item() == pytest.approx(whole.nll.item(), rel=1e-12, abs=1e-12)
    left.unsync()
    assert left.tokens.item() == len(first)


@given(LOSSES, st.integers(0, 60))
def test_the_states_of_two_halves_add_up_to_the_whole(losses, cut) -> None:
    left, right = map(measured, ([half] for half in batches(losses, [cut])))
    together = torch.exp((left.nll + right.nll) / (left.tokens + right.tokens))
    assert together.item() == pytest.approx(measured([losses]).compute().item(), rel=1e-12)


def test_it_is_the_mean_over_tokens_and_not_over_batches() -> None:
    metric = Perplexity()
    metric.update(torch.tensor(9.0), 9)
    metric.update(torch.tensor(3.0), 1)
    assert metric.compute().item() == pytest.approx(math.exp(1.2), rel=1e-12)


def test_the_number_of_tokens_may_be_a_tensor() -> None:
    metric = Perplexity()
    metric.update(torch.tensor(6.0), torch.tensor(3))
    assert metric.compute().item() == pytest.approx(math.exp(2.0), rel=1e-12)


def test_small_losses_are_not_lost_beside_a_large_sum() -> None:
    metric = Perplexity()
    metric.update(torch.tensor(2.0**27), 2**20)
    for _ in range(100):
        metric.update(torch.tensor(0.5), 1)  # too small to change a sum in fp32
    assert metric.nll.item() == 2.0**27 + 50
    assert metric.tokens.item() == 2**20 + 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_losses_of_a_low_precision_are_added_in_fp64(dtype) -> None:
    metric = Perplexity()
    for _ in range(1000):
        metric.update(torch.tensor(2.5, dtype=dtype), 1)
    assert metric.nll.dtype == metric.compute().dtype == torch.float64
    assert metric.nll.item() == 2500


def test_set_dtype_puts_the_sums_back_into_fp64() -> None:
    metric = Perplexity()
    metric.to(torch.bfloat16)
    metric.set_dtype(torch.float64)
    for _ in range(1000):
        metric.update(torch.tensor(2.5), 1)
    assert metric.nll.dtype == metric.tokens.dtype == torch.float64
    assert (metric.nll.item(), metric.tokens.item()) == (2500, 1000)
    metric.reset()
    assert metric.nll.dtype == metric.tokens.dtype == torch.float64


def test_reset_starts_again() -> None:
    metric = measured([[1.0, 2.0]])
    metric.reset()
    metric.update(torch.tensor(3.0), 1)
    assert metric.compute().item() == pytest.approx(math.exp(3.0), rel=1e-12)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_it_is_nan_before_the_first_token() -> None:
    assert math.isnan(Perplexity().compute().item())


def test_a_batch_without_tokens_changes_nothing() -> None:
    metric = measured([[1.0, 2.0], []])
    assert metric.compute().item() == pytest.approx(math.exp(1.5), rel=1e-12)

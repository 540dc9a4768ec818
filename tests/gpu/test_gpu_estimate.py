"""The memory that ``cera estimate`` tells is within 10% of what a run takes: of a GPU, ``max_memory_allocated``."""

import pytest

from benchmarks.estimate import CASES, ON_A_GPU, compare

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def test_the_estimate_is_within_its_goal(device) -> None:
    cases = ON_A_GPU if device == "cuda" else {"dora_fp32": CASES["dora_fp32"]}
    rows = compare(cases, rounds=1, device=device).rows
    print(*(f"{row.what}: {row.median:.3f}" for row in rows), sep="\n")
    assert [row.what for row in rows if not row.reached] == []

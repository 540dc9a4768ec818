"""Effects of a factorial study, against least squares on the same numbers."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cera.studies.axes import StudyError
from cera.studies.definition import ReportOptions
from cera.studies.factorial import effects, path
from cera.studies.summary import RunSummary, Summary

FACTORS = {"act": ["identity", "silu"], "scale": ["s1", "s2", "s8"], "start": ["uniform", "calibrated"]}
CELLS = list(itertools.product(*FACTORS.values()))


def factorial(values: np.ndarray) -> Summary:
    """A study without a selected axis; values are of shape (cells, seeds)."""
    runs = []
    for cell, by_seed in zip(CELLS, values, strict=True):
        for seed, value in enumerate(by_seed):
            labels = {**dict(zip(FACTORS, cell, strict=True)), "seed": f"seed{seed}"}
            method = "-".join(cell)
            runs.append(
                RunSummary(f"{method}-{seed}", method, labels, {}, "finished", None, None, {"ppl": float(value)})
            )
    return Summary("made", (*FACTORS, "seed"), None, ReportOptions(), tuple(runs))


def design() -> tuple[np.ndarray, list[str]]:
    """Columns of a linear model without interactions of three, in which each coefficient is one of the effects.

    A level's column is its indicator less its mean; so a main effect is averaged over the other factors.
    """
    columns, names = [np.ones(len(CELLS))], [""]

    def centred(name: str, level: str) -> np.ndarray:
        indicator = np.array([cell[list(FACTORS).index(name)] == level for cell in CELLS], dtype=float)
        return indicator - indicator.mean()

    for name, (first, *levels) in FACTORS.items():
        for level in levels:
            columns.append(centred(name, level))
            names.append(f"{name}: {level} less {first}")
    for (one, (first, *levels)), (other, (other_first, *others)) in itertools.combinations(FACTORS.items(), 2):
        for level, other_level in itertools.product(levels, others):
            columns.append(centred(one, level) * centred(other, other_level))
            names.append(f"{one}: {level} less {first}, at {other}: {other_level} less {other_first}")
    return np.stack(columns, axis=1), names


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_effects_are_the_coefficients_of_a_linear_model(number: int, log: bool) -> None:
    values = np.exp(np.random.default_rng(number).normal(size=(len(CELLS), 4)))
    columns, names = design()
    fitted = np.linalg.lstsq(columns, np.log(values) if log else values, rcond=None)[0]
    expected = dict(zip(names, fitted.mean(axis=1), strict=True))
    found = effects(factorial(values), FACTORS, "ppl", log)
    assert [effect.name for effect in found] == names[1:]
    for effect in found:
        assert effect.estimate is not None
        assert effect.estimate.mean == pytest.approx(expected[effect.name], rel=1e-9, abs=1e-9)
        assert effect.estimate.seeds == 4


def test_an_additive_study_has_its_main_effects_and_no_interaction() -> None:
    shift = {"silu": 0.5, "s2": -1.0, "s8": 2.0, "calibrated": 0.25}
    noise = np.random.default_rng(0).normal(scale=0.01, size=(len(CELLS), 5))
    values = np.array([[3 + sum(shift.get(level, 0.0) for level in cell)] for cell in CELLS]) + noise
    found = {effect.name: effect for effect in effects(factorial(values), FACTORS, "ppl")}
    for name, effect in found.items():
        size = 0.0 if "at" in name.split() else shift[name.split(": ")[1].split()[0]]
        assert effect.estimate is not None
        assert effect.estimate.mean == pytest.approx(size, abs=0.03)
        assert effect.adjusted is not None
        assert (effect.adjusted < 0.01) == (size != 0)


def test_the_steps_of_a_path_add_up() -> None:
    summary = factorial(np.exp(np.random.default_rng(1).normal(size=(len(CELLS), 3))))
    methods = ["identity-s1-uniform", "identity-s8-uniform", "silu-s8-uniform", "silu-s8-calibrated"]
    *steps, whole = path(summary, methods, "ppl", log=True)
    assert whole.name == "identity-s1-uniform to silu-s8-calibrated"
    assert sum(step.estimate.mean for step in steps) == pytest.approx(whole.estimate.mean)


def test_an_incomplete_factorial_is_refused() -> None:
    summary = factorial(np.ones((len(CELLS), 2)))
    with pytest.raises(StudyError, match=r"must have one method with .*'act': 'relu'.*, and has none"):
        effects(
            summary, {"act": ["identity", "relu"], "scale": ["s1", "s2"], "start": ["uniform", "calibrated"]}, "ppl"
        )
    with pytest.raises(StudyError, match=r"must have one method with .*, and has identity-s1-uniform, identity-s2"):
        effects(summary, {"act": ["identity", "silu"], "start": ["uniform", "calibrated"]}, "ppl")
    with pytest.raises(StudyError, match="two labels or more, got act"):
        effects(summary, {"act": ["silu"]}, "ppl")

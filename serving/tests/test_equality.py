"""Answers of vLLM equal those of transformers and PEFT: greedy tokens, and log-probabilities to 1e-4 in fp32."""

from pathlib import Path

import pytest
from engines import Engine
from material import CERA, CONTROLS, NAMES, NEARLY_LINEAR, differs, prompts, reference


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_alone(engine: Engine, base: Path, adapters: dict[str, Path], name: str) -> None:
    """Its answers are the reference's, and not those with a line in place of the activation."""
    asked = prompts(3)
    answers = engine.answers(asked, [adapters[name]] * len(asked))
    model = reference(base, adapters[name])
    assert [differs(answer, prompt, model) for answer, prompt in zip(answers, asked, strict=True)] == [None] * 3
    if name in NEARLY_LINEAR:
        return
    for control in CONTROLS.values():
        linear = reference(base, adapters[name], control)
        assert all(differs(answer, prompt, linear) for answer, prompt in zip(answers, asked, strict=True))


def test_all_adapters_and_the_base_in_one_batch(engine: Engine, base: Path, adapters: dict[str, Path]) -> None:
    """Sixteen adapters fill all slots, the last one too; rows of the base lie between theirs."""
    rows = [path for name in NAMES for path in (adapters[name], None)]
    asked = prompts(len(rows), seed=1)
    answers = engine.answers(asked, rows)
    models = {path: reference(base, path) for path in {None, *rows}}
    for row, answer, prompt in zip(rows, answers, asked, strict=True):
        assert differs(answer, prompt, models[row]) is None, row
    for name in CERA:
        if name not in NEARLY_LINEAR:
            index = rows.index(adapters[name])
            for control in CONTROLS.values():
                assert differs(answers[index], asked[index], reference(base, adapters[name], control))
    some_adapter = models[adapters["silu"]]
    assert differs(answers[1], asked[1], some_adapter)  # the base's row is not an adapter's

"""Two devices: the activation needs the whole pre-activation, which a layer split by its input sums up afterwards."""

from pathlib import Path

import pytest
from material import CONTROLS, differs, prompts, reference
from servers import Refused, Server

TWO = ("--tensor-parallel-size", "2", "--max-lora-rank", "16")


def check(server: Server, base: Path, adapters: dict[str, Path], names: tuple[str, ...]) -> None:
    """Check that answers are those of transformers and PEFT, and not those of a line."""
    for name in names:
        for prompt in prompts(2, seed=6):
            answer = server.answer(name, prompt)
            assert differs(answer, prompt, reference(base, adapters[name])) is None, name
            for control in CONTROLS.values():
                assert differs(answer, prompt, reference(base, adapters[name], control)) is not None, name


def test_queries_and_values_are_right_and_the_rest_is_refused(
    base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    with Server(base, tmp_path / "log", *TWO, "--adapter-root", str(adapters["silu"].parent)) as server:
        for name in ("silu", "ranks"):
            server.load(name, name)
        check(server, base, adapters, ("silu", "ranks"))
        for name in ("row", "all-linear"):
            with pytest.raises(Refused, match="is split by its input over 2 devices") as refused:
                server.load(name, name)
            assert refused.value.status == 400
            assert "--fully-sharded-loras" in str(refused.value)
        server.load("lora-all-linear", "lora-all-linear")  # which is linear: its parts may be summed up
        (prompt,) = prompts(1, seed=7)
        model = reference(base, adapters["lora-all-linear"])
        assert differs(server.answer("lora-all-linear", prompt), prompt, model) is None


def test_sharded_adapters_are_right_everywhere(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    names = ("row", "all-linear", "all-linear-mix")
    given = [f"--adapter={name}={adapters[name]}" for name in names]
    with Server(base, tmp_path / "log", *TWO, "--fully-sharded-loras", *given) as server:
        check(server, base, adapters, names)

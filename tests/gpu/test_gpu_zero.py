"""ZeRO-2 and ZeRO-3 on one device train as a run without DeepSpeed does."""

import importlib.util

import pytest
from command_line import STRATEGIES, losses, run
from command_line import command as train_command

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="the package deepspeed is not installed"),
]


@pytest.fixture(scope="module")
def command(random_base, device):
    """The command of a short run in bf16 on one device, with further options."""
    options = [f"--trainer.accelerator={device}", "--trainer.devices=1", "--trainer.precision=bf16-true"]
    options += ["--model.adapter.init_args.dropout=0"]
    return lambda runs, *more: train_command(random_base, runs, *options, *more)


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory) -> dict[int, float]:
    runs = tmp_path_factory.mktemp("alone")
    run(command(runs))
    return losses(runs / "test")


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_losses_are_those_without_deepspeed(command, alone, stage, tmp_path) -> None:
    run(command(tmp_path, *STRATEGIES[stage]))
    assert losses(tmp_path / "test") == pytest.approx(alone, rel=5e-3)

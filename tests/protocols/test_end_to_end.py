"""The recipes run end to end: all of what a protocol configures, on a small random model."""

import json
import sys

import pytest
from command_line import losses, run
from conftest import REPOSITORY

from cera.runs.finished import FinishedRun
from cera.runs.saved_adapter import SavedAdapter

PROTOCOLS = ("paper", "authors_code", "authors_code_lora", "ours", "peft_metamathqa")


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_runs_for_fifty_steps(tiny_llama, tmp_path, protocol) -> None:

    name = f"smol_{protocol}"
    config = REPOSITORY / "configs" / "protocols" / f"{name}.yaml"
    options = [f"--model.base={tiny_llama}", f"--runs={tmp_path}", "--answer_tokens=0", "--data.max_length=192"]
    run([sys.executable, "train.py", "--config", str(config), *options])
    finished = FinishedRun.read(tmp_path / name)
    assert finished.finished
    assert max(losses(finished.path)) == 49
    for column in ("val/perplexity", "forgetting/loss", "forgetting/perplexity", "forgetting/kl"):
        assert list(finished.curve(column)) == [0, 25, 50]
    assert finished.curve("forgetting/kl")[0] == pytest.approx(0, abs=1e-6)
    assert finished.curve("forgetting/kl")[50] > 0
    saved = SavedAdapter.find(finished.path)
    assert (saved.chat_template or "").count("Question: ") == (protocol not in ("paper", "ours"))
    best = finished.path / "adapter_best" / "best.json"
    assert best.is_file() == (protocol not in ("paper", "peft_metamathqa"))
    if best.is_file():
        validated = finished.curve("val/loss")
        step = json.loads(best.read_text())["step"]
        assert validated[step] == min(loss for at, loss in validated.items() if at > 0)

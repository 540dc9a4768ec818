"""On a GPU, with captured graphs. Written, and not run yet: there was none."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from material import CONTROLS, prompts, reference

BF16 = 0.15
"""Largest difference of a log-probability in bf16, an assumption until it is measured."""

SCRIPT = """
import json, sys
from pathlib import Path
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

base, asked, *adapters = sys.argv[1:]
llm = LLM(base, dtype="bfloat16", max_model_len=256, enable_lora=True, max_loras=2, max_lora_rank=16,
          gpu_memory_utilization=0.3)
sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=1)
answers = []
for number, adapter in enumerate(adapters, 1):  # each is loaded after the graphs were captured
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in json.loads(asked)], sampling, use_tqdm=False,
                           lora_request=LoRARequest(Path(adapter).name, number, adapter))
    answers.append([[[token, found[token].logprob] for token, found in
                     zip(output.outputs[0].token_ids, output.outputs[0].logprobs)] for output in outputs])
print("ANSWERS", json.dumps(answers))
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and vLLM's build for it")
def test_graphs_follow_an_activation_that_comes_later(base: Path, adapters: dict[str, Path]) -> None:
    """Adapters of four activations and a LoRA, loaded after capture, in two slots."""
    import json

    names, asked = ("lora", "silu", "tanh", "relu", "mix"), prompts(3)
    arguments = [str(base), json.dumps(asked), *(str(adapters[name]) for name in names)]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    for name, answers in zip(names, json.loads(line.removeprefix("ANSWERS ")), strict=True):
        models = [reference(base, adapters[name], control) for control in (None, *CONTROLS.values())]
        worst = [max(map(difference, [model] * 3, asked, answers)) for model in models]
        assert worst[0] < BF16, name
        assert name == "lora" or min(worst[1:]) > BF16, name


@torch.no_grad()
def difference(model: torch.nn.Module, prompt: list[int], answer: list[list[float]]) -> float:
    """Return the largest difference of the log-probabilities of an answer's tokens."""
    tokens = [int(token) for token, _ in answer]
    rows = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return max(abs(float(row[token]) - value) for row, token, (_, value) in zip(rows, tokens, answer, strict=True))

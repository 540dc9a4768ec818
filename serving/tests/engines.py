"""vLLM's offline engine on the tiny model, as tests ask it."""

from pathlib import Path
from typing import Any

from material import Answer
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

TOKENS = 8
"""Length of an answer."""
SETTINGS = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 32, "enforce_eager": True, "enable_lora": True}


class Engine:
    """An engine that answers token ids."""

    def __init__(self, base: Path, **settings: Any) -> None:
        self.llm = LLM(str(base), **{**SETTINGS, **settings})
        self._numbers: dict[Path, int] = {}

    def request(self, adapter: Path | None, **settings: Any) -> LoRARequest | None:
        """Return the request for an adapter, whose number is the same each time."""
        if adapter is None:
            return None
        number = self._numbers.setdefault(adapter, len(self._numbers) + 1)
        return LoRARequest(adapter.name, number, str(adapter), **settings)

    def answers(self, prompts: list[list[int]], adapters: list[Path | None], tokens: int = TOKENS) -> list[Answer]:
        """Return the greedy answers to prompts, in one batch, each with its own adapter."""
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=5)
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            sampling,
            lora_request=[self.request(adapter) for adapter in adapters],
            use_tqdm=False,
        )
        return [
            Answer(
                list(output.outputs[0].token_ids),
                [{token: entry.logprob for token, entry in found.items()} for found in output.outputs[0].logprobs],
            )
            for output in outputs
        ]

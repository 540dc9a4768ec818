"""Seeded requests on a CPU, whose prompts are read in several steps.

Each step draws for every row, also for one whose prompt is not read to its end, and vLLM then sets the row's generator
back by an offset, which CPUs' generators do not have: in vLLM 0.32 one such request ends the engine for all.
"""

import functools
from typing import Any

import numpy as np
import torch


def install() -> None:
    """Let the model runner set generators of CPUs back, too."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    original = GPUModelRunner._bookkeeping_sync
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def bookkeeping(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch, generators = self.input_batch, {}
        for row in map(int, np.nonzero(self.discard_request_mask.np[: batch.num_reqs])[0]):
            generator = batch.generators.get(row)
            if generator is not None and generator.device.type == "cpu":
                _set_back(generator, len(self.requests[batch.req_ids[row]].output_token_ids))
                generators[row] = batch.generators.pop(row)  # not to be set back by an offset
        try:
            return original(self, *args, **kwargs)
        finally:
            batch.generators.update(generators)

    GPUModelRunner._bookkeeping_sync = bookkeeping  # type: ignore[method-assign]


def _set_back(generator: torch.Generator, tokens: int) -> None:
    """Bring a generator to where it is after ``tokens`` tokens; vLLM's sampler for CPUs draws one integer for each."""
    generator.manual_seed(generator.initial_seed())
    for _ in range(tokens):
        torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long)

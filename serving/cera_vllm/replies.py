"""A load that fails in the workers is reported as an answer, not as an exception.

With several workers vLLM's executor raises at the first one's failure and leaves the others' replies in their queues,
where the next call takes them for its own.
"""

import functools
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.v1.executor.abstract import Executor
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin


def install() -> None:
    """Let workers answer why a load failed, and executors raise it once all have answered."""
    load = LoRAModelRunnerMixin.add_lora

    @functools.wraps(load)
    def add_in_worker(self: Any, lora_request: LoRARequest) -> bool | str:
        try:
            return load(self, lora_request)
        except Exception as error:  # whatever it is, the executor raises it
            return str(error) or repr(error)

    @functools.wraps(Executor.add_lora)
    def add_in_executor(self: Executor, lora_request: LoRARequest) -> bool:
        replies: list[bool | str] = self.collective_rpc("add_lora", args=(lora_request,))
        reasons = [reply for reply in replies if isinstance(reply, str)]
        if not reasons:
            return all(replies)
        if len(reasons) < len(replies):
            self.remove_lora(lora_request.lora_int_id)  # from the workers where it did not fail
        raise ValueError(reasons[0])

    LoRAModelRunnerMixin.add_lora = add_in_worker  # type: ignore[method-assign, assignment]
    Executor.add_lora = add_in_executor  # type: ignore[method-assign]

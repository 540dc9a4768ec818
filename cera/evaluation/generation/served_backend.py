"""Generation by a server of vLLM, such as ``cera serve`` starts."""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

from cera.evaluation.generation.backend import Sample, check_keys
from cera.evaluation.generation.model_server import ModelServer, ServedModel, ServerError
from cera.evaluation.generation.sampling import NAN_LOGITS, NotANumberError, Sampling, seed_of_sample
from cera.evaluation.generation.stopping import answer_ends, cut_sample
from cera.models.generate import encode

LEAST_TEMPERATURE = 0.01
"""vLLM raises lower ones to this."""
QUEUED = 2
"""Requests that are ready to be sent, for each sequence of a batch: they do not wait while an answer is scored."""
NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Settings that a server would else take from the model's ``generation_config``."""


class ServedBackend:
    """Generates answers by requests to a server; see ``Backend``.

    Prompts are sent as token ids, and answers come back as such: both are encoded and decoded here, so that prompt,
    answer and its end are those of ``TransformersBackend``. All settings of sampling are sent with each request, which
    leaves none to the model's ``generation_config``. Each sample is a request of its own, with ``seed_of_sample``.

    Args:
        server: The server.
        model: The model, one of ``server.models()``.
        tokenizer: The model's tokenizer.
        generation_config: The model's generation config, of which only the end tokens are used.
        batch_size: Number of sequences that are asked for at a time.

    Raises:
        ValueError: ``batch_size`` is less than 1.
    """

    def __init__(
        self, server: ModelServer, model: ServedModel, tokenizer: Any, generation_config: Any, batch_size: int
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.server = server
        self.model = model
        self.tokenizer = tokenizer
        self.generation_config = generation_config
        self.batch_size = batch_size

    def generate(
        self, prompts: Sequence[str], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Generate samples for each prompt; see ``Backend.generate``.

        Raises:
            ValueError: The keys are not unique, one for each prompt; or a setting cannot be had from vLLM.
            ServerError: The server has another tokenizer or fewer positions, or refuses a request.
        """
        check_keys(prompts, keys)
        check_sampling(sampling)
        token_ids = [encode(self.tokenizer, prompt) for prompt in prompts]
        ends = answer_ends(self.generation_config, self.tokenizer, sampling.stop)
        request = {
            "model": self.model.name,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "stop": sampling.stop,
            "stop_token_ids": sorted(ends),
            "ignore_eos": True,  # it is among stop_token_ids
            **NEUTRAL,
        }
        self._check_lengths(token_ids, keys, sampling)
        self._check_tokenizer(prompts, token_ids)
        if not self.server.computes_numbers(**request, prompt=token_ids[0]):
            raise NotANumberError(NAN_LOGITS)
        return self._in_parallel(token_ids, keys, sampling, request, ends)

    def _in_parallel(
        self,
        prompts: Sequence[list[int]],
        keys: Sequence[str],
        sampling: Sampling,
        request: dict[str, Any],
        ends: set[int],
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Send a request for each sample, ``batch_size`` of them at a time, those of the longest prompts first."""
        longest_first = sorted(range(len(prompts)), key=lambda position: -len(prompts[position]))
        left = ((position, number) for position in longest_first for number in range(sampling.samples))
        samples: dict[int, dict[int, Sample]] = {position: {} for position in longest_first}
        asked: dict[Future[list[int]], tuple[int, int]] = {}
        server, pool = self.server.twin(), ThreadPoolExecutor(self.batch_size)
        try:
            while True:
                for position, number in islice(left, QUEUED * self.batch_size - len(asked)):
                    seed = seed_of_sample(sampling.seed, keys[position], number)
                    answer = pool.submit(server.complete, **request, prompt=prompts[position], seed=seed)
                    asked[answer] = position, number
                if not asked:
                    return
                answered = wait(asked, return_when=FIRST_COMPLETED).done
                for answer in sorted(
                    answered, key=lambda answer: answer.exception() is not None
                ):  # what failed is last
                    position, number = asked.pop(answer)
                    samples[position][number] = cut_sample(answer.result(), ends, sampling.stop, self.tokenizer)
                    if len(samples[position]) == sampling.samples:
                        yield position, [sample for _, sample in sorted(samples.pop(position).items())]
        finally:  # all is answered, a request failed, or the caller stopped
            pool.shutdown(wait=False, cancel_futures=True)
            server.close()
            pool.shutdown()

    def _check_lengths(self, prompts: Sequence[list[int]], keys: Sequence[str], sampling: Sampling) -> None:
        longest = self.model.positions
        for prompt, key in zip(prompts, keys, strict=True):
            if longest is not None and len(prompt) + sampling.max_new_tokens > longest:
                raise ServerError(
                    f"The prompt of {key} has {len(prompt)} tokens, which leaves no room for "
                    f"sampling.max_new_tokens={sampling.max_new_tokens} in the server's {longest} positions: "
                    "start it with a larger --max-model-len."
                )

    def _check_tokenizer(self, prompts: Sequence[str], token_ids: Sequence[list[int]]) -> None:
        """Compare the tokens of the longest prompt, and of the first one."""
        for position in {0, max(range(len(prompts)), key=lambda position: len(token_ids[position]))}:
            theirs = self.server.tokens(self.model.name, prompts[position])
            if theirs != token_ids[position]:
                raise ServerError(
                    f"The server {self.server.url} has another tokenizer than this model's: a prompt is "
                    f"{len(theirs)} tokens there and {len(token_ids[position])} here, the first of them "
                    f"{theirs[:5]} and {token_ids[position][:5]}. Does it serve another base model?"
                )


def check_sampling(sampling: Sampling) -> None:
    """Check that vLLM samples by these settings.

    Raises:
        ValueError: The temperature is one that vLLM changes.
    """
    if 0 < sampling.temperature < LEAST_TEMPERATURE:
        raise ValueError(
            f"sampling.temperature must be 0 or at least {LEAST_TEMPERATURE} with --backend vllm, which changes lower "
            f"ones, got {sampling.temperature}."
        )

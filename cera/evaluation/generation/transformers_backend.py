"""Batched generation with a transformers model."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, LogitsProcessorList, StoppingCriteriaList

from cera.evaluation.generation.backend import Sample, check_keys
from cera.evaluation.generation.progress import TokenProgress
from cera.evaluation.generation.sampling import InverseCDF, RefuseNaN, Sampling, uniforms
from cera.evaluation.generation.stopping import StopStrings, answer_ends, cut_sample
from cera.models.generate import encode, generation_mode, max_positions
from cera.models.output_head import head_reads

TokenIds = list[int]


class TransformersBackend:
    """Generates answers in batches with ``model.generate`` of transformers; see ``Backend``.

    Prompts are sorted by length, the longest first, so that insufficient memory shows at once. Each prompt is computed
    once, and its samples start from copies of its keys and values. Only the end tokens of the model's
    ``generation_config`` are used, so that greedy is greedy. In half precision the width of a batch changes the last
    bits of the logits and thereby, rarely, a token.

    Args:
        model: A causal language model, with or without PEFT adapters. It is in eval mode while a batch is computed and
            in its own mode between batches.
        tokenizer: Its tokenizer. An answer ends at its end-of-sequence token, at one of the model's, or at its chat
            template's end of a turn.
        batch_size: Number of sequences that are generated at a time.
        progress: Show how many tokens of each batch are generated.

    Raises:
        ValueError: ``batch_size`` is less than 1, or the active adapter has virtual tokens (prompt tuning and the
            like), whose keys and values cannot be told apart from the prompt's.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, progress: bool = False) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        adapter = getattr(model, "active_peft_config", None)
        if adapter is not None and adapter.is_prompt_learning:
            raise ValueError(f"Adapters of virtual tokens are not supported, got {adapter.peft_type.value}.")
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.progress = progress

    def generate(
        self, prompts: Sequence[str], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Generate samples for each prompt; see ``Backend.generate``.

        Raises:
            ValueError: The keys are not unique, one for each prompt; or a prompt is empty, or too long for the model.
        """
        check_keys(prompts, keys)
        token_ids = [encode(self.tokenizer, prompt) for prompt in prompts]
        check_lengths(dict(zip(keys, token_ids, strict=True)), sampling, self.model.config)
        return self._in_batches(token_ids, keys, sampling)

    def _in_batches(
        self, prompts: Sequence[TokenIds], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, list[Sample]]]:
        longest_first = sorted(range(len(prompts)), key=lambda position: -len(prompts[position]))
        prompts_at_a_time = max(1, self.batch_size // sampling.samples)
        for start in range(0, len(longest_first), prompts_at_a_time):
            positions = longest_first[start : start + prompts_at_a_time]
            samples = self._generate_batch([prompts[i] for i in positions], [keys[i] for i in positions], sampling)
            yield from zip(positions, samples, strict=True)

    @torch.no_grad()  # not inference_mode: ZeRO-3 keeps tensors that it gathers here
    def _generate_batch(self, prompts: list[TokenIds], keys: list[str], sampling: Sampling) -> list[list[Sample]]:
        ends = answer_ends(self.model.generation_config, self.tokenizer, sampling.stop)
        pad = self.tokenizer.pad_token_id
        pad = min(ends, default=0) if pad is None else pad
        ids, mask = left_padded(prompts, pad, next(self.model.parameters()).device)
        settings = {"eos_token_id": sorted(ends) or None, "pad_token_id": pad, "use_cache": True}
        samples: list[list[Sample]] = [[] for _ in prompts]
        with generation_mode(self.model):
            prompt_cache = self._prefill(ids, mask, settings)
            for start in range(0, sampling.samples, self.batch_size):
                numbers = range(start, min(start + self.batch_size, sampling.samples))
                is_last = numbers.stop == sampling.samples
                cache = prompt_cache if is_last else copy.deepcopy(prompt_cache)
                streams = [uniforms(sampling.seed, key, i, sampling.max_new_tokens) for key in keys for i in numbers]
                generated = self._decode(ids, mask, cache, streams, sampling, settings)
                for row, tokens in enumerate(generated):
                    sample = cut_sample(tokens, ends, sampling.stop, self.tokenizer)
                    samples[row // len(numbers)].append(sample)
        return samples

    def _prefill(self, ids: Tensor, mask: Tensor, settings: dict[str, Any]) -> Cache | None:
        """Return the keys and values of all tokens of the prompts but the last, from which ``generate`` continues.

        ``None`` if a prompt is a single token: then there is nothing to compute beforehand.
        """
        if not mask[:, :-1].any(dim=1).all():
            return None
        # transformers gives the head a slice of the hidden states, for each row of which torch would copy its weight
        with head_reads(self.model.get_output_embeddings(), Tensor.contiguous):
            return self.model.generate(
                input_ids=ids[:, :-1],
                attention_mask=mask[:, :-1],
                max_new_tokens=1,  # the keys and values of this token are not computed
                return_dict_in_generate=True,
                **settings,
            ).past_key_values

    def _decode(
        self,
        ids: Tensor,
        mask: Tensor,
        cache: Cache | None,
        streams: list[Tensor],
        sampling: Sampling,
        settings: dict[str, Any],
    ) -> list[TokenIds]:
        """Return the tokens generated for each stream of uniforms; the streams of one prompt are adjacent."""
        repeats, start = len(streams) // len(ids), ids.shape[1]
        if cache is not None:
            cache.batch_repeat_interleave(repeats)
        processors, criteria = LogitsProcessorList(), StoppingCriteriaList()
        if sampling.temperature > 0:
            processors.append(InverseCDF(sampling, torch.stack(streams).to(ids.device), start))
        else:
            processors.append(RefuseNaN())
        stopping = StopStrings(sampling.stop, self.tokenizer, start)
        if sampling.stop:
            criteria.append(stopping)
        with TokenProgress(len(streams), sampling.max_new_tokens, self.progress) as progress:
            output = self.model.generate(
                input_ids=ids.repeat_interleave(repeats, dim=0),
                attention_mask=mask.repeat_interleave(repeats, dim=0),
                past_key_values=cache,
                max_new_tokens=sampling.max_new_tokens,
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([*criteria, progress]),
                **settings,
            )
        rows = output[:, start:].tolist()
        return [tokens[: stopping.lengths.get(row)] for row, tokens in enumerate(rows)]


def left_padded(rows: Sequence[TokenIds], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both (rows, longest row) int64, of rows that end together.

    Args:
        rows: Token ids of each row.
        pad: Token id that fills the beginning of a row.
        device: Device of the tensors.
    """
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def check_lengths(prompts: Mapping[str, TokenIds], sampling: Sampling, config: Any) -> None:
    """Check that each prompt has tokens and leaves room for an answer.

    Args:
        prompts: Token ids by key.
        sampling: The settings, with the maximum length of an answer.
        config: The model's transformers configuration.

    Raises:
        ValueError: A prompt is empty or too long; the message names its key.
    """
    longest = max_positions(config)
    for key, prompt in prompts.items():
        if not prompt:
            raise ValueError(f"The prompt of {key} has no tokens.")
        if len(prompt) + sampling.max_new_tokens > longest:
            number = f"{len(prompt)} or more" if len(prompt) > longest else str(len(prompt))  # see encode
            raise ValueError(
                f"The prompt of {key} has {number} tokens, which leaves no room for "
                f"sampling.max_new_tokens={sampling.max_new_tokens} in the model's {longest} positions."
            )

"""The documents in packed rows, as prompts, and the model's answers to them."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from cera.data.chat import IGNORE
from cera.data.layout import end_of_turn
from cera.models.generate import generate


def answers(model: Any, tokenizer: Any, batch: dict[str, Any], max_new_tokens: int) -> list[dict[str, str]]:
    """Answer the prompts of a batch greedily.

    Args:
        model: The adapted model.
        tokenizer: The base's tokenizer.
        batch: See ``prompts``.
        max_new_tokens: Maximum length of an answer, in tokens.

    Returns:
        For each document ``prompt`` (up to its first answer), ``answer`` (the model's) and ``reference`` (the
        dataset's first answer).
    """
    records, ends = [], end_of_turn(tokenizer)
    for prompt, reference in prompts(batch):
        answer = generate(model, tokenizer, prompt, max_new_tokens, ends)
        text = tokenizer.decode(reference, skip_special_tokens=True)
        records.append({"prompt": tokenizer.decode(prompt), "answer": answer, "reference": text})
    return records


def prompts(batch: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each document's prompt and reference answer.

    Args:
        batch: ``input_ids``, ``labels`` and ``position_ids``, each (batch, length). Documents without labels, such as
            padding, are skipped.

    Yields:
        Token ids up to the first answer, and token ids of the first answer.
    """
    for ids, labels in split_documents(batch):
        labelled = (labels != IGNORE).nonzero().flatten().tolist()
        if not labelled:
            continue
        start = labelled[0]
        end = next((i for i in range(start, len(labels)) if labels[i] == IGNORE), len(labels))
        yield ids[:start], ids[start:end]


def split_documents(batch: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Split packed rows where positions start again at 0, and yield each document's ids and labels, both (n,)."""
    for ids, labels, positions in zip(batch["input_ids"], batch["labels"], batch["position_ids"], strict=True):
        starts = (positions == 0).nonzero().flatten().tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            yield ids[start:end], labels[start:end]

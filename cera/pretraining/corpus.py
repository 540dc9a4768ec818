"""The corpus of a small base model: conversations, a tokenizer that is trained on them, and blocks of tokens.

Example:
    >>> texts = conversations(settings.corpus, settings.seed)
    >>> tokenizer = train_tokenizer(texts, settings.vocabulary, settings.shape.positions)
    >>> rows = blocks(texts, tokenizer, settings.block)  # (rows, block)
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from cera.data import ChatDataset
from cera.progress import progress

END, USER, ASSISTANT, PADDING = "<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"

CHAT_TEMPLATE = f"""\
{{%- for message in messages -%}}
{{{{ ('{ASSISTANT}' if message['role'] == 'assistant' else '{USER}') + message['content'] | trim + '{END}' }}}}
{{%- endfor -%}}
{{%- if add_generation_prompt %}}{{{{ '{ASSISTANT}' }}}}{{% endif -%}}"""
"""Every turn ends with the end-of-text token; a system turn is written as the user's."""


def conversations(corpus: Sequence[ChatDataset], seed: int) -> list[str]:
    """Return all conversations of the corpus as text, in random order.

    Args:
        corpus: Data sets; rows that they filter out are left out.
        seed: Seed of the order.
    """
    texts = []
    for dataset in progress(corpus, "generating", "set"):
        for raw in dataset.load(streaming=False):
            messages = dataset.parse(raw)
            if messages:
                texts.append("".join(_turn(message["role"], message["content"]) for message in messages))
    return [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]


def _turn(role: str, content: str) -> str:
    """Return a turn as ``CHAT_TEMPLATE`` renders it."""
    return f"{ASSISTANT if role == 'assistant' else USER}{content.strip()}{END}"


def train_tokenizer(texts: Sequence[str], vocabulary: int, positions: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of the texts, in which every digit is a token.

    Args:
        texts: What ``conversations`` returns.
        vocabulary: Number of tokens, special ones included.
        positions: Maximum number of tokens of the model.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PADDING, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PADDING,
        model_max_length=positions,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def blocks(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, block: int) -> Tensor:
    """Return the texts joined and cut into rows, shape (rows, block); what is left over at the end is dropped."""
    ids: list[int] = []
    for start in progress(range(0, len(texts), 10_000), "tokenizing", "batch"):
        for encoded in tokenizer(list(texts[start : start + 10_000]), add_special_tokens=False)["input_ids"]:
            ids += encoded
    rows = len(ids) // block
    return torch.tensor(ids[: rows * block], dtype=torch.int32).view(rows, block)


class Steps(IterableDataset):
    """The rows of each step from a given step on; every epoch has an order of its own.

    A batch has ``tokens`` of shape (batch_size, block), and their number ``n_tokens``.

    Args:
        rows: What ``blocks`` returns.
        batch_size: Number of rows of a step.
        seed: Seed of the orders.
        start: The first step, counted from the beginning of the training.
    """

    def __init__(self, rows: Tensor, batch_size: int, seed: int, start: int) -> None:
        self.rows, self.batch_size, self.seed, self.start = rows, batch_size, seed, start

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches for ever."""
        per_epoch = len(self.rows) // self.batch_size
        epoch, first = divmod(self.start, per_epoch)
        while True:
            order = torch.from_numpy(np.random.default_rng([self.seed, epoch]).permutation(len(self.rows)))
            for step in range(first, per_epoch):
                tokens = self.rows[order[step * self.batch_size : (step + 1) * self.batch_size]].long()
                yield {"tokens": tokens, "n_tokens": tokens.numel()}
            epoch, first = epoch + 1, 0

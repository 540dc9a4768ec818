"""The LightningDataModule: training and held-out rows of a dataset as two streams of batches."""

import copy
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import datasets
import numpy as np
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from cera.data.chat import ChatEncoder
from cera.data.datasets import ChatDataset
from cera.data.identity import dataset_identity, with_current_names
from cera.data.layout import additions
from cera.data.rows import DataError
from cera.data.stream import BatchStream, ShuffledRows, start_of_epoch
from cera.data.text_template import check_text_template, set_text_template
from cera.data.tokenized import tokenized
from cera.models.backbone import load_tokenizer
from cera.runs.checkpoints import CheckpointError, shared_differences
from cera.runs.signals import leave_signals_to_parent, signals_blocked

SPLIT_SEED = 0
"""Seed of the choice of held-out rows. It is not the run's: all runs of a study are validated on the same rows."""


IDENTITY = (
    *("validation_rows", "max_length", "overlong", "packing", "shuffle_buffer", "seed"),
    *("template", "loss_on", "loss_on_end", "with_replacement"),
)
"""Settings that must agree when a run is resumed, beside the datasets and the number of rows of a step."""


class Question(NamedTuple):
    """A held-out conversation that ends in a question and its answer.

    Attributes:
        prompt: The conversation before the answer, rendered by the chat template.
        problem: The question itself.
        reference: The dataset's answer.
    """

    prompt: str
    problem: str
    reference: str


class StreamLoader(DataLoader):
    """A DataLoader whose workers leave SIGINT and SIGTERM to the trainer."""

    def __iter__(self) -> Any:
        """Start the workers."""
        with signals_blocked():
            return super().__iter__()


def _start_worker(number: int) -> None:
    leave_signals_to_parent()


class ChatData(LightningDataModule):
    """Conversations as packed batches for a causal language model.

    Args:
        dataset: The training set.
        tokenizer: The model whose tokenizer is used, named as ``model.base`` (a configuration links the two).
        validation: A separate set for validation; ``None`` holds out rows of ``dataset``.
        validation_rows: Number of held-out rows: a fixed random choice from a set with random access, the first rows
            of a stream. With ``validation``, the number of its rows to use (0: all).
        batch_size: Number of rows of ``max_length`` tokens (without packing: of documents) per device and micro-batch.
        max_length: Maximum number of tokens of a document, and of a pack.
        overlong: Whether longer documents are cut to their first ``max_length`` tokens, or dropped.
        packing: Whether documents share a row, with separate positions and attention.
        template: Plain text in place of a chat template, such as "Question: {question}\\nAnswer: {answer}".
        loss_on: Whether the loss is over the answers, or over the questions, too.
        loss_on_end: Whether the end of an answer is in the loss, so that the model learns to stop.
        with_replacement: Draw each row of an epoch from all rows, instead of every row once.
        shuffle_buffer: Number of rows of a stream that are shuffled together.
        max_malformed: Share of malformed rows, in [0, 1], beyond which reading stops with an error.
        seed: Seed of the order of rows.
        num_workers: Number of processes that read and tokenize ahead of training; with 0, the training process does.
            Each reads the whole stream, so one is enough unless a batch takes longer to tokenize than to train on.
        tokenize_once: Tokenize rows once for all runs. The first one does so at its start (``cera.data.tokenized``);
            a stream is always tokenized as it is read.

    Raises:
        ValueError: A number is out of its range; the message names it.
    """

    def __init__(
        self,
        dataset: ChatDataset,
        tokenizer: str,
        validation: ChatDataset | None = None,
        validation_rows: int = 200,
        batch_size: int = 4,
        max_length: int = 512,
        overlong: Literal["truncate", "drop"] = "truncate",
        packing: bool = True,
        shuffle_buffer: int = 10_000,
        max_malformed: float = 0.01,
        seed: int = 0,
        num_workers: int = 0,
        template: str | None = None,
        loss_on: Literal["answer", "all"] = "answer",
        loss_on_end: bool = True,
        with_replacement: bool = False,
        tokenize_once: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("max_length", max_length, 2),
            ("shuffle_buffer", shuffle_buffer, 1),
            ("num_workers", num_workers, 0),
            ("validation_rows", validation_rows, 0 if validation else 1),
        ):
            if value < least:
                raise ValueError(f"data.{name} must be at least {least}, got {value}.")
        if not 0 <= max_malformed <= 1:
            raise ValueError(f"data.max_malformed must be in [0, 1], got {max_malformed}.")
        if template is not None:
            check_text_template(template)
        if with_replacement and dataset.streaming:
            raise ValueError(
                "data.with_replacement needs random access: set data.dataset.init_args.streaming to false."
            )
        self.dataset = dataset
        self.tokenizer = tokenizer
        self.validation = validation
        self.validation_rows = validation_rows
        self.batch_size = batch_size
        self.max_length = max_length
        self.overlong = overlong
        self.packing = packing
        self.shuffle_buffer = shuffle_buffer
        self.max_malformed = max_malformed
        self.seed = seed
        self.num_workers = num_workers
        self.template = template
        self.loss_on = loss_on
        self.loss_on_end = loss_on_end
        self.with_replacement = with_replacement
        self.tokenize_once = tokenize_once
        self.chat_template: str | None = None  # of a saved adapter, in place of the tokenizer's
        self.train_stream: BatchStream | None = None
        self.validation_stream: BatchStream | None = None
        self._held_out: ShuffledRows | None = None

    def check(self) -> None:
        """Check what can be checked without the network or a model.

        Raises:
            DataError: A dataset's settings or files are wrong.
        """
        for dataset in (self.dataset, self.validation):
            if dataset is not None:
                dataset.check()

    def setup(self, stage: str = "fit") -> None:
        """Open the datasets and build the streams, for any stage."""
        if self.train_stream is not None:
            return
        tokenizer = self.with_template(load_tokenizer(self.tokenizer))
        # predictions are of answers, which labels tell from prompts
        labels = (self.loss_on, self.loss_on_end) if stage != "predict" else ("answer", True)
        encoder = ChatEncoder(tokenizer, self.max_length, self.overlong, *labels)
        if self.trainer is not None:
            for sentence in additions(encoder.tokenizer):
                rank_zero_info(sentence)
        train, self._held_out = self._split()
        self.train_stream = self._stream(self.dataset, train, encoder)
        self.validation_stream = self._stream(self.validation or self.dataset, self._held_out, encoder)
        self.validation_stream.max_malformed = 1.0  # too few rows to judge the share by; training does
        self.train_stream.accumulate = getattr(self.trainer, "accumulate_grad_batches", 1)

    def with_template(self, tokenizer: Any) -> Any:
        """Set the ``template`` on a tokenizer, if there is one, and return it."""
        tokenizer.chat_template = self.chat_template or tokenizer.chat_template
        if self.template is not None:
            set_text_template(tokenizer, self.template)
        return tokenizer

    def _split(self) -> tuple[ShuffledRows, ShuffledRows]:
        """Return the training rows, shuffled, and the held-out rows, in order; they share no row."""
        rows, n, first = self.dataset.load(), self.validation_rows, self.dataset.first_row
        if self.validation is not None:
            held_out, number = self.validation.load(), range(self.validation.first_row, sys.maxsize)
            train = self._shuffled(rows, range(first, sys.maxsize))
            return train, self._in_order(held_out.take(n) if n else held_out, number)
        if not isinstance(rows, datasets.Dataset):
            numbers = range(first, sys.maxsize)
            return self._shuffled(rows.skip(n), numbers[n:]), self._in_order(rows.take(n), numbers)
        if n >= len(rows):
            raise DataError(f"data.validation_rows={n} leaves nothing to train on: the dataset has {len(rows)} rows.")
        order = np.random.default_rng(SPLIT_SEED).permutation(len(rows))
        train, held = (np.sort(part).tolist() for part in (order[n:], order[:n]))
        selected = [(rows.select(part), [first + row for row in part]) for part in (train, held)]
        return self._shuffled(*selected[0]), self._in_order(*selected[1])

    def _shuffled(self, rows: Any, numbers: Sequence[int]) -> ShuffledRows:
        return ShuffledRows(rows, self.seed, self.shuffle_buffer, numbers, self.with_replacement)

    def _in_order(self, rows: Any, numbers: Sequence[int]) -> ShuffledRows:
        return ShuffledRows(rows, None, self.shuffle_buffer, numbers)

    def _stream(self, dataset: ChatDataset, rows: ShuffledRows, encoder: ChatEncoder) -> BatchStream:
        once = self.tokenize_once and isinstance(rows.rows, datasets.Dataset)
        if once:
            rows = copy.copy(rows)
            rows.rows = tokenized(rows.rows, dataset, encoder)
        return BatchStream(
            dataset,
            rows,
            encoder,
            self.batch_size,
            self.packing,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            max_malformed=self.max_malformed,
            is_tokenized=once,
        )

    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps in the first epoch, for which all of it is tokenized.

        Raises:
            ValueError: The dataset is a stream, whose length is not known.
        """
        self.setup()
        assert self.train_stream is not None
        if not isinstance(self.train_stream.rows.rows, datasets.Dataset):
            raise ValueError("trainer.max_steps must be set: the length of a streamed dataset is not known beforehand.")
        return sum(1 for _ in self.train_stream.steps(start_of_epoch(0)))

    def train_dataloader(self) -> DataLoader:
        """Return the batches of this rank, from the position of the stream on."""
        return self._loader(self.train_stream)

    def val_dataloader(self) -> DataLoader:
        """Return this rank's share of the held-out rows, in order."""
        return self._loader(self.validation_stream)

    test_dataloader = predict_dataloader = val_dataloader

    def _loader(self, stream: BatchStream | None) -> DataLoader:
        assert stream is not None, "setup() comes first"
        return StreamLoader(stream, batch_size=None, num_workers=self.num_workers, worker_init_fn=_start_worker)

    def questions(self) -> Iterator[Question]:
        """Yield the held-out conversations that end in a question and its answer, in order."""
        stream, rows = self.validation_stream, self._held_out
        assert stream is not None, "setup() comes first"
        assert rows is not None
        for _, raw, _ in rows(0, None):
            try:
                messages = stream.dataset.parse(raw) or []
                if [message["role"] for message in messages][-2:] == ["user", "assistant"]:
                    prompt = stream.encoder.render(messages[:-1], add_generation_prompt=True)
                    yield Question(prompt, messages[-2]["content"], messages[-1]["content"])
            except ValueError:
                continue  # malformed; the stream reports it

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Set the position of the stream to that of a training batch that is about to be used, not only read ahead."""
        position = batch.pop("position")
        if (
            position is not None
            and self.trainer is not None
            and self.trainer.training
            and self.train_stream is not None
        ):
            self.train_stream.position = position.state
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the training stream, which is the same on all ranks, and the identity of the data."""
        assert self.train_stream is not None
        return {"position": self.train_stream.position, "identity": self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from ``state_dict``, on any number of ranks and workers.

        Raises:
            CheckpointError: The position refers to other data, or to another order of them.
        """
        identity = self._identity()
        if self.trainer is not None and self.trainer.state.fn != "fit":  # it measures on rows that were not trained on
            names = ("dataset", "validation_rows") if self.validation is None else ()
            identity = json.dumps({name: json.loads(identity)[name] for name in names})
        if differing := shared_differences(with_current_names(state_dict["identity"]), identity):
            each = "; ".join(f"data.{difference}" for difference in differing)
            raise CheckpointError(f"the checkpoint is of a run on other data ({each}).")
        self.setup()
        assert self.train_stream is not None
        self.train_stream.position = state_dict["position"]

    def _identity(self) -> str:
        """Return what the documents of a step and of validation depend on, as sorted JSON."""
        settings = {name: getattr(self, name) for name in IDENTITY}
        if self.trainer is not None:
            settings["rows_of_a_step"] = (
                self.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
            )
        settings["dataset"] = dataset_identity(self.dataset)
        settings["validation"] = None if self.validation is None else dataset_identity(self.validation)
        return json.dumps(settings, sort_keys=True)

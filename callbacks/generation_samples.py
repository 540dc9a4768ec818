"""Records the model's answers to the same few held-out problems through training."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from cera.data.datamodule import Question
from cera.data.layout import end_of_turn
from cera.models.generate import generate
from cera.runs.files import replacing
from cera.runs.loggers import tensorboard_loggers


class GenerationSamples(Callback):
    """Answers the first held-out questions greedily before the first step (the base) and at each validation.

    The answers are written to ``samples/step=N.jsonl`` in the run directory, one line per question with ``problem``,
    ``reference`` and ``answer``, and shown as text in TensorBoard.

    Args:
        problems: Number of questions.
        max_new_tokens: Maximum length of an answer, in tokens.

    Raises:
        ValueError: A number is less than 1.
    """

    def __init__(self, problems: int = 2, max_new_tokens: int = 128) -> None:
        for name, value in (("problems", problems), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise ValueError(f"GenerationSamples.{name} must be at least 1, got {value}.")
        self.problems = problems
        self.max_new_tokens = max_new_tokens
        self._questions: list[Question] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Choose the questions; before the first step, answer them with the base model."""
        self._questions = list(islice(trainer.datamodule.questions(), self.problems))  # type: ignore[attr-defined]
        if trainer.global_step == 0:
            self._answer(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Answer the questions. There are none yet in the sanity check, which thus generates nothing."""
        self._answer(trainer, pl_module)

    def _answer(self, trainer: Trainer, pl_module: Any) -> None:
        if not self._questions:
            return
        step, model, tokenizer = trainer.global_step, pl_module.model, pl_module.tokenizer
        # on every rank: under ZeRO-3 a forward needs all of them
        ends = end_of_turn(tokenizer)
        answers = [generate(model, tokenizer, q.prompt, self.max_new_tokens, ends) for q in self._questions]
        if not trainer.is_global_zero:
            return
        records = [
            {"problem": question.problem, "reference": question.reference, "answer": answer}
            for question, answer in zip(self._questions, answers, strict=True)
        ]
        path = Path(trainer.default_root_dir) / "samples" / f"step={step}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write_text("".join(json.dumps(record) + "\n" for record in records))
        for logger in tensorboard_loggers(trainer):
            for number, record in enumerate(records, start=1):
                logger.experiment.add_text(f"samples/{number}", _markdown(record), step)


def _markdown(record: dict[str, str]) -> str:
    parts = (f"**{name}**\n\n{text.strip()}" for name, text in record.items())
    return "\n\n".join(parts).replace("\n", "  \n")  # in Markdown, two spaces end a line

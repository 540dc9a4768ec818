"""Prints a summary of a run in a dozen lines."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from cera.callbacks.progress import Progress
from cera.callbacks.run_record import trainable_parameters
from cera.data.layout import end_of_turn
from cera.models.generate import generate
from cera.runs.loggers import MetricsCSV


class Summary(Callback):
    """Prints, at the end of a fit: perplexity before and after, sizes, paths, and one answer before and after.

    Args:
        run_dir: The run directory.
        max_new_tokens: Maximum length of the answers shown, in tokens; 0 shows none.
    """

    def __init__(self, run_dir: str | Path, max_new_tokens: int) -> None:
        self.run_dir = Path(run_dir)
        self.max_new_tokens = max_new_tokens
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Print the summary on the first rank."""
        seconds = time.perf_counter() - self._started
        examples = self._examples(trainer, pl_module)  # on every rank: under ZeRO-3 a forward needs all of them
        if trainer.is_global_zero:
            lines = [*self._lines(trainer, pl_module, seconds), *examples]
            print("\n" + "\n".join(lines) + "\n", flush=True)

    def _lines(self, trainer: Trainer, module: Any, seconds: float) -> list[str]:
        final = trainer.callback_metrics.get("val/perplexity")
        trained = trainable_parameters(module)
        total = sum(getattr(p, "ds_numel", p.numel()) for p in module.model.parameters())
        base, last = (f"{p:.3f}" if p is not None else "not measured" for p in (module.base_perplexity, final))
        rows = [
            ("perplexity", f"{base} (base) -> {last}, on the held-out rows"),
            ("trainable", f"{trained:,} parameters, {100 * trained / total:.2f}% of {total:,}"),
            ("spectra", self._spectra(trainer)),
            ("steps", f"{trainer.global_step}, in {seconds / 60:.1f} minutes{self._speed(trainer)}"),
            ("skipped", self._skipped(trainer)),
            ("adapter", str(self.run_dir / "adapter")),
            *(("logs", place) for place in log_places(trainer.loggers)),
        ]
        return [f"{name:<12}{value}" for name, value in rows if value]

    @staticmethod
    def _spectra(trainer: Trainer) -> str:
        names = [
            f"{prefix}/{m}/mean" for prefix in ("spectra", "spectra_centred") for m in ("effective_rank", "auc_90")
        ]
        values = [trainer.callback_metrics.get(name) for name in names]
        if None in values:
            return ""
        rank, ninety, *centred = (f"{value:.1f}" for value in values)
        return f"effective rank {rank}, AUC-90 {ninety} (centred {', '.join(centred)}), mean over the adapted layers"

    @staticmethod
    def _skipped(trainer: Trainer) -> str:
        stream = getattr(trainer.datamodule, "train_stream", None)  # type: ignore[attr-defined]
        malformed = stream.position["counts"]["malformed"] if stream is not None else 0
        return f"{malformed} malformed rows so far in this epoch" if malformed else ""

    @staticmethod
    def _speed(trainer: Trainer) -> str:
        bar = trainer.progress_bar_callback
        return f", {bar.tokens_per_second * trainer.world_size:.0f} tokens/s" if isinstance(bar, Progress) else ""

    def _examples(self, trainer: Trainer, module: Any) -> list[str]:
        if not self.max_new_tokens or trainer.datamodule is None:  # type: ignore[attr-defined]
            return []
        question = next(trainer.datamodule.questions(), None)  # type: ignore[attr-defined]
        if question is None:
            return []
        ends = end_of_turn(module.tokenizer)
        arguments = (module.model, module.tokenizer, question.prompt, self.max_new_tokens, ends)
        with module.model.disable_adapter():
            before = generate(*arguments)
        after = generate(*arguments)
        parts = {"problem": question.problem, "reference": question.reference, "base": before, "adapter": after}
        return [f"\n--- {name} ---\n{text.strip()}" for name, text in parts.items()]


def log_places(loggers: Iterable[Logger]) -> list[str]:
    """Return where each logger has written: a file, a command that shows it, or the logger with its directory."""
    places = []
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            places.append(f"tensorboard --logdir {Path(logger.log_dir)}")
        elif isinstance(logger, MetricsCSV):
            places.append(str(Path(logger.log_dir) / "metrics.csv"))
        else:
            places.append(type(logger).__name__ + (f" in {logger.save_dir}" if logger.save_dir else ""))
    return places

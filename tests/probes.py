"""Callbacks that look inside a training process and print what they find."""

import os
import signal

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException


class HeldParameters(Callback):
    """Prints how many numbers of the frozen base this rank holds whole, and how many there are; and at the end, of the
    output head, which is let go of after each loss."""

    def on_fit_start(self, trainer, pl_module) -> None:
        frozen = [p for p in pl_module.parameters() if not p.requires_grad]
        held = sum(p.numel() for p in frozen)
        print(f"rank {trainer.global_rank} holds {held} of {sum(p.ds_numel for p in frozen)}", flush=True)

    def on_train_end(self, trainer, pl_module) -> None:
        head = pl_module.model.get_base_model().get_output_embeddings().weight
        print(f"rank {trainer.global_rank} ends with {head.numel()} of the head's {head.ds_numel}", flush=True)


class BadBatch(Callback):
    """Makes one rank's batch of one step go wrong: NaN out of the embedding, or only in a gradient.

    Args:
        step: Optimizer steps done before it.
        where: ``"loss"`` or ``"gradient"``.
        rank: The rank it happens on; with several, the others see good numbers only.
    """

    def __init__(self, step: int, where: str = "loss", rank: int = 0) -> None:
        self.step, self.where, self.rank = step, where, rank
        self.handle = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if (trainer.global_step, trainer.global_rank) != (self.step, self.rank) or self.handle is not None:
            return
        if self.where == "gradient":
            self.handle = next(iter(pl_module.trainable().values())).register_hook(lambda grad: grad * float("nan"))
        else:
            embedding = pl_module.model.get_input_embeddings()
            self.handle = embedding.register_forward_hook(lambda *hooked: hooked[-1] * float("nan"))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.handle is not None and trainer.global_step > self.step:
            self.handle.remove()
            self.handle = None


class Batches(Callback):
    """Keeps the tokens of every micro-batch that training sees, with the steps done before it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[int]]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.seen.append((trainer.global_step, batch["input_ids"].flatten().tolist()))


class Misconfigured(Callback):
    """Raises, at the start of training, what Lightning raises for settings that do not go together."""

    def on_train_start(self, trainer, pl_module) -> None:
        raise MisconfigurationException("a setting that only a run can judge")


class CSVHere(CSVLogger):
    """A logger that by default writes into the working directory."""

    def __init__(self, save_dir: str = "./csv") -> None:
        super().__init__(save_dir)


class Signals(Callback):
    """Sends this process a signal, before a step.

    Args:
        step: Optimizer steps done by then.
        times: How often.
        number: The signal.
    """

    def __init__(self, step: int, times: int = 1, number: int = int(signal.SIGTERM)) -> None:
        self.step = step
        self.times = times
        self.number = number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """Send it."""
        if trainer.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)

"""Callbacks that look inside a training process and print what they find."""

from lightning.pytorch.callbacks import Callback


class HeldParameters(Callback):
    """Prints how many numbers of the frozen base this rank holds whole, and how many there are."""

    def on_fit_start(self, trainer, pl_module) -> None:
        frozen = [p for p in pl_module.parameters() if not p.requires_grad]
        held = sum(p.numel() for p in frozen)
        print(f"rank {trainer.global_rank} holds {held} of {sum(p.ds_numel for p in frozen)}", flush=True)

"""Records the software, machine and commit of a run in ``environment.json`` of its directory."""

import json
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cera.foreign_files import read_json_object
from cera.runs.environment import training_environment
from cera.runs.files import remove_unfinished, replacing
from cera.runs.journal import EVENTS, Journal


class RunRecord(Callback):
    """Writes ``environment.json`` at the start of a fit; a resumed run appends its record to the list ``resumed``.

    A resumed run first removes what was written after the step that it resumes from, and will be written again. The
    callback therefore comes before all that write to the run directory.

    Args:
        run_dir: The run directory.
        resumed: Journal of the checkpoint that the run resumes from, ``None`` for a new run.
    """

    def __init__(self, run_dir: str | Path, resumed: Journal | None = None) -> None:
        self.path = Path(run_dir) / "environment.json"
        self.resumed = resumed
        known = resumed.events if resumed is not None else {}
        self._later_events = [path for path in self.path.parent.glob(EVENTS) if path.name not in known]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut back the outputs and write the record, on the first rank."""
        if not trainer.is_global_zero:
            return
        if self.resumed is not None:
            self._cut_back(self.resumed)
        record = {**training_environment(trainer), "trainable_parameters": trainable_parameters(pl_module)}
        if self.path.exists():
            first = read_json_object(self.path)
            resumed = {**record, "from_step": trainer.global_step}
            record = {**first, "resumed": [*first.get("resumed", []), resumed]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as file:
            file.write_text(json.dumps(record, indent=2) + "\n")

    def _cut_back(self, resumed: Journal) -> None:
        run_dir = self.path.parent
        resumed.cut_back(run_dir)
        remove_unfinished(run_dir)
        for path in self._later_events:
            path.unlink()


def trainable_parameters(module: LightningModule) -> int:
    """Return the number of trainable elements in ``module``; under ZeRO-3 those of all ranks."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters() if p.requires_grad)

"""Train, validate, test and predict from a configuration file.

    python train.py --config configs/smol_cera.yaml
    python train.py --config configs/smol_cera.yaml --model.adapter.init_args.r=32 --trainer.max_steps=10
    python train.py --config configs/smol_cera.yaml --ckpt_path last
    python train.py validate --config configs/smol_cera.yaml --ckpt_path last

Without a subcommand it fits. ``--print_config`` shows the whole configuration.
"""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # before deepspeed is imported
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses optional CPU kernels aloud, on import

from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from peft import PeftConfig

from callbacks import AdapterFile, Checkpoints, Progress, RunRecord, Summary
from cera import preflight, run_directory
from cera.backbone import BackboneError
from cera.checkpoint import AtomicCheckpointIO, CheckpointError, newest_checkpoint
from cera.compose import compose
from cera.data import ChatData, ChatDataset, DataError, TemplateError
from cera.loggers import MetricsCSV
from cera.module import CausalLM

SUBCOMMANDS = ("fit", "validate", "test", "predict")
set_parsing_settings(
    subclasses_enabled=[PeftConfig, ChatDataset],  # dataclasses, of which a configuration names one
    omegaconf_absolute_to_relative_paths=True,  # ${model.base} means this subcommand's model
)
STRATEGIES_WITH_OWN_IO = ("deepspeed", "fsdp")


class ComposingParser(LightningArgumentParser):
    """Reads configuration files that include others (``cera.compose``)."""

    def parse_path(self, path: Any, **kwargs: Any) -> Namespace:
        """A file as one configuration, whatever it includes."""
        import yaml

        return self.parse_string(content=yaml.safe_dump(compose(str(path))), path=str(path), **kwargs)


class SaveConfig(SaveConfigCallback):
    """``config.yaml`` in the run directory; a resumed run writes it again."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Only a fit is a run."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the resolved configuration on the first rank."""
        if stage == "fit" and trainer.is_global_zero and not self.already_saved:
            path = Path(trainer.default_root_dir) / "config.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(path), skip_unset=False, overwrite=True, multifile=False)
            self.already_saved = True


class CLI(LightningCLI):
    """LightningCLI with composed files, late interpolation, run directories, and errors before expensive work."""

    run_dir: Path | None = None
    checkpoints: Checkpoints | None = None

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """``omegaconf+`` resolves ``${...}`` after the overrides of the command line are in."""
        self.parser_class = ComposingParser
        return super().init_parser(parser_mode="omegaconf+", exit_on_error=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What belongs to the run and not to model, data or trainer."""
        parser.add_argument("--name", type=str, default="run", help="Name of the run.")
        parser.add_argument("--runs", type=str, default="runs", help="Directory of all runs.")
        parser.add_argument(
            "--checkpoint_every", type=int, default=100, help="Steps between checkpoints; 0 saves at the end only."
        )
        parser.add_argument(
            "--answer_tokens", type=int, default=160, help="Length of the answers shown after a fit; 0 shows none."
        )
        parser.link_arguments("model.base", "data.tokenizer")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Nothing: hyperparameters come from the configuration, never out of a checkpoint."""

    def before_instantiate_classes(self) -> None:
        """Choose the run directory, and find out what is missing, before any object is made."""
        config = self.config[self.subcommand]
        preflight.check(config)
        if config.checkpoint_every < 0:
            raise ValueError(f"checkpoint_every must be zero or more, got {config.checkpoint_every}.")
        last = config.ckpt_path == "last"
        if self.subcommand == "fit" or last:
            self.run_dir = run_directory.choose(config.runs, config.name, resume=last)
            config.trainer.default_root_dir = str(self.run_dir)
        if last:
            assert self.run_dir is not None
            config.ckpt_path = str(newest_checkpoint(self.run_dir / "checkpoints"))

    def instantiate_classes(self) -> None:
        """Make model, data and trainer, and check them against each other without loading anything."""
        super().instantiate_classes()
        if self.subcommand == "fit" and self.trainer.max_steps < 1:
            if self.datamodule.dataset.streaming:
                raise ValueError("trainer.max_steps must be set: the length of a stream is not known beforehand.")
            if self.config[self.subcommand].trainer.max_epochs is None:
                raise ValueError("trainer.max_steps or trainer.max_epochs must be set.")
        self.datamodule.check()
        trainable = self.model.check()
        rank_zero_info(f"{type(self.model.adapter).__name__} trains {trainable:,} parameters of {self.model.base}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks and loggers of a run directory to what the configuration names."""
        config = self.config_init[self.subcommand].trainer
        extra: list[Callback] = [Progress()]
        if self.subcommand == "fit":
            assert self.run_dir is not None
            self.checkpoints = Checkpoints(
                self.run_dir / "checkpoints", every=self.config[self.subcommand].checkpoint_every
            )
            summary = Summary(self.run_dir, self.config[self.subcommand].answer_tokens)
            extra += [RunRecord(self.run_dir), AdapterFile(self.run_dir), self.checkpoints, summary]
            if config.logger in (None, True):
                tensorboard = TensorBoardLogger(str(self.run_dir), name="", version="", default_hp_metric=False)
                resume_from = step_of(self.config[self.subcommand].ckpt_path)
                kwargs["logger"] = [tensorboard, MetricsCSV(self.run_dir, resume_from)]
        elif config.logger is None:
            kwargs["logger"] = False
        strategy = config.strategy if isinstance(config.strategy, str) else type(config.strategy).__name__
        if not any(name in strategy.lower() for name in STRATEGIES_WITH_OWN_IO):
            kwargs["plugins"] = [*(config.plugins or []), AtomicCheckpointIO()]
        return super().instantiate_trainer(**kwargs, callbacks=[*extra, *(config.callbacks or [])])

    def predict(self, **kwargs: Any) -> None:
        """Answer the held-out prompts; one JSON line each goes to ``predictions.jsonl`` and to the screen."""
        batches = self.trainer.predict(**kwargs) or []
        path = (self.run_dir or Path()) / "predictions.jsonl"
        with path.open("w") as file:
            for record in (record for batch in batches for record in batch):
                print(json.dumps(record), file=file)
                print(f"--- prompt ---\n{record['prompt']}\n--- answer ---\n{record['answer']}\n")
        print(f"wrote {path}")


def step_of(checkpoint: str | None) -> int | None:
    """The step in a checkpoint's name (``step=N.ckpt``); ``None`` for other names."""
    number = Path(checkpoint or "").stem.partition("=")[2]
    return int(number) if number.isdigit() else None


def main(args: list[str]) -> int:
    """Run the command line; returns the exit status: 128 + N after stopping on signal N, 2 after a user's mistake."""
    _quiet()
    if not args or (args[0] not in SUBCOMMANDS and args[0] not in ("-h", "--help")):
        args = ["fit", *args]
    sys.argv = [sys.argv[0], *args]  # as Lightning starts the processes of other ranks
    try:
        cli = CLI(
            CausalLM,
            ChatData,
            save_config_callback=SaveConfig,
            seed_everything_default=42,
            auto_configure_optimizers=False,
        )
    except (ArgumentError, ValueError, preflight.MissingRequirement) as error:
        return _refuse(error)
    except (BackboneError, CheckpointError, DataError, TemplateError) as error:
        return _refuse(error)
    if cli.checkpoints is not None and cli.checkpoints.stopped_by is not None:
        return 128 + cli.checkpoints.stopped_by
    return 0


def _refuse(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _quiet() -> None:
    """Leave out what a user can do nothing about; warnings of our own go through."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

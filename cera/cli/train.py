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

import torch.distributed as dist
from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cera.callbacks import AdapterFile, Checkpoints, Diverged, Progress, RunRecord, Summary, TaskEvaluation
from cera.cli import preflight
from cera.cli.evaluation_table import evaluation_table
from cera.cli.parser import ConfigurationParser
from cera.cli.suggest import with_suggestion
from cera.data import ChatData, DataError, TemplateError
from cera.evaluation.evaluate import Evaluation, prepare
from cera.evaluation.records import RecordError
from cera.evaluation.tasks import Task
from cera.models.backbone import BackboneError, load_config
from cera.runs import directory as run_directory
from cera.runs.checkpoint_io import AtomicCheckpointIO
from cera.runs.checkpoints import CheckpointError, newest_checkpoint, step_of
from cera.runs.loggers import MetricsCSV
from cera.training.module import CausalLM
from cera.training.precision import base_dtype

SUBCOMMANDS = ("fit", "validate", "test", "predict")
STRATEGIES_WITH_OWN_IO = ("deepspeed", "fsdp")
set_parsing_settings(subclasses_enabled=[Task])  # a dataclass, of which a configuration names a subclass


class UsageError(ValueError):
    """The command line or a configuration file asks for something that cannot be."""


class TrainingParser(ConfigurationParser, LightningArgumentParser):
    """Parser of model, data and trainer; see ``ConfigurationParser``."""


class SaveConfig(SaveConfigCallback):
    """``config.yaml`` in the run directory, as the run was started."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the resolved configuration on the first rank; a resumed run keeps the one that is there."""
        path = Path(trainer.default_root_dir) / "config.yaml"
        if stage == "fit" and trainer.is_global_zero and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(path), skip_unset=False, multifile=False)


class CLI(LightningCLI):
    """LightningCLI with composed files, late interpolation, run directories, and errors before expensive work."""

    run_dir: Path
    resume_from: int | None = None
    checkpoints: Checkpoints | None = None

    # Parsing

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """``omegaconf+`` resolves ``${...}`` after the overrides of the command line are in."""
        self.parser_class = TrainingParser
        return super().init_parser(**kwargs)

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
        parser.add_argument("--evaluation", type=Evaluation | None, help="What `test` asks, beside the perplexity.")
        parser.link_arguments("model.base", "data.tokenizer")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and for a key that does not exist say which do."""
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, ValueError) as error:
            keys = {action.dest for p in self._subcommand_parsers.values() for action in p._actions}
            raise UsageError(with_suggestion(str(error), sorted(keys))) from error

    def _parse_ckpt_path(self) -> None:
        """Nothing: hyperparameters come from the configuration, never out of a checkpoint."""

    # Before any object is made

    def before_instantiate_classes(self) -> None:
        """Choose the run directory, and find out what is missing."""
        config = self.config[self.subcommand]
        preflight.check(config)
        for key in ("checkpoint_every", "answer_tokens"):
            if config[key] < 0:
                raise UsageError(f"{key} must be zero or more, got {config[key]}.")
        resume = config.ckpt_path == "last"
        try:
            self.run_dir = run_directory.choose(config.runs, config.name, resume)
        except ValueError as error:
            raise UsageError(str(error)) from error
        config.trainer.default_root_dir = str(self.run_dir)
        if resume:
            self._resume(config)
        elif config.ckpt_path is not None and not Path(config.ckpt_path).exists():
            raise CheckpointError(f"ckpt_path must be `last` or a checkpoint; there is none at {config.ckpt_path}.")

    def _resume(self, config: Namespace) -> None:
        newest = newest_checkpoint(self.run_dir / "checkpoints")
        config.ckpt_path = str(newest) if newest else None
        self.resume_from = (step_of(newest) if newest else None) or 0
        if newest is None and self.subcommand != "fit":
            raise CheckpointError(f"--ckpt_path last: {self.run_dir} has no checkpoint.")
        if newest is None:  # the same seed gives what the run that died had done
            rank_zero_info(f"{self.run_dir} ended before its first checkpoint: it begins again, in the same place.")

    # Model, data and trainer, checked against each other without loading anything

    def instantiate_classes(self) -> None:
        """Make the three; nothing is loaded or written yet."""
        try:
            super().instantiate_classes()
            self._check_length()
            self.datamodule.check()
            if self.model.adapter_dtype is not None and isinstance(self.trainer.strategy, DeepSpeedStrategy):
                raise ValueError("model.adapter_dtype: DeepSpeed keeps fp32 master weights itself; leave it unset.")
            self._check_compilation()
            self._check_evaluation()
            if self.subcommand == "fit" and self.trainer.max_steps > 0:
                self.model.check_steps(self.trainer.max_steps)
            trainable = self.model.check()
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UsageError(str(error)) from error
        rank_zero_info(f"{type(self.model.adapter).__name__} trains {trainable:,} parameters of {self.model.base}")

    def _check_compilation(self) -> None:
        strategy = self.trainer.strategy
        if self.model.compile_layers and isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3:
            raise ValueError("model.compile_layers: ZeRO-3 gathers each module's weights by hooks; leave it unset.")

    def _check_evaluation(self) -> None:
        evaluation = self.config_init[self.subcommand].evaluation
        if self.subcommand != "test" or evaluation is None:
            return
        if isinstance(self.trainer.strategy, DeepSpeedStrategy) and self.trainer.strategy.zero_stage_3:
            raise ValueError("evaluation: under ZeRO-3 no rank can answer by itself; use `cera evaluate` on the run.")
        evaluation.task.check()
        folder = self.run_dir / "eval" / evaluation.name
        checkpoint = self.config[self.subcommand].ckpt_path
        dtype = str(base_dtype(self.trainer.precision)).removeprefix("torch.")
        about = {"base": self.model.base, "dtype": dtype, "checkpoint": checkpoint}
        asked = prepare(evaluation, self.model.tokenizer, folder, about, load_config(self.model.base))
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks.append(TaskEvaluation(evaluation, asked, folder, about, evaluation_table))

    def _check_length(self) -> None:
        if self.subcommand != "fit" or self.trainer.max_steps > 0:
            return
        if self.trainer.max_steps == 0:
            raise ValueError("trainer.max_steps must be positive, got 0.")
        if self.datamodule.dataset.streaming:
            raise ValueError("trainer.max_steps must be set: the length of a stream is not known beforehand.")
        if (self.config[self.subcommand].trainer.max_epochs or -1) < 1:
            raise ValueError("trainer.max_steps or trainer.max_epochs must be set, to a positive number.")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks and loggers of a run directory to what the configuration names."""
        config = self.config_init[self.subcommand].trainer
        own: list[Callback] = list(config.callbacks or [])
        extra: list[Callback] = [] if config.enable_progress_bar is False else [Progress()]
        if self.subcommand == "fit":
            extra += self._fit_callbacks(config)
            if not any(isinstance(callback, Checkpoint) for callback in own):
                kwargs["enable_checkpointing"] = False  # Lightning's own; ours is among the callbacks
            if config.logger in (None, True):
                tensorboard = TensorBoardLogger(str(self.run_dir), name="", version="", default_hp_metric=False)
                kwargs["logger"] = [tensorboard, MetricsCSV(self.run_dir, self.resume_from)]
        elif config.logger is None:
            kwargs["logger"] = False
        strategy = config.strategy if isinstance(config.strategy, str) else type(config.strategy).__name__
        if not any(name in strategy.lower() for name in STRATEGIES_WITH_OWN_IO):
            kwargs["plugins"] = [*(config.plugins or []), AtomicCheckpointIO()]
        return super().instantiate_trainer(**kwargs, callbacks=[*extra, *own])

    def _fit_callbacks(self, config: Any) -> list[Callback]:
        settings = self.config[self.subcommand]
        found: list[Callback] = [RunRecord(self.run_dir), AdapterFile(self.run_dir)]
        if config.enable_checkpointing is not False:
            self.checkpoints = Checkpoints(self.run_dir / "checkpoints", settings.checkpoint_every)
            found.append(self.checkpoints)
        return [*found, Summary(self.run_dir, settings.answer_tokens)]  # last, when everything is saved

    # Running

    def after_fit(self) -> None:
        """Say so if a resumed run had ended already."""
        if self.checkpoints is not None and not self.checkpoints.started:
            rank_zero_info(f"Nothing left to do: {self.run_dir} stands at step {self.trainer.global_step}.")

    def predict(self, **kwargs: Any) -> None:
        """Answer the held-out prompts; one JSON line each goes to ``predictions.jsonl`` and to the screen."""
        batches = self.trainer.predict(**kwargs) or []
        records = [record for batch in batches for record in batch]
        if self.trainer.world_size > 1:
            shares: list[Any] = [None] * self.trainer.world_size
            dist.all_gather_object(shares, records)
            records = [record for share in shares for record in share]
        if not self.trainer.is_global_zero:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        path = self.run_dir / "predictions.jsonl"
        with path.open("w") as file:
            for record in records:
                print(json.dumps(record), file=file)
                print(f"--- prompt ---\n{record['prompt']}\n--- answer ---\n{record['answer']}\n")
        print(f"wrote {len(records)} answers to {path}")


def main(arguments: list[str]) -> int:
    """Run the command line.

    Returns:
        The exit status: 0 at the end, 2 after a user's mistake, 3 after ``DivergenceGuard`` stopped the run,
        128 + N after signal N did. The latter two are the first process's: those it started end with 0, for Lightning
        kills the first one when another ends with anything else.
    """
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    if not arguments or (arguments[0] not in SUBCOMMANDS and arguments[0] not in ("-h", "--help")):
        arguments = ["fit", *arguments]
    given_directory = os.environ.get(run_directory.RUN_DIR)
    try:
        cli = CLI(
            CausalLM,
            ChatData,
            save_config_callback=SaveConfig,
            seed_everything_default=42,
            auto_configure_optimizers=False,
            args=arguments,
        )
    except (
        UsageError,
        BackboneError,
        CheckpointError,
        DataError,
        RecordError,
        TemplateError,
        preflight.MissingRequirement,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        if getattr(rank_zero_only, "rank", 0) != 0:
            return 0
        print(f"error: {error}", file=sys.stderr)
        return 3
    finally:
        if given_directory is None:
            os.environ.pop(run_directory.RUN_DIR, None)
    if cli.checkpoints is not None and cli.checkpoints.stopped_by is not None and cli.trainer.is_global_zero:
        return 128 + cli.checkpoints.stopped_by
    return 0

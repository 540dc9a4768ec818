"""The configuration, objects and subcommands of ``cera train``, on top of Lightning's ``LightningCLI``."""

import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cera.callbacks import Checkpoints, TaskEvaluation
from cera.cli import preflight
from cera.cli.chosen_run import ChosenRun, choose_run
from cera.cli.consistency import check_consistency
from cera.cli.errors import UsageError
from cera.cli.evaluation_table import evaluation_table
from cera.cli.measured_table import measured_table
from cera.cli.parser import ConfigurationParser
from cera.cli.predictions import check_predictions, save_predictions
from cera.cli.same_run import check_rows_of_a_step
from cera.cli.trainer_arguments import check_seed, check_trainer_arguments, text_of_enumerations
from cera.cli.trainer_settings import SaveConfig, place_loggers, trainer_settings
from cera.cli.training_help import HelpAll, ShortHelp, describe, ordered_groups
from cera.data import ChatData
from cera.evaluation.evaluate import Evaluation, prepare
from cera.evaluation.tasks import Task
from cera.models.backbone import load_config, load_tokenizer
from cera.runs.directory import outside_launcher
from cera.runs.reused import copy_run, finished_alike
from cera.runs.signals import Stopped
from cera.training.module import CausalLM
from cera.training.precision import base_dtype
from cera.training.together import Companion

set_parsing_settings(subclasses_enabled=[Task])  # a dataclass, of which a configuration names a subclass


class Reused(Exception):
    """A fit has ended before it began: a run with the same settings was copied."""


class TrainingParser(ConfigurationParser, LightningArgumentParser):
    """Parser of model, data and trainer; see ``ConfigurationParser`` and ``cera.cli.training_help``."""

    def format_help(self, formatter: Any = None, everything: bool = False) -> str:
        """Return the help, without Lightning's options unless ``everything`` is asked for."""
        groups, formatter_class = self._action_groups, self.formatter_class
        if self.groups and "trainer" in self.groups:
            self._action_groups = ordered_groups(self, everything)
            self.formatter_class = formatter_class if everything else ShortHelp
        try:
            return super().format_help() if formatter is None else super().format_help(formatter)
        finally:
            self._action_groups, self.formatter_class = groups, formatter_class


class TrainingCLI(LightningCLI):
    """LightningCLI with composed files and run directories, which reports mistakes before it loads anything.

    Args:
        arguments: The command line, beginning with ``fit``, ``validate``, ``test`` or ``predict``.
        companion: Of a run that is trained together with others; else ``None``.

    Raises:
        UsageError: The command line or a configuration file is wrong; the message names the key.
        MissingRequirement: This machine lacks something that the run needs.
        CheckpointError: The checkpoint to start from does not exist or does not fit.
        Reused: A run with the same settings was copied in place of a fit with ``--reuse``.
    """

    run: ChosenRun
    checkpoints: Checkpoints | None = None

    def __init__(self, arguments: list[str], companion: Companion | None = None) -> None:
        self.companion = companion
        self._wanted = arguments[0]
        with ExitStack() as self._at_the_end:
            super().__init__(  # which runs the subcommand
                CausalLM,
                ChatData,
                save_config_callback=SaveConfig,
                seed_everything_default=42,
                parser_class=TrainingParser,
                auto_configure_optimizers=False,
                args=arguments,
            )

    # Parsing

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run that belong neither to model, data nor trainer."""
        parser.add_argument("--name", type=str, default="run", help="Name of the run.")
        parser.add_argument("--runs", type=str, default="runs", help="Directory of all runs.")
        parser.add_argument(
            "--checkpoint_every", type=int, default=100, help="Steps between checkpoints; 0 saves at the end only."
        )
        parser.add_argument(
            "--answer_tokens", type=int, default=160, help="Length of the answers shown after a fit; 0 shows none."
        )
        parser.add_argument(
            "--evaluation", type=Evaluation | None, help="Task that `test` evaluates, beside the perplexity."
        )
        parser.add_argument(
            "--reuse", type=str | None, help="Directory of runs, of which a finished one with these settings is copied."
        )
        parser.add_argument("--help-all", action=HelpAll, help="Show Lightning's options, too, and exit.")
        parser.link_arguments("model.base", "data.tokenizer")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        if subcommand != self._wanted:  # its options, which are never asked for, take as long to collect as these
            return self.init_parser(**kwargs)
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        describe(parser, subcommand)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line, and check what needs no object."""
        self.config = parser.parse_args(args)
        config = self.config[self.config.subcommand]
        for group in ("model", "data", "trainer"):
            if not isinstance(config[group], Namespace):  # as a file may give a list
                raise UsageError(f"{group} must be a mapping of settings, got {config[group]!r}.")
        text_of_enumerations(config.trainer)
        check_seed(config.seed_everything)
        check_trainer_arguments(config.trainer, self.config.subcommand, config.name)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: hyperparameters come from the configuration, not from a checkpoint."""

    # Before any object is made

    def before_instantiate_classes(self) -> None:
        """Check what the run needs of this machine, and choose its directory."""
        config = self.config[self.subcommand]
        if self.subcommand != "fit":
            config.trainer.logger = False  # a run's loggers are for its training
        preflight.check(config)
        for key in ("checkpoint_every", "answer_tokens"):
            if config[key] < 0:
                raise UsageError(f"{key} must be zero or more, got {config[key]}.")
        earlier_directory = config.trainer.default_root_dir
        try:
            settings = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_unset=False))
        except ValueError as error:  # such as a class whose default is no text, number or truth value
            raise UsageError(f"the configuration cannot be written to config.yaml: {error}") from error
        self.run = choose_run(config, str(self.subcommand), settings)
        self._at_the_end.callback(self.run.release)
        if self.subcommand == "predict":
            check_predictions(self.run.directory)
        if self.subcommand == "fit" and config.reuse is not None and self.run.earlier is None:
            self._reuse(Path(config.reuse), settings)
        place_loggers(config.trainer.logger, earlier_directory, self.run.directory)

    def _reuse(self, runs: Path, settings: dict[str, Any]) -> None:
        """End with ``Reused`` if a run has computed what this one would, and has been copied."""
        if self.run.lock is None or outside_launcher()[1] > 1:
            raise UsageError("--reuse is for runs that one process starts, as those of a study are: remove it.")
        if (earlier := finished_alike(runs, settings)) is not None:
            copy_run(earlier, self.run.directory, settings)
            raise Reused(f"fit has copied {earlier.path}, whose settings are the same, to {self.run.directory}.")

    # Objects

    def instantiate_classes(self) -> None:
        """Create model, data and trainer, and check them; no weights or data are loaded, nothing is written."""
        try:
            super().instantiate_classes()
            self.model.companion = self.companion
            config = self.config_init[self.subcommand]
            check_consistency(
                str(self.subcommand),
                self.model,
                self.datamodule,
                self.trainer,
                config.trainer.max_epochs,
                config.evaluation,
            )
            if self.subcommand == "fit" and self.run.earlier is not None:
                check_rows_of_a_step(self.run.earlier, self.datamodule.batch_size, self.trainer)
            if self.subcommand == "test" and config.evaluation is not None:
                self._add_evaluation(config.evaluation)
            trainable = self.model.check()
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UsageError(str(error)) from error
        rank_zero_info(f"{type(self.model.adapter).__name__} trains {trainable:,} parameters of {self.model.base}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the trainer with the callbacks and loggers of the run directory beside the configured ones."""
        config = self.config_init[self.subcommand]
        settings, self.checkpoints = trainer_settings(config, str(self.subcommand), self.run)
        trainer = super().instantiate_trainer(**kwargs, **settings)
        # Lightning's handler of SIGTERM would set a flag, and wait for other ranks that got no signal
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        return trainer

    def _add_evaluation(self, evaluation: Evaluation) -> None:
        evaluation.task.check()
        folder = self.run.directory / "eval" / evaluation.name
        model = {
            "base": self.model.base,
            "dtype": str(base_dtype(self.trainer.precision)).removeprefix("torch."),
            "checkpoint": self.config[self.subcommand].ckpt_path,
        }
        tokenizer = self.datamodule.with_template(load_tokenizer(self.model.base))
        prepared = prepare(evaluation, tokenizer, folder, model, load_config(self.model.base))
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks.append(TaskEvaluation(evaluation, prepared, folder, model, evaluation_table))

    # Running

    def _run_subcommand(self, subcommand: str) -> None:
        """Run; end the processes that the launcher has started if a signal stops this one."""
        self.model.resumes = subcommand == "fit" and self.config_init["fit"].ckpt_path is not None
        try:
            super()._run_subcommand(subcommand)
        except Stopped:
            launcher = self.trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(signal.SIGKILL)
            raise

    def after_fit(self) -> None:
        """Report a resumed run that had ended already."""
        if self.checkpoints is not None and not self.checkpoints.started:
            rank_zero_info(f"Nothing left to do: {self.run.directory} stands at step {self.trainer.global_step}.")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the arguments of the trainer's methods that are not options; results are printed as a table."""
        return {name: {*skipped, "verbose"} for name, skipped in LightningCLI.subcommands().items()}

    def validate(self, **kwargs: Any) -> None:
        """Measure perplexity and spectra on the held-out rows."""
        self._print_measured(self.trainer.validate(verbose=False, **kwargs))

    def test(self, **kwargs: Any) -> None:
        """Measure the perplexity on the held-out rows; a callback evaluates the task."""
        self._print_measured(self.trainer.test(verbose=False, **kwargs))

    def _print_measured(self, results: Sequence[Mapping[str, float]]) -> None:
        if self.trainer.is_global_zero:
            print(f"\n{measured_table(results[0])}\n")
            if any(name.startswith("spectra") for name in results[0]):
                print(f"`cera spectra {self.run.directory} --csv FILE` writes what the run recorded of each layer.\n")

    def predict(self, **kwargs: Any) -> None:
        """Answer the held-out prompts; each answer is a line of ``predictions.jsonl``."""
        save_predictions(self.trainer, self.trainer.predict(**kwargs) or [], self.run.directory)

"""Reads an ``evaluation`` from a configuration file, for commands other than ``cera evaluate``."""

from pathlib import Path

from jsonargparse import set_parsing_settings

from cera.cli.errors import UsageError
from cera.cli.parser import ConfigurationParser
from cera.evaluation.evaluate import Evaluation
from cera.evaluation.tasks import Task


def read_evaluation(path: Path, option: str) -> Evaluation:
    """Return the evaluation of a file such as ``configs/eval_smol.yaml`` or ``cera://eval_smol``, checked.

    Args:
        path: The file.
        option: Name of the option that names it, for error messages.

    Raises:
        UsageError: The file cannot be used.
        DataError: The task's settings or files are wrong.
    """
    set_parsing_settings(subclasses_enabled=[Task])
    parser = ConfigurationParser(prog=f"--{option}")
    parser.add_config_option("Configuration with an `evaluation`.")
    parser.add_class_arguments(Evaluation, "evaluation")
    try:
        evaluation = parser.instantiate(parser.parse_args(["--config", str(path)])).evaluation
    except TypeError as error:  # a class takes arguments of another kind
        raise UsageError(f"--{option}: {path} cannot be used: {error}") from error
    evaluation.task.check()
    return evaluation

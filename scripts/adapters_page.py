"""Generates docs/adapters.md: formula, size and mergeability of every adapter in ``configs/adapters``.

    python scripts/adapters_page.py > docs/adapters.md

Sizes and mergeability are taken from the code, by applying each configuration to a model. The tests compare the sizes
with the formulas.
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

import cera.adapters  # noqa: F401  # registers CeRA and its variants as PEFT methods
from cera.adapters.budget import trainable_parameters
from cera.cli.compose import compose
from cera.runs.finished import adapter_rank

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "configs" / "adapters"
SMOL = LlamaConfig(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=49152, tie_word_embeddings=True,
)  # fmt: skip
"""Shapes of SmolLM2-135M."""

LLAMA = LlamaConfig(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=128256,
)  # fmt: skip
"""Shapes of Llama-3-8B."""


@dataclass(frozen=True)
class Shapes:
    """The widths that the size of an adapter on a Llama depends on.

    Attributes:
        d: Width of the hidden states, of the queries, and of the inputs of both projections.
        v: Width of the values.
        layers: Number of layers.
    """

    d: int
    v: int
    layers: int

    @classmethod
    def from_config(cls, config: LlamaConfig) -> "Shapes":
        """Return the shapes of a model."""
        heads = config.num_key_value_heads or config.num_attention_heads
        return cls(
            config.hidden_size, config.hidden_size // config.num_attention_heads * heads, config.num_hidden_layers
        )


@dataclass(frozen=True)
class Method:
    """How the page describes a kind of adapter.

    Attributes:
        formula: Output of the adapted layer.
        size: Number of parameters per decoder layer, as text.
        count: Number of parameters per decoder layer, as a function of the shapes and r.
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
    "cera_aligned": _weight_level("W0 x + alpha/r W_down act(W_up D(x))", "the authors' code"),
    "cera_learned_mix": Method(
        "W0 x + alpha/r W_down (z + gamma (silu(z) - z)), z = W_up D(x)",
        "r (3d + v) + 2",
        lambda s, r: r * (3 * s.d + s.v) + 2,
        "the authors' code",
    ),
    "cera_recurrent": Method(
        "W0 x + alpha/r W_down h, h = W_up D(x), then h += U silu(V rms(h)) / n, n times",
        "r (3d + v) + 4 r^2",
        lambda s, r: r * (3 * s.d + s.v) + 4 * r * r,
        "the authors' code",
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
    "full_weight": Method("(W0 + Delta) x", "d (d + v)", lambda s, r: s.d * (s.d + s.v), "full fine-tuning"),
    "parallel": Method("ffn(x) + s W_down relu(W_up x)", "2 r d", lambda s, r: 2 * r * s.d, "He et al. 2021"),
}
"""Descriptions by configuration file; a file not listed here has that of its ``FAMILY``."""

FAMILY = {"qlora": "lora", "qcera": "cera", **{f"cera_{name}": "cera" for name in ("relu", "gelu", "tanh", "identity")}}
FAMILY |= {f"cera_{name}": "cera" for name in ("no_dropout", "authors", "calibrated", "sine")}


def names() -> list[str]:
    """Return the names of all configurations, CeRA first."""
    return sorted((path.stem for path in FOLDER.glob("*.yaml")), key=lambda name: (not name.startswith("cera"), name))


def method(name: str) -> Method:
    """Return the description of a configuration's adapter."""
    return METHODS[FAMILY.get(name, name)]


def load(name: str, **settings: Any) -> PeftConfig:
    """Return the adapter of ``configs/adapters/NAME.yaml``.

    Args:
        name: Name of the file, without its ending.
        settings: Settings that override those of the file; settings unknown to the method are ignored.
    """
    adapter = compose(str(FOLDER / f"{name}.yaml"))["model"]["adapter"]
    module, _, kind = adapter["class_path"].rpartition(".")
    cls = getattr(importlib.import_module(module), kind)
    arguments = dict(adapter["init_args"])
    if "total_step" in arguments:  # interpolated from the run's number of steps in the file
        arguments["total_step"] = 100
    return cls(**{**arguments, **{k: v for k, v in settings.items() if k in cls.__dataclass_fields__}})


def width(config: PeftConfig) -> int:
    """Return the adapter's r; for AdaLoRA, its initial r."""
    return adapter_rank(vars(config)) or 0


def merges(config: PeftConfig) -> bool:
    """Return whether the adapter can be merged into the base, by trying it on a small model."""
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


def page() -> str:
    """Return the page, in Markdown."""
    lines = [
        "# Adapters",
        "",
        "Generated by `python scripts/adapters_page.py`. `d` is the width of the hidden states, `v` that of the",
        "values, and `D` is dropout. Sizes are given as a formula per decoder layer, and for the whole model at the",
        "configured r.",
        "To use one: `python train.py --config configs/parts/smol.yaml --config configs/adapters/NAME.yaml`.",
        "[CeRA's variants](variants.md) explains the settings in which the CeRAs differ.",
        "",
        "| configuration | adapted layer | parameters per layer | r | SmolLM2-135M | Llama-3-8B | merges | source |",
        "| --- | --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for name in names():
        config, description = load(name), method(name)
        sizes = " | ".join(f"{trainable_parameters(config, model):,}" for model in (SMOL, LLAMA))
        merged = "yes" if merges(load(name, r=4, init_r=4, target_r=2)) else "no"
        cells = [
            f"`{name}`",
            f"`{description.formula}`",
            f"`{description.size}`",
            str(width(config) or ""),
            sizes,
            merged,
            description.source,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    print(page(), end="")

"""Names of adapted layers: without PEFT's wrapping, and as (layer number, module) for tags, tables and figures.

>>> by_module(["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"])
{'q_proj': {0: 'model.layers.0.self_attn.q_proj', 1: 'model.layers.1.self_attn.q_proj'}}
"""

from collections.abc import Iterable


def base_name(name: str) -> str:
    """Return the name that a module of a PEFT model has in the base model."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def layer_labels(names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Return layer number and module of each name: (7, ``q_proj``) for ``model.layers.7.self_attn.q_proj``.

    The module is the last part of the name if that distinguishes all names, otherwise all parts after the number.
    A name without a number gets layer 0.
    """
    full = {name: _split_at_number(name) for name in names}
    short = {name: (number, module.rpartition(".")[2]) for name, (number, module) in full.items()}
    return short if len(set(short.values())) == len(short) else full


def by_module(names: Iterable[str]) -> dict[str, dict[int, str]]:
    """Group names by module, then by ascending layer number (see ``layer_labels``)."""
    modules: dict[str, dict[int, str]] = {}
    for name, (number, module) in layer_labels(names).items():
        modules.setdefault(module, {})[number] = name
    return {module: dict(sorted(numbered.items())) for module, numbered in modules.items()}


def _split_at_number(name: str) -> tuple[int, str]:
    words = name.split(".")
    position = next((i for i, word in enumerate(words) if word.isdigit()), None)
    return (0, name) if position is None else (int(words[position]), ".".join(words[position + 1 :]))

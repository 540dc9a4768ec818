"""YAML whose numbers remember how they were written, so that a file means what the same text means as an argument.

YAML 1.1 reads the name ``007`` as 7, ``on`` as true and ``1:30`` as 90, before anything knows that a name is text; a
command line does not. Plain scalars are therefore kept as ``Scalar``, with value and text, and the parser of an option
is given the text.

Example:
    >>> tree = yaml.load("name: 007", Loader)
    >>> typed_values(tree), argument_values(tree)
    ({'name': 7}, {'name': '007'})
"""

import re
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class Scalar:
    """A plain YAML scalar that is not text.

    Attributes:
        value: What YAML reads: a number, a truth value or ``None``.
        text: What is written.
    """

    value: Any
    text: str


class Loader(yaml.SafeLoader):
    """Loads numbers, truth values and nulls as ``Scalar``; dates are text, and ``1e-4`` is a number."""


def _construct(loader: Any, node: yaml.ScalarNode) -> Scalar:
    kind = node.tag.rpartition(":")[2]
    return Scalar(getattr(yaml.SafeLoader, f"construct_yaml_{kind}")(loader, node), node.value)


for _kind in ("int", "float", "bool", "null"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _construct)
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 wants a point in a number with an exponent
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?\d[\d_]*[eE][-+]?\d+$|[-+]?\d[\d_]*\.[\d_]*[eE]\d+$"),
    list("-+0123456789"),
)


class Dumper(yaml.SafeDumper):
    """Writes text in quotes, so that no other loader takes it for a number."""


Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def typed_values(tree: Any) -> Any:
    """Return ``tree`` with the values that YAML reads."""
    if isinstance(tree, Scalar):
        return tree.value
    if isinstance(tree, dict):
        return {typed_values(key): typed_values(value) for key, value in tree.items()}
    return [typed_values(item) for item in tree] if isinstance(tree, list) else tree


def argument_values(configuration: dict[Any, Any]) -> dict[Any, Any]:
    """Return a configuration with the text of each scalar that is the value of an option, and other values typed.

    Options are the keys of the configuration and of its groups, and the arguments of classes. What a mapping or a list
    holds that is itself the value of an option, such as ``rank_pattern``, is read by YAML.
    """
    return {
        typed_values(key): _options(value) if _is_group(value) else _option(value)
        for key, value in configuration.items()
    }


def _is_group(value: Any) -> bool:
    return isinstance(value, dict) and not _is_class(value)


def _is_class(value: Any) -> bool:
    return isinstance(value, dict) and ("class_path" in value or "init_args" in value)


def _options(group: Any) -> Any:
    """Return the values of the options in a group, or in a class's ``init_args``."""
    if not isinstance(group, dict):
        return typed_values(group)
    return {typed_values(key): _option(value) for key, value in group.items()}


def _option(value: Any) -> Any:
    """Return the value of one option."""
    if isinstance(value, Scalar):
        return value.text
    if isinstance(value, list):
        return [_option(item) if _is_class(item) else typed_values(item) for item in value]
    if _is_class(value):
        return {
            typed_values(key): _options(part) if key == "init_args" else typed_values(part)
            for key, part in value.items()
        }
    return typed_values(value)

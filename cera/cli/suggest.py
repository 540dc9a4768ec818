"""Suggestions for unknown keys in a parser's error message."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable

from cera.adapters import BranchConfig
from cera.adapters.register import COUNTERPARTS


def with_suggestion(message: str, known: Iterable[str]) -> str:
    """Return an error message with the keys that are similar to an unknown key it names, or all keys beside that key.

    Args:
        message: Error message of jsonargparse.
        known: Keys of the command line, such as ``model.learning_rate``.

    Returns:
        The message as it is if it is not about an unknown key.
    """
    in_class = re.search(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message)
    if in_class:
        config = import_class(in_class[1])
        fields = list(inspect.signature(config).parameters)
        if issubclass(config, BranchConfig) and in_class[2] in COUNTERPARTS:
            return f"{message}. Use {COUNTERPARTS[in_class[2]]}."
        return f"{message}. {_hint(in_class[2], fields)}It takes {', '.join(fields)}."
    unknown = re.search(r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'", message)
    if unknown:
        return f"{message}. {_hint(unknown[1] or unknown[2], known)}All keys: --print_config."
    return message


def _hint(key: str, known: Iterable[str]) -> str:
    known = list(known)
    group = ".".join(key.split(".")[:2])  # in model.adaptor.init_args.r, adaptor is misspelled
    similar = difflib.get_close_matches(key, known, cutoff=0.75) or difflib.get_close_matches(group, known, cutoff=0.75)
    siblings = [k for k in known if "." in key and k.rpartition(".")[0] == key.rpartition(".")[0]]
    if similar:
        return f"Did you mean {' or '.join(similar)}? "
    return f"There are {', '.join(siblings)}. " if siblings else ""


def import_class(path: str) -> type:
    """Import a class by its dotted path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)

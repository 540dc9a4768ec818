"""Adds to a parser's complaint about a key what the key could have been."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable


def with_suggestion(message: str, known: Iterable[str]) -> str:
    """``message`` and, if it names a key that does not exist, the nearest keys that do, or all of the class's.

    Args:
        message: jsonargparse's error.
        known: The keys of the command line, such as ``model.learning_rate``.
    """
    in_class = re.search(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message)
    if in_class:
        fields = list(inspect.signature(_load(in_class[1])).parameters)
        return f"{message}. {_nearest(in_class[2], fields)}It takes {', '.join(fields)}."
    unknown = re.search(r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'", message)
    if unknown:
        return f"{message}. {_nearest(unknown[1] or unknown[2], known)}All keys: --print_config."
    return message


def _nearest(key: str, known: Iterable[str]) -> str:
    known = list(known)
    group = ".".join(key.split(".")[:2])  # in model.adaptor.init_args.r it is the adaptor that is wrong
    near = difflib.get_close_matches(key, known, cutoff=0.75) or difflib.get_close_matches(group, known, cutoff=0.75)
    siblings = [k for k in known if "." in key and k.rpartition(".")[0] == key.rpartition(".")[0]]
    if near:
        return f"Did you mean {' or '.join(near)}? "
    return f"There are {', '.join(siblings)}. " if siblings else ""


def _load(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)

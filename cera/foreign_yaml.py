"""Loads YAML that others wrote in bounded time: not too long, not too deep, and with aliases that do not multiply.

Example:
    >>> load_yaml("a: &x [1, 2]\\nb: *x")
    {'a': [1, 2], 'b': [1, 2]}
"""

from typing import Any

import yaml

LONGEST = 2**19
"""Maximum number of characters. PyYAML reads about 50,000 in a second."""

MOST_NODES = 100_000
"""Maximum number of keys and values, where those behind an alias count each time that it is used."""


def load_yaml(text: str, loader: Any = yaml.SafeLoader) -> Any:
    """Return what ``text`` holds.

    Args:
        text: One YAML document.
        loader: A loader class of PyYAML that builds plain objects.

    Raises:
        yaml.YAMLError: The text is not YAML.
        ValueError: It goes beyond a limit.
    """
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text)} characters, and {LONGEST} are the limit")
    reader = loader(text)
    try:
        node = reader.get_single_node()
        if node is None:
            return None
        count = _count(node, {})
        if count > MOST_NODES:
            raise ValueError(f"its aliases stand for {count} keys and values, and {MOST_NODES} are the limit")
        return reader.construct_document(node)
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # PyYAML raises these for `!!int ""`
        raise ValueError("it has a value that is not of the type of its tag") from error
    except RecursionError as error:
        raise ValueError("its lists and mappings are nested too deeply") from error
    finally:
        reader.dispose()


def _count(node: yaml.Node, counts: dict[int, int | None]) -> int:
    """Return the number of keys and values of ``node`` with each alias written out.

    Args:
        node: A node of the document.
        counts: The result for nodes that were counted before; ``None`` while a node is being counted.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in counts:
        counts[id(node)] = None
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        counts[id(node)] = 1 + sum(_count(part, counts) for part in parts)
    count = counts[id(node)]
    if count is None:
        raise ValueError("an alias refers to the list or mapping that it stands in")
    return count

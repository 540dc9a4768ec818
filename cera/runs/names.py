"""Names that become directories: of runs and of evaluations."""

import re

LONGEST = 200
"""Maximum number of bytes. File systems allow 255, and what is added to a name, such as ``@2``, needs some."""


def check_name(name: str, option: str) -> None:
    """Raise ``ValueError`` if ``name`` cannot be the name of a directory: a path, hidden, too long or empty.

    Args:
        name: The name that a user gave.
        option: What the message calls it, such as ``--name``.
    """
    if not re.fullmatch(r"\w[\w.=+-]*", name):
        raise ValueError(
            f"{option} must be of letters, digits and . _ = + -, and begin with a letter, a digit or _, "
            f"got {name[:LONGEST]!r}."
        )
    if len(name.encode()) > LONGEST:
        raise ValueError(f"{option} must have at most {LONGEST} bytes, got {len(name.encode())}: {name[:40]!r}...")

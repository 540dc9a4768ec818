"""Errors of the command line, each of which is shown in one line."""

LONGEST = 1000
"""Maximum number of characters of an error that are shown; another library's may repeat a whole configuration."""


class UsageError(ValueError):
    """The command line or a configuration file asks for something impossible."""


def error_line(error: object) -> str:
    """Return an error as all commands show it: on one line, of a bounded length."""
    text = " ".join(str(error).split())
    return f"error: {text if len(text) <= LONGEST else text[:LONGEST] + '...'}"

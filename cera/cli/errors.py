"""Errors of the command line."""


class UsageError(ValueError):
    """The command line or a configuration file asks for something impossible."""

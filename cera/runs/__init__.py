"""A run directory: whole files, checkpoints, loggers, and reading a finished run."""

"""The command line: the script ``cera`` and its parser, composition of configurations, checks and tables."""

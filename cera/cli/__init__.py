"""The command line: what `train.py` and `cera` do before and around a run."""

"""Benchmarks of speed and memory against PEFT, TRL and transformers' Trainer: ``python -m benchmarks NAME [--quick]``.

Each module is one benchmark with a ``run(quick) -> Result``, whose docstring states its goal and its floor; ``harness``
has the parts that they share. Absolute numbers depend on the machine and its load. Contenders therefore take turns, and
the ratios within each round are reported, as the median over the rounds with minimum and maximum. Quote the ratios.
"""

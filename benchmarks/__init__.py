"""Measurements of speed and memory, side by side: ``python -m benchmarks NAME [--quick]``. Quote the ratios.

One module a benchmark, each with a ``run(quick) -> Result`` that states its goal and its floor; ``harness`` has what
they share. Machines differ and are busy with other things: contenders take turns, and only what they need relative to
each other within a round is reported, as the median over the rounds and the range.
"""

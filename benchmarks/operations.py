"""Where time goes, by kind of operation."""

from collections import Counter

from torch.profiler import profile

COMPILED = "compiled code"


def seconds_by_operation(profiled: profile, calls: int) -> dict[str, float]:
    """Seconds of a call in each kind of operation, those within it left out.

    Args:
        profiled: A profile that has ended.
        calls: How many it saw.

    Returns:
        By the operation's name: ``aten::mm`` and the like, ``COMPILED`` for what ``torch.compile`` has fused, and
        whatever else was noted.
    """
    spent: Counter[str] = Counter()
    for event in profiled.key_averages():
        name = COMPILED if event.key.startswith("## Call CompiledFxGraph") else event.key
        spent[name] += event.self_cpu_time_total / calls / 1e6
    return dict(spent)

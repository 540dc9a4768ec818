"""Time by kind of operation, from torch's profiler."""

from collections import Counter

from torch.profiler import profile

COMPILED = "compiled code"


def seconds_by_operation(profiled: profile, calls: int) -> dict[str, float]:
    """Return the seconds per call that each kind of operation takes, without those of nested operations.

    Args:
        profiled: A finished profile.
        calls: Number of calls that it covers.

    Returns:
        Seconds by the operation's name: ``aten::mm`` and the like, ``COMPILED`` for code fused by ``torch.compile``,
        and other recorded events.
    """
    spent: Counter[str] = Counter()
    for event in profiled.key_averages():
        name = COMPILED if event.key.startswith("## Call CompiledFxGraph") else event.key
        spent[name] += event.self_cpu_time_total / calls / 1e6
    return dict(spent)

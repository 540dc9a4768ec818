"""The memory of this process, as runs and benchmarks report it. Imports nothing but the standard library."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STATUS = Path("/proc/self/status")


def peak_bytes(gpu: "torch.device | None" = None) -> int:
    """Return the most memory that this process has needed so far: resident, or allocated by torch on a GPU.

    ``ru_maxrss`` is used only where there is no ``/proc``: on Linux it starts at the size of the parent process.

    Args:
        gpu: The GPU, as torch names it; ``None`` for the resident memory.
    """
    if gpu is not None:
        import torch

        return torch.cuda.max_memory_allocated(gpu)
    if STATUS.exists():
        return _status("VmHWM")
    import resource  # not available on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Return the resident memory of this process.

    Raises:
        OSError: The system is not Linux.
    """
    return _status("VmRSS")


def reset_peak() -> None:
    """Let the peak of the resident memory begin anew (see ``man 5 proc_pid_clear_refs``).

    Raises:
        OSError: The system is not Linux.
    """
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    (kib,) = re.findall(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    return int(kib) * 1024

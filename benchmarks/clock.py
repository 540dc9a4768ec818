"""The clock that is the same for all training contenders. Imports no framework: start-up is measured, too."""

import json
import time
from pathlib import Path

from benchmarks.process import memory, process_age


class StepClock:
    """Notes when each training step begins and ends, and what it trains on.

    Attributes:
        steps: ``begin`` and ``end`` in seconds since the process was started, ``tokens`` without padding, ``positions``
            with it.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._offset = process_age() - time.perf_counter()

    def _now(self) -> float:
        return self._offset + time.perf_counter()

    def begin(self, tokens: int, positions: int) -> None:
        """A step has its batch and begins."""
        self.steps.append({"begin": self._now(), "tokens": tokens, "positions": positions})

    def end(self) -> None:
        """The optimizer has made the step."""
        self.steps[-1]["end"] = self._now()

    def save(self, path: str | Path) -> None:
        """Write the steps and the peak of memory so far, as JSON."""
        Path(path).write_text(json.dumps({"steps": self.steps, "peak_bytes": memory("VmHWM")}))

"""The clock of all training contenders. It imports no framework, since start-up is measured, too."""

import json
import sys
import time
from pathlib import Path

from benchmarks.process import peak_bytes, process_age


class StepClock:
    """Records begin, end and size of each training step.

    Attributes:
        steps: ``begin`` and ``end`` in seconds since the start of the process; ``tokens`` without padding, and
            ``positions`` with padding; ``flops`` that the model requires, where they are counted.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._offset = process_age() - time.perf_counter()

    def _now(self) -> float:
        return self._offset + time.perf_counter()

    def begin(self, tokens: int, positions: int, flops: float | None = None) -> None:
        """Record that a step begins, with its batch loaded."""
        counted = {} if flops is None else {"flops": flops}
        self.steps.append({"begin": self._now(), "tokens": tokens, "positions": positions, **counted})

    def end(self) -> None:
        """Record that the optimizer step is done, on a GPU, too."""
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.steps[-1]["end"] = self._now()

    def save(self, path: str | Path) -> None:
        """Write the steps and the peak memory so far, as JSON."""
        Path(path).write_text(json.dumps({"steps": self.steps, "peak_bytes": peak_bytes()}))

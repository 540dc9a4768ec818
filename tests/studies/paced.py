"""A callback that slows a tiny run down, for tests that do something in the middle of it."""

import time
from typing import Any

from lightning import Callback


class Paced(Callback):
    """Waits after each step."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *arguments: Any, **named: Any) -> None:
        time.sleep(self.seconds)

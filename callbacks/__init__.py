"""Lightning callbacks: what a run records, shows and saves. The measures themselves are in ``cera``.

Example:
    >>> trainer = Trainer(callbacks=[SpectralTracker(batches=2), Dashboard()])
"""

from cera.extras import require

require("cera.callbacks", "train")

from cera.callbacks.adapter_file import AdapterFile
from cera.callbacks.best_adapter import BestAdapter
from cera.callbacks.checkpoints import Checkpoints
from cera.callbacks.dashboard import Dashboard
from cera.callbacks.divergence_guard import Diverged, DivergenceGuard
from cera.callbacks.forgetting import Forgetting
from cera.callbacks.generation_samples import GenerationSamples
from cera.callbacks.lr_robustness import LRRobustness
from cera.callbacks.measured_file import MeasuredFile
from cera.callbacks.progress import Progress
from cera.callbacks.run_record import RunRecord
from cera.callbacks.spectral_tracker import SpectralTracker
from cera.callbacks.summary import Summary
from cera.callbacks.task_evaluation import TaskEvaluation
from cera.callbacks.throughput import Throughput

__all__ = [
    "AdapterFile",
    "BestAdapter",
    "Checkpoints",
    "Dashboard",
    "Diverged",
    "DivergenceGuard",
    "Forgetting",
    "GenerationSamples",
    "LRRobustness",
    "MeasuredFile",
    "Progress",
    "RunRecord",
    "SpectralTracker",
    "Summary",
    "TaskEvaluation",
    "Throughput",
]

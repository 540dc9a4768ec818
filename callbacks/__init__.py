"""What a run shows and keeps. Thin: the measures are in ``cera``."""

from callbacks.adapter_file import AdapterFile
from callbacks.checkpoints import Checkpoints
from callbacks.dashboard import Dashboard
from callbacks.divergence_guard import Diverged, DivergenceGuard
from callbacks.generation_samples import GenerationSamples
from callbacks.lr_robustness import LRRobustness
from callbacks.progress import Progress
from callbacks.run_record import RunRecord
from callbacks.spectral_tracker import SpectralTracker
from callbacks.summary import Summary
from callbacks.task_evaluation import TaskEvaluation
from callbacks.throughput import Throughput

__all__ = [
    "AdapterFile",
    "Checkpoints",
    "Dashboard",
    "Diverged",
    "DivergenceGuard",
    "GenerationSamples",
    "LRRobustness",
    "Progress",
    "RunRecord",
    "SpectralTracker",
    "Summary",
    "TaskEvaluation",
    "Throughput",
]

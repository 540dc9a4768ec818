"""What a run shows and keeps. Thin: the measures are in ``cera``."""

from callbacks.adapter_file import AdapterFile
from callbacks.checkpoints import Checkpoints
from callbacks.progress import Progress
from callbacks.run_record import RunRecord
from callbacks.spectral_tracker import SpectralTracker
from callbacks.summary import Summary

__all__ = ["AdapterFile", "Checkpoints", "Progress", "RunRecord", "SpectralTracker", "Summary"]

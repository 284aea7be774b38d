"""Training: the one loop, its checkpoints, and the run directory."""

from diffeo.training.batches import fingerprint
from diffeo.training.fit import FitResult, fit
from diffeo.training.folds import FoldsResult, fit_folds
from diffeo.training.run import Run, create_run, load, load_run, provenance, read_model, save_metrics, save_weights
from diffeo.training.sampled import SampleStream
from diffeo.training.stream import BatchStream

__all__ = [
    "BatchStream",
    "FitResult",
    "FoldsResult",
    "Run",
    "SampleStream",
    "create_run",
    "fingerprint",
    "fit",
    "fit_folds",
    "load",
    "load_run",
    "provenance",
    "read_model",
    "save_metrics",
    "save_weights",
]

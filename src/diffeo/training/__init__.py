"""Training: the one loop, its checkpoints, and the run directory."""

from diffeo.training.fit import FitResult, fit

__all__ = ["FitResult", "fit"]

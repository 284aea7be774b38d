"""Inference: densities that are known up to a constant, and posteriors of simulations."""

from diffeo.inference.calibration import Calibration, calibration_of
from diffeo.inference.importance import Importance, importance
from diffeo.inference.posterior import Posterior, posterior
from diffeo.inference.target import Approximation, fit_target

__all__ = [
    "Approximation",
    "Calibration",
    "Importance",
    "Posterior",
    "calibration_of",
    "fit_target",
    "importance",
    "posterior",
]

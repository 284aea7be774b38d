"""Inference: densities that are known up to a constant, and posteriors of simulations."""

from diffeo.inference.importance import Importance, importance
from diffeo.inference.target import Approximation, fit_target

__all__ = ["Approximation", "Importance", "fit_target", "importance"]

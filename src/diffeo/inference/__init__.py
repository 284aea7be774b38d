"""Inference: densities that are known up to a constant, and posteriors of simulations."""

from diffeo.inference.importance import Importance, importance

__all__ = ["Importance", "importance"]

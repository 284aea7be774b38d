"""Conditioners: ordinary networks (x, context) -> parameters. They know nothing of flows."""

from diffeo.nets.made import MADE
from diffeo.nets.mlp import MLP

__all__ = ["MADE", "MLP"]

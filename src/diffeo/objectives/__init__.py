"""Objectives: what training minimises, one loss per example, never a method of a model."""

from diffeo.objectives.base import Objective
from diffeo.objectives.distillation import Distillation, WarmStart
from diffeo.objectives.likelihood import MaximumLikelihood

__all__ = ["Distillation", "MaximumLikelihood", "Objective", "WarmStart"]

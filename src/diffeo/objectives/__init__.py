"""Objectives: what training minimises, one loss per example, never a method of a model."""

from diffeo.objectives.base import Objective
from diffeo.objectives.conditional_kl import ConditionalKL
from diffeo.objectives.distillation import Distillation, WarmStart
from diffeo.objectives.likelihood import MaximumLikelihood
from diffeo.objectives.spectral import PowerLoss

__all__ = ["ConditionalKL", "Distillation", "MaximumLikelihood", "Objective", "PowerLoss", "WarmStart"]

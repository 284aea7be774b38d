"""Objectives: what training minimises, one loss per example, never a method of a model."""

from diffeo.objectives.base import Objective
from diffeo.objectives.choice import objective_of
from diffeo.objectives.flow_matching import FlowMatching, guided
from diffeo.objectives.likelihood import MaximumLikelihood

__all__ = ["FlowMatching", "MaximumLikelihood", "Objective", "guided", "objective_of"]

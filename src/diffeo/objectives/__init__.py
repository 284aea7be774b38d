"""Objectives: what training minimises, one loss per example, never a method of a model."""

from diffeo.objectives.annealed import AlphaDivergence
from diffeo.objectives.base import Objective
from diffeo.objectives.choice import as_objective, objective_of
from diffeo.objectives.conditional_kl import ConditionalKL, PairedKL
from diffeo.objectives.distillation import Distillation, WarmStart
from diffeo.objectives.elbo import ELBO, IWAE
from diffeo.objectives.flow_matching import FlowMatching, guided
from diffeo.objectives.likelihood import MaximumLikelihood
from diffeo.objectives.reverse_kl import ReverseKL, WithoutData
from diffeo.objectives.spectral import PowerLoss
from diffeo.objectives.step_matching import StepMatching, few_steps, reflow_pairs, trajectories
from diffeo.objectives.target import Target

__all__ = [
    "ELBO",
    "IWAE",
    "AlphaDivergence",
    "ConditionalKL",
    "Distillation",
    "FlowMatching",
    "MaximumLikelihood",
    "Objective",
    "PairedKL",
    "PowerLoss",
    "ReverseKL",
    "StepMatching",
    "Target",
    "WarmStart",
    "WithoutData",
    "as_objective",
    "few_steps",
    "guided",
    "objective_of",
    "reflow_pairs",
    "trajectories",
]

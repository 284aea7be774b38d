"""What a flow is trained by."""

from __future__ import annotations

from diffeo.flow import Flow
from diffeo.objectives.base import Objective
from diffeo.objectives.flow_matching import FlowMatching
from diffeo.objectives.likelihood import MaximumLikelihood

__all__ = ["as_objective", "objective_of"]


def objective_of(flow: Flow) -> Objective:
    """Return maximum likelihood, or flow matching with the arguments that the recipe remembers."""
    recipe = flow.recipe
    if recipe is None or recipe["name"] != "flow_matching":
        return MaximumLikelihood(flow)
    chosen = {name: recipe["arguments"][name] for name in ("path", "coupling", "time", "pool", "dropout")}
    return FlowMatching(flow, **chosen)


def as_objective(value: Objective | Flow) -> Objective:
    """Return an objective as it is, and for a flow the one that it is trained by.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, Objective):
        return value
    if isinstance(value, Flow):
        return objective_of(value)
    raise TypeError(f"expected an objective such as MaximumLikelihood(flow), or a flow, got {type(value).__name__}")

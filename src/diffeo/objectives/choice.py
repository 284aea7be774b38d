"""What a recipe's flow is trained by."""

from diffeo.flow import Flow
from diffeo.objectives.base import Objective
from diffeo.objectives.flow_matching import FlowMatching
from diffeo.objectives.likelihood import MaximumLikelihood

__all__ = ["objective_of"]


def objective_of(flow: Flow) -> Objective:
    """Return maximum likelihood, or flow matching with the arguments that the recipe remembers."""
    recipe = flow.recipe
    if recipe is None or recipe["name"] != "flow_matching":
        return MaximumLikelihood(flow)
    chosen = {name: recipe["arguments"][name] for name in ("path", "coupling", "time", "pool", "dropout")}
    return FlowMatching(flow, **chosen)

"""What a flow is trained by."""

from __future__ import annotations

from typing import Any

from diffeo.flow import Flow
from diffeo.mixture import Mixture
from diffeo.objectives.any_order import AnyOrderLikelihood
from diffeo.objectives.base import Objective
from diffeo.objectives.elbo import ELBO, IWAE
from diffeo.objectives.flow_matching import FlowMatching
from diffeo.objectives.likelihood import MaximumLikelihood

__all__ = ["SETTINGS", "as_objective", "objective_of"]

# The arguments that an objective takes besides its flow, by the recipe of the flows that it trains.
SETTINGS: dict[str, tuple[str, ...]] = {
    "flow_matching": ("coupling", "time", "pool", "dropout"),
    "vae": ("free_bits", "warmup", "samples"),
}


def objective_of(flow: Flow, **settings: Any) -> Objective:
    """Return what a flow is trained by: maximum likelihood; flow matching if the recipe is that; of a VAE a bound.

    That is the ELBO, or the importance-weighted bound where ``samples`` says how many draws it shall have.

    Args:
        flow: a density.
        settings: arguments of the objective, such as ``coupling`` of flow matching; ``SETTINGS`` lists them by recipe.

    Raises:
        ValueError: for bad settings.
        TypeError: for settings that the objective does not have.
    """
    if isinstance(flow, Mixture):
        return MaximumLikelihood(flow, **settings)
    if flow.has_bound:
        samples = settings.pop("samples", 1)
        if samples == 1:
            return ELBO(flow, **settings)
        if settings:
            raise ValueError(
                f"expected {' and '.join(settings)} for the ELBO alone, got samples={samples} of IWAE, too"
            )
        return IWAE(flow, samples)
    if flow.any_order:
        return AnyOrderLikelihood(flow, **settings)
    recipe = flow.recipe
    if recipe is None or recipe["name"] != "flow_matching":
        return MaximumLikelihood(flow, **settings)
    return FlowMatching(flow, recipe["arguments"]["path"], **settings)


def as_objective(value: Objective | Flow) -> Objective:
    """Return an objective as it is, and for a flow the one that it is trained by.

    Args:
        value: an objective or a flow.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, Objective):
        return value
    if isinstance(value, Flow):
        return objective_of(value)
    raise TypeError(f"expected an objective such as MaximumLikelihood(flow), or a flow, got {type(value).__name__}")

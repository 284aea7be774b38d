"""The recipe of continuous flows, of vectors and of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import nn

from diffeo.bases import StandardNormal
from diffeo.flow import Flow
from diffeo.nets import MLP, Velocity
from diffeo.nets.unet import UNet
from diffeo.nets.velocity import embedding_size
from diffeo.objectives.paths import get_path
from diffeo.recipes.assembly import Features, Preprocess, assemble, event_shape, recipe
from diffeo.transforms import ODE

__all__ = ["flow_matching"]


@recipe(laptop={"hidden": [32, 64], "tolerance": 1e-4})
def flow_matching(
    features: Features,
    context: int = 0,
    *,
    hidden: Sequence[int] = (128, 128, 128, 128, 128),
    activation: str = "silu",
    path: str = "linear",
    coupling: Literal["independent", "optimal"] = "independent",
    time: Literal["uniform", "logit-normal"] = "uniform",
    pool: int = 1024,
    dropout: float = 0.0,
    solver: str = "dopri5",
    tolerance: float = 1e-6,
    max_evaluations: int = 10_000,
    steps: int | None = None,
    divergence: Literal["exact", "hutchinson"] | None = None,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """A continuous flow: dx/dt = v(x, t, c) from noise to data, v a residual MLP or, on images, a U-Net.

    ``FlowMatching`` trains it without solving, and ``MaximumLikelihood`` by solving (FFJORD). The velocity starts as
    that of the fit by a Gaussian of independent elements, or of any covariance where ``preprocess`` ends in "whiten".
    Sampling and scoring solve an ODE to ``tolerance`` by ``solver`` within ``max_evaluations`` for any row (in so many
    ``steps``, if its steps are fixed); likelihoods take the exact divergence on vectors and Hutchinson's unbiased
    estimate on images, unless ``divergence`` says otherwise; the spread of that estimate exceeds the error of a
    tolerance of 1e-4, which is the default there.

    ``path``, ``coupling``, ``time``, ``pool`` and ``dropout`` are those of ``FlowMatching``: what ``diffeo fit`` trains
    by. With ``dropout`` the flow can be guided.
    """
    shape = event_shape(features)
    image = len(shape) > 1
    embedding = embedding_size(context, dropout > 0)
    size = math.prod(shape)
    net: nn.Module = (
        UNet(shape[0], hidden, embedding, activation)
        if image
        else MLP(size, size, hidden, embedding, activation, residual=True)
    )
    ode = ODE(
        Velocity(net, shape, get_path(path), context, droppable=dropout > 0),
        shape,
        solver=solver,
        rtol=tolerance,
        atol=tolerance,
        max_evaluations=max_evaluations,
        steps=steps,
        divergence=divergence or ("hutchinson" if image else "exact"),
    )
    return assemble(StandardNormal(shape), [ode], context, preprocess)

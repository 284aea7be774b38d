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
from diffeo.recipes.assembly import Features, Preprocess, assemble, by_shape, event_shape, recipe
from diffeo.transforms import ODE

__all__ = ["flow_matching"]

# Standard deviations. On validation rows of seven tables 3 costs likelihood, 10 leaves more to rows far out.
BOUND = 5.0


@recipe()
def flow_matching(
    features: Features,
    context: int = 0,
    *,
    hidden: Sequence[int] = by_shape((128, 128, 128, 128, 128), images=(32, 64)),
    activation: str = "silu",
    path: str = "linear",
    droppable: bool = False,
    bound: float | None = by_shape(BOUND, images=None),
    solver: str = "dopri5",
    tolerance: float = by_shape(1e-6, images=1e-4),
    max_evaluations: int = 10_000,
    steps: int | None = None,
    divergence: Literal["exact", "hutchinson"] | None = None,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """A continuous flow: dx/dt = v(x, t, c) from noise to data, v a residual MLP or, on images, a U-Net.

    ``FlowMatching`` trains it without solving (Lipman et al. 2022, arXiv:2210.02747), and ``MaximumLikelihood`` by
    solving (FFJORD). The velocity starts as that of the fit by a Gaussian of independent elements, or of any covariance
    where ``preprocess`` ends in "whiten".

    Args:
        features: how many columns, or the shape (C, H, W) of an image.
        context: how many numbers the density is conditioned on, 0 for none.
        hidden: widths of the hidden layers; on images, channels of each level of the U-Net.
        activation: "relu", "silu", "tanh" ...; see ``diffeo.nets.MLP``.
        path: between noise and data; see ``FlowMatching``, whose other settings belong to the training.
        droppable: whether the context can be withheld, as ``FlowMatching(flow, dropout=0.1)`` does: the flow can then
            be guided.
        bound: of the correction to a Gaussian's velocity, in standard deviations, so that rows far from the data are
            not led astray; None for none, as on images. See ``diffeo.nets.Velocity``.
        solver: of the ODE; see ``diffeo.transforms.ODE``.
        tolerance: relative and absolute, of every step. On images the spread of the estimated divergence exceeds the
            error of 1e-4.
        max_evaluations: of the velocity, that a row may take.
        steps: how many, for the solvers of fixed steps.
        divergence: "exact" or Hutchinson's unbiased estimate; by default exact on vectors, estimated on images.
        preprocess: steps from the data inwards, names or pairs (name, arguments).

    Raises:
        ValueError: for sizes that are not positive, or unknown names.

    Example:
        >>> flow = diffeo.flow_matching(features=2, hidden=(8,))
        >>> flow.fast  # an ODE is solved in both directions
        frozenset()
        >>> flow.log_prob(flow.sample(5)).shape
        torch.Size([5])
    """
    shape = event_shape(features)
    image = len(shape) > 1
    embedding = embedding_size(context, droppable)
    size = math.prod(shape)
    net: nn.Module = (
        UNet(shape[0], hidden, embedding, activation)
        if image
        else MLP(size, size, hidden, embedding, activation, residual=True)
    )
    ode = ODE(
        Velocity(net, shape, get_path(path), context, droppable=droppable, bound=bound),
        shape,
        solver=solver,
        rtol=tolerance,
        atol=tolerance,
        max_evaluations=max_evaluations,
        steps=steps,
        divergence=divergence or ("hutchinson" if image else "exact"),
    )
    return assemble(StandardNormal(shape), [ode], context, preprocess)

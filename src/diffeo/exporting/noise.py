"""Samples from noise that is given, so that nothing random is inside a program.

There are three kinds of noise, of which a density takes those that it needs: ``normal``, standard normal numbers of the
shape of its own noise; ``uniform``, numbers in [0, 1) of that shape; and ``choice``, one number in [0, 1) for each
sample, in double precision, which chooses among members or components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import singledispatch

import torch
from torch import Tensor

from diffeo.bases import (
    Base,
    GaussianMixture,
    Gaussians,
    StandardLogistic,
    StandardNormal,
    StudentT,
    Uniform,
)
from diffeo.flow import Flow
from diffeo.mixture import Mixture

__all__ = ["KINDS", "Leaves", "drawn", "kinds_of", "leaves_of"]

KINDS = {
    "normal": "independent standard normal numbers",
    "uniform": "independent numbers, uniform in [0, 1)",
    "choice": "a number for each row, uniform in [0, 1)",
}
Leaves = Sequence[tuple[float, Flow]]  # weights that add up to 1, and flows
EXPONENTIAL = 2.0  # degrees of freedom of a Student's t whose chi-squared variable is an exponential one


def kinds_of(leaves: Leaves) -> list[str]:
    """Which kinds of noise a sample takes, in the order of ``KINDS``.

    Args:
        leaves: of the flow, as ``leaves_of`` lists them.

    Raises:
        ValueError: for a base whose noise is not made of these.
    """
    wanted = {kind for _, leaf in leaves for kind in _wanted(leaf.base)}
    return [kind for kind in KINDS if kind in wanted or (kind == "choice" and len(leaves) > 1)]


def drawn(leaves: Leaves, context: Tensor | None, noise: Mapping[str, Tensor]) -> Tensor:
    """Samples ``(n, *event)`` of a flow made of noise; of a mixture every member's, of which ``choice`` takes one.

    Args:
        leaves: of the flow, as ``leaves_of`` lists them.
        context: ``(n, *context)``, or None.
        noise: of each kind in ``kinds_of``: ``(n, *base event)``, or ``(n,)`` of the choice.
    """
    if len(leaves) == 1:
        ((_, flow),) = leaves
        return flow.decode(_of_base(flow.base, noise), context)
    choice, start, result = noise["choice"], 0.0, None
    for weight, leaf in leaves:
        within = ((choice - start) / weight).clamp(0, 1 - 1e-12)
        mine = leaf.decode(_of_base(leaf.base, {**noise, "choice": within}), context)
        here = (choice >= start).reshape(-1, *(1,) * (mine.dim() - 1))
        result = mine if result is None else torch.where(here, mine, result)
        start += weight
    assert result is not None
    return result


def leaves_of(flow: Flow) -> list[tuple[float, Flow]]:
    """The flows that a mixture is made of, with their weights; those without any are left out.

    Args:
        flow: any; one that is no mixture is its only leaf.
    """
    if not isinstance(flow, Mixture):
        return [(1.0, flow)]
    members = zip(flow.weights, flow.members, strict=True)
    return [(weight * share, leaf) for weight, member in members if weight > 0 for share, leaf in leaves_of(member)]


def _wanted(base: Base) -> tuple[str, ...]:
    if isinstance(base, Gaussians | GaussianMixture):
        return ("normal", "choice") if len(base.means) > 1 else ("normal",)
    if isinstance(base, StudentT):
        return ("normal", "choice")
    return ("uniform",) if isinstance(base, StandardLogistic | Uniform) else ("normal",)


@singledispatch
def _of_base(base: Base, noise: Mapping[str, Tensor]) -> Tensor:
    """The noise of a base made of the kinds of noise that there are."""
    raise ValueError(f"expected a base whose noise is made of normal or uniform numbers, got {type(base).__name__}")


@_of_base.register
def _(base: StandardNormal, noise: Mapping[str, Tensor]) -> Tensor:
    return noise["normal"]


@_of_base.register
def _(base: StandardLogistic, noise: Mapping[str, Tensor]) -> Tensor:
    uniform = noise["uniform"]
    least = torch.finfo(uniform.dtype).eps / 2
    return torch.log(uniform.clamp_min(least)) - torch.log1p(-uniform.clamp_max(1 - least))


@_of_base.register
def _(base: Uniform, noise: Mapping[str, Tensor]) -> Tensor:
    return torch.addcmul(base.low, noise["uniform"], base.high - base.low)


@_of_base.register
def _(base: GaussianMixture, noise: Mapping[str, Tensor]) -> Tensor:
    if len(base.means) == 1:
        return torch.addcmul(base.means[0], base.log_scales[0].exp(), noise["normal"])
    chosen = _component(base.logits.softmax(0).double(), noise["choice"])
    return torch.addcmul(base.means[chosen], base.log_scales.exp()[chosen], noise["normal"])


@_of_base.register
def _(base: Gaussians, noise: Mapping[str, Tensor]) -> Tensor:
    normal = noise["normal"].to(base.means.dtype)
    eye = torch.eye(base.means.shape[1]).to(base.means)
    factors = torch.linalg.solve_triangular(base.whitening, eye.expand_as(base.whitening), upper=False)
    if len(base.means) == 1:
        return (base.means[0] + normal @ factors[0].mT).to(base.device_marker.dtype)
    chosen = _component(base.log_weights.exp(), noise["choice"])
    moved = normal @ factors[0].mT if len(factors) == 1 else torch.einsum("nij,nj->ni", factors[chosen], normal)
    return (base.means[chosen] + moved).to(base.device_marker.dtype)


@_of_base.register
def _(base: StudentT, noise: Mapping[str, Tensor]) -> Tensor:
    if base.freedom != EXPONENTIAL:
        raise ValueError(f"expected a Student's t of {EXPONENTIAL:g} degrees of freedom, got {base.freedom:g}")
    scale = -torch.log1p(-noise["choice"])  # half a chi-squared variable of two degrees, over one
    normal = noise["normal"]
    return normal / scale.sqrt().to(normal.dtype).reshape(-1, *(1,) * len(base.event_shape))


def _component(weights: Tensor, choice: Tensor) -> Tensor:
    """Which component each number in [0, 1) chooses ``(n,)``."""
    ends = (weights / weights.sum()).cumsum(0)[:-1]
    return (choice[:, None] >= ends).sum(1)

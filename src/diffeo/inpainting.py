"""Completing what is hidden by climbing the density."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.transforms import Chain

__all__ = ["Completed", "inpaint"]


class Completed(NamedTuple):
    """Completed examples x ``(n, *event)``, and the log-densities climbed, before and after, ``(n,)``."""

    x: Tensor
    before: Tensor
    after: Tensor


def inpaint(
    flow: Flow,
    x: Tensor,
    hidden: Tensor,
    context: Tensor | None = None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    steps: int = 400,
    rate: float = 0.03,
    noise: float = 0.1,
) -> Completed:
    r"""Replace hidden elements by a mode of their density: projected gradient ascent with annealed noise.

    .. math:: u_h \leftarrow \mathrm{clip}\left(u_h + a\, l_i\, r\, (g_i + c\, l_i\, e_i)\right)

    with ``rate`` a, the range r, ``noise`` c, :math:`l_i` falling as a cosine from 1 to 0, :math:`g_i` the gradient of
    log p by the hidden elements in Adam's scaling, and normal noise :math:`e_i`. u is x behind the flow's
    preprocessing, and p the density there: in the units of x, where a background of one level is a spike, nothing
    points to it from afar. The ascent starts from a draw of the flow. NICE completes images so with
    :math:`a_i = 10 / (100 + i)` (Dinh et al. 2014, arXiv:1410.8516, section 5.2); Adam's scaling makes one rate fit
    every model.

    Args:
        flow: the density; a random ``Dequantize`` within it is a part of the noise.
        x: ``(n, *event)``; hidden elements are ignored.
        hidden: boolean, of the event's shape or x's; True where to complete.
        context: as for ``flow.log_prob``.
        low: least value of an element.
        high: largest value.
        steps: how many.
        rate: the first step, as a fraction of the range.
        noise: the first noise, in units of a step.

    Raises:
        ValueError: if ``hidden`` does not fit x, or a number is out of its range.

    Example:
        >>> flow, x = diffeo.maf(features=4, hidden=(8,)).eval(), torch.rand(3, 4)
        >>> hidden = torch.tensor([False, False, True, True])
        >>> done = diffeo.inpaint(flow, x, hidden, steps=5)
        >>> torch.allclose(done.x[:, :2], x[:, :2], atol=1e-3)  # what is shown stays
        True
    """
    if hidden.dtype != torch.bool or hidden.shape not in (x.shape, x.shape[1:]):
        raise ValueError(
            f"expected a boolean mask of shape {tuple(x.shape[1:])}, got {hidden.dtype} {tuple(hidden.shape)}"
        )
    if steps < 1 or not low < high:
        raise ValueError(f"expected steps >= 1 and low < high, got steps={steps}, low={low}, high={high}")
    hidden = hidden.expand(x.shape)
    core, steps_between = flow.core, flow.preprocessing
    inner = Chain(steps_between).eval() if steps_between else None

    def inwards(value: Tensor) -> Tensor:
        return value if inner is None else inner.inverse(value, context)

    margin = 1e-3 * (high - low)  # the density of a bounded range may rise without end at its ends
    low, high = low + margin, high - margin
    with torch.no_grad():
        x = x.clamp(low, high)
        drawn = flow.sample((len(x),) if context is None else (), context)
        begun = torch.where(hidden, drawn.clamp(low, high), x)
        ends = torch.stack([inwards(torch.full_like(x, end)) for end in (low, high)])
        lowest, highest = ends.amin(0), ends.amax(0)
        u = inwards(begun)
        before = core.log_prob(u, context)
    first, second = torch.zeros_like(u), torch.zeros_like(u)
    for i in range(steps):
        with torch.no_grad():
            u = torch.where(hidden, u, inwards(x))  # a dequantisation of what is shown is drawn anew
        at = u.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(core.log_prob(at, context, nan="propagate").sum(), at)
        gradient = gradient.nan_to_num(0.0)
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.02)
        direction = (first / (1 - 0.9 ** (i + 1))) / ((second / (1 - 0.98 ** (i + 1))).sqrt() + 1e-12)
        left = 0.5 * (1 + math.cos(math.pi * i / steps))
        step = rate * (highest - lowest) * left * (direction + noise * left * torch.randn_like(u))
        u = torch.where(hidden, (u + step).clamp(lowest, highest), u)
    with torch.no_grad():
        completed = torch.where(hidden, (u if inner is None else inner.forward(u, context)).clamp(low, high), x)
        return Completed(completed, before, core.log_prob(u, context))

"""Completing what is hidden by climbing the density."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffeo.flow import Flow

__all__ = ["Completed", "inpaint"]


class Completed(NamedTuple):
    """Completed examples x ``(n, *event)``, and their log-densities before and after, ``(n,)``."""

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
    rate: float = 0.1,
    noise: float = 0.1,
) -> Completed:
    """Replace hidden elements by a mode of p(hidden | shown): projected gradient ascent of log p with annealed noise.

    x_h <- clip(x_h + a_i (g_i + e_i), low, high), a_i falling as a cosine from ``rate`` to 0 of the range, g_i the
    gradient of log p by x_h in Adam's scaling, e_i ~ N(0, noise^2). NICE completes images so with a_i = 10 / (100 + i)
    (Dinh et al. 2014, arXiv:1410.8516, section 5.2); Adam's scaling makes one rate fit every model.

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
    """
    if hidden.dtype != torch.bool or hidden.shape not in (x.shape, x.shape[1:]):
        raise ValueError(
            f"expected a boolean mask of shape {tuple(x.shape[1:])}, got {hidden.dtype} {tuple(hidden.shape)}"
        )
    if steps < 1 or not low < high:
        raise ValueError(f"expected steps >= 1 and low < high, got steps={steps}, low={low}, high={high}")
    hidden = hidden.expand(x.shape)
    margin = 1e-3 * (high - low)  # the density of a bounded range may rise without end at its ends
    start = low + (high - low) * torch.rand_like(x)
    x = torch.where(hidden, start.clamp(low + margin, high - margin), x.clamp(low + margin, high - margin))
    with torch.no_grad():
        before = flow.log_prob(x, context)
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for i in range(steps):
        at = x.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(flow.log_prob(at, context, nan="propagate").sum(), at)
        gradient = gradient.nan_to_num(0.0)
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.02)
        direction = (first / (1 - 0.9 ** (i + 1))) / ((second / (1 - 0.98 ** (i + 1))).sqrt() + 1e-12)
        left = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * i / steps)).item())
        step = rate * (high - low) * left * (direction + noise * left * torch.randn_like(x))
        x = torch.where(hidden, (x + step).clamp(low + margin, high - margin), x)
    with torch.no_grad():
        return Completed(x, before, flow.log_prob(x, context))

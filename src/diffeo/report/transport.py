"""How well, and by what way, a continuous flow transports: distances between samples, straightness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.objectives.flow_matching import split_ode, with_ode

__all__ = ["distance_by_steps", "squared_wasserstein", "straightness"]


def squared_wasserstein(x: Tensor, y: Tensor) -> float:
    """Return the squared 2-Wasserstein distance of two samples of equal size, min over pairings of mean |x - y|^2.

    Exact, by assignment; 2,000 rows take a second, the time grows faster than their square.

    Raises:
        ValueError: for samples of different shapes.
    """
    from scipy.optimize import linear_sum_assignment

    if x.shape != y.shape:
        raise ValueError(f"expected two samples of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    cost = torch.cdist(x.flatten(1).double(), y.flatten(1).double()).square().cpu().numpy()
    return float(cost[linear_sum_assignment(cost)].mean())


@torch.no_grad()
def straightness(flow: Flow, rows: int = 1000, context: Tensor | None = None, steps: int = 32) -> float:
    """Return int_0^1 E |dx/dt - (x(1) - x(0))|^2 dt / E |x(1) - x(0)|^2: 0 where every trajectory is straight.

    Args:
        flow: a continuous flow.
        rows: trajectories to look at.
        context: of each, ``(rows, *context)``.
        steps: parts of the time between which derivatives are differences.
    """
    ode, _ = split_ode(flow)
    times = np.linspace(0, 1, steps + 1).tolist()
    passed = ode.trajectory(flow.base.sample((rows,)), times, flow.normalize_context(context)).flatten(
        2
    )  # (times, rows, size)
    whole = passed[-1] - passed[0]
    apart = passed.diff(dim=0) * steps - whole
    return float(apart.square().sum(-1).mean() / whole.square().sum(-1).mean())


@torch.no_grad()
def distance_by_steps(
    flow: Flow, x: Tensor, context: Tensor | None = None, steps: Sequence[int] = (1, 2, 4, 8)
) -> dict[int, float]:
    """Return the squared 2-Wasserstein distance between data x and as many samples in so many Euler steps."""
    ode, _ = split_ode(flow)
    shape = () if context is not None else (len(x),)
    coarse = {count: with_ode(flow, ode.replaced(solver="euler", steps=count)) for count in steps}
    return {count: squared_wasserstein(x, each.sample(shape, context)) for count, each in coarse.items()}

"""How well, and by what way, a continuous flow transports: distances between samples, straightness."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import Flow, expect_ode
from diffeo.objectives.couplings import assign

__all__ = ["in_steps", "paths", "squared_wasserstein", "straightness"]


def squared_wasserstein(x: Tensor, y: Tensor) -> float:
    """Return the squared 2-Wasserstein distance of two samples of equal size, min over pairings of mean |x - y|^2.

    Exact, by assignment; the time grows faster than the square of the rows.

    Raises:
        ValueError: for samples of different shapes.
    """
    if x.shape != y.shape:
        raise ValueError(f"expected two samples of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = x.flatten(1).double(), y.flatten(1).double()
    return float((x - y[assign(y, x)]).square().sum(1).mean())


@torch.no_grad()
def straightness(flow: Flow, rows: int = 1000, context: Tensor | None = None, steps: int = 32) -> float:
    """Return int_0^1 E |dx/dt - (x(1) - x(0))|^2 dt / E |x(1) - x(0)|^2: 0 where every trajectory is straight.

    Args:
        flow: a continuous flow.
        rows: trajectories to look at.
        context: of each, ``(rows, *context)``.
        steps: parts of the time between which derivatives are differences; of a flow in fixed steps, these are.
    """
    passed = paths(flow, flow.base.sample((rows,)), context, steps).flatten(2)  # (times, rows, size)
    whole = passed[-1] - passed[0]
    deviation = passed.diff(dim=0) * (len(passed) - 1) - whole
    return float(deviation.square().sum(-1).mean() / whole.square().sum(-1).mean())


@torch.no_grad()
def paths(flow: Flow, z: Tensor, context: Tensor | None = None, steps: int = 32) -> Tensor:
    """Return where the noise z ``(rows, *event)`` passes, in so many equal parts of the time or in its fixed steps.

    They end before the preprocessing: ``(steps + 1, rows, *event)``.
    """
    ode = expect_ode(flow)
    parts = ode.steps or steps
    ode = ode.replaced(steps=ode.steps and 1)
    return ode.trajectory(z, np.linspace(0, 1, parts + 1).tolist(), flow.normalize_context(context))


def in_steps(flow: Flow, steps: int) -> Flow:
    """The same continuous flow, sampled in so many Euler steps; weights are shared."""
    return flow.with_ode(solver="euler", steps=steps)

"""Sampling in a few steps: straighter trajectories (reflow), and students that learn a teacher's trajectories."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from diffeo.flow import Flow, expect_ode
from diffeo.objectives.base import Objective
from diffeo.objectives.flow_matching import check_dropout, keeps_context
from diffeo.transforms.ode import expect_velocity

__all__ = ["StepMatching", "few_steps", "reflow_pairs", "trajectories"]


class StepMatching(Objective):
    r"""The squared distance of a velocity from a random step i of a teacher's trajectory of k steps of size h = 1 / k.

    .. math:: \left\|v(y_i, t_i) - \frac{y_{i+1} - y_i}{h}\right\|^2

    Its minimum zero is a student whose k Euler steps from the same noise end where the teacher's solve does. With k = 1
    it is the distillation of rectified flow (Liu et al. 2022, arXiv:2209.03003).

    The examples are trajectories ``(N, k + 1, *event)``, as ``trajectories`` makes them.

    Args:
        flow: the student, see ``few_steps``.
        dropout: the share of rows whose context is withheld, for guidance, as in ``FlowMatching``.

    Raises:
        ValueError: for a flow that does not sample in Euler steps, or whose context cannot be withheld; when called,
            for trajectories of other lengths.
    """

    def __init__(self, flow: Flow, dropout: float = 0.0) -> None:
        super().__init__(flow)
        ode = expect_ode(flow)
        if ode.solver != "euler" or ode.steps is None:
            raise ValueError(f"expected a student that samples in Euler steps (few_steps), got solver {ode.solver!r}")
        check_dropout(flow, dropout)
        self.steps, self.dropout = ode.steps, dropout

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the squared error of a random step of each trajectory, (N,)."""
        velocity = self.flow.ode.velocity
        steps, event = self.steps, tuple(self.flow.event_shape)
        if tuple(x.shape[1:]) != (steps + 1, *event):
            raise ValueError(f"expected trajectories (N, {steps + 1}, {event}), got shape {tuple(x.shape)}")
        rows = torch.arange(len(x), device=x.device)
        index = torch.randint(steps, (len(x),), device=x.device)
        start, end = x[rows, index], x[rows, index + 1]
        t, contexts = index.to(x.dtype) / steps, self.flow.normalize_context(context)
        keep = keeps_context(t, contexts, self.dropout if self.training else 0.0)
        output = velocity(start, t, contexts) if keep is None else velocity(start, t, contexts, keep)
        return (expect_velocity(output, start) - (end - start) * steps).square().flatten(1).sum(1)


def few_steps(flow: Flow, steps: int) -> Flow:
    """Return a student of a continuous flow that samples in so many Euler steps; its velocity starts as the teacher's.

    A student has samples but no likelihood, which it refuses.

    Args:
        flow: the teacher.
        steps: of Euler's method, from noise to data.

    Raises:
        ValueError: for a flow without its ODE, or no step.
    """
    return flow.with_ode(copy.deepcopy(expect_ode(flow).velocity), solver="euler", steps=steps)


@torch.no_grad()
def reflow_pairs(flow: Flow, count: int, context: Tensor | None = None) -> Tensor:
    """Return pairs (z, x) of noise and where the flow carries it, ``(count, 2, *event)``.

    ``FlowMatching`` on such pairs learns the same distribution by straighter trajectories (Liu et al. 2022,
    arXiv:2209.03003).

    Args:
        flow: the trained flow.
        count: of pairs.
        context: of each pair, ``(count, *context)``.
    """
    z = flow.base.sample((count,))
    return torch.stack([z, flow.decode(z, context)], 1)


@torch.no_grad()
def trajectories(flow: Flow, count: int, steps: int, context: Tensor | None = None) -> Tensor:
    """Return where the flow's ODE carries noise at t = 0, 1/steps, ..., 1, before the preprocessing.

    Args:
        flow: a continuous flow.
        count: of trajectories.
        steps: equal parts of the time.
        context: of each trajectory, ``(count, *context)``.

    Returns:
        ``(count, steps + 1, *event)``, without gradients.

    Raises:
        ValueError: for a flow that is not continuous.
    """
    z = flow.base.sample((count,))
    times = torch.linspace(0, 1, steps + 1).tolist()
    return expect_ode(flow).trajectory(z, times, flow.normalize_context(context)).movedim(0, 1)

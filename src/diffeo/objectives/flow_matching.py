"""Flow matching: a velocity field is regressed on the straight (or bent) lines between noise and data."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from diffeo.bases import StandardNormal
from diffeo.flow import Flow, expect_ode
from diffeo.nets.velocity import Guided, Velocity
from diffeo.objectives.base import Objective
from diffeo.objectives.couplings import CONDITION_WEIGHT, assign
from diffeo.objectives.paths import get_path
from diffeo.transforms.ode import expect_velocity

__all__ = ["FlowMatching", "check_dropout", "guided", "keeps_context"]

LATEST = 0.999  # beyond, where a path has a pole at the data, no time is drawn


class FlowMatching(Objective):
    r"""The squared distance of a velocity from that of paths from noise to data, at random times.

    .. math:: \|v(x_t, t, c) - (a_t' x_1 + s_t' x_0)\|^2, \qquad x_t = a_t x_1 + s_t x_0

    for noise :math:`x_0` at t = 0 and data :math:`x_1` at t = 1. Its minimum is the velocity that carries the base to
    the data; nothing is solved in training. The preprocessing of the flow is applied to x first: noise and data meet
    where the ODE lives. Lipman et al. 2022 (arXiv:2210.02747), Liu et al. 2022 (arXiv:2209.03003).

    The examples are x ``(N, *event)``, each of which gets noise from the base, or pairs (z, x) ``(N, 2, *event)`` of
    noise and data, as reflow uses them (``reflow_pairs``).

    Args:
        flow: one whose transform is an ``ODE``, or a chain of it and preprocessing.
        path: "linear", "cosine" or "vp".
        coupling: "independent", or "optimal": ``fit`` pairs noise and data by optimal transport within pools of rows,
            each used once (Tong et al. 2023, arXiv:2302.00482), with a condition-aware cost (see ``assign``).
        time: "uniform" or "logit-normal", which favours the middle (Esser et al. 2024, arXiv:2403.03206).
        pool: rows that are coupled together; at least a batch.
        condition_weight: of the contexts in the cost of the coupling; 0 ignores them (and biases the model).
        dropout: the share of rows whose context is withheld, for guidance.

    Raises:
        ValueError: for bad arguments or a flow without its ODE.

    Example:
        >>> flow = diffeo.flow_matching(features=2, hidden=(8,))
        >>> objective = diffeo.FlowMatching(flow, coupling="optimal")
        >>> diffeo.fit(objective, torch.randn(100, 2), epochs=1).steps
        1
    """

    def __init__(
        self,
        flow: Flow,
        path: str = "linear",
        coupling: Literal["independent", "optimal"] = "independent",
        *,
        time: Literal["uniform", "logit-normal"] = "uniform",
        pool: int = 1024,
        condition_weight: float = CONDITION_WEIGHT,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(flow)
        for name, value, known in (
            ("coupling", coupling, ("independent", "optimal")),
            ("time", time, ("uniform", "logit-normal")),
        ):
            if value not in known:
                raise ValueError(f"expected {name} among {', '.join(known)}, got {value!r}")
        if pool < 2:
            raise ValueError(f"expected a pool of at least 2 rows to couple, got {pool}")
        if not condition_weight >= 0:
            raise ValueError(f"expected condition_weight >= 0, got {condition_weight}")
        check_dropout(flow, dropout)
        self.path = get_path(path)
        self.latest = LATEST if path == "vp" else 1.0
        self.time, self.condition_weight, self.dropout = time, condition_weight, dropout
        self.pool = pool if coupling == "optimal" else 0

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the squared error of each example, summed over its elements, (N,)."""
        noise = None
        if x.dim() == len(self.flow.event_shape) + 2 and x.shape[1] == 2:
            noise, x = x.unbind(1)
        with torch.no_grad():
            rows, contexts = self._normalized(x, context)
            if noise is None:
                noise = self.flow.base.sample((len(rows),))
            velocity = self.flow.ode.velocity
            if self.training and len(rows) > 1 and hasattr(velocity, "initialized") and not velocity.initialized:
                # An error of the noise's mean would have no end where a path has a pole.
                velocity.initialize(None if isinstance(self.flow.base, StandardNormal) else noise, rows)
            t = self._times(len(rows), rows)
            keep = keeps_context(t, contexts, self.dropout if self.training else 0.0)
        if type(velocity) is Velocity and velocity.path == self.path:  # the same at a lower price
            return velocity.squared_error(noise, rows, t, contexts, keep)
        shape = (-1, *(1,) * (rows.dim() - 1))
        a, s, da, ds = (each.reshape(shape) for each in self.path(t))
        between, target = torch.addcmul(a * rows, s, noise), torch.addcmul(da * rows, ds, noise)
        output = velocity(between, t, contexts) if keep is None else velocity(between, t, contexts, keep)
        return (expect_velocity(output, between) - target).square().flatten(1).sum(1)

    @torch.no_grad()
    def couple(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Draw noise for a pool of rows and return it in the order of optimal transport."""
        rows, contexts = self._normalized(x, context)
        z: Tensor = self.flow.base.sample((len(rows),))
        return z[assign(z, rows, contexts if self.condition_weight else None, self.condition_weight)]

    def _normalized(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The rows where the ODE has its end, and the context as the velocity takes it."""
        rows, contexts, _ = self.flow._rows(x, context, self.flow.event_shape, "x")
        contexts = self.flow.normalize_context(contexts)
        for part in reversed(self.flow.parts[1:]):
            rows = part.inverse(rows, contexts)
        return rows, contexts

    def _times(self, count: int, like: Tensor) -> Tensor:
        """Times of the given distribution, one in each of ``count`` parts of equal probability."""
        t = torch.rand(count, dtype=like.dtype, device=like.device)
        t += torch.arange(count, dtype=like.dtype, device=like.device)
        if self.time == "logit-normal":
            return self.latest * torch.sigmoid(torch.special.ndtri((t / count).clamp_(1e-6, 1 - 1e-6)))
        return t.mul_(self.latest / count)


def check_dropout(flow: Flow, dropout: float) -> None:
    """Refuse a share of contexts to withhold that is no share, or where the velocity needs its context.

    Args:
        flow: a continuous flow.
        dropout: the share of rows whose context is withheld.

    Raises:
        ValueError: for these, or a flow without its ODE.
    """
    ode = expect_ode(flow)
    if not 0 <= dropout < 1:
        raise ValueError(f"expected dropout in [0, 1), got {dropout}")
    if dropout and not getattr(ode.velocity, "droppable", False):
        raise ValueError("expected a velocity whose context can be withheld (droppable) for dropout, got another")


def keeps_context(t: Tensor, context: Tensor | None, dropout: float) -> Tensor | None:
    """Draw which rows keep their context, a random share being left out.

    Args:
        t: times of the rows, ``(rows,)``.
        context: ``(rows, *context)``, or None.
        dropout: the share of rows whose context is withheld.

    Returns:
        ``(rows,)``, 1 where it is kept and 0 elsewhere; None where all keep it.
    """
    return None if context is None or not dropout else (torch.rand_like(t) >= dropout).to(t.dtype)


def guided(flow: Flow, weight: float) -> Flow:
    """Return a conditional flow that samples with classifier-free guidance (see ``Guided``); weights are shared.

    Args:
        flow: a continuous flow with a context.
        weight: of guidance: 0 withholds the context, 1 is the flow itself, more follows the context more closely.

    Raises:
        ValueError: for a flow without context, or one trained without label dropout.
    """
    return flow.with_ode(Guided(expect_ode(flow).velocity, weight))

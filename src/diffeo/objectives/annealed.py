"""The alpha-divergence by annealed importance sampling with a replay buffer, which learns modes not seen so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffeo.arguments import expect_number, expect_whole
from diffeo.flow import Flow
from diffeo.objectives.moves import Moves, State
from diffeo.objectives.reverse_kl import WithoutData
from diffeo.objectives.target import LogDensity, Target
from diffeo.transforms import Transform

__all__ = ["AlphaDivergence", "Unbounded"]


class Unbounded:
    """A target in the units of a flow's layers, y: log p~(x(y)) + log|det dx/dy|, on which points move freely.

    Where b points y lead to one x (``Circle``), it is divided by b: its integral is that of p~.

    Args:
        target: log p~ of x.
        outer: transforms that bring y into the data's units, in the order of generation; perhaps none.
    """

    def __init__(self, target: Target, outer: Sequence[Transform] = ()) -> None:
        self.target, self.outer = target, outer

    def __call__(self, y: Tensor, strict: bool = True) -> Tensor:
        """Return the log-density ``(n,)`` of points y; see ``Target``."""
        x, total = y, y.new_zeros(len(y))
        for transform in self.outer:
            total = total - math.log(transform.branches)
            x, log_det = transform.forward_and_log_det(x)
            total = total + log_det
        return self.target(x, strict=strict) + total


class AlphaDivergence(WithoutData):
    r"""A loss whose gradient is that of the alpha-divergence of a density from the flow q.

    .. math:: -E_g \log q(x), \qquad g \propto \tilde p^{\,\alpha} q^{1 - \alpha}

    With alpha = 2 that is the variance of the importance weights :math:`\tilde p / q`, large where q leaves out a mode.
    Points of g come from annealed importance sampling (Neal 2001), from q over :math:`g^\beta q^{1 - \beta}`, with
    moves along each of these; they are kept in a buffer, of which a batch is drawn as its rows weigh, again and again,
    while weights follow the flow as it learns: FAB, Midgley et al. 2022, arXiv:2208.01893. It takes no gradient of the
    flow's draws, and none of the log-density, where it has none: then the moves are a random walk.

    Args:
        flow: the flow to train.
        log_density: :math:`\log \tilde p` of points ``(n, *event)``; see ``Target``.
        alpha: the divergence; 1 is the KL of p from q.
        temperatures: how many densities lie between q and g.
        moves: how often points are moved at each.
        buffer: how many points are kept.
        reuse: training steps to each new batch of points.
        clip: of the correction of a weight at one draw.

    Raises:
        ValueError: for counts below 1, an alpha or a clip of 0 or less, or a flow that is conditioned on something.
    """

    points: Tensor
    log_q: Tensor
    log_weights: Tensor
    filled: Tensor
    calls: Tensor
    step: Tensor

    def __init__(
        self,
        flow: nn.Module,
        log_density: LogDensity | Target,
        *,
        alpha: float = 2.0,
        temperatures: int = 1,
        moves: int = 1,
        buffer: int = 2**15,
        reuse: int = 8,
        clip: float = 10.0,
    ) -> None:
        super().__init__(flow, log_density)
        expect_whole(1, temperatures=temperatures, moves=moves, buffer=buffer, reuse=reuse)
        expect_number(0, above=True, alpha=alpha, clip=clip)
        if self.flow.context_shape:
            raise ValueError("expected a flow without context, got one with")
        self.alpha, self.temperatures, self.moves, self.reuse, self.clip = alpha, temperatures, moves, reuse, clip
        base = self.flow.base
        marker = base.device_marker
        self.register_buffer("points", marker.new_zeros(buffer, *base.event_shape))
        self.register_buffer("log_q", marker.new_zeros(buffer))
        self.register_buffer("log_weights", torch.full((buffer,), -math.inf, dtype=torch.float64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))  # how many points were ever added
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("step", marker.new_full((temperatures,), 0.2))

    @property
    def layers(self) -> Flow:
        """The flow in the units of its layers, y."""
        count = len(self.flow.parts) - len(self.flow.preprocessing)
        return Flow(self.flow.base, self.flow.parts[:count]).train(self.flow.training)

    @property
    def density(self) -> Unbounded:
        """The target in these units."""
        return Unbounded(self.target, self.flow.preprocessing)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the loss of as many points of the buffer as x has rows, shape (N,).

        In evaluation, the terms log q - log p~ of the reverse KL, at draws of the flow.
        """
        layers = self.layers
        if not (self.training and torch.is_grad_enabled()):
            y, log_q = layers.sample_and_log_prob(len(x))
            return log_q - self.density(y)
        if self.calls % self.reuse == 0:
            self.refresh(len(x))
        self.calls += 1
        if not (self.log_weights > -math.inf).any():
            raise ValueError("expected a log-density that is finite somewhere near the flow, got -inf at all points")
        rows = torch.multinomial(torch.softmax(self.log_weights, 0), len(x), replacement=True)
        log_q = layers.log_prob(self.points[rows], nan="propagate")
        # as the flow has changed since the points were drawn, g has
        change = (1 - self.alpha) * (log_q.detach() - self.log_q[rows])
        self.log_weights[rows] += change
        self.log_q[rows] = log_q.detach()
        return -change.exp().clamp_max(self.clip) * log_q

    @torch.no_grad()
    def refresh(self, n: int) -> None:
        """Add new points to the buffer, by annealed importance sampling.

        Args:
            n: how many.
        """
        layers, density = self.layers, self.density
        y, log_q = layers.sample_and_log_prob(n)
        log_p = density(y)
        log_weights = torch.zeros_like(log_q, dtype=torch.float64)
        for level in range(self.temperatures + 1):
            log_weights += self.alpha / (self.temperatures + 1) * (log_p - log_q)
            if level == self.temperatures:
                break
            beta = self.alpha * (level + 1) / (self.temperatures + 1)

            def between(y: Tensor, beta: float = beta) -> Tensor:
                return (1 - beta) * layers.log_prob(y, nan="propagate") + beta * density(y, strict=False)

            kernel = Moves(bool(self.target.differentiable), self.step[level].item(), y.std(0).clamp_min(1e-6))
            y = kernel(State.at(y, between, kernel.differentiable), between, self.moves).x
            self.step[level] = kernel.step
            log_q, log_p = layers.log_prob(y, nan="propagate"), density(y, strict=False)
        self.add(y, log_q, log_weights)

    @torch.no_grad()
    def add(self, y: Tensor, log_q: Tensor, log_weights: Tensor) -> None:
        """Put points into the buffer, in the place of the oldest ones.

        Args:
            y: points in the units of the layers, ``(n, *event)``.
            log_q: their log-density under the flow, ``(n,)``.
            log_weights: of g, ``(n,)``.
        """
        size = len(self.log_q)
        y, log_q, log_weights = y[-size:], log_q[-size:], log_weights[-size:]
        places = (self.filled + torch.arange(len(y), device=y.device)) % size
        self.points[places], self.log_q[places] = y, log_q
        good = log_weights.isfinite() & log_q.isfinite()
        self.log_weights[places] = torch.where(good, log_weights.double(), -math.inf)
        self.filled += len(y)

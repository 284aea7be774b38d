"""Sequential Monte Carlo from a broad Gaussian to a density: points at its modes before any flow knows of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffeo.objectives.moves import Moves, State, reweighted
from diffeo.training.batches import in_proportion

__all__ = ["Particles", "temper"]

WANTED = 0.7  # effective sample size that a temperature leaves, as a fraction of the points
COLDEST = 1e-12  # of beta at the first temperature: below it, the density is nowhere near the start
FEWEST = 0.1  # effective sample size, as a fraction, below which a temperature says nothing of log Z


@dataclass(frozen=True)
class Particles:
    """Points ``(n, D)`` of the density, all of one weight, and an estimate of log Z.

    ``log_z`` is NaN where a temperature, as near as one goes, left too few effective points. ``temperatures`` is how
    many it took, ``step`` that of the last moves.
    """

    x: Tensor
    log_z: float
    temperatures: int
    step: float

    def __repr__(self) -> str:
        count, size = self.x.shape
        return (
            f"Particles: {count:,} points of {size} numbers, {self.temperatures} temperatures, log Z {self.log_z:.4f}"
        )


@torch.no_grad()
def temper(
    density: Callable[[Tensor], Tensor],
    start: Tensor,
    log_start: Callable[[Tensor], Tensor],
    *,
    differentiable: bool,
    moves: int = 10,
    most: int = 500,
) -> Particles:
    """Carry points of a start over to a density, by p_beta ~ start^(1 - beta) p~^beta with beta from 0 to 1.

    Each temperature is as far from the last one as costs 30 % of the effective points; they are then drawn anew as they
    weigh, and moved. Del Moral et al. 2006.

    Args:
        density: log p~ of points ``(n, D)``.
        start: points of the start, ``(n, D)``.
        log_start: its log-density.
        differentiable: whether the density has gradients.
        moves: how often points are moved at each temperature.
        most: temperatures.

    Raises:
        ValueError: if the density is zero at all points of the start, or so far from it that there are too few
            temperatures.
    """
    x, beta, log_z, kernel, count = start, 0.0, 0.0, Moves(differentiable), 0
    log_p, log_q = density(x), log_start(x)
    if not torch.isfinite(log_p).any():
        raise ValueError(
            f"expected a log-density that is finite somewhere near the start, got -inf at all of {len(x)} points; "
            "say where it is by location and scale, or by a support"
        )
    while beta < 1 and count < most:
        difference = log_p - log_q
        step = _next(difference, 1 - beta)
        weights = step * difference
        shares, ess = reweighted(weights)
        log_z += torch.logsumexp(weights.double(), 0).item() - math.log(len(x)) if ess > FEWEST else math.nan
        beta, count = beta + step, count + 1
        chosen = in_proportion(shares, torch.rand(()).item())
        x = x[chosen]
        kernel.scale = x.std(0).clamp_min(1e-6)

        def between(y: Tensor, beta: float = beta) -> Tensor:
            return (1 - beta) * log_start(y) + beta * density(y)

        x = kernel(State.at(x, between, differentiable), between, moves).x
        log_p, log_q = density(x), log_start(x)
    if beta < 1:
        raise ValueError(
            f"expected a log-density that {most} temperatures reach from the start, got one of which {1 - beta:.2g} "
            "is left; say where it is by location and scale, or, if its integral is infinite, by a support"
        )
    return Particles(x, log_z, count, kernel.step)


def _next(difference: Tensor, left: float) -> float:
    """The largest step of beta whose weights keep the wanted effective sample size."""
    if reweighted(left * difference)[1] >= WANTED:
        return left
    low, high = 0.0, left
    for _ in range(50):
        middle = math.sqrt(max(low, COLDEST * left) * high) if low < 0.1 * high else 0.5 * (low + high)
        low, high = (middle, high) if reweighted(middle * difference)[1] >= WANTED else (low, middle)
    return max(low, COLDEST * left)

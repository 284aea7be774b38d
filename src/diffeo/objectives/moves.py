"""Moves that leave a density as it is: Metropolis's random walk, and Hamiltonian ones where there are gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Moves", "State", "reweighted"]

Density = Callable[[Tensor], Tensor]  # log-densities (n,) of points (n, D)

LEAPFROGS = 5
WANTED = {True: 0.7, False: 0.3}  # accepted shares that adapt the step: of Hamiltonian moves, of a random walk


@dataclass
class State:
    """Points (n, D) with their log-density (n,) and, for Hamiltonian moves, its gradient (n, D)."""

    x: Tensor
    log_prob: Tensor
    gradient: Tensor | None

    @classmethod
    def at(cls, x: Tensor, density: Density, differentiable: bool) -> State:
        """Evaluate a density at points."""
        x = x.detach()
        if not differentiable:
            with torch.no_grad():
                return cls(x, density(x), None)
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            log_prob = density(leaf)
            (gradient,) = torch.autograd.grad(log_prob.sum(), leaf)
        return cls(x, log_prob.detach(), gradient.nan_to_num(0.0, 0.0, 0.0))

    def where(self, chosen: Tensor, other: State) -> State:
        """These points, and those of another state where not chosen."""
        gradient = None
        if self.gradient is not None and other.gradient is not None:
            gradient = torch.where(chosen[:, None], self.gradient, other.gradient)
        return State(
            torch.where(chosen[:, None], self.x, other.x),
            torch.where(chosen, self.log_prob, other.log_prob),
            gradient,
        )


@dataclass
class Moves:
    """Metropolis's random walk, or Hamiltonian Monte Carlo of a few leapfrog steps (Duane et al. 1987), adapted.

    Steps are in units of ``scale``, the spread of the points in each dimension. ``adapt`` moves them towards the share
    of accepted moves that suits the kind; while they change, a density is left as it is in the limit alone.

    Args:
        differentiable: whether the density has gradients: Hamiltonian moves.
        step: of one leapfrog, or the standard deviation of a random walk.
        scale: ``(D,)``, or a number.
    """

    differentiable: bool
    step: float = 0.2
    scale: Tensor = field(default_factory=lambda: torch.ones(()))
    accepted: float = math.nan

    def __call__(self, state: State, density: Density, times: int = 1, adapt: bool = True) -> State:
        """Move every point by so many proposals.

        Args:
            state: where they are.
            density: log p of points.
            times: how many proposals.
            adapt: whether the step follows the share of accepted ones.
        """
        for _ in range(times):
            proposal, log_ratio = (
                self._hamiltonian(state, density) if self.differentiable else self._walk(state, density)
            )
            chosen = log_ratio > torch.rand_like(log_ratio).log()
            state = proposal.where(chosen, state)
            self.accepted = chosen.double().mean().item()
            if adapt:
                self.step *= math.exp(0.5 * (self.accepted - WANTED[self.differentiable]))
        return state

    def _walk(self, state: State, density: Density) -> tuple[State, Tensor]:
        noise = torch.randn_like(state.x) * self.scale
        proposal = State.at(state.x + self.step * noise, density, differentiable=False)
        return proposal, (proposal.log_prob - state.log_prob).nan_to_num(-math.inf, math.inf, -math.inf)

    def _hamiltonian(self, state: State, density: Density) -> tuple[State, Tensor]:
        # Steps of one length would let orbits close.
        step = self.step * self.scale * (0.5 + torch.rand(len(state.x), 1).to(state.x))
        momentum = torch.randn_like(state.x)
        energy = state.log_prob - 0.5 * momentum.square().sum(1)
        here = state
        for _ in range(LEAPFROGS):
            assert here.gradient is not None
            half = momentum + 0.5 * step * here.gradient
            here = State.at(here.x + step * half, density, differentiable=True)
            assert here.gradient is not None
            momentum = half + 0.5 * step * here.gradient
        new = here.log_prob - 0.5 * momentum.square().sum(1)
        return here, (new - energy).nan_to_num(-math.inf, math.inf, -math.inf)


def reweighted(log_weights: Tensor) -> tuple[Tensor, float]:
    """Weights that sum to 1, and the effective sample size of the points, (sum w)^2 / (n sum w^2).

    Args:
        log_weights: ``(n,)``; -inf is a weight of 0.
    """
    if not (log_weights > -math.inf).any():
        return torch.zeros_like(log_weights, dtype=torch.float64), 0.0
    weights = torch.softmax(log_weights.double(), 0)
    return weights, 1 / (len(weights) * weights.square().sum().item())

"""Five tasks of sbibm (Lueckmann et al. 2021, arXiv:2101.04653): priors, simulators and stored reference posteriors.

Re-implemented from the paper and its appendix; ``check`` holds them against what sbibm stores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, Uniform

OBSERVATIONS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Task:
    """A prior, and what a simulator makes of parameters (n, features): observations (n, size)."""

    name: str
    prior: Distribution
    simulate: Callable[[Tensor], Tensor]

    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Parameters of the prior and their observations."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            theta = self.prior.sample((n,))
            return theta, self.simulate(theta)


def _box(low: float, high: float, size: int) -> Distribution:
    low_end, high_end = low * torch.ones(size), high * torch.ones(size)
    return Independent(Uniform(low_end, high_end), 1)


def two_moons() -> Task:
    """A crescent of radius 0.1 +- 0.01 around (0.25, 0), moved by (-|t1 + t2|, t2 - t1) / sqrt 2: two solutions."""

    def simulate(theta: Tensor) -> Tensor:
        angle = math.pi * (torch.rand(len(theta)) - 0.5)
        radius = 0.1 + 0.01 * torch.randn(len(theta))
        crescent = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)
        moved = torch.stack([-(theta[:, 0] + theta[:, 1]).abs(), theta[:, 1] - theta[:, 0]], 1)
        return crescent + moved / math.sqrt(2)

    return Task("two_moons", _box(-1, 1, 2), simulate)


def slcp() -> Task:
    """Four points of a normal distribution in the plane: means t1, t2, deviations t3^2, t4^2, correlation tanh t5."""

    def simulate(theta: Tensor) -> Tensor:
        mean, (s1, s2), rho = theta[:, :2], theta[:, 2:4].square().unbind(1), theta[:, 4].tanh()
        cross = rho * s1 * s2
        covariance = torch.stack([s1**2 + 1e-6, cross, cross, s2**2 + 1e-6], 1).unflatten(1, (2, 2))
        return MultivariateNormal(mean, covariance).sample((4,)).movedim(0, 1).flatten(1)

    return Task("slcp", _box(-3, 3, 5), simulate)


def _noisy(name: str, prior: Distribution) -> Task:
    return Task(name, prior, lambda theta: theta + math.sqrt(0.1) * torch.randn_like(theta))


def gaussian_linear() -> Task:
    """x ~ N(theta, 0.1 I) in ten dimensions, theta ~ N(0, 0.1 I)."""
    return _noisy("gaussian_linear", Independent(Normal(torch.zeros(10), math.sqrt(0.1) * torch.ones(10)), 1))


def gaussian_linear_uniform() -> Task:
    """x ~ N(theta, 0.1 I) in ten dimensions, theta uniform on [-1, 1]^10."""
    return _noisy("gaussian_linear_uniform", _box(-1, 1, 10))


def design() -> Tensor:
    """(100, 10): ones, and the white noise that drives the neuron, at lags 0 to 8."""
    noise = torch.from_numpy(np.random.RandomState(42).randn(100)).float()
    lags = [torch.cat([torch.zeros(lag), noise[: 100 - lag]]) for lag in range(9)]
    return torch.stack([torch.ones(100), *lags], 1)


def bernoulli_glm() -> Task:
    """Spikes of a neuron with an offset and a smooth filter over 9 steps; observed are spikes times the design."""
    inputs = design()
    step = torch.eye(9) - torch.diag(torch.ones(8), -1)
    rough = step @ step + torch.diag((torch.arange(9) / 9).sqrt())
    precision = torch.block_diag(torch.tensor([[0.5]]), rough.mT @ rough)

    def simulate(theta: Tensor) -> Tensor:
        spikes = torch.bernoulli(torch.sigmoid(theta @ inputs.mT))  # (n, 100)
        return spikes @ inputs

    return Task("bernoulli_glm", MultivariateNormal(torch.zeros(10), precision_matrix=precision), simulate)


TASKS: dict[str, Callable[[], Task]] = {
    each.__name__: each for each in (two_moons, slcp, gaussian_linear, gaussian_linear_uniform, bernoulli_glm)
}


@dataclass(frozen=True)
class Stored:
    """What sbibm stores: an observation (size,), its parameters, and samples of its posterior (n, features)."""

    x: Tensor
    theta: Tensor
    reference: Tensor


def stored(folder: Path, task: str, number: int) -> Stored:
    """Read an observation with its reference posterior."""
    place = folder / "sbibm" / task / str(number)

    def read(name: str) -> Tensor:
        rows = np.loadtxt(place / name, delimiter=",", skiprows=1, ndmin=2, dtype=np.float64)
        return torch.from_numpy(rows).float()

    x, theta = read("observation.csv")[0], read("true_parameters.csv")[0]
    return Stored(x, theta, read("reference_posterior_samples.csv.bz2"))

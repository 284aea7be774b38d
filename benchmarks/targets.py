"""`fit_target` on densities known up to a constant: effective sample size, log Z, and modes, beside plain reverse KL.

many-well    16 double wells in 32 dimensions, exp(sum_i -a_i^4 + 6 a_i^2 + a_i / 2 - b_i^2 / 2); log Z = 164.6957
GMM-40       40 normals in a square of side 80, of FAB (Midgley et al. 2022, arXiv:2208.01893)
funnel       Neal's in 10 dimensions: v ~ N(0, 3^2), nine x_i ~ N(0, e^v); log Z = 0
banana       x_1 ~ N(0, 10^2), x_2 ~ N(0.03 (x_1^2 - 100), 1); log Z = 0
schools      eight schools (Rubin 1981), centred and non-centred: moments beside Pyro's NUTS, 20,000 draws

Printed are: the effective sample size (ESS) and log Z with its standard error by 10,000 samples of the flow; Pareto
k-hat; the effective sample size by points in the other direction; for the wells the mean of log q at 4,000 of the
2^16 points at which every well has its minimum; for the mixture how many of the 40 modes have a sample within three
standard deviations, and the bias of the published quadratic test function, |estimate / truth - 1|; for the schools
the largest difference of a posterior mean from NUTS's, in posterior standard deviations, and of these deviations.
`reverse KL` is a spline coupling flow, which samples and scores in one pass, trained by `ReverseKL` with path gradients
for as many steps: without annealed points, and without the epochs of maximum likelihood on these.

    python benchmarks/targets.py [--target ...] [--seeds 3] [--steps N] [--out targets.json]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffeo
from diffeo.inference import fit_target, importance
from diffeo.inference.importance import Importance
from diffeo.objectives import ReverseKL

SAMPLES = 10_000
DRAWS = 20_000  # of the chain
WELLS = (-1.7106, 1.7524)  # where -a^4 + 6 a^2 + a / 2 has its maxima
EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def many_well(x: Tensor) -> Tensor:
    """log p~ of points (n, 32): wells in the even columns, normals in the odd ones."""
    a, b = x[:, 0::2], x[:, 1::2]
    return (-(a**4) + 6 * a**2 + 0.5 * a - 0.5 * b**2).sum(1)


def wells(result: Importance, flow: diffeo.Flow) -> str:
    """log q where every well has its minimum."""
    at = torch.zeros(4000, 32)
    at[:, 0::2] = torch.tensor(WELLS)[torch.randint(0, 2, (4000, 16))]
    return f"log q at modes {flow.log_prob(at).mean():.2f}"


class Mixture40:
    """The mixture of FAB: means and the test function from its seeds."""

    def __init__(self) -> None:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.means = (torch.rand(40, 2) - 0.5) * 80
            torch.manual_seed(0)
            self.shift, self.matrix, self.slope = 2 * torch.randn(2), 2 * torch.rand(2, 2), torch.rand(2)
            self.scale = math.log1p(math.e)
            x = self.means[torch.randint(0, 40, (2_000_000,))] + self.scale * torch.randn(2_000_000, 2)
            self.truth = self.quadratic(x).double().mean().item()

    def __call__(self, x: Tensor) -> Tensor:
        """log p of points (n, 2)."""
        squares = ((x[:, None] - self.means) / self.scale).square().sum(-1)
        return torch.logsumexp(-0.5 * squares, 1) - math.log(40 * 2 * math.pi * self.scale**2)

    def quadratic(self, x: Tensor) -> Tensor:
        """The function whose expectation is asked for."""
        y = x + self.shift
        return torch.einsum("bi,ij,bj->b", y, self.matrix, y) + y @ self.slope

    def found(self, result: Importance, flow: diffeo.Flow) -> str:
        """Modes with a sample, and the bias."""
        distance, nearest = torch.cdist(result.samples, self.means).min(1)
        modes = len(nearest[distance < 3 * self.scale].unique())
        weighed = abs(result.mean(self.quadratic).item() / self.truth - 1)
        plain = abs(self.quadratic(result.samples).mean().item() / self.truth - 1)
        return f"{modes} modes, bias {weighed:.1%} weighed, {plain:.1%} not"


def funnel(x: Tensor) -> Tensor:
    """log p of points (n, 10)."""
    v, rest = x[:, 0], x[:, 1:]
    normal = -0.5 * (v / 3).square() - math.log(3) - 0.5 * rest.square().sum(1) * torch.exp(-v) - 4.5 * v
    return normal - 5 * math.log(2 * math.pi)


def banana(x: Tensor) -> Tensor:
    """log p of points (n, 2)."""
    second = x[:, 1] - 0.03 * (x[:, 0].square() - 100)
    return -0.5 * (x[:, 0] / 10).square() - 0.5 * second.square() - math.log(20 * math.pi)


def schools(x: Tensor, centred: bool) -> Tensor:
    """log p~ of mu ~ N(0, 5^2), log tau, tau ~ half-Cauchy(5), and eight effects or their distances from mu in tau."""
    mu, log_tau, rest = x[:, 0], x[:, 1], x[:, 2:]
    tau = log_tau.exp()
    prior = -0.5 * (mu / 5).square() - torch.log1p((tau / 5).square()) + log_tau
    theta = rest if centred else mu[:, None] + tau[:, None] * rest
    around = (rest - mu[:, None]) / tau[:, None] if centred else rest
    prior = prior - 0.5 * around.square().sum(1) - (8 * log_tau if centred else 0)
    return prior - 0.5 * ((theta - EFFECTS) / ERRORS).square().sum(1)


def effects(x: Tensor, centred: bool) -> Tensor:
    """mu, log tau and the eight effects ``(n, 10)``."""
    mu, tau = x[:, :1], x[:, 1:2].exp()
    return torch.cat([mu, x[:, 1:2], x[:, 2:] if centred else mu + tau * x[:, 2:]], 1)


@cache
def nuts() -> tuple[Tensor, Tensor, Tensor]:
    """Means, standard deviations and the means' standard errors by Pyro's NUTS, not centred, in double precision."""
    import pyro
    from pyro.infer import MCMC, NUTS
    from pyro.ops.stats import effective_sample_size

    pyro.set_rng_seed(0)
    kernel = NUTS(potential_fn=lambda values: -schools(values["x"][None], False)[0], target_accept_prob=0.9)
    start = {"x": torch.zeros(10, dtype=torch.float64)}
    run = MCMC(kernel, num_samples=DRAWS, warmup_steps=1000, initial_params=start, disable_progbar=True)
    with torch.enable_grad():
        run.run()
    chain = effects(run.get_samples()["x"], False)
    deviation = chain.std(0)
    return chain.mean(0), deviation, deviation / effective_sample_size(chain[None], 0, 1).sqrt()


def beside_nuts(centred: bool) -> Callable[[Importance, diffeo.Flow], str]:
    """Compare means and standard deviations."""

    def compare(result: Importance, flow: diffeo.Flow) -> str:
        mean, deviation, error = nuts()
        ours = result.mean(lambda x: effects(x, centred))
        spread = (result.mean(lambda x: effects(x, centred).square()) - ours.square()).sqrt()
        gap, wider = ((ours - mean) / deviation).abs().max().item(), (spread / deviation - 1).abs().max().item()
        known = (error / deviation).max().item()
        return f"means within {gap:.3f} sd of NUTS's (known to {known:.3f}), deviations within {wider:.1%}"

    return compare


@dataclass(frozen=True)
class Case:
    """A density, where to look for it, what its log Z is, and what else is printed."""

    log_density: Callable[[Tensor], Tensor]
    features: int
    log_z: float | None = None
    scale: float = 3.0
    more: Callable[[Importance, diffeo.Flow], str] = lambda result, flow: ""


def cases() -> dict[str, Case]:
    """The targets by name."""
    mixture = Mixture40()
    return {
        "many-well": Case(many_well, 32, 164.6957, more=wells),
        "GMM-40": Case(mixture, 2, 0.0, 20.0, mixture.found),
        "funnel": Case(funnel, 10, 0.0),
        "banana": Case(banana, 2, 0.0, 10.0),
        "schools": Case(lambda x: schools(x, False), 10, more=beside_nuts(False)),
        "schools, centred": Case(lambda x: schools(x, True), 10, scale=5.0, more=beside_nuts(True)),
    }


@torch.no_grad()
def told(case: Case, result: Importance, flow: diffeo.Flow, seconds: float) -> dict[str, Any]:
    """What is printed of a result."""
    return {
        "ess": result.ess, "forward_ess": result.forward_ess, "khat": result.khat, "log_z": result.log_z,
        "stderr": result.log_z_stderr, "error": None if case.log_z is None else result.log_z - case.log_z,
        "more": case.more(result, flow), "doubts": result.doubts, "seconds": seconds,
    }  # fmt: skip


def annealed(case: Case, seed: int, steps: int | None) -> dict[str, Any]:
    """`fit_target` with no options but the scale."""
    options = {} if steps is None else {"steps": steps}
    result = fit_target(case.log_density, case.features, scale=case.scale, samples=SAMPLES, seed=seed, **options)
    return told(case, result.importance, result.flow, result.seconds)


def reverse_kl(case: Case, seed: int, steps: int | None) -> dict[str, Any]:
    """A coupling flow by path gradients, that begins as broad as the particles do."""
    started = time.monotonic()
    torch.manual_seed(seed)
    flow = diffeo.nsf(case.features, structure="coupling", preprocess=("standardize",))
    flow.preprocessing[0].std.fill_(case.scale)
    diffeo.fit(ReverseKL(flow, case.log_density), steps=steps or 1500, lr=3e-3, ema=0.99, seed=seed)
    result = importance(flow, case.log_density, SAMPLES)
    return told(case, result, flow, time.monotonic() - started)


METHODS = {"fit_target": annealed, "reverse KL": reverse_kl}


def main() -> None:
    """Run every method on every target, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = cases()
    parser.add_argument("--target", nargs="+", default=list(known), choices=list(known), metavar="TARGET")
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads\n")
    results: dict[str, Any] = {}
    for name in arguments.target:
        for method in arguments.method:
            for seed in arguments.seeds:
                row = METHODS[method](known[name], seed, arguments.steps)
                results.setdefault(name, {}).setdefault(method, {})[seed] = row
                error = "" if row["error"] is None else f" (error {row['error']:+.3f})"
                print(
                    f"{name}, {method}, seed {seed}: ESS {row['ess']:.3f}, other direction {row['forward_ess']:.3f}, "
                    f"k-hat {row['khat']:.2f}, log Z {row['log_z']:.4f} +- {row['stderr']:.4f}{error}, {row['more']}, "
                    f"{row['seconds']:.0f} s; doubts: {'; '.join(row['doubts']) or 'none'}",
                    flush=True,
                )
                if arguments.out:
                    arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

"""Five tasks of sbibm (Lueckmann et al. 2021, arXiv:2101.04653): C2ST of `diffeo.posterior` with no options.

Priors and simulators are re-implemented from the paper and its appendix, and held against what sbibm stores (--check):
every stored observation must lie among simulations of its parameters, every reference sample within the prior, and
where the posterior has a density, E[-theta_i d/dtheta_i log p] = 1 about the mean (Stein) over the reference samples.

C2ST              sbibm's own: the accuracy over 5 folds of scikit-learn's MLPClassifier (relu, two hidden layers of ten
                  times the parameters, Adam, at most 10,000 epochs) that tells 10,000 draws from 10,000 reference
                  samples, in standard deviations of these; .5 is a perfect posterior. Means over observations 1 to 5.
log q             of --fresh new simulations, in nats: what settings were chosen by, never the C2ST.
SBC               the smallest p-value of parameters' ranks over 500 new simulations, times the number of parameters
seconds           of the fit, all folds together, and of processors: where others compute too the latter say more
NPE-NSF           published C2ST of the benchmark's own (means over ten observations)

Results are written to --out after every observation, and every posterior to a folder beside it; with --keep what is
there is neither fitted nor measured again.

What limits SBC with few simulations is shown by --least-squares.

DIFFEO_DATA=... OMP_NUM_THREADS=1 python benchmarks/sbibm.py [--tasks ...] [--sizes 1000 10000] [--out results.json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, Uniform

import diffeo
from diffeo.inference.calibration import calibration_of

OBSERVATIONS = (1, 2, 3, 4, 5)
PUBLISHED = {  # NPE-NSF
    "two_moons": {1000: 0.725, 10000: 0.606},
    "slcp": {1000: 0.975, 10000: 0.901},
    "gaussian_linear": {1000: 0.694, 10000: 0.552},
    "gaussian_linear_uniform": {1000: 0.696, 10000: 0.553},
    "bernoulli_glm": {1000: 0.863, 10000: 0.678},
}


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
    return Independent(Uniform(low * torch.ones(size), high * torch.ones(size)), 1)


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


def c2st(reference: Tensor, drawn: Tensor, seed: int = 1) -> float:
    """The accuracy of sbibm's classifier."""
    mean, std = reference.mean(0), reference.std(0)
    rows = torch.cat([(reference - mean) / std, (drawn - mean) / std]).numpy()
    labels = np.repeat([0.0, 1.0], [len(reference), len(drawn)])
    width = 10 * reference.shape[1]
    classifier = MLPClassifier(
        activation="relu", hidden_layer_sizes=(width, width), max_iter=10_000, solver="adam", random_state=seed
    )
    folds = KFold(n_splits=5, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, rows, labels, cv=folds, scoring="accuracy").mean())


def check(folder: Path) -> None:
    """Hold priors and simulators against what is stored."""
    for name, make in TASKS.items():
        task = make()
        for number in OBSERVATIONS:
            kept = stored(folder, name, number)
            simulated = task.simulate(kept.theta.expand(100_000, -1))
            off = ((kept.x - simulated.mean(0)) / simulated.std(0)).abs().max()
            inside = bool(task.prior.support.check(kept.reference).all())
            print(
                f"{name} {number}: x is {off:.1f} standard deviations from simulations; within the prior: {inside}",
                end="",
            )
            print(f"; Stein {_stein(task, kept):.3f}" if name == "bernoulli_glm" else "", flush=True)


def _stein(task: Task, kept: Stored) -> float:
    """The worst of E[-(theta_i - mean_i) d/dtheta_i log p(theta | x)], which are 1, for the spikes of a neuron."""
    inputs, prior = design().double(), task.prior
    assert isinstance(prior, MultivariateNormal)
    theta = kept.reference.double().requires_grad_()
    exact = MultivariateNormal(prior.loc.double(), precision_matrix=prior.precision_matrix.double())
    likelihood = theta @ kept.x.double() - torch.nn.functional.softplus(theta @ inputs.mT).sum(1)
    (slope,) = torch.autograd.grad((likelihood + exact.log_prob(theta)).sum(), theta)
    means = -((theta - theta.mean(0)) * slope).mean(0)
    return float(means[(means - 1).abs().argmax()])


def least_squares(sizes: Sequence[int], fits: int = 300) -> None:
    """How often SBC fails where the family is known: of theta linear in x, on gaussian_linear, by least squares."""
    task = TASKS["gaussian_linear"]()
    for size in sizes:
        least = []
        for seed in range(fits):
            theta, x = task.draw(size, seed)
            inputs = torch.cat([torch.ones(size, 1), x], 1)
            weights = torch.linalg.lstsq(inputs, theta).solution
            rest = theta - inputs @ weights
            factor = torch.linalg.cholesky(rest.mT @ rest / (size - inputs.shape[1]))
            truth, seen = task.draw(500, seed + 2_000_000)
            means = torch.cat([torch.ones(500, 1), seen], 1) @ weights
            drawn = means + torch.randn(100, *means.shape) @ factor.mT
            least.append(min(calibration_of(truth, drawn, seed=seed).p_values.values()) * theta.shape[1])
        share = np.mean(np.array(least) < 0.01)
        print(f"least squares of {size:,}: SBC p below .01 in {share:.1%} of {fits} fits")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 10000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--method", default="npe", choices=["npe", "fmpe"])
    # Without a number there is no C2ST, whose classifiers take longer than some of the fits.
    parser.add_argument("--observations", nargs="*", type=int, default=OBSERVATIONS, choices=OBSERVATIONS)
    parser.add_argument("--fresh", type=int, default=5000)
    parser.add_argument("--quick", action="store_true", help="two epochs, one observation: whether it runs")
    parser.add_argument("--check", action="store_true", help="hold priors and simulators against what is stored")
    parser.add_argument("--least-squares", action="store_true", help="how often SBC fails where the family is known")
    parser.add_argument("--keep", action="store_true", help="go on with the results in --out")
    parser.add_argument("--out", type=Path, default=Path("sbibm.json"))
    options = parser.parse_args()
    folder = Path(os.environ.get("DIFFEO_DATA", "data"))
    if options.check:
        check(folder)
        return
    if options.least_squares:
        least_squares(options.sizes)
        return
    if options.quick:
        options.observations = options.observations[:1]
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.keep and options.out.exists() else {}
    for seed in options.seeds:
        for size in options.sizes:
            for name in options.tasks:
                key = f"{name} {options.method} {size} {seed}"
                measure(
                    results.setdefault(key, {}),
                    TASKS[name](),
                    size,
                    seed,
                    options,
                    folder,
                    lambda: write(results, options.out),
                )
                print(line(key, results[key]), flush=True)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {os.cpu_count()} cores")
    for key, result in results.items():
        if "log_q" in result:  # and not stopped before that
            print(line(key, result))


def write(results: dict[str, Any], out: Path) -> None:
    """Write all results."""
    out.write_text(json.dumps(results, indent=1))


def measure(
    result: dict[str, Any],
    task: Task,
    size: int,
    seed: int,
    options: argparse.Namespace,
    folder: Path,
    save: Callable[[], None],
) -> None:
    """Fit, and judge by what is not there yet."""
    measured = result.setdefault("c2st", {})
    missing = [number for number in options.observations if str(number) not in measured]
    if not missing and "log_q" in result:
        return
    run = options.out.with_suffix("") / f"{task.name}-{options.method}-{size}-{seed}"
    if "seconds" in result and run.exists():
        posterior: Any = diffeo.load(run)
    else:
        theta, x = task.draw(size, seed)
        started, spent = time.perf_counter(), cpu_seconds()
        budget: dict[str, Any] = {"epochs": 2} if options.quick else {}
        posterior = diffeo.posterior(
            theta, x, task.prior, method=options.method, seed=seed, out=run, force=True, **budget
        )
        result.setdefault("seconds", time.perf_counter() - started)
        result.setdefault("cpu_seconds", cpu_seconds() - spent)
    if "log_q" not in result:
        with torch.no_grad():
            log_q = posterior.log_prob(*task.draw(options.fresh, seed + 1_000_000))
        result["log_q"], result["log_q_stderr"] = float(log_q.mean()), float(log_q.std() / math.sqrt(len(log_q)))
        calibration = posterior.calibration(*task.draw(500, seed + 2_000_000), draws=100)
        result["sbc"], result["tarp"] = list(calibration.p_values.values()), calibration.tarp_p
        save()
    for number in missing:
        kept = stored(folder, task.name, number)
        drawn = posterior.sample(kept.x, len(kept.reference), seed=seed)
        measured[str(number)] = c2st(kept.reference, drawn)
        save()
        print(f"  {task.name} {size} {seed}, observation {number}: {measured[str(number)]:.3f}", flush=True)


def cpu_seconds() -> float:
    """Of this process and of those that it waited for."""
    used = (resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def line(key: str, result: dict[str, Any]) -> str:
    """One result in a line."""
    name, _, size, _ = key.split()
    each = [f"{value:.3f}" for value in result["c2st"].values()]
    mean = f"{np.mean(list(result['c2st'].values())):.3f}" if each else "not measured"
    published = PUBLISHED[name].get(int(size), math.nan)
    least = min(1.0, min(result["sbc"]) * len(result["sbc"]))
    return (
        f"| {key:<38} | C2ST {mean} ({', '.join(each)}) "
        f"| NPE-NSF {published:.3f} | log q {result['log_q']:.3f} ± {result['log_q_stderr']:.3f} "
        f"| SBC p {least:.2f}, TARP p {result['tarp']:.2f} "
        f"| {result['seconds']:.0f} s, {result['cpu_seconds']:.0f} of processors |"
    )


if __name__ == "__main__":
    main()

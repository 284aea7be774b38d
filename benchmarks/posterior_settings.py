"""Settings of `diffeo.posterior`, by the likelihood of fresh simulations: the five tasks of sbibm.py and five others.

regression       1 number of 3: N(sin 2 x1 + 0.3 x2, (0.1 + 0.5 sigmoid(2 x3))^2)
folded           3 numbers of 4: (t1^2, t1 t2, sin 2 t3, t2 + t3) + 0.3 noise, t ~ N(0, I): two or four modes
sir              2 rates of an epidemic, lognormal, of 10 binomial counts
predators        4 rates of Lotka and Volterra, lognormal, of 2 x 10 noisy counts, in logarithms
tails            3 numbers of 3 lognormal ones: exp(1.2 (t1 + t2, t2 - t3, t1 t3) + 0.3 noise), t ~ N(0, I)

For each, every candidate is trained on as many simulations as --sizes says; what is printed is the mean of
log q(theta | x), in nats, on --fresh new ones, its paired difference to the first candidate with the standard error of
that, and the seconds of the fit. "a + b" stacks what "a" and "b" came to, by what they held out. Neither the C2ST nor
stored observations are looked at.

OMP_NUM_THREADS=1 python benchmarks/posterior_settings.py [--tasks ...] [--sizes 1000] [--candidates ...] [--keep]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Binomial, Independent, LogNormal, Normal

import diffeo
from diffeo.inference.posterior import METHODS, Method
from diffeo.objectives import MaximumLikelihood
from diffeo.training.folds import out_of_fold, stack
from sbibm import TASKS

USUAL = METHODS["npe"]
SPLINES = {**USUAL.arguments, "embedding": []}
READER = [128, 128, 32]


def _method(recipe: str, arguments: dict[str, Any], **training: Any) -> Method:
    return Method(recipe, arguments, MaximumLikelihood, USUAL.training | training, {})


def _splines(transforms: int, width: int, embedding: list[int], **training: Any) -> Method:
    sizes = {"transforms": transforms, "hidden": [width, width], "embedding": embedding}
    return _method("nsf", SPLINES | sizes, **training)


CANDIDATES = {
    "large": _splines(5, 128, []),
    "small": _splines(3, 64, []),
    "linear": _method("maf", {"transforms": 1, "hidden": []}),
    "linear, short": _method("maf", {"transforms": 1, "hidden": []}, epochs=30),
    "large read": _splines(5, 128, READER),
    "small read": _splines(3, 64, READER),
    "tiny read": _splines(2, 32, READER),
    "small read widely": _splines(3, 64, [256, 256, 256, 64]),
    "small read, low": _splines(3, 64, READER, lr=3e-3),
    "small read, large batches": _splines(3, 64, READER, batch_size=512),
    "small read, large batches, high": _splines(3, 64, READER, batch_size=512, lr=2.2e-2),
    "small read, short": _splines(3, 64, READER, epochs=60),
    "tiny read, short": _splines(2, 32, READER, epochs=60),
    "small read, impatient": _splines(3, 64, READER, patience=15),
    "tiny read, impatient": _splines(2, 32, READER, patience=15),
    "tiny read lightly": _splines(2, 32, [64, 64, 32]),
    "small read lightly": _splines(3, 64, [64, 64, 32]),
    "thin read": _splines(3, 32, READER),
    "broad read": _splines(2, 64, READER),
    "single read": _splines(1, 64, READER),
}


def regression(n: int) -> tuple[Tensor, Tensor]:
    """A number whose mean and deviation follow from three."""
    x = torch.randn(n, 3)
    deviation = 0.1 + 0.5 * torch.sigmoid(2 * x[:, 2])
    theta = torch.sin(2 * x[:, 0]) + 0.3 * x[:, 1] + deviation * torch.randn(n)
    return theta[:, None], x


def folded(n: int) -> tuple[Tensor, Tensor]:
    """Parameters whose signs are lost."""
    t1, t2, t3 = torch.randn(3, n)
    x = torch.stack([t1**2, t1 * t2, torch.sin(2 * t3), t2 + t3], 1)
    return torch.stack([t1, t2, t3], 1), x + 0.3 * torch.randn(n, 4)


def sir(n: int) -> tuple[Tensor, Tensor]:
    """Infections of 1,000 that are counted ten times in 160 days."""
    rates = torch.stack([LogNormal(math.log(0.4), 0.5).sample((n,)), LogNormal(math.log(0.125), 0.2).sample((n,))], 1)
    well, ill, counts = torch.full((n,), 0.999999), torch.full((n,), 1e-6), []
    for step in range(1, 1601):
        infected, cured = rates[:, 0] * well * ill, rates[:, 1] * ill
        well, ill = well - 0.1 * infected, ill + 0.1 * (infected - cured)
        if step % 160 == 0:
            counts.append(Binomial(1000, ill.clamp(0, 1)).sample())
    return rates, torch.stack(counts, 1)


def predators(n: int) -> tuple[Tensor, Tensor]:
    """Prey and predators, seen ten times in 20 units of time."""
    where = torch.tensor([-0.125, -3.0, -0.125, -3.0])
    rates = LogNormal(where, 0.5).sample((n,))
    a, b, c, d = rates.unbind(1)
    prey, hunters, seen = torch.full((n,), math.log(30.0)), torch.zeros(n), []
    for step in range(1, 2001):  # in logarithms
        prey, hunters = prey + 0.01 * (a - b * hunters.exp()), hunters + 0.01 * (d * prey.exp() - c)
        prey, hunters = prey.clamp(-10, 10), hunters.clamp(-10, 10)
        if step % 200 == 0:
            seen += [prey, hunters]
    x = torch.stack(seen, 1)
    return rates, x + 0.1 * torch.randn_like(x)


def tails(n: int) -> tuple[Tensor, Tensor]:
    """Observations of which some are many standard deviations out."""
    t1, t2, t3 = torch.randn(3, n)
    x = torch.stack([t1 + t2, t2 - t3, t1 * t3], 1)
    return torch.stack([t1, t2, t3], 1), torch.exp(1.2 * x + 0.3 * torch.randn(n, 3))


OWN = {each.__name__: each for each in (regression, folded, sir, predators, tails)}
PRIORS = {
    "sir": Independent(LogNormal(torch.tensor([0.4, 0.125]).log(), torch.tensor([0.5, 0.2])), 1),
    "predators": Independent(LogNormal(torch.tensor([-0.125, -3.0, -0.125, -3.0]), torch.full((4,), 0.5)), 1),
    "folded": Independent(Normal(torch.zeros(3), torch.ones(3)), 1),
    "regression": None,
    "tails": Independent(Normal(torch.zeros(3), torch.ones(3)), 1),
}


def pairs(name: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Parameters and observations of a task."""
    if name in TASKS:
        return TASKS[name]().draw(n, seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return OWN[name](n)


def measure(name: str, candidate: str, size: int, seed: int, folds: int, fresh: int) -> dict[str, Any]:
    """Train a candidate, and score fresh simulations, and those that its members held out."""
    METHODS[candidate] = CANDIDATES[candidate]
    prior = TASKS[name]().prior if name in TASKS else PRIORS[name]
    started = time.perf_counter()
    learned: Any = diffeo.posterior(*pairs(name, size, seed), prior, method=candidate, seed=seed, folds=folds, jobs=1)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        held = out_of_fold(
            learned.flow, learned.fold, lambda flow, rows: flow.log_prob(learned.theta[rows], learned.x[rows])
        )
        new = learned.log_prob(*pairs(name, fresh, seed + 1_000_000))
    return {"seconds": seconds, "best_epoch": learned.facts["best_epoch"], "held": held.tolist(), "new": new.tolist()}


def stacked(each: list[dict[str, Any]]) -> Tensor:
    """log q of fresh simulations by a stack of what was trained."""
    weights = stack(torch.tensor([part["held"] for part in each]).mT)
    return torch.logsumexp(torch.tensor([part["new"] for part in each]).double() + weights.log()[:, None], 0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=[*TASKS, *OWN], choices=[*TASKS, *OWN])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--candidates", nargs="+", default=["large + small + linear", "small read + tiny read + linear"]
    )
    parser.add_argument("--folds", type=int, default=5, help="1 compares settings in a fifth of the time")
    parser.add_argument("--fresh", type=int, default=5000)
    parser.add_argument("--keep", action="store_true", help="go on with the results in --out")
    parser.add_argument("--out", type=Path, default=Path("posterior_settings.json"))
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.keep and options.out.exists() else {}

    def found(name: str, size: int, seed: int, candidate: str) -> dict[str, Any]:
        key = f"{name} {size} {seed} {options.folds} {candidate}"
        if key not in results:
            results[key] = measure(name, candidate, size, seed, options.folds, options.fresh)
            options.out.write_text(json.dumps(results))
            print(f"  {key}: {np.mean(results[key]['new']):.3f}, {results[key]['seconds']:.0f} s", flush=True)
        return results[key]

    parts = list(dict.fromkeys(part for each in options.candidates for part in each.split(" + ")))
    for size in options.sizes:
        for candidate in parts:
            for seed in options.seeds:
                for name in options.tasks:
                    found(name, size, seed, candidate)
    for size in options.sizes:
        print(f"| {size} simulations | " + " | ".join(options.candidates) + " |")
        print("| --- |" + " ---: |" * len(options.candidates))
        means = []
        for name in options.tasks:
            rows = [
                torch.cat(
                    [stacked([found(name, size, seed, part) for part in each.split(" + ")]) for seed in options.seeds]
                )
                for each in options.candidates
            ]
            gains = [row - rows[0] for row in rows[1:]]
            means.append([float(gain.mean()) for gain in gains])
            cells = [f"{float(gain.mean()):+.3f} ± {float(gain.std()) / math.sqrt(len(gain)):.3f}" for gain in gains]
            print(f"| {name} | {float(rows[0].mean()):.3f} | " + " | ".join(cells) + " |")
        print("| mean | | " + " | ".join(f"{value:+.3f}" for value in np.mean(means, 0)) + " |")


if __name__ == "__main__":
    main()

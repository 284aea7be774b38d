"""Flow matching beside published figures: `python benchmarks/flow_matching.py PART`.

transport   C2OT's protocol (Cheng and Schwing 2025, arXiv:2503.10636): 8gaussians to moons, a residual MLP of 3 x 128,
            20,000 steps of 256 rows, optimal couplings over 1,024; the squared 2-Wasserstein distance of 10,000 samples
            by POT's `emd2`, in one Euler step and solved adaptively; given the moon, per class and averaged. Without
            optimal couplings a perfect velocity's one Euler step ends at the mean of the moons, whose squared distance
            is their variance, 9.02: smaller figures there come from imperfect velocities.
likelihood  NLL minus entropy of the checkerboard and of 8gaussians, exact beside Hutchinson's divergence.
protein     test NLL in the protocol of protein.py beside MAF and NSF (needs DIFFEO_DATA), time to train and to score.
bounds      validation NLL of the normals of five sets of ADBench by the bound on the velocity's correction (needs
            DIFFEO_DATA).
steps       the flows of `transport` after reflow and distillation: distance after 1, 2 and 4 steps, straightness.
images      digits or MNIST by `diffeo fit`, beside RealNVP at equal time.

Every figure is a mean over --seeds with its standard error. Needs the benchmark environment (POT).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import diffeo
from diffeo.bases import Base
from diffeo.data import ENTROPY, load_builtin
from diffeo.nets import MLP, Velocity
from diffeo.nets.velocity import embedding_size
from diffeo.objectives.paths import get_path
from diffeo.report.transport import in_steps, straightness
from diffeo.transforms import ODE

PUBLISHED = {  # C2OT, table 1
    "FM euler-1": "6.232 +- 0.186", "OT euler-1": "0.072 +- 0.025",
    "FM adaptive": "0.120 +- 0.045", "OT adaptive": "0.050 +- 0.040",
    "FM adaptive | class": "0.059", "OT adaptive | class": "0.462", "C2OT adaptive | class": "0.018 +- 0.006",
}  # fmt: skip
METHODS = {
    "FM": {"coupling": "independent"},
    "OT": {"coupling": "optimal", "condition_weight": 0.0},
    "C2OT": {"coupling": "optimal"},
}


class EightGaussians(Base):
    """torchcfm's source: N(5 (cos, sin)(k pi / 4), sqrt(0.1) I), whose standard deviation is 0.5623 per axis."""

    def __init__(self) -> None:
        super().__init__(2)
        angles = torch.arange(8) * (math.pi / 4)
        self.register_buffer("centres", 5 * torch.stack([angles.cos(), angles.sin()], 1))
        self.std = 0.1**0.25

    def log_prob(self, z: Tensor) -> Tensor:
        """The mixture's log-density."""
        distances = (z[..., None, :] - self.get_buffer("centres")).square().sum(-1) / self.std**2
        return torch.logsumexp(-0.5 * distances, -1) - math.log(8 * 2 * math.pi * self.std**2)

    def sample(self, shape: tuple[int, ...] = ()) -> Tensor:
        """Draw a centre, then its Gaussian."""
        centres = self.get_buffer("centres")[torch.randint(8, tuple(shape))]
        return centres + self.std * torch.randn_like(centres)


def moons(rows: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """torchdyn's moons, 3 x - 1, with uniform noise of 0.2; and which moon, one-hot."""
    label = generator.integers(2, size=rows)
    angle = generator.uniform(0, math.pi, rows)
    x = np.where(label, 1 - np.cos(angle), np.cos(angle))
    y = np.where(label, 0.5 - np.sin(angle), np.sin(angle))
    points = np.stack([x, y], 1) + 0.2 * generator.random((rows, 1))
    return torch.from_numpy(3 * points - 1).float(), torch.nn.functional.one_hot(torch.from_numpy(label), 2).float()


def distance(x: Tensor, y: Tensor) -> float:
    """The squared 2-Wasserstein distance, as C2OT measures it."""
    import ot

    cost = ot.dist(x.double().numpy(), y.double().numpy())
    return float(ot.emd2(ot.unif(len(x)), ot.unif(len(y)), cost, numItermax=10**7))


def transport_flow(context: int, **ode: object) -> diffeo.Flow:
    """8gaussians to moons by a residual MLP of 3 x 128."""
    net = MLP(2, 2, (128,) * 3, embedding_size(context), "silu", residual=True)
    velocity = Velocity(net, (2,), get_path("linear"), context)
    return diffeo.Flow(EightGaussians(), ODE(velocity, (2,), **ode), context_shape=(context,) if context else ())


def train(
    objective: diffeo.objectives.Objective, x: Tensor, context: Tensor | None, args: argparse.Namespace, seed: int
) -> float:
    """Train for args.steps steps; seconds."""
    started = time.perf_counter()
    batch = min(args.batch, len(x))
    diffeo.fit(
        objective, x, context, validation=0, epochs=max(1, args.steps * batch // len(x)), batch_size=batch,
        lr=args.lr, seed=seed,
    )  # fmt: skip
    return time.perf_counter() - started


def measured(flow: diffeo.Flow, args: argparse.Namespace, seed: int, labels: bool) -> float:
    """The distance of samples from fresh data; given a class, the mean over the classes."""
    x, context = moons(args.samples, np.random.default_rng(seed + 10_000))
    torch.manual_seed(seed + 10_000)
    if not labels:
        return distance(x, flow.sample(len(x)))
    drawn = flow.sample((), context)
    return float(np.mean([distance(x[each], drawn[each]) for each in (context[:, 0] == 0, context[:, 0] == 1)]))


def print_mean(name: str, values: list[float], beside: str = "") -> None:
    """Print a mean and its standard error."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    print(f"{name:28} {np.mean(values):.4f} +- {error:.4f}{f' ({beside})' * bool(beside)}", flush=True)


def transport(args: argparse.Namespace) -> None:
    """Run C2OT's table."""
    for labels in (False, True):
        for name in ("FM", "OT", "C2OT") if labels else ("FM", "OT"):
            results: dict[str, list[float]] = {"euler-1": [], "adaptive": [], "seconds": []}
            for seed in range(args.seeds):
                x, context = moons(args.rows, np.random.default_rng(seed))
                torch.manual_seed(seed)
                flow = transport_flow(2 if labels else 0)
                objective = diffeo.FlowMatching(flow, pool=args.pool, **METHODS[name])
                results["seconds"].append(train(objective, x, context if labels else None, args, seed))
                results["euler-1"].append(measured(in_steps(flow, 1), args, seed, labels))
                results["adaptive"].append(measured(flow, args, seed, labels))
            for which, values in results.items():
                label = f"{name} {which}{' | class' if labels else ''}"
                print_mean(label, values, f"published: {PUBLISHED[label]}" if label in PUBLISHED else "")


def likelihood(args: argparse.Namespace) -> None:
    """Compare NLLs with entropies."""
    for name in args.sets:
        results: dict[str, list[float]] = {"KL": [], "KL (hutchinson)": [], "CPU minutes": []}
        for seed in range(args.seeds):
            x, fresh = (torch.from_numpy(load_builtin(name, n, s).x).float() for n, s in
                        ((args.rows, seed), (args.samples, seed + 10_000)))  # fmt: skip
            torch.manual_seed(seed)
            flow = diffeo.flow_matching(2)
            since = time.process_time()
            diffeo.fit(
                diffeo.FlowMatching(flow, coupling=args.coupling, pool=args.pool), x, minutes=args.minutes,
                batch_size=args.batch, lr=args.lr, seed=seed, patience=math.inf,
            )  # fmt: skip
            results["CPU minutes"].append((time.process_time() - since) / 60)
            entropy = ENTROPY.get(name) or eight_gaussians_entropy()
            ode = flow.ode
            with torch.no_grad():
                nll = -flow.log_prob(fresh)
                results["KL"].append(float(nll.mean()) - entropy)
                estimated = flow.with_ode(divergence="hutchinson")
                results["KL (hutchinson)"].append(float(-estimated.log_prob(fresh).mean()) - entropy)
                z = torch.randn(2000, 2)
                away = float((ode.inverse(ode.forward(z)) - z).abs().max())
                exact, z = copy.deepcopy(ode.replaced(rtol=1e-9, atol=1e-9)).double(), z[:200].double()
                closely = float((exact.inverse(exact.forward(z)) - z).abs().max())
            print(
                f"  {name}, seed {seed}: standard error {float(nll.std()) / len(nll) ** 0.5:.4f}; noise to data and "
                f"back: at most {away:.1e} away, {closely:.1e} in float64 with a tolerance of 1e-9", flush=True,
            )  # fmt: skip
        for which, values in results.items():
            print_mean(f"{name} {which}", values)


def eight_gaussians_entropy() -> float:
    """The built-in mixture's entropy, by a million draws."""
    x = torch.from_numpy(load_builtin("8gaussians", 1_000_000, seed=123).x)
    angles = torch.arange(8).double() * (math.pi / 4)
    centres = 4 / math.sqrt(2) * torch.stack([angles.cos(), angles.sin()], 1)
    std = 0.5 / math.sqrt(2)
    distances = torch.cdist(x, centres).square() / std**2
    return float(-(torch.logsumexp(-0.5 * distances, 1) - math.log(8 * 2 * math.pi * std**2)).mean())


def protein(args: argparse.Namespace) -> None:
    """Train on UCI's protein table beside MAF and NSF."""
    import protein as table

    data = table.load(table.locate(None))
    for name in ("flow_matching", "maf", "nsf"):
        results: dict[str, list[float]] = {"test NLL": [], "train seconds": [], "score seconds per 1,000 rows": []}
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            flow = diffeo.recipes.build(name, {"features": data.train.shape[1], "preprocess": []})
            started = time.perf_counter()
            objective = diffeo.FlowMatching(flow) if name == "flow_matching" else diffeo.MaximumLikelihood(flow)
            diffeo.fit(
                objective, data.train, validation=data.valid, minutes=args.minutes, batch_size=args.batch,
                lr=1e-3 if name != "flow_matching" else args.lr, patience=math.inf, seed=seed,
            )  # fmt: skip
            results["train seconds"].append(time.perf_counter() - started)
            test = data.test[: args.samples]
            started = time.perf_counter()
            with torch.no_grad():
                nll = -flow.log_prob(test)
            results["score seconds per 1,000 rows"].append((time.perf_counter() - started) / len(test) * 1000)
            results["test NLL"].append(float(nll.mean()))
            print(f"  {name}, seed {seed}: standard error over rows {float(nll.std() / len(nll) ** 0.5):.4f}")
        for which, values in results.items():
            print_mean(f"{name} {which}", values)


BOUNDS = (None, 3.0, 5.0, 10.0)
TABLES = {"Wilt": 44, "mammography": 23, "shuttle": 32, "annthyroid": 2, "vowels": 40}


def normals(name: str, number: int) -> tuple[Tensor, Tensor]:
    """Training and validation rows of the normals of a set of ADBench, standardised by the former, dequantised."""
    path = Path(os.environ["DIFFEO_DATA"], "adbench", f"{number}_{name}.npz")
    with np.load(path) as data:
        x = data["X"][data["y"] == 0].astype(float)
    generator = np.random.RandomState(0)
    for column in x.T:
        values = np.unique(column)
        if len(values) < max(300, len(x) / 20):
            column += (generator.rand(len(x)) - 0.5) * np.diff(values).min()
    x = x[generator.permutation(len(x))]
    valid, train = np.split(x, [min(1500, len(x) // 5)])
    mean, std = train.mean(0), train.std(0)
    first, second = (torch.tensor((part - mean) / std, dtype=torch.float32) for part in (train, valid))
    return first, second


def bounds(args: argparse.Namespace) -> None:
    """Train with several bounds on the correction."""
    for name, number in TABLES.items():
        train, valid = normals(name, number)
        epochs = max(1, round(args.steps / max(1, len(train) // args.batch)))
        for bound in BOUNDS:
            values = []
            for seed in range(args.seeds):
                torch.manual_seed(seed)
                flow = diffeo.flow_matching(train.shape[1], bound=bound, preprocess=())
                diffeo.fit(
                    diffeo.FlowMatching(flow), train, validation=valid, epochs=epochs, batch_size=args.batch,
                    lr=args.lr, patience=math.inf, seed=seed,
                )  # fmt: skip
                with torch.no_grad():
                    values.append(float(-flow.log_prob(valid[:600]).mean()))
            print_mean(f"{name} bound {bound}", values)


def steps(args: argparse.Namespace) -> None:
    """Straighten and distil."""
    results: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        results.setdefault(name, []).append(value)

    for seed in range(args.seeds):
        x, _ = moons(args.rows, np.random.default_rng(seed))
        torch.manual_seed(seed)
        flow = transport_flow(0)
        train(diffeo.FlowMatching(flow, coupling="optimal", pool=args.pool), x, None, args, seed)
        note("straightness: flow", straightness(flow))
        pairs = diffeo.objectives.reflow_pairs(flow, args.rows)
        straight = transport_flow(0)
        straight.load_state_dict(flow.state_dict())
        train(diffeo.FlowMatching(straight), pairs, None, args, seed)
        note("straightness: after reflow", straightness(straight))
        for count in (1, 2, 4):
            student = diffeo.objectives.few_steps(straight, count)
            examples = diffeo.objectives.trajectories(straight, args.rows, count)
            train(diffeo.objectives.StepMatching(student), examples, None, args, seed)
            for name, model in (
                ("flow", in_steps(flow, count)), ("reflow", in_steps(straight, count)), ("distilled", student),
            ):  # fmt: skip
                note(f"{name}, {count} steps", measured(model, args, seed, False))
    for name, values in sorted(results.items()):
        print_mean(
            name,
            values,
            {"distilled, 1 steps": "asked: at most 0.10", "distilled, 4 steps": "asked: at most 0.06"}.get(name, ""),
        )


def images(args: argparse.Namespace) -> None:
    """Train by `diffeo fit` beside RealNVP at equal time."""
    for name in ("flow-matching", "realnvp"):
        results: dict[str, list[float]] = {"validation bits/dim": [], "sample seconds per 100": []}
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                run = (args.keep or Path(folder)) / f"{args.set}-{name}-{seed}"
                command = [sys.executable, "-m", "diffeo"]
                options = ["--minutes", str(args.minutes), "--seed", str(seed), "--json", "--force"]
                done = subprocess.run(
                    [*command, "fit", args.set, "--model", name, "--out", str(run), *options],
                    check=True, stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
                facts = json.loads(done.stdout)["validation"]
                results["validation bits/dim"].append(facts["bits_per_dim"])
                print(f"  {name}, seed {seed}: {facts['nll']:.2f} +- {facts['stderr']:.2f} nats, {facts['rows']} rows")
                started = time.perf_counter()
                with torch.no_grad():
                    diffeo.load(run).sample(100)
                results["sample seconds per 100"].append(time.perf_counter() - started)
        for which, values in results.items():
            print_mean(f"{args.set} {name} {which}", values)


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {
        "transport": transport, "likelihood": likelihood, "protein": protein, "bounds": bounds, "steps": steps,
        "images": images,
    }  # fmt: skip
    parser.add_argument("part", choices=parts)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20_000, help="training steps (transport, bounds, steps)")
    parser.add_argument("--minutes", type=float, default=2.5, help="training time (likelihood, protein, images)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--pool", type=int, default=1024)
    parser.add_argument("--coupling", default="optimal", help="of the pairs (likelihood)")
    parser.add_argument("--sets", nargs="+", default=["checkerboard", "8gaussians"], help="(likelihood)")
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--rows", type=int, default=100_000, help="training rows")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--set", choices=("digits", "mnist"), default="digits", help="which images")
    parser.add_argument("--keep", type=Path, help="folder for the run directories (images)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    parts[args.part](args)


if __name__ == "__main__":
    main()

"""Continuous flows beside torchdiffeq, zuko and torchcfm: `python benchmarks/ode_speed.py [solve] [train]`.

solve   one velocity (a residual MLP of 3 x 128 with weights of order one) in every library, from noise to data, alone
        and with the exact divergence, for few rows and for many; the others read it in PyTorch's operations, diffeo
        solves in its kernel ("plain": its solver in PyTorch's operations, which serves any other velocity). Each is
        run over a range of tolerances; its error is measured against a solution in float64 at 1e-10, and times are
        compared at equal error (interpolated in logarithms), not at equal tolerance.
train   steps per second with minibatch optimal transport: `diffeo.fit` beside torchcfm's matcher in a plain loop, both
        with independent pairs as well; networks of 5 x 128, batch 256, and diffeo's couplings over 1,024.

Libraries take turns; every time is the median over --rounds. Needs the benchmark environment.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import diffeo
from diffeo import ops
from diffeo.nets import MLP, Velocity
from diffeo.nets.velocity import embedding_size
from diffeo.objectives.paths import get_path
from diffeo.transforms import ODE

TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
TARGETS = (1e-3, 1e-4)  # errors to compare at
HIDDEN = (128,) * 5  # of the networks that are trained
Solve = Callable[[Tensor, float], tuple[Tensor, Tensor | None]]


def velocity(features: int, seed: int) -> Velocity:
    """A field that is neither at its start nor wild."""
    torch.manual_seed(seed)
    net = MLP(features, features, (128,) * 3, embedding_size(0), "silu", residual=True)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.7 / math.sqrt(parameter.shape[-1]))
    return Velocity(net, (features,), get_path("linear"))


class Reference(nn.Module):
    """A network of diffeo in PyTorch's operations, as users of the other libraries have it."""

    def __init__(self, net: MLP) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Its outputs, without its kernel."""
        with ops.using("reference"):
            return self.net(x, context)


def solvers(velocity: Velocity, features: int, log_det: bool) -> dict[str, Solve]:
    """The same solve in each library."""
    import torchdiffeq
    import zuko

    field = copy.deepcopy(velocity)
    field.net = Reference(velocity.net)

    def rows(t: Tensor, x: Tensor) -> Tensor:
        return t.to(x).expand(len(x))

    def ours(z: Tensor, tolerance: float, read: nn.Module = velocity) -> tuple[Tensor, Tensor | None]:
        ode = ODE(read, (features,), rtol=tolerance, atol=tolerance)
        return ode.forward_and_log_det(z) if log_det else (ode.forward(z), None)

    def traced(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = field(x, rows(t, x))
            trace = sum(
                torch.autograd.grad(v[:, i].sum(), x, retain_graph=i < features - 1)[0][:, i] for i in range(features)
            )
        return v.detach(), trace

    def theirs(z: Tensor, tolerance: float) -> tuple[Tensor, Tensor | None]:
        t, options = torch.tensor([0.0, 1.0]), {"rtol": tolerance, "atol": tolerance, "method": "dopri5"}
        if not log_det:
            return torchdiffeq.odeint(lambda t, x: field(x, rows(t, x)), z, t, **options)[-1], None
        x, total = torchdiffeq.odeint(lambda t, s: traced(t, s[0]), (z, torch.zeros(len(z))), t, **options)
        return x[-1], total[-1]

    def zukos(z: Tensor, tolerance: float) -> tuple[Tensor, Tensor | None]:
        start, stop = torch.tensor(0.0), torch.tensor(1.0)
        if not log_det:
            f = lambda t, x: field(x, rows(t, x))  # noqa: E731
            return zuko.utils.odeint(f, z, start, stop, atol=tolerance, rtol=tolerance), None
        transform = zuko.transforms.FreeFormJacobianTransform(
            f=lambda t, x: field(x, rows(t, x)), t0=start, t1=stop, phi=(), atol=tolerance, rtol=tolerance, exact=True
        )
        return transform.call_and_ladj(z)

    return {
        "diffeo": ours,
        "diffeo plain": lambda z, tolerance: ours(z, tolerance, field),
        "torchdiffeq": theirs,
        "zuko": zukos,
    }


def solve(args: argparse.Namespace) -> None:
    """Print times at equal error."""
    for features, rows in itertools.product(args.features, args.batch_solve):
        field = velocity(features, args.seed)
        z = torch.randn(rows, features)
        exact = ODE(velocity(features, args.seed).double(), (features,), rtol=1e-10, atol=1e-10)
        for log_det in (False, True):
            with torch.no_grad():
                truth, total = exact.forward_and_log_det(z.double())
            results: dict[str, list[tuple[float, list[float]]]] = {}
            for tolerance in TOLERANCES:
                for name, run in solvers(field, features, log_det).items():
                    with torch.no_grad():
                        x, got = run(z, tolerance)
                    error = (x - truth).square().mean().sqrt()
                    if got is not None:
                        error = torch.maximum(error, (got - total).square().mean().sqrt())
                    results.setdefault(name, []).append((float(error), []))
            for _ in range(args.rounds):
                for index, tolerance in enumerate(TOLERANCES):
                    for name, run in solvers(field, features, log_det).items():
                        started = time.perf_counter()
                        with torch.no_grad():
                            run(z, tolerance)
                        results[name][index][1].append(time.perf_counter() - started)
            what = f"{features} columns, {len(z)} rows, {'with' if log_det else 'without'} log-det"
            for target in TARGETS:
                times = {name: at_error(points, target) for name, points in results.items()}
                ratios = ", ".join(f"{name} {1e3 * t:.1f} ms ({t / times['diffeo']:.2f}x)" for name, t in times.items())
                print(f"{what}, error {target:g}: {ratios}", flush=True)


def at_error(points: list[tuple[float, list[float]]], target: float) -> float:
    """The time at an error, between measured ones; NaN outside."""
    errors, times = zip(*sorted((error, statistics.median(each)) for error, each in points), strict=True)
    logs = np.interp(math.log(target), np.log(errors), np.log(times), left=math.nan, right=math.nan)
    return float(np.exp(logs))


class Plain(nn.Module):
    """A network of the same layers as a user of torchcfm writes it: residual, time as one more input."""

    def __init__(self, features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        sizes = [features + 1, *hidden]
        self.layers: Any = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.last = nn.Linear(sizes[-1], features)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map x ``(rows, features)`` and t ``(rows,)``."""
        h = nn.functional.silu(self.layers[0](torch.cat([x, t[:, None]], 1)))
        for layer in self.layers[1:]:
            h = h + nn.functional.silu(layer(h))
        return self.last(h)


def train(args: argparse.Namespace) -> None:
    """Print steps per second."""
    from torchcfm.conditional_flow_matching import (
        ConditionalFlowMatcher,
        ExactOptimalTransportConditionalFlowMatcher,
    )

    features, batch = 2, 256
    x = torch.randn(args.rows, features)

    def ours(coupling: str) -> float:
        flow = diffeo.flow_matching(features, hidden=HIDDEN, preprocess=())
        objective = diffeo.FlowMatching(flow, coupling=coupling)
        epochs = max(1, args.steps * batch // len(x))
        started = time.perf_counter()
        result = diffeo.fit(objective, x, validation=0, epochs=epochs, batch_size=batch)
        return result.steps / (time.perf_counter() - started)

    def theirs(matcher: Any) -> float:
        net = Plain(features, HIDDEN)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-4, fused=True)
        started = time.perf_counter()
        for _ in range(args.steps):
            x1 = x[torch.randint(len(x), (batch,))]
            t, between, target = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
            loss = (net(between, t) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return args.steps / (time.perf_counter() - started)

    runs: dict[str, Callable[[], float]] = {
        "diffeo independent": lambda: ours("independent"),
        "diffeo optimal": lambda: ours("optimal"),
        "torchcfm independent": lambda: theirs(ConditionalFlowMatcher(sigma=0.0)),
        "torchcfm optimal": lambda: theirs(ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)),
    }
    results: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            results[name].append(run())
    for name, values in results.items():
        print(f"{name:22} {statistics.median(values):8.0f} steps/s")
    ours_, others = (statistics.median(results[f"{name} optimal"]) for name in ("diffeo", "torchcfm"))
    price = statistics.median(results["diffeo independent"]) / ours_
    print(f"optimal: diffeo {ours_ / others:.2f}x torchcfm; the coupling costs {price:.2f}x the independent one")


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="{solve,train}", help="both without")
    parser.add_argument("--features", type=int, nargs="+", default=[2, 9])
    parser.add_argument("--batch-solve", type=int, nargs="+", default=[200, 2000], help="rows to solve for")
    parser.add_argument("--rows", type=int, default=20_000, help="training rows")
    parser.add_argument("--steps", type=int, default=2500, help="training steps; diffeo's pairs serve 32 epochs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if unknown := set(args.parts) - {"solve", "train"}:
        parser.error(f"expected solve or train, got {unknown.pop()}")
    if args.threads:
        torch.set_num_threads(args.threads)
    for part in args.parts or ("solve", "train"):
        {"solve": solve, "train": train}[part](args)


if __name__ == "__main__":
    main()

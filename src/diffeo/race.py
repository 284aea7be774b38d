"""The race of the C kernels against the reference: run once, right after a build, in a process that may crash.

``diffeo.ops.cpu.build`` starts ``main`` by name, for what races here are whole transforms, and these are above it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffeo.nets import MADE, MLP, Velocity, WaveNet
from diffeo.nets.velocity import embedding_size
from diffeo.objectives.paths import get_path
from diffeo.ops import using
from diffeo.training.update import Update
from diffeo.transforms import (
    ODE,
    Affine,
    Autoregressive,
    Coupling,
    MixtureOfLogistics,
    RationalQuadraticSpline,
    Transform,
    Univariate,
    alternating_mask,
)

__all__ = ["CONTENDERS", "main", "race"]

SLOWER = 1.1  # times as long as the reference: kernels that take longer lose
TOLERANCE = 1e-3  # of the norm of the difference, relative
_SURE = 0.7, 1.5  # outside of these no other round is needed
_ROUNDS = 5
_CHANCES = 3  # for kernels that lose: the verdict lasts, and the machine may have been busy
_SECONDS = 0.03  # for each contender; the first round is always run

Run = Callable[[], Sequence[Tensor]]
Backend = Literal["cpu", "reference"]


def _with_gradients(results: Run, loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Run:
    """The results, and the gradients of a loss of these."""

    def run() -> Sequence[Tensor]:
        computed = results()
        return *computed, *torch.autograd.grad(loss(*computed), inputs)

    return run


def _normalize(univariate: Univariate, net: MADE, *, train: bool, rows: int) -> Run:
    """One parallel pass of an autoregressive transform, with the gradients of a step of training."""
    return _pass(Autoregressive(univariate, net), net.features, rows, train=train)


def _couple(features: int, hidden: Sequence[int], rows: int) -> Run:
    univariate, mask = RationalQuadraticSpline(8), alternating_mask(features)
    passed = int(mask.sum())
    net = MLP(passed, univariate.size * (features - passed), hidden)
    return _pass(Coupling(univariate, mask, net), features, rows, train=True)


def _pass(transform: Transform, features: int, rows: int, *, train: bool) -> Run:
    x = torch.randn(rows, features)
    parameters = list(_random(transform).parameters())
    if not train:
        return torch.no_grad()(lambda: transform.inverse_and_log_det(x))
    return _with_gradients(
        lambda: transform.inverse_and_log_det(x),
        lambda z, log_det: 0.5 * z.square().sum() - log_det.sum(),
        parameters,
    )


def _map(univariate: Univariate, shape: Sequence[int], *, generate: bool) -> Run:
    value, params = torch.randn(*shape), 0.5 * torch.randn(univariate.size, *shape)
    if generate:
        return torch.no_grad()(lambda: univariate.forward_and_log_det(value, params))
    inputs = value.requires_grad_(), params.requires_grad_()
    return _with_gradients(
        lambda: univariate.inverse_and_log_det(*inputs), lambda z, log_det: (z + log_det).sum(), inputs
    )


def _invert(univariate: Univariate, net: nn.Module, shape: Sequence[int]) -> Run:
    transform, z = _random(Autoregressive(univariate, net)), torch.randn(*shape)
    return torch.no_grad()(lambda: transform.forward_and_log_det(z))


def _wavenet(channels: int, length: int) -> Run:
    net, x = _random(WaveNet(2, channels, 6, 1, skip=2 * channels)), torch.randn(length, 4)
    return _with_gradients(lambda: [net(x)], lambda out: out.square().sum(), list(net.parameters()))


def _velocity(features: int, hidden: Sequence[int]) -> Velocity:
    net = MLP(features, features, hidden, embedding_size(0), "silu", residual=True)
    return _random(Velocity(net, (features,), get_path("linear")))


def _solve(features: int, hidden: Sequence[int], rows: int) -> Run:
    ode = ODE(_velocity(features, hidden), (features,), rtol=1e-4, atol=1e-4)
    z = torch.randn(rows, features)
    return torch.no_grad()(lambda: [ode.forward(z)])


def _match(features: int, hidden: Sequence[int], rows: int) -> Run:
    velocity, noise, data, t = (
        _velocity(features, hidden), torch.randn(rows, features), torch.randn(rows, features), torch.rand(rows),
    )  # fmt: skip
    parameters = list(velocity.net.parameters())
    return _with_gradients(lambda: [velocity.squared_error(noise, data, t)], torch.mean, parameters)


def _update(hidden: Sequence[int]) -> Run:
    net = _random(MLP(16, 16, hidden))
    update = Update(net, 1e-3, 1e-4, 0.99)
    gradients = [torch.randn_like(p) for p in net.parameters()]

    def run() -> Sequence[Tensor]:
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            parameter.grad = gradient
        norm = update.norm()
        update.take(1.0, 1.0)
        return norm.reshape(1), *update.average.averages

    return run


# Each makes the same thing whenever it is called with the same seed; once it is made for the kernels, once without.
CONTENDERS: dict[str, dict[str, Callable[[], Run]]] = {
    "network": {
        "MAF 64, density": lambda: _normalize(Affine(), MADE(64, 2, (512, 512)), train=False, rows=256),
        "MAF 64, training": lambda: _normalize(Affine(), MADE(64, 2, (512, 512)), train=True, rows=256),
        "MAF 6, training": lambda: _normalize(Affine(), MADE(6, 2, (64, 64)), train=True, rows=512),
        "NSF coupling 8, training": lambda: _couple(8, (64, 64), 512),
    },
    "map": {
        "spline, normalizing with gradients": lambda: _map(RationalQuadraticSpline(8), (16, 512), generate=False),
        "spline, generating": lambda: _map(RationalQuadraticSpline(8), (16, 512), generate=True),
        "logistics, generating": lambda: _map(MixtureOfLogistics(5), (4, 256), generate=True),
    },
    "inversion": {
        "MAF 16": lambda: _invert(Affine(), MADE(16, 2, (128, 128)), (128, 16)),
        "NSF 6": lambda: _invert(RationalQuadraticSpline(8), MADE(6, 23, (64, 64)), (128, 6)),
    },
    "wavenet": {
        "16 channels, training": lambda: _wavenet(16, 512),
        "32 channels, training": lambda: _wavenet(32, 256),
    },
    "wavenet inversion": {"16 channels": lambda: _invert(Affine(), WaveNet(2, 16, 4, 1, skip=32), (4, 24))},
    "ode": {"flow matching 2, sampling": lambda: _solve(2, (64, 64), 64)},
    "matching": {
        "flow matching 2, training": lambda: _match(2, (64, 64), 256),
        "flow matching 16, training": lambda: _match(16, (128, 128), 256),
    },
    "update": {
        "26,000 weights": lambda: _update((128, 128)),
        "9,000 weights in 10 layers": lambda: _update((32,) * 9),
    },
}


def race(
    contenders: dict[str, dict[str, Callable[[], Run]]] = CONTENDERS, clock: Callable[[], float] | None = None
) -> dict[str, Any]:
    """Race each kind of kernels against the reference.

    Args:
        contenders: what races, by its kind and name.
        clock: gives seconds. By default those that a lone thread computes, which no other process adds to, or real
            ones where there are more threads.

    Returns:
        For each kind: whether it is to be ``used``, whether its values are ``equal``, how long it takes as a multiple
        of the reference (``ratio``, the geometric mean of its ``cases``).
    """
    if clock is None:
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    return {kind: _race_kind(cases, clock) for kind, cases in contenders.items()}


def _race_kind(cases: dict[str, Callable[[], Run]], clock: Callable[[], float]) -> dict[str, Any]:
    ratios, equal, ratio = dict.fromkeys(cases, math.inf), True, math.inf
    for _ in range(_CHANCES):
        for name, make in cases.items():
            try:
                measured, right = _race_case(make, clock)
            except Exception as error:  # whatever it is, these kernels are not to be used
                return {"used": False, "equal": False, "error": f"{name}: {type(error).__name__}: {error}"}
            ratios[name], equal = min(ratios[name], measured), equal and right
        ratio = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
        if ratio <= SLOWER or not equal:
            break
    rounded = {name: round(each, 3) for name, each in ratios.items()}
    return {"used": equal and ratio <= SLOWER, "equal": equal, "ratio": round(ratio, 3), "cases": rounded}


def _race_case(make: Callable[[], Run], clock: Callable[[], float]) -> tuple[float, bool]:
    """The best time of the kernels as a multiple of the reference's, and whether the results agree."""
    runs, right = _compare(make, 0)
    best: dict[Backend, float] = dict.fromkeys(runs, math.inf)
    end = clock() + _SECONDS
    for done in range(_ROUNDS):
        for backend, run in runs.items():  # in turn, so that what slows the machine down meets both
            with using(backend):
                started = clock()
                run()
                best[backend] = min(best[backend], clock() - started)
        ratio = best["cpu"] / best["reference"]
        if ratio < _SURE[0] or (done and ratio > _SURE[1]) or clock() > end:
            break
    # A unit of relu within rounding of its kink may be on in the one and off in the other, and both are right. Such
    # numbers are rare, and nothing is infinite for them.
    return ratio, bool(right or (right is not None and all(_compare(make, seed)[1] for seed in (1, 2))))


def _compare(make: Callable[[], Run], seed: int) -> tuple[dict[Backend, Run], bool | None]:
    """What was made for the kernels and for the reference with the same random numbers, and whether results agree.

    None where they do not because some are not finite.
    """
    runs: dict[Backend, Run] = {}
    results: list[list[Tensor]] = []
    backends: tuple[Backend, Backend] = "cpu", "reference"
    for backend in backends:
        with torch.random.fork_rng(devices=[]), using(backend):
            torch.manual_seed(seed)
            runs[backend] = make()
            results.append([each.detach().clone() for each in runs[backend]()])
    if all(_agree(*pair) for pair in zip(*results, strict=True)):
        return runs, True
    return runs, False if all(torch.isfinite(each).all() for part in results for each in part) else None


def _agree(result: Tensor, expected: Tensor) -> bool:
    error = torch.linalg.vector_norm((result - expected).double())
    return bool(error <= TOLERANCE * torch.linalg.vector_norm(expected.double()) + 1e-6)


def _random(module: Any) -> Any:
    """A module with weights as after training: at the beginning many are zero, and would agree whatever is wrong."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3 / math.sqrt(parameter.shape[-1]))
    return module


def main(library: str, result: str, threads: int) -> None:
    """Race a library just built, and write what came of it into a file, as JSON."""
    from diffeo.ops.cpu import build

    try:
        build.adopt(library)
    except (OSError, build.BuildError) as error:
        Path(result).write_text(json.dumps({"error": str(error)}))
        return
    torch.set_num_threads(threads)
    with using("reference"):
        _update((4,))()  # PyTorch's optimizers import much at their first use
    started = time.perf_counter()
    kinds = race()
    Path(result).write_text(json.dumps({"kinds": kinds, "seconds": round(time.perf_counter() - started, 3)}))

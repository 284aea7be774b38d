"""The one table of transforms that every law runs over. A new transform is one line here."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diffeo
from diffeo import transforms
from diffeo.nets import MADE, MLP, ResNet, WaveNet
from diffeo.ops.dispatch import cpu
from diffeo.recipes import images
from diffeo.transforms import (
    LU,
    ODE,
    ActNorm,
    Affine,
    Autoregressive,
    Bounded,
    Chain,
    Circle,
    Composed,
    Concatenated,
    Coupling,
    Elementwise,
    Flattened,
    Gated,
    Gaussianize,
    Increasing,
    Inverse,
    Logit,
    MixtureOfLogistics,
    Part,
    Permutation,
    RationalQuadraticSpline,
    Rescale,
    Simplex,
    Squeezed,
    Standardize,
    Transform,
    Univariate,
    Whiten,
    alternating_mask,
    checkerboard_mask,
    half_mask,
)

KERNELS = cpu is not None and cpu.library() is not None
needs_compiler = pytest.mark.kernels  # skipped without kernels, by conftest.py

CONTEXT = 3
UNIVARIATES = {
    **transforms.UNIVARIATES,
    "logistics": lambda: MixtureOfLogistics(3),
    "gated": Gated,
    "spline-affine": lambda: Composed(RationalQuadraticSpline(), Affine()),
}


def same(value: Tensor) -> Tensor:
    return value


@dataclass
class Case:
    """A transform to be made, the shape of its events, whether it uses a context, and the shape of that.

    Of one whose data fill a support: ``noise`` brings noise where a round trip is exact in float32, ``data`` brings
    any numbers inside.
    """

    make: Callable[[], Transform]
    event_shape: tuple[int, ...]
    contextual: bool = False
    context_shape: tuple[int, ...] = (CONTEXT,)
    noise: Callable[[Tensor], Tensor] = same
    data: Callable[[Tensor], Tensor] = same


def coupling(univariate: Univariate, mask: Tensor, context: int = 0) -> Coupling:
    kept = int(mask.sum())
    outputs = univariate.size * (len(mask) - kept)
    return Coupling(univariate, mask, MLP(kept, outputs, (17, 17), context, "silu", residual=True))


def autoregressive(
    univariate: Univariate, features: int, hidden: tuple[int, ...], context: int = 0, residual: bool = False
) -> Autoregressive:
    return Autoregressive(univariate, MADE(features, univariate.size, hidden, context, "silu", residual))


def convolutional(univariate: Univariate, mask: Tensor, context: int = 0, **net: Any) -> Coupling:
    return images.convolutional(univariate, mask, (6, 6), partial(ResNet, context=context, activation="silu", **net))


class Swirl(nn.Module):
    """v(x, t, c) = B tanh(A x + C c + t b), with its divergence: small, smooth and quick."""

    def __init__(self, features: int, context: int = 0) -> None:
        super().__init__()
        self.inner = nn.Linear(features + context, 6, bias=False)
        self.time = nn.Parameter(torch.zeros(6))
        self.outer = nn.Linear(6, features, bias=False)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return self.outer(self._hidden(x, t, context))

    def with_divergence(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self._hidden(x, t, context)
        weights = (self.inner.weight[:, : x.shape[1]] * self.outer.weight.mT).sum(1)
        return self.outer(h), ((1 - h.square()) * weights).sum(1)

    def _hidden(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        inputs = x if context is None else torch.cat([x, context], 1)
        return torch.tanh(self.inner(inputs) + t[:, None] * self.time)


class WithoutLast(Transform):
    """The first elements of a point of the simplex, with regard to which its density is: as many as there are in z."""

    def __init__(self, simplex: Simplex) -> None:
        super().__init__()
        self.simplex = simplex

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = self.simplex.forward_and_log_det(z, context)
        return x[..., :-1], log_det

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.simplex.inverse_and_log_det(torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1), context)


def support(make: Callable[[], Transform], event_shape: tuple[int, ...], bound: float = 3.0) -> Case:
    """A case whose noise is within the bound, and whose data are where that comes to."""

    def noise(value: Tensor) -> Tensor:
        return bound * torch.tanh(value / bound)

    return Case(make, event_shape, noise=noise, data=lambda value: make().forward(noise(value)))


def recipe(name: str, shape: tuple[int, ...], context: int = 0, **arguments: Any) -> Transform:
    small = {"hidden": (6,), "activation": "silu", "transforms": 2, **arguments}
    return diffeo.recipes.build(name, {"features": shape, "context": context, **small}).transform


def over_time(univariate: Univariate, context: int = 0, hop: int = 1, **net: Any) -> Autoregressive:
    small = {"channels": 4, "layers": 2, "cycles": 2, "skip": 6, **net}
    return Autoregressive(univariate, WaveNet(univariate.size, context=context, hop=hop, **small))


CASES: dict[str, Case] = {
    "permutation": Case(lambda: Permutation([2, 0, 3, 1]), (4,)),
    "permutation-random": Case(lambda: Permutation.random(64, seed=1), (64,)),
    "permutation-channels": Case(lambda: Permutation([1, 2, 0], event_dim=3), (3, 2, 4)),
    "lu": Case(lambda: LU(5), (5,)),
    "lu-channels": Case(lambda: LU(3, event_dim=3), (3, 2, 4)),
    "actnorm": Case(lambda: ActNorm(5), (5,)),
    "actnorm-channels": Case(lambda: ActNorm(3, event_dim=3), (3, 2, 4)),
    "standardize": Case(lambda: Standardize((5,)), (5,)),
    "standardize-image": Case(lambda: Standardize((3, 2, 4)), (3, 2, 4)),
    "whiten": Case(lambda: Whiten((5,)), (5,)),
    "gaussianize": Case(lambda: Gaussianize((5,)), (5,)),
    "rescale": Case(lambda: Rescale((5,), low=-1.0, high=3.0), (5,)),
    "rescale-image": Case(lambda: Rescale((3, 2, 4), high=256.0), (3, 2, 4)),
    "logit": Case(
        lambda: Logit((5,), low=-1.0, high=3.0, alpha=1e-3), (5,), data=lambda value: 1 + 1.999999 * torch.tanh(value)
    ),
    "bounded": support(lambda: Bounded(5, low=[-1.0, 0.0, None, None, 2.0], high=[3.0, None, 1.0, None, 2.5]), (5,)),
    "bounded-image": support(lambda: Bounded((3, 2, 4), low=-1.0, high=1.0), (3, 2, 4)),
    "simplex": support(lambda: WithoutLast(Simplex(5)), (4,)),
    "ordered": support(lambda: Increasing(4), (4,)),
    "ordered-above": support(lambda: Increasing(4, low=-2.0), (4,)),
    "circle": support(lambda: Circle(3, low=[0.0, -1.0, 2.0], period=[1.0, 2.0, 7.0]), (3,), bound=1.3),
    "concatenated": support(
        lambda: Concatenated([Circle(1), Bounded(2, low=0.0), Increasing(2), Bounded(1, high=0.0)]), (6,), bound=1.3
    ),
    **{f"elementwise-{name}": Case(lambda u=u: Elementwise(u(), (2, 3)), (2, 3)) for name, u in UNIVARIATES.items()},
    "elementwise-context": Case(lambda: Elementwise(Affine(), (2, 3), CONTEXT), (2, 3), True),
    **{f"coupling-{name}": Case(lambda u=u: coupling(u(), half_mask(7)), (7,)) for name, u in UNIVARIATES.items()},
    **{
        f"coupling-{name}-context": Case(lambda u=u: coupling(u(), alternating_mask(7), CONTEXT), (7,), True)
        for name, u in UNIVARIATES.items()
    },
    "coupling-channels": Case(lambda: convolutional(Affine(), half_mask(3)), (3, 2, 4)),
    "coupling-channels-context": Case(lambda: convolutional(Affine(), half_mask(3), CONTEXT), (3, 2, 4), True),
    "coupling-checkerboard": Case(
        lambda: convolutional(RationalQuadraticSpline(), checkerboard_mask((2, 4, 4))), (2, 4, 4)
    ),
    "coupling-checkerboard-context": Case(
        lambda: convolutional(Affine(), checkerboard_mask((1, 3, 5), flip=True), CONTEXT, kernels=(3, 3)),
        (1, 3, 5),
        True,
    ),
    "coupling-plain-convolutions": Case(
        lambda: convolutional(Affine(), alternating_mask(4), kernels=(1,), residual=False), (4, 2, 2)
    ),
    "squeezed": Case(lambda: Squeezed(convolutional(Affine(), half_mask(8), CONTEXT)), (2, 4, 2), True),
    "squeezed-twice": Case(lambda: Squeezed(Squeezed(LU(16, event_dim=3))), (1, 4, 8)),
    "part": Case(lambda: Part(convolutional(Affine(), half_mask(3), CONTEXT), 3), (4, 2, 2), True),
    "part-vector": Case(lambda: Part(Chain([LU(3), coupling(Affine(), half_mask(3), CONTEXT)]), 3), (5,), True),
    "part-whole": Case(lambda: Part(LU(4, event_dim=3), 4), (4, 1, 2)),
    "flattened": Case(
        lambda: Flattened(Chain([coupling(Affine(), alternating_mask(12), CONTEXT), LU(12)])), (2, 2, 3), True
    ),
    "flattened-maf": Case(lambda: Flattened(autoregressive(Affine(), 12, (20,))), (2, 2, 3)),
    "realnvp-image": Case(lambda: recipe("realnvp", (1, 8, 4), CONTEXT), (1, 8, 4), True),
    "realnvp-image-masked": Case(lambda: recipe("realnvp", (2, 4, 4), packed=False, kernels=(3, 3)), (2, 4, 4)),
    "realnvp-image-odd": Case(lambda: recipe("realnvp", (1, 5, 6), CONTEXT), (1, 5, 6), True),
    "glow": Case(lambda: recipe("glow", (2, 4, 4), CONTEXT), (2, 4, 4), True),
    "glow-odd": Case(lambda: recipe("glow", (1, 6, 2), scales=9), (1, 6, 2)),
    "nice-image": Case(lambda: recipe("nice", (1, 3, 4), CONTEXT), (1, 3, 4), True),
    **{f"maf-{name}": Case(lambda u=u: autoregressive(u(), 6, (20, 20)), (6,)) for name, u in UNIVARIATES.items()},
    **{
        f"maf-{name}-context": Case(lambda u=u: autoregressive(u(), 6, (20, 20), CONTEXT), (6,), True)
        for name, u in UNIVARIATES.items()
    },
    "maf-wide": Case(lambda: autoregressive(Affine(), 64, (96, 96)), (64,)),
    "maf-deep-residual": Case(lambda: autoregressive(Affine(), 6, (20, 20, 20), CONTEXT, residual=True), (6,), True),
    "maf-narrow": Case(lambda: autoregressive(Affine(), 64, (50, 50)), (64,)),
    "maf-narrow-context": Case(lambda: autoregressive(Affine(), 9, (4, 5), CONTEXT, residual=True), (9,), True),
    "maf-one-unit": Case(lambda: autoregressive(Affine(), 5, (1,)), (5,)),
    "maf-one-unit-context": Case(lambda: autoregressive(Affine(), 4, (1,), CONTEXT), (4,), True),
    "maf-bottleneck-context": Case(lambda: autoregressive(Affine(), 4, (20, 1), CONTEXT), (4,), True),
    "maf-linear": Case(lambda: autoregressive(Affine(), 5, (), CONTEXT), (5,), True),
    "maf-one-feature": Case(lambda: autoregressive(Affine(), 1, (8, 8)), (1,)),
    "maf-one-feature-context": Case(lambda: autoregressive(RationalQuadraticSpline(), 1, (8, 8), CONTEXT), (1,), True),
    "nsf-narrow": Case(lambda: autoregressive(RationalQuadraticSpline(), 24, (16, 16)), (24,)),
    **{f"wavenet-{name}": Case(lambda u=u: over_time(u()), (7,)) for name, u in UNIVARIATES.items()},
    "wavenet-context": Case(lambda: over_time(Affine(), 3, 16), (7,), True, (3, 1)),
    "wavenet-taps": Case(lambda: over_time(Affine(), layers=1, kernel=4), (7,)),
    "ode": Case(lambda: ODE(Swirl(3), (3,), rtol=1e-10, atol=1e-10), (3,)),
    "ode-context": Case(lambda: ODE(Swirl(2, CONTEXT), (2,), solver="rk4", steps=40), (2,), True),
    "chain": Case(
        lambda: Chain(
            [
                autoregressive(Affine(), 6, (12,), CONTEXT),
                Permutation.reversing(6),
                Inverse(autoregressive(RationalQuadraticSpline(), 6, (12,))),
                coupling(Affine(), half_mask(6), CONTEXT),
                LU(6),
                Standardize((6,)),
            ]
        ),
        (6,),
        True,
    ),
}

NAMES = [*CASES, *(f"inverse-{name}" for name in CASES)]


def make(name: str, dtype: torch.dtype = torch.float64) -> Transform:
    """Build a case (or the ``Inverse`` of one) with every parameter and statistic randomised."""
    transform = CASES[name.removeprefix("inverse-")].make()
    randomise(transform)
    return (Inverse(transform) if name.startswith("inverse-") else transform).to(dtype).eval()


def case(name: str) -> Case:
    return CASES[name.removeprefix("inverse-")]


def randomise(module: nn.Module, scale: float = 0.35) -> None:
    """Give every parameter random values: with zero-initialised networks every law would hold trivially."""
    with torch.no_grad():
        for parameter in module.parameters():
            # keep sums over wide layers of order one
            fan = parameter.shape[-1] if parameter.dim() > 1 else 1
            parameter.normal_(std=scale / math.sqrt(fan))
        for part in module.modules():
            if isinstance(part, Standardize):
                part.mean.normal_()
                part.std.uniform_(0.5, 2)
            elif isinstance(part, Whiten):
                part.initialize(torch.randn(500, len(part.mean)) @ torch.randn(len(part.mean), len(part.mean)) + 1)
            elif isinstance(part, Gaussianize):
                noise = torch.randn(500, *part.knots_x.shape[:-1])
                part.initialize(noise.exp() + noise)


def inputs(name: str, batch: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor | None]:
    """Random events of both tails and the middle, and a context where the case takes one."""
    this = case(name)
    value = 1.5 * torch.randn(*batch, *this.event_shape, dtype=torch.float64)
    context = torch.randn(*batch, *this.context_shape, dtype=torch.float64) if this.contextual else None
    value = (this.data if name.startswith("inverse-") else this.noise)(value)  # the z-side of an inverse is data
    return value.to(dtype), None if context is None else context.to(dtype)

"""Recipes of vectors; images are flattened, except by RealNVP, which is convolutional on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor

from diffeo.bases import StandardLogistic, StandardNormal
from diffeo.flow import Flow
from diffeo.nets import MADE, MLP, ResNet
from diffeo.recipes.assembly import Features, Preprocess, assemble, event_shape, recipe
from diffeo.recipes.images import convolutional, multiscale
from diffeo.transforms import (
    Affine,
    Autoregressive,
    Composed,
    Coupling,
    Elementwise,
    Inverse,
    Permutation,
    RationalQuadraticSpline,
    Scale,
    Shift,
    Transform,
    Univariate,
    alternating_mask,
)

__all__ = ["iaf", "maf", "nice", "nsf", "realnvp"]


@recipe(
    laptop={"hidden": [512, 512, 512]},
    paper={"transforms": 4, "hidden": [1000] * 5, "activation": "relu"},
)
def nice(
    features: Features,
    context: int = 0,
    *,
    transforms: int = 4,
    hidden: Sequence[int] = (128, 128),
    activation: str = "relu",
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """NICE: additive couplings on the odd/even partition, one diagonal rescaling of the noise, logistic prior.

    Dinh et al. 2014, arXiv:1410.8516; the preset ``paper`` is its network for MNIST.
    """
    shape = event_shape(features)
    couplings = _couplings(Shift(), math.prod(shape), context, transforms, hidden, activation, residual=False)
    scales = Elementwise(Scale(), (math.prod(shape),))
    return assemble(StandardLogistic(shape), [scales, *couplings], context, preprocess)


@recipe(
    laptop={"transforms": 2, "hidden": [32, 32], "activation": "relu", "kernels": [3]},
    paper={
        "transforms": 3,
        "hidden": [64] * 8,
        "activation": "relu",
        "scales": 2,
        "kernels": [3, 3],
        "packed": False,
    },
)
def realnvp(
    features: Features,
    context: int = 0,
    *,
    transforms: int = 8,
    hidden: Sequence[int] = (128, 128),
    activation: str = "silu",
    residual: bool = True,
    bound: float = 3.0,
    scales: int = 3,
    kernels: Sequence[int] = (3, 1),
    packed: bool = True,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """RealNVP: affine couplings on alternating halves, over several scales on images (arXiv:1605.08803).

    Cheap both ways. On images, ``transforms`` is the number of couplings of each kind at each scale (see
    ``diffeo.recipes.images.multiscale``, also for ``scales`` and ``packed``), ``hidden``, ``residual`` and ``kernels``
    are those of ``ResNet``; the hidden channels double with every squeeze. The preset ``paper`` is the network for
    CIFAR-10. Vectors have no use for ``scales``, ``kernels`` and ``packed``.
    """
    shape = event_shape(features)
    affine = Affine(bound)
    if len(shape) == 1:
        layers = _couplings(affine, math.prod(shape), context, transforms, hidden, activation, residual)
    else:
        net = partial(ResNet, context=context, activation=activation, residual=residual, kernels=kernels)

        def couple(mask: Tensor, squeezes: int) -> Coupling:
            return convolutional(affine, mask, [width * 2**squeezes for width in hidden], net)

        layers = multiscale(shape, scales, transforms, packed, couple)
    return assemble(StandardNormal(shape), layers, context, preprocess)


@recipe(
    laptop={"hidden": [512, 512]},
    paper={"transforms": 5, "hidden": [1024, 1024], "activation": "relu", "residual": False},
)
def maf(
    features: Features,
    context: int = 0,
    *,
    transforms: int = 5,
    hidden: Sequence[int] = (128, 128),
    activation: str = "silu",
    residual: bool = True,
    bound: float = 5.0,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """MAF: affine autoregressive layers, the order reversed between them (arXiv:1705.07057). Cheap to score.

    The preset ``paper`` is its network for MNIST.
    """
    shape = event_shape(features)
    layers = _autoregressive(Affine(bound), math.prod(shape), context, transforms, hidden, activation, residual)
    return assemble(StandardNormal(shape), layers, context, preprocess)


@recipe()
def iaf(
    features: Features,
    context: int = 0,
    *,
    transforms: int = 5,
    hidden: Sequence[int] = (128, 128),
    activation: str = "silu",
    residual: bool = True,
    bound: float = 5.0,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """IAF: the inverse of MAF's layers (arXiv:1606.04934). Cheap to sample, its own samples' density is free."""
    shape = event_shape(features)
    layers = _inverse(Affine(bound), math.prod(shape), context, transforms, hidden, activation, residual)
    return assemble(StandardNormal(shape), layers, context, preprocess)


@recipe()
def nsf(
    features: Features,
    context: int = 0,
    *,
    structure: Literal["autoregressive", "coupling", "inverse"] = "autoregressive",
    transforms: int = 5,
    hidden: Sequence[int] = (128, 128),
    activation: str = "silu",
    residual: bool = True,
    bins: int = 8,
    bound: float = 5.0,
    affine: bool = False,
    dropout: float = 0.0,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """NSF: rational-quadratic splines, autoregressive (fast to score), coupling (both ways) or inverse (to sample).

    Inverse is to autoregressive what IAF is to MAF. With ``affine``, every spline is placed and scaled by an affine map
    as well: where one column nearly determines another, that is what learns it. ``dropout``, for the autoregressive
    structure alone, is the fraction of earlier elements that a network does not see in training, against overfitting
    (see ``Autoregressive``). Durkan et al. 2019, arXiv:1906.04032.
    """
    autoregressive = partial(_autoregressive, dropout=dropout)
    kinds: dict[str, Callable[..., list[Transform]]] = {
        "autoregressive": autoregressive, "coupling": _couplings, "inverse": _inverse,
    }  # fmt: skip
    if structure not in kinds:
        raise ValueError(f"expected structure among {', '.join(kinds)}, got {structure!r}")
    if dropout and structure != "autoregressive":
        raise ValueError(f"expected no dropout for structure {structure!r}, got {dropout}")
    spline: Univariate = RationalQuadraticSpline(bins, bound)
    if affine:
        spline = Composed(spline, Affine(2.0))
    shape = event_shape(features)
    layers = kinds[structure](spline, math.prod(shape), context, transforms, hidden, activation, residual)
    return assemble(StandardNormal(shape), layers, context, preprocess)


def _couplings(
    univariate: Univariate,
    features: int,
    context: int,
    transforms: int,
    hidden: Sequence[int],
    activation: str,
    residual: bool,
) -> list[Transform]:
    if features < 2:
        raise ValueError(f"expected features >= 2 for a coupling, got {features}; an autoregressive recipe takes 1")
    layers: list[Transform] = []
    for index in range(transforms):
        mask = alternating_mask(features, flip=index % 2 == 1)
        kept = int(mask.sum())
        net = MLP(kept, univariate.size * (features - kept), hidden, context, activation, residual)
        layers.append(Coupling(univariate, mask, net))
    return layers


def _autoregressive(
    univariate: Univariate,
    features: int,
    context: int,
    transforms: int,
    hidden: Sequence[int],
    activation: str,
    residual: bool,
    dropout: float = 0.0,
) -> list[Transform]:
    layers: list[Transform] = []
    for index in range(transforms):
        if index:
            layers.append(Permutation.reversing(features))
        net = MADE(features, univariate.size, hidden, context, activation, residual)
        layers.append(Autoregressive(univariate, net, dropout))
    return layers


def _inverse(
    univariate: Univariate,
    features: int,
    context: int,
    transforms: int,
    hidden: Sequence[int],
    activation: str,
    residual: bool,
) -> list[Transform]:
    layers = _autoregressive(univariate, features, context, transforms, hidden, activation, residual)
    return [Inverse(layer) for layer in layers]

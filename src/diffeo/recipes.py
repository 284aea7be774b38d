"""Recipes: named flows, made from plain data alone, so that a run directory can store and rebuild them."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from diffeo.bases import Base, StandardLogistic, StandardNormal
from diffeo.flow import Flow
from diffeo.nets import MADE, MLP
from diffeo.transforms import (
    Affine,
    Autoregressive,
    Chain,
    Composed,
    Coupling,
    Dequantize,
    Elementwise,
    Gaussianize,
    Inverse,
    Logit,
    Permutation,
    RationalQuadraticSpline,
    Scale,
    Shift,
    Standardize,
    Transform,
    Univariate,
    alternating_mask,
)

__all__ = ["RECIPES", "build", "iaf", "maf", "nice", "nsf", "realnvp"]

RECIPES: dict[str, Callable[..., Flow]] = {}

PREPROCESS: dict[str, Callable[..., Transform]] = {
    "standardize": Standardize,
    "gaussianize": Gaussianize,
    "logit": Logit,
    "dequantize": Dequantize,
}

Preprocess = Sequence[Any]  # names, or pairs (name, arguments)


def recipe(make: Callable[..., Flow]) -> Callable[..., Flow]:
    """Name a recipe by its function, and let every flow remember the arguments it was made from."""
    signature = inspect.signature(make)

    @functools.wraps(make)
    def remember(*args: Any, **kwargs: Any) -> Flow:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        flow = make(*bound.args, **bound.kwargs)
        flow.recipe = {"name": make.__name__, "arguments": json.loads(json.dumps(bound.arguments))}
        return flow

    RECIPES[make.__name__] = remember
    return remember


def build(name: str, arguments: dict[str, Any]) -> Flow:
    """Make the flow of a recipe's name and arguments, freshly initialised.

    Raises:
        ValueError: for an unknown recipe, an unknown argument, or a value of the wrong kind.
    """
    if name not in RECIPES:
        raise ValueError(f"expected a recipe among {', '.join(RECIPES)}, got {name!r}")
    unknown = sorted(set(arguments) - set(inspect.signature(RECIPES[name]).parameters))
    if unknown:
        raise ValueError(f"recipe {name!r} takes no argument {', '.join(map(repr, unknown))}")
    try:
        return RECIPES[name](**arguments)
    except (TypeError, AttributeError, RuntimeError, KeyError) as error:
        raise ValueError(f"recipe {name!r} cannot be made from {arguments}: {error}") from error


@recipe
def nice(
    features: int,
    context: int = 0,
    *,
    transforms: int = 4,
    hidden: Sequence[int] = (128, 128),
    activation: str = "relu",
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """NICE: additive couplings on the odd/even partition, one diagonal rescaling, logistic prior (arXiv:1410.8516)."""
    couplings = _couplings(Shift(), features, context, transforms, hidden, activation, residual=False)
    return _assemble(StandardLogistic(features), [*couplings, Elementwise(Scale(), (features,))], context, preprocess)


@recipe
def realnvp(
    features: int,
    context: int = 0,
    *,
    transforms: int = 8,
    hidden: Sequence[int] = (128, 128),
    activation: str = "silu",
    residual: bool = True,
    bound: float = 3.0,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """RealNVP: affine couplings on alternating halves (arXiv:1605.08803). Cheap both ways."""
    couplings = _couplings(Affine(bound), features, context, transforms, hidden, activation, residual)
    return _assemble(StandardNormal(features), couplings, context, preprocess)


@recipe
def maf(
    features: int,
    context: int = 0,
    *,
    transforms: int = 5,
    hidden: Sequence[int] = (128, 128),
    activation: str = "silu",
    residual: bool = True,
    bound: float = 5.0,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """MAF: affine autoregressive layers, the order reversed between them (arXiv:1705.07057). Cheap to score."""
    layers = _autoregressive(Affine(bound), features, context, transforms, hidden, activation, residual)
    return _assemble(StandardNormal(features), layers, context, preprocess)


@recipe
def iaf(
    features: int,
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
    layers = _autoregressive(Affine(bound), features, context, transforms, hidden, activation, residual)
    return _assemble(StandardNormal(features), [Inverse(layer) for layer in layers], context, preprocess)


@recipe
def nsf(
    features: int,
    context: int = 0,
    *,
    structure: Literal["autoregressive", "coupling"] = "autoregressive",
    transforms: int = 5,
    hidden: Sequence[int] = (128, 128),
    activation: str = "silu",
    residual: bool = True,
    bins: int = 8,
    bound: float = 5.0,
    affine: bool = False,
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """NSF: rational-quadratic splines, autoregressive (cheap to score) or coupling (cheap both ways).

    With ``affine``, every spline is placed and scaled by an affine map as well: where one column nearly determines
    another, that is what learns it. Durkan et al. 2019, arXiv:1906.04032.
    """
    kinds = {"autoregressive": _autoregressive, "coupling": _couplings}
    if structure not in kinds:
        raise ValueError(f"expected structure among {', '.join(kinds)}, got {structure!r}")
    spline: Univariate = RationalQuadraticSpline(bins, bound)
    if affine:
        spline = Composed(spline, Affine(2.0))
    layers = kinds[structure](spline, features, context, transforms, hidden, activation, residual)
    return _assemble(StandardNormal(features), layers, context, preprocess)


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
) -> list[Transform]:
    layers: list[Transform] = []
    for index in range(transforms):
        if index:
            layers.append(Permutation.reversing(features))
        layers.append(
            Autoregressive(univariate, MADE(features, univariate.size, hidden, context, activation, residual))
        )
    return layers


def _assemble(base: Base, layers: Sequence[Transform], context: int, preprocess: Preprocess) -> Flow:
    """Put the preprocessing, listed from the data inwards, on the data's side of the layers."""
    steps: list[Transform] = []
    for entry in preprocess:
        name, arguments = (entry, {}) if isinstance(entry, str) else (str(entry[0]), dict(entry[1]))
        if name not in PREPROCESS:
            raise ValueError(f"expected preprocessing among {', '.join(PREPROCESS)}, got {name!r}")
        steps.append(PREPROCESS[name](base.event_shape, **arguments))
    chain = Chain([*layers, *reversed(steps)])
    if not context:
        return Flow(base, chain)
    return Flow(base, chain, context_shape=(context,), context_transform=Standardize(torch.Size((context,))))

"""What all recipes share: their arguments, remembered; presets; and the preprocessing around the layers."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import torch

from diffeo.bases import Base
from diffeo.fields import Anything, Either, Kind, ListOf, MapOf, Nothing, Number, PairOf, Text
from diffeo.flow import Flow
from diffeo.nets import Reader
from diffeo.transforms import (
    Bounded,
    Chain,
    Dequantize,
    Elementwise,
    Flattened,
    Gaussianize,
    Logit,
    RationalQuadraticSpline,
    Rescale,
    Standardize,
    Transform,
    Whiten,
    as_support,
    as_univariate,
    describe,
)

__all__ = [
    "Features",
    "Preprocess",
    "assemble",
    "by_shape",
    "event_shape",
    "kind_of",
    "preprocessing",
    "recipe",
    "seen",
]

P = ParamSpec("P")
T = TypeVar("T")


def _curve(event_shape: Sequence[int], bins: int = 16, bound: float = 5.0) -> Transform:
    """A monotone curve that is learned with the layers, at first the identity."""
    return Elementwise(RationalQuadraticSpline(bins, bound), event_shape)


def _support(event_shape: Sequence[int], of: Any) -> Transform:
    """What ``as_support`` makes of a list, of bounds or of a name."""
    support = as_support(of, event_shape)
    if support.noise_shape != support.event_shape:
        raise ValueError("expected a support whose noise has its shape, got a simplex; take flow.with_support for it")
    return support


PREPROCESS: dict[str, Callable[..., Transform]] = {
    "curve": _curve,
    "standardize": Standardize,
    "whiten": Whiten,
    "gaussianize": Gaussianize,
    "logit": Logit,
    "rescale": Rescale,
    "dequantize": Dequantize,
    "bounded": Bounded,
    "support": _support,
}

Features = int | Sequence[int]  # how many columns, or the shape (C, H, W) of an image
Preprocess = Sequence[Any]  # names, or pairs (name, arguments)


@dataclass(frozen=True)
class _ByShape:
    vectors: Any
    images: Any

    def __repr__(self) -> str:
        return f"by_shape({self.vectors!r}, images={self.images!r})"


def by_shape(vectors: T, *, images: T) -> T:
    """The default of a recipe's argument that is one for vectors and another for images.

    Args:
        vectors: the default where ``features`` is a number.
        images: the default where it is a shape (C, H, W).
    """
    return cast(T, _ByShape(vectors, images))  # ``recipe`` puts one of them in its place


def recipe(**presets: Mapping[str, Any]) -> Callable[[Callable[P, Flow]], Callable[P, Flow]]:
    """Let every flow of a recipe remember the arguments it was made from, and give names to sets of arguments.

    Arguments that are passed win, then those of the ``preset``, then the defaults in the signature (``by_shape``: the
    one for the event's shape). The flow remembers every argument's value and not the preset's name: a stored flow stays
    what it was when presets and defaults change. A flow of a univariate map without a name remembers nothing, like one
    made by hand.

    Args:
        presets: sets of arguments by name.

    Raises:
        ValueError: when the recipe is called, for an unknown preset.
        TypeError: likewise, for arguments that it does not have.
    """

    def decorate(make: Callable[P, Flow]) -> Callable[P, Flow]:
        signature = inspect.signature(make)
        construct: Callable[..., Flow] = make

        @functools.wraps(make)
        def remember(*args: P.args, **kwargs: P.kwargs) -> Flow:
            try:
                passed = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise TypeError(f"{make.__name__}() {error}") from None
            name = passed.pop("preset", None)
            if name is not None and name not in presets:
                raise ValueError(f"expected a preset among {', '.join(presets)} for {make.__name__!r}, got {name!r}")
            bound = signature.bind(**{**(presets[name] if name else {}), **passed})
            bound.apply_defaults()
            arguments = {name: value for name, value in bound.arguments.items() if name != "preset"}
            shape = "images" if len(event_shape(passed["features"])) > 1 else "vectors"
            for argument, value in arguments.items():
                if isinstance(value, _ByShape):
                    arguments[argument] = getattr(value, shape)
            univariate = arguments.get("univariate")
            if univariate is not None:
                univariate = arguments["univariate"] = as_univariate(univariate)
            flow = construct(**arguments)
            if univariate is not None:
                arguments["univariate"] = describe(univariate)
                if arguments["univariate"] is None:
                    return flow
            flow.recipe = {"name": make.__name__, "arguments": json.loads(json.dumps(arguments))}
            return flow

        return remember

    return decorate


def event_shape(features: Features) -> tuple[int, ...]:
    """The shape of one example, (n,) or (C, H, W), of a recipe's features.

    Args:
        features: a number of columns, or a shape (C, H, W).

    Raises:
        ValueError: for a shape that is no image's.
        TypeError: for anything but whole numbers.
    """
    shape = (features,) if isinstance(features, int) else tuple(features)
    if not all(isinstance(size, int) for size in shape):
        raise TypeError(f"expected features as whole numbers, got {features!r}")
    if len(shape) not in (1, 3):
        raise ValueError(f"expected features as a number or as (channels, height, width), got {shape}")
    return shape


def preprocessing(steps: Preprocess, shape: Sequence[int]) -> list[Transform]:
    """Make the preprocessing of events of this shape, listed from the data inwards, in the order of generation.

    Args:
        steps: names in ``PREPROCESS``, or pairs (name, arguments); with the argument ``shared`` all elements have the
            same map.
        shape: of the events.

    Raises:
        ValueError: for an unknown name.
    """
    made: list[Transform] = []
    for entry in steps:
        name, arguments = (entry, {}) if isinstance(entry, str) else (str(entry[0]), dict(entry[1]))
        if name not in PREPROCESS:
            raise ValueError(f"expected preprocessing among {', '.join(PREPROCESS)}, got {name!r}")
        made.append(PREPROCESS[name](() if arguments.pop("shared", False) else shape, **arguments))
    return made[::-1]


def seen(context: int, embedding: Sequence[int]) -> int:
    """How many numbers the networks of a flow see of a context: those that its embedding makes of it, if it has one.

    Args:
        context: how many numbers there are.
        embedding: widths of the network that reads them, none for no network.

    Raises:
        ValueError: for what are no widths, or an embedding without a context.
    """
    whole = isinstance(embedding, list | tuple) and all(type(width) is int and width > 0 for width in embedding)
    if not whole:
        raise ValueError(f"expected embedding as a list of widths, such as [128, 128, 32], got {embedding!r}")
    if embedding and not context:
        raise ValueError("expected a context for the embedding to read, got none")
    return embedding[-1] if embedding else context


def assemble(
    base: Base, layers: Sequence[Transform], context: int, preprocess: Preprocess, embedding: Sequence[int] = ()
) -> Flow:
    """Put the preprocessing on the data's side of the layers, and an embedding before their context.

    Args:
        base: the noise.
        layers: transforms in the order of generation; those of vectors see an image flattened.
        context: how many numbers the layers are conditioned on; they are standardised.
        preprocess: as in ``preprocessing``.
        embedding: as in ``seen``.

    Raises:
        ValueError: for unknown preprocessing.
    """
    shape = base.event_shape
    if max(layer.event_dim for layer in layers) < len(shape):
        layers = [Flattened(Chain(layers), len(shape))]
    chain = Chain([*layers, *preprocessing(preprocess, shape)])
    if not context:
        return Flow(base, chain)
    net = Reader(context, embedding[-1], embedding[:-1]) if embedding else None
    numbers = torch.Size((context,))
    return Flow(base, chain, context_shape=numbers, context_transform=Standardize(numbers), embedding=net)


_SIZE = Number(1, 2**31 - 1, whole=True)
_STEP = Either(Text(tuple(PREPROCESS)), PairOf(Text(tuple(PREPROCESS)), MapOf()))
_KINDS: dict[str, Kind] = {  # of an annotation, and of arguments whose annotation does not say all
    "int": _SIZE,
    "float": Number(-1e30, 1e30),
    "bool": Nothing(flag=True),
    "str": Text(),
    "Sequence[int]": ListOf(_SIZE, 0, 1000),
    "Features": Either(_SIZE, ListOf(_SIZE, 3, 3)),
    "Preprocess": ListOf(_STEP, 0, 100),
    "context": Number(0, 2**31 - 1, whole=True),
}


def kind_of(make: Callable[..., Any], argument: str) -> Kind:
    """What a recipe's argument may be, as its annotation says; of what that leaves open, anything.

    Args:
        make: the recipe.
        argument: the name of one that it has.
    """
    annotation = str(inspect.signature(make).parameters[argument].annotation)
    if argument in _KINDS:
        return _KINDS[argument]
    if choice := re.fullmatch(r"Literal\[(.*?)\]( \| None)?", annotation):
        among = Text(tuple(word.strip(" '\"") for word in choice[1].split(",")))
        return Either(among, Nothing()) if choice[2] else among
    parts = [_KINDS.get(part) for part in annotation.split(" | ") if part != "None"]
    if None in parts:
        return Anything()
    kinds = [part for part in parts if part is not None] + [Nothing()] * annotation.endswith("| None")
    return kinds[0] if len(kinds) == 1 else Either(*kinds)

"""Recipes: named flows, made from plain data alone, so that a run directory can store and rebuild them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from diffeo.fields import Fields, problem
from diffeo.flow import Flow
from diffeo.recipes.assembly import kind_of
from diffeo.recipes.audio import parallel_wavenet, wavenet
from diffeo.recipes.continuous import flow_matching
from diffeo.recipes.images import glow
from diffeo.recipes.latent import vae
from diffeo.recipes.mixed import mixed
from diffeo.recipes.stored import upgraded
from diffeo.recipes.vectors import iaf, maf, nice, nsf, realnvp

__all__ = [
    "RECIPES",
    "build",
    "flow_matching",
    "glow",
    "iaf",
    "maf",
    "mixed",
    "nice",
    "nsf",
    "parallel_wavenet",
    "realnvp",
    "vae",
    "wavenet",
]

RECIPES: dict[str, Callable[..., Flow]] = {
    each.__name__: each
    for each in (nice, realnvp, maf, iaf, nsf, glow, wavenet, parallel_wavenet, flow_matching, mixed, vae)
}


def build(name: str, arguments: Mapping[str, Any]) -> Flow:
    """Make the flow of a recipe's name and arguments, freshly initialised.

    Args:
        name: one in ``RECIPES``.
        arguments: plain data; those that earlier versions stored are taken as well (``upgraded``).

    Raises:
        ValueError: for an unknown recipe, an unknown argument, or a value of the wrong kind.
    """
    if name not in RECIPES:
        raise ValueError(f"expected a recipe among {', '.join(RECIPES)}, got {name!r}")
    arguments = upgraded(name, arguments)
    unknown = sorted(set(arguments) - set(inspect.signature(RECIPES[name]).parameters))
    if unknown:
        raise ValueError(f"recipe {name!r} takes no argument {', '.join(map(repr, unknown))}")
    try:
        flow = RECIPES[name](**arguments)
    except (TypeError, AttributeError, RuntimeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"recipe {name!r} cannot be made from these arguments: {error}") from error
    kinds = {argument: kind_of(RECIPES[name], argument) for argument in arguments}
    if fault := problem(dict(arguments), Fields(kinds)):  # true for 1, say, which Python does not mind
        raise ValueError(f"recipe {name!r}: {fault}")
    return flow

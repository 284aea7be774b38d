"""Simulations as their user gives them: parameters, observations and a prior, checked before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from diffeo.training.batches import as_tensor
from diffeo.transforms import Support, as_support

__all__ = [
    "expect_prior",
    "expect_varying",
    "log_prior",
    "names_of",
    "place_of",
    "prior_support",
    "read",
    "shape_text",
    "within",
]

ON_BOUND = 1e-6  # by which a parameter may be outside its support, for rounding
LOST = 1e-3  # standard deviations that rounding to float32 may move a number


def read(theta: Any, x: Any, missing: str) -> tuple[Tensor, Tensor, int]:
    """Parameters and observations in float32, and how many simulations were left out because they are not finite.

    Args:
        theta: parameters ``(N, D)``, or one each ``(N,)``.
        x: observations ``(N, *observation)``, likewise.
        missing: what becomes of simulations with NaN or infinity: "error", or "drop".

    Raises:
        ValueError: for another ``missing``, shapes that do not fit, numbers that are not finite, or that float32 does
            not tell apart.
    """
    if missing not in ("error", "drop"):
        raise ValueError(f"expected missing='error' or 'drop', got {missing!r}")
    handed = {"theta": as_tensor(theta, "theta").cpu(), "x": as_tensor(x, "x").cpu()}
    handed = {name: part[:, None] if part.dim() == 1 else part for name, part in handed.items()}
    theta, x = handed.values()
    if theta.dim() != 2 or x.dim() < 2 or not min(*theta.shape, *x.shape):
        raise ValueError(
            f"expected parameters (N, D) and observations (N, ...), got {shape_text(theta.shape)} and "
            f"{shape_text(x.shape)}"
        )
    if len(theta) != len(x):
        raise ValueError(f"expected an observation for each of {len(theta)} parameters, got {len(x)}")
    parts = {name: part.float() for name, part in handed.items()}
    finite = {name: torch.isfinite(part) for name, part in parts.items()}
    good = torch.stack([each.flatten(1).all(1) for each in finite.values()]).all(0)
    bad = int((~good).sum())
    if bad and missing == "error":
        row = int((~good).nonzero()[0])
        name = next(name for name, each in finite.items() if not each[row].all())
        where = place_of(~finite[name][row], f"{name}[{row}]")
        raise ValueError(
            f"expected finite simulations, got NaN or infinity in {bad:,} of {len(good):,}, first in {where}; "
            "missing='drop' leaves them out"
        )
    for name, part in handed.items():
        _expect_resolved(part[good], parts[name][good], name)
    return parts["theta"][good], parts["x"][good], bad


def _expect_resolved(handed: Tensor, single: Tensor, name: str) -> None:
    """Refuse numbers that differ by less than float32 resolves where they are, such as times since 1970."""
    if handed.dtype not in (torch.float64, torch.int64, torch.int32, torch.uint32, torch.uint64) or len(handed) < 2:
        return  # float32 holds them all
    double = handed.double()
    spread = double.std(0)
    unresolved = (double - single.double()).abs().amax(0) > LOST * spread
    unresolved &= (double != double[:1]).any(0)  # constants are another matter
    if unresolved.any():
        first = tuple(unresolved.nonzero()[0].tolist())
        raise ValueError(
            f"expected numbers that float32 tells apart, got {place_of(unresolved, name)} of about "
            f"{double[(0, *first)]:.9g} with a spread of {spread[first]:.2g}; subtract an offset from it"
        )


def expect_varying(theta: Tensor, names: Sequence[str]) -> None:
    """Refuse a parameter that is the same in all simulations: of it there is no density.

    Args:
        theta: parameters ``(N, D)``.
        names: of the parameters.

    Raises:
        ValueError: naming the first.
    """
    constant = (theta == theta[:1]).all(0)
    if constant.any():
        first = int(constant.nonzero()[0])
        raise ValueError(
            f"expected parameters that vary, got {names[first]} = {theta[0, first]:g} in all simulations; leave it out"
        )


def names_of(theta: Any, names: Sequence[str] | None, features: int) -> list[str]:
    """The parameters' names: those that are given, a frame's columns, or theta1, theta2 ...

    Args:
        theta: parameters as they were given.
        names: those that are given, or None.
        features: how many parameters there are.

    Raises:
        ValueError: for another number of names, or one that is there twice.
        TypeError: for one text.
    """
    if isinstance(names, str):
        raise TypeError(f"expected a sequence of names, got {names!r}")
    labels = getattr(theta, "columns", None) if names is None else names
    if labels is None:
        return [f"theta{k + 1}" for k in range(features)]
    labels = [str(name) for name in labels]
    if len(labels) != features:
        raise ValueError(f"expected a name for each of {features} parameters, got {len(labels)}")
    twice = next((name for name in labels if labels.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"expected names that differ, got {twice!r} twice")
    return labels


def prior_support(prior: Any, features: int) -> Any:
    """What ``as_support`` takes of a prior; None for the whole line.

    Args:
        prior: a distribution of ``torch.distributions``, what has a ``log_prob`` or a ``sample`` like it and perhaps a
            ``support``, or what ``as_support`` takes.
        features: how many parameters there are.

    Raises:
        ValueError: for a prior of another number of parameters.
    """
    shapes = (getattr(prior, name, None) or () for name in ("event_shape", "batch_shape"))
    event, batch = (torch.Size((shape,) if isinstance(shape, int) else shape) for shape in shapes)
    sizes = {features} if event else {1, features}
    if (event or batch).numel() not in sizes:
        raise ValueError(
            f"expected a prior of {features} parameters, as theta has, got one of {(event or batch).numel()}"
        )
    like = hasattr(prior, "log_prob") or hasattr(prior, "sample")
    return getattr(prior, "support", None) if like and not isinstance(prior, Distribution) else prior


def within(onto: Support, theta: Tensor, names: Sequence[str]) -> Tensor:
    """Parameters within their support; one on its boundary is moved to the nearest number inside.

    Args:
        onto: the support.
        theta: parameters ``(N, D)``.
        names: of the parameters.

    Raises:
        ValueError: for parameters outside.
    """
    z, log_det = onto.inverse_and_log_det(theta)
    outside = ~torch.isfinite(log_det)
    if not outside.any():
        return theta
    nearest = torch.where(outside[:, None], onto.forward(z), theta)
    off = (nearest - theta).abs() / (1 + theta.abs())
    far = off.amax(1) > ON_BOUND
    if far.any():
        row = int(far.nonzero()[0])
        column = int(off[row].argmax())
        raise ValueError(
            f"expected parameters within the support, got {int(far.sum()):,} of {len(theta):,} outside, first "
            f"theta[{row}]: {names[column]} = {theta[row, column]:.6g}, the nearest inside is "
            f"{nearest[row, column]:.6g}; give the prior that they are from"
        )
    return nearest


def log_prior(prior: Any, theta: Tensor) -> Tensor:
    """log p(theta) ``(N,)``, -inf outside the prior's support, where a distribution may raise.

    Args:
        prior: with ``log_prob``.
        theta: parameters ``(N, D)``.

    Raises:
        ValueError: for a ``log_prob`` that fails or returns another shape.
    """
    theta, inside = _inside(prior, theta)
    count, shape = int(inside.sum()), shape_text(theta[inside].shape)
    try:
        values = torch.as_tensor(prior.log_prob(theta[inside])).to(theta)
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        first = str(error).partition("\n")[0][:200]
        raise ValueError(f"expected a prior whose log_prob takes parameters {shape}, got {first}") from error
    if values.dim() == 2 and values.shape == theta[inside].shape:  # of each parameter by itself
        values = values.sum(1)
    if values.shape != (count,):
        raise ValueError(
            f"expected a prior whose log_prob is ({count},) for parameters {shape}, got {shape_text(values.shape)}"
        )
    return theta.new_full((len(theta),), -math.inf).masked_scatter(inside, values)


def _inside(prior: Any, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Parameters off the bounds of a prior's support, and which are within it ``(N,)``, as far as it says so."""
    support = prior_support(prior, theta.shape[1])
    everywhere = torch.ones(len(theta), dtype=torch.bool, device=theta.device)
    if support is None:
        return theta, everywhere
    try:
        onto = as_support(support, theta.shape[1]).to(theta.device)
    except (NotImplementedError, ValueError, TypeError):  # of a kind of its own
        try:
            return theta, prior.support.check(theta).reshape(len(theta), -1).all(1)
        except (NotImplementedError, AttributeError):
            return theta, everywhere
    theta = onto.off_bounds(theta)
    return theta, torch.isfinite(onto.inverse_and_log_det(theta)[1])


def expect_prior(prior: Any, theta: Tensor) -> Tensor:
    """log p(theta) ``(N,)`` of simulations, all finite.

    Args:
        prior: with ``log_prob``.
        theta: parameters ``(N, D)``.

    Raises:
        ValueError: as ``log_prior``, and for parameters that the prior gives no density.
    """
    values = log_prior(prior, theta)
    bad = ~torch.isfinite(values)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"expected parameters of finite log-density under the prior, got {values[row]:g} in {int(bad.sum()):,} "
            f"of {len(theta):,}, first theta[{row}]; give the prior that they are from"
        )
    return values


def place_of(which: Tensor, name: str) -> str:
    """The first place of a mask, and how many more there are.

    Args:
        which: the mask.
        name: of what it is of.
    """
    places = which.nonzero().tolist()
    more = f" (and {len(places) - 1:,} more)" if len(places) > 1 else ""
    return f"{name}[{', '.join(map(str, places[0]))}]{more}"


def shape_text(shape: Sequence[int]) -> str:
    """A shape in words: (2, 3).

    Args:
        shape: its sizes.
    """
    return str(tuple(shape))

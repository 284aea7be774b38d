"""What a conditional density says of new values: quantiles, means, and how well these were calibrated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from diffeo.bases import StandardLogistic, StandardNormal, StudentT
from diffeo.flow import Flow
from diffeo.mixture import Mixture
from diffeo.ops.reference.roots import newton_or_half
from diffeo.report.numerics import continuous_part
from diffeo.training.seeding import seeded
from diffeo.transforms.mixed import Mixed

__all__ = ["calibration", "cdf", "crps", "ensemble", "has_cdf", "pit", "quantiles"]

POINTS = 200  # that stand for a mixture, members by their weights
LEAST = 5  # of each member
DRAWS = 400  # for each context, where there is no distribution function
ROUNDS = 60  # of Newton's method at most
EXACT = 1e-10  # of a distribution function
CHUNK = 2**17  # values at a time

_NOISE: dict[type, Callable[[Any], Any]] = {
    StandardNormal: lambda base: scipy.stats.norm,
    StandardLogistic: lambda base: scipy.stats.logistic,
    StudentT: lambda base: scipy.stats.t(base.freedom),
}


def _leaves(flow: Flow, weight: float = 1.0) -> Iterator[tuple[float, Flow]]:
    """The flows that a mixture is made of, and their weights."""
    if not isinstance(flow, Mixture):
        yield weight, flow
        return
    for member, share in zip(flow.members, flow.weights, strict=True):
        yield from _leaves(member, weight * share)


def has_cdf(flow: Flow) -> bool:
    """Whether ``cdf`` and ``quantiles`` are exact: of one element, by maps of noise whose own quantiles are known."""
    return flow.event_shape == (1,) and all(
        type(leaf.base) in _NOISE and not isinstance(leaf.transform, Mixed) for _, leaf in _leaves(flow)
    )


class _Member:
    """A flow of one element and its noise: an increasing map z -> y, discrete values spread over their cells."""

    def __init__(self, weight: float, flow: Flow) -> None:
        self.weight, self.noise = weight, _NOISE[type(flow.base)](flow.base)
        self.flow, _ = continuous_part(flow, torch.zeros(1, 1).to(flow.base.device_marker))

    def decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        """y of noise, both ``(n,)``."""
        return self.flow.decode(z[:, None], context)[:, 0]

    def spread(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """F(y) and the density p(y), both ``(n,)``."""
        prepared = self.flow.normalize_context(context)
        z, log_det = self.flow.transform.inverse_and_log_det(y[:, None], prepared)
        below, density = (function(z[:, 0].cpu().numpy()) for function in (self.noise.cdf, self.noise.pdf))
        return torch.from_numpy(below).to(y), torch.from_numpy(density).to(y) * log_det.exp()


def _members(flow: Flow) -> list[_Member]:
    if not has_cdf(flow):
        raise ValueError("expected a flow of one element whose noise has known quantiles, got another")
    return [_Member(weight, leaf) for weight, leaf in _leaves(flow) if weight > 0]


@torch.no_grad()
def cdf(flow: Flow, y: Tensor, context: Tensor | None = None) -> Tensor:
    """F(y | context) = sum_k w_k F_k(f_k^-1(y)), of a flow of one element; of discrete values of their spread y + u.

    Args:
        flow: with ``has_cdf``.
        y: ``(n,)``.
        context: ``(n, context)``.

    Returns:
        ``(n,)``, in [0, 1].

    Raises:
        ValueError: for another flow.
    """
    y = y.to(flow.base.device_marker)
    context = None if context is None else context.to(y)
    members = _members(flow)
    return torch.stack([member.weight * member.spread(y, context)[0] for member in members]).sum(0).clamp(0, 1)


@torch.no_grad()
def quantiles(flow: Flow, levels: Any, context: Tensor | None = None, count: int = 1) -> Tensor:
    """The values y with F(y | context) = q, for each level q: ``(n, Q)``; of discrete values of their spread y + u.

    Of a single flow f(F_0^-1(q)); of a mixture the root between its members' quantiles, by Newton's method on
    Phi^-1(F), which is straight where the density is Gaussian, and bisection where that is surer.

    Args:
        flow: with ``has_cdf``.
        levels: ``(Q,)``, in (0, 1).
        context: ``(n, context)``.
        count: n, of a flow without a context.

    Raises:
        ValueError: for another flow, or levels outside (0, 1).
    """
    marker = flow.base.device_marker
    wanted = torch.as_tensor(np.asarray(levels, dtype=np.float64)).to(marker)
    if wanted.dim() != 1 or not ((wanted > 0) & (wanted < 1)).all():
        raise ValueError(f"expected levels in (0, 1), got {levels}")
    members = _members(flow)
    context = None if context is None else context.to(marker)
    rows = count if context is None else len(context)
    result = marker.new_empty(rows, len(wanted))
    size = max(1, CHUNK // max(1, len(wanted)))
    for start in range(0, rows, size):
        part = result[start : start + size]
        q = wanted.repeat(len(part))
        repeated = None if context is None else context[start : start + size].repeat_interleave(len(wanted), 0)
        part.copy_(_roots(members, q, repeated).reshape(part.shape))
    return result


def _roots(members: list[_Member], q: Tensor, context: Tensor | None) -> Tensor:
    """y with F(y | context) = q, both ``(n,)``."""
    ends = torch.stack(
        [member.decode(torch.from_numpy(member.noise.ppf(q.cpu().numpy())).to(q), context) for member in members]
    )
    weights = torch.tensor([member.weight for member in members]).to(q)
    low, high = ends.amin(0), ends.amax(0)
    y = (ends * weights[:, None]).sum(0).clamp(low, high) if len(members) > 1 else ends[0]
    moved, left = high - low, torch.arange(len(q), device=q.device)
    rounding = 4 * torch.finfo(q.dtype).eps
    for _ in range(ROUNDS if len(members) > 1 else 0):
        here, target = y[left], q[left]
        contexts = None if context is None else context[left]
        parts = [member.spread(here, contexts) for member in members]
        below, density = (
            sum(member.weight * part[k] for member, part in zip(members, parts, strict=True)) for k in (0, 1)
        )
        low[left] = torch.where(below <= target, here, low[left])
        high[left] = torch.where(below >= target, here, high[left])
        score = torch.special.ndtri(below)
        slope = density / torch.exp(-0.5 * score.square()) * math.sqrt(2 * math.pi)
        step = (torch.special.ndtri(target) - score) / slope
        width = high[left] - low[left]
        settled = ((below - target).abs() < max(EXACT, rounding)) | (width <= max(1e-12, rounding) * (1 + here.abs()))
        y[left] = torch.where(settled, here, newton_or_half(here, step, low[left], high[left], moved[left]))
        moved[left] = (y[left] - here).abs()
        left = left[~settled]
        if not len(left):
            break
    return y


@torch.no_grad()
def ensemble(
    flow: Flow, context: Tensor | None = None, count: int = 1, size: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Points that stand for a conditional density: values ``(n, M, D)`` and their weights ``(M,)``, of sum 1.

    Of a flow with ``has_cdf`` the middles of equal parts of each member, z = F_0^-1((s + 1/2) / S). Of another, draws:
    the same noise for all contexts, so that a context always has the same points.

    Args:
        flow: of vectors.
        context: ``(n, context)``.
        count: n, of a flow without a context.
        size: about how many points, or draws.
        seed: of the draws.
    """
    marker = flow.base.device_marker
    rows = count if context is None else len(context)
    leaves = [(weight, leaf) for weight, leaf in _leaves(flow) if weight > 0]
    exact = has_cdf(flow)
    if exact:
        counts = [max(LEAST, round((size or POINTS) * weight)) for weight, _ in leaves]
        middles = [(np.arange(times) + 0.5) / times for times in counts]
        noise = [
            torch.from_numpy(_NOISE[type(leaf.base)](leaf.base).ppf(part)).to(marker)[:, None]
            for (_, leaf), part in zip(leaves, middles, strict=True)
        ]
        shares = [
            torch.full((times,), weight / times, dtype=torch.float64)
            for (weight, _), times in zip(leaves, counts, strict=True)
        ]
    else:
        with seeded(marker.device, seed):
            which = torch.multinomial(torch.tensor([weight for weight, _ in leaves]), size or DRAWS, replacement=True)
            counts = torch.bincount(which, minlength=len(leaves)).tolist()
            noise = [leaf.base.sample((times,)) for (_, leaf), times in zip(leaves, counts, strict=True)]
        shares = [torch.full((times,), 1 / len(which), dtype=torch.float64) for times in counts]
    values = []
    for (_, leaf), z in zip(leaves, noise, strict=True):
        repeated = None if context is None else context.repeat_interleave(len(z), 0)
        with seeded(marker.device, seed):
            values.append(leaf.decode(z.repeat(rows, 1), repeated).reshape(rows, len(z), *flow.event_shape))
    return torch.cat(values, 1), torch.cat(shares).to(marker)


def crps(values: np.ndarray, weights: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of weighted points, E|X - y| - E|X - X'| / 2 (Gneiting and Raftery 2007).

    Args:
        values: ``(n, M)``.
        weights: ``(M,)``, of sum 1.
        y: what happened, ``(n,)``.

    Returns:
        ``(n,)``, in the units of y; lower is better, and of a single point it is the absolute error.
    """
    order = values.argsort(1)
    ordered, shares = np.take_along_axis(values, order, 1), weights[order]
    within = (shares * ordered * (2 * shares.cumsum(1) - shares - 1)).sum(1)
    return (weights * np.abs(values - y[:, None])).sum(1) - within


@torch.no_grad()
def pit(flow: Flow, x: Tensor, context: Tensor, steps: Sequence[float], seed: int = 0) -> np.ndarray:
    """F(x_i | context) of each element ``(n, D)``: uniform if the flow is right (Dawid 1984, JRSS A 147).

    Discrete values are spread over their cells, as by Czado et al. (2009, Biometrics 65). The elements of a flow of
    several are judged one by one, by their rank among draws.

    Args:
        flow: of vectors.
        x: what happened, ``(n, D)``.
        context: ``(n, context)``.
        steps: between neighbouring values of each element, 0 of continuous ones.
        seed: of the spread.
    """
    x = x.to(flow.base.device_marker)
    u = torch.from_numpy(np.random.default_rng(seed).random(tuple(x.shape))).to(x)
    if has_cdf(flow):
        return cdf(flow, (x + torch.tensor(steps).to(x) * u)[:, 0], context).double().cpu().numpy()[:, None]
    values, _ = ensemble(flow, context)
    below, equal = (values < x[:, None]).sum(1), (values == x[:, None]).sum(1)
    return ((below + u * (equal + 1)) / (values.shape[1] + 1)).double().cpu().numpy()


def calibration(pit: np.ndarray) -> dict[str, float]:
    """How far probability integral transforms F(y) (n,) are from uniform: Kolmogorov's distance, and its p-value."""
    test = scipy.stats.kstest(pit, "uniform")
    return {"distance": float(test.statistic), "p": float(test.pvalue)}

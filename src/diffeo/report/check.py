"""Whether a model can be trusted, judged on a user's own rows, with a verdict in words."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.mixture import Mixture, OutOfFold
from diffeo.report.baselines import held_out
from diffeo.report.compare import compare_samples, projection_test, shuffle_columns
from diffeo.report.latents import FAR, normal_scores, normality
from diffeo.report.numerics import consistency, continuous_part, log_det_error, off_data, round_trip
from diffeo.report.privacy import nearest_records
from diffeo.report.statistics import mean_and_error
from diffeo.report.verdict import FEWEST, Limits, Verdict
from diffeo.transforms import Bounded
from diffeo.transforms.ode import ODE

__all__ = ["FEWEST", "IMAGES", "LEAST_SAMPLES", "THRESHOLDS", "Thresholds", "by_fold", "check", "judge"]

JACOBIANS = 64  # rows whose log-det is compared with autograd's
LEAST_SAMPLES = 1_000  # drawn to look for copies of training rows
LATENTS = 64  # at most, that a classifier sees beside the rows


@dataclass(frozen=True)
class Thresholds(Limits):
    """Where care begins and where trust ends for a flow that is a bijection, beyond ``Limits``.

    Attributes:
        round_trip: 99.9 % quantile of |x - f(f^-1(x))| / (1 + |x|), on rows and on samples.
        round_trip_max: the largest of these.
        off_data: the largest far off the data: uniform on [-10, 10]^D in standardised units, of images on all pictures.
        log_det: relative error of the log-determinant in float64.
        density: 99.9 % quantile of the relative difference between the sampler's density and the scorer's.
        non_finite: fraction of non-finite results, on rows and samples.
        projection: Kolmogorov-Smirnov distance between rows and samples in the worst direction, where significant.
        latents: Kolmogorov-Smirnov distance of the worst latent dimension from the base, where significant.
        radius: the same of the latents' distances from 0, which in many dimensions see the least misfit.
        covariance: largest entry of |covariance of latents - identity|, where significant.
        far: fraction of rows with a latent beyond 6 standard deviations.
    """

    round_trip: tuple[float, float] = (1e-5, 1e-3)
    round_trip_max: tuple[float, float] = (1e-3, 1e-1)
    off_data: tuple[float, float] = (1e-2, math.inf)
    log_det: tuple[float, float] = (1e-8, 1e-5)
    density: tuple[float, float] = (1e-4, 1e-2)
    non_finite: tuple[float, float] = (0.0, 1e-3)
    projection: tuple[float, float] = (0.04, 0.15)
    latents: tuple[float, float] = (0.04, 0.15)
    radius: tuple[float, float] = (0.08, 0.4)
    covariance: tuple[float, float] = (0.15, 2.0)
    far: tuple[float, float] = (0.001, 0.1)

    def solved(self, ode: ODE) -> Thresholds:
        """These for a flow that is only solved to a tolerance, of which trajectories that part make a hundredfold.

        Where the divergence is estimated, the log-determinant is right on average alone: it is reported, not judged.
        """
        left = 100 * max(ode.rtol, ode.atol)
        care = {"round_trip": left, "round_trip_max": 10 * left, "log_det": left, "density": left}
        limits: dict[str, Any] = {
            name: tuple(max(limit, k * left) for limit, k in zip(getattr(self, name), (1, 100), strict=True))
            for name, left in care.items()
        }
        if ode.divergence == "hutchinson":
            limits |= {"log_det": REPORTED, "density": REPORTED}
        return replace(self, **limits)

    def bounded(self) -> Thresholds:
        """These for a flow of bounded elements: next to a bound, rounding moves a value by much of its distance."""
        care, distrust = self.density
        return replace(self, density=(10 * care, 10 * distrust))


THRESHOLDS = Thresholds()
REPORTED = (math.inf, math.inf)  # a limit that nothing exceeds

# No flow draws images that a classifier cannot tell from real ones, nor makes a thousand latents independent. Such
# tests are reported, but what decides is whether the numbers are those of a density.
IMAGES = Thresholds(
    auc=REPORTED, dependence=REPORTED, signs=REPORTED, atoms=REPORTED, projection=REPORTED, latents=REPORTED,
    radius=REPORTED, covariance=REPORTED,
)  # fmt: skip


def check(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    fold: Tensor | None = None,
    train: Tensor | None = None,
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
    box: tuple[float, float] | None = None,
    names: Sequence[str] | None = None,
    limits: Thresholds = THRESHOLDS,
    seed: int = 0,
) -> dict[str, Any]:
    """Examine a flow on rows that it should describe, preferably not those that it was trained on.

    Args:
        flow: a flow over events of D elements.
        x: rows (n, *event), as the flow takes them.
        context: their contexts (n, C).
        fold: of a stack of folds, the one that each row was held out in (n,), -1 for rows that no member has seen: then
            every row is held against the member that has not seen it. The inverse is that of the principal flow.
        train: rows (m, *event) that it was trained on, if x are not: then it is known whether x repeat them and, unless
            there is a context, how close samples come to them.
        bounds: ends of the range that samples of each element are kept in, (D,) each; infinite for none.
        box: ends of the range that any value has; by default values far off the data are tried too.
        names: of the elements, for messages.
        limits: where care begins and trust ends.
        seed: of samples and of random directions.

    Returns:
        Plain data: sections ``round_trip``, ``log_det``, ``density``, ``latents``, ``samples``, ``likelihood``, perhaps
        ``privacy``, and the ``verdict`` with its ``reasons``.

    Raises:
        ValueError: for fewer than 20 rows, where statistics say nothing.
    """
    if len(x) < FEWEST:
        raise ValueError(f"expected at least {FEWEST} rows, got {len(x)}: too few to judge a model by")
    names = list(names or (f"c{i}" for i in range(x[0].numel())))
    flow = copy.deepcopy(flow).eval()
    marker = flow.base.device_marker
    x = x.to(marker)
    context = None if context is None else context.to(marker)
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)

    inner, inner_context = flow, context
    if isinstance(flow, Mixture):
        inner = flow.principal
        if fold is not None:
            flow, context = by_fold(flow, fold, context)
    bijection, y = continuous_part(flow, x)
    inner = continuous_part(inner, x[:0])[0]
    mean, std = y.mean(0), y.std(0)
    std = torch.where(std > 0, std, 1)
    samples, density = consistency(inner, len(y), inner_context)
    ends = (mean - 10 * std, mean + 10 * std)
    if box is not None:
        ends = (torch.full_like(mean, box[0]), torch.full_like(mean, box[1]))
    bounded = [part for part in inner.preprocessing if isinstance(part, Bounded)]
    for part in bounded:
        ends = (torch.maximum(ends[0], part.low.to(mean)), torch.minimum(ends[1], part.high.to(mean)))
    few = torch.from_numpy(generator.permutation(len(y))[:JACOBIANS]).to(y.device)
    report: dict[str, Any] = {
        "rows": len(x),
        "round_trip": {
            "rows": round_trip(inner, y, inner_context, mean, std),
            "samples": round_trip(inner, samples, inner_context, mean, std),
            "off_data": off_data(inner, inner_context, mean, std, ends, len(y), generator),
        },
        "log_det": log_det_error(inner, y[few], None if inner_context is None else inner_context[few]),
        "density": density,
    }
    with torch.no_grad():
        log_prob, z = _evaluate(bijection, y, context)
        count = len(x) if train is None else max(len(x), LEAST_SAMPLES)
        drawn = flow.sample((count,) if context is None else (), context)
    scores = normal_scores(flow.base, z)
    if scores is not None and np.isfinite(scores).all():
        report["latents"] = normality(scores, [f"z{i + 1}" for i in range(scores.shape[1])])
    finite = drawn.flatten(1).isfinite().all(1)
    report["samples"] = {"rows": len(drawn), "non_finite": int((~finite).sum())}
    drawn = drawn[finite]
    if bounds is not None:
        drawn = torch.from_numpy(np.clip(_array(drawn), *bounds)).to(drawn)
    kept = slice(None) if context is None else finite  # row i and sample i have the same context
    contexts = None if context is None else context[kept]
    if len(drawn) >= FEWEST:
        rows, sampled, seen = _array(x[kept]), _array(drawn), None if train is None else _array(train)
        shuffled = shuffle_columns(rows, seed)
        independent = torch.from_numpy(shuffled).to(x).view_as(x[kept])
        with torch.no_grad():
            of_samples, of_shuffled = (
                _evaluate(*continuous_part(flow, part), contexts) for part in (drawn, independent)
            )
        features = (
            _features(rows, log_prob[kept], z[kept]),
            _features(sampled, *of_samples),
            _features(shuffled, *of_shuffled),
        )
        report["samples"] |= _compare(rows, sampled, contexts, features, seen, names, seed)
        if seen is not None and context is None:
            report["privacy"] = nearest_records(sampled, seen, rows, np.zeros(rows.shape[1], dtype=bool), seed)
    report["likelihood"] = _likelihood(log_prob.cpu().numpy(), y, context, seed)
    limits = limits if flow.ode is None else limits.solved(flow.ode)
    report["verdict"], report["reasons"] = judge(report, limits.bounded() if bounded else limits)
    return report


def by_fold(flow: Mixture, fold: Tensor, context: Tensor | None) -> tuple[OutOfFold, Tensor]:
    """A stack as a density given the fold, and the contexts that name it.

    Args:
        flow: as ``fit_folds`` makes.
        fold: of each row (n,), negative for none.
        context: of each row (n, C), or None.

    Returns:
        The density, and contexts (n, 1 + C).
    """
    first = fold.clamp_min(-1)[:, None].to(flow.base.device_marker)
    return OutOfFold(flow), first if context is None else torch.cat([first, context], 1)


def _array(x: Tensor) -> np.ndarray:
    result: np.ndarray = x.flatten(1).double().cpu().numpy()
    return result


def _evaluate(flow: Flow, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """The log-likelihoods (n,), in float64, and the latents of rows."""
    return flow.log_prob(x, context, nan="propagate").double(), flow.encode(x, context)


def _features(rows: np.ndarray, log_prob: Tensor, z: Tensor) -> np.ndarray:
    """Rows as a classifier sees them: as they are and as the flow does, in which its faults are plain.

    That noise is too wide shows in the latents alone where its centre is another one in each context.
    """
    parts = [rows, log_prob.cpu().numpy()[:, None], *([_array(z)] if rows.shape[1] <= LATENTS else [])]
    return np.concatenate(parts, 1)


def _compare(
    rows: np.ndarray,
    sampled: np.ndarray,
    context: Tensor | None,
    features: tuple[np.ndarray, np.ndarray, np.ndarray],
    train: np.ndarray | None,
    names: list[str],
    seed: int,
) -> dict[str, Any]:
    """Tell samples from rows, both with the contexts that they belong to."""
    extra = np.empty((len(rows), 0)) if context is None else context.double().cpu().numpy()
    real, fake = rows, sampled
    if context is not None:
        real, fake = np.append(rows, extra, 1), np.append(sampled, extra, 1)
    projections = projection_test(real, fake, seed)
    every = [*names, *(f"context {i + 1}" for i in range(extra.shape[1]))]
    return {
        **compare_samples(
            rows, sampled, names, seed, context=None if context is None else extra, features=features, train=train
        ),
        "projections": {**projections, "column": every[projections["column"]]},
    }


def _likelihood(log_prob: np.ndarray, y: Tensor, context: Tensor | None, seed: int) -> dict[str, Any]:
    """Set the flow's likelihood beside those of simple densities, in nats per row (higher is better)."""
    others = held_out(
        y.flatten(1).double().cpu().numpy(), None if context is None else context.double().cpu().numpy(), seed
    )
    kept = np.isfinite(log_prob)
    if kept.sum() < 2:
        return {"impossible": int((~kept).sum())}
    result: dict[str, Any] = {"impossible": int((~kept).sum()), "flow": mean_and_error(log_prob[kept])}
    for name, values in others.items():
        result[name] = mean_and_error(values[kept])
        result[f"gain_over_{name}"] = mean_and_error(log_prob[kept] - values[kept])  # paired, so its error is small
    return result


def judge(report: dict[str, Any], limits: Thresholds = THRESHOLDS) -> tuple[str, list[str]]:
    """Return the verdict in words, and every reason for less than full trust."""
    verdict = Verdict(limits)
    weigh = verdict.weigh
    for where, result in (("rows", report["round_trip"]["rows"]), ("samples", report["round_trip"]["samples"])):
        tail, most = result["p99.9"], result["max"]
        weigh(result["non_finite"] / result["rows"], limits.non_finite, f"{result['non_finite']} {where} have no image")
        weigh(tail, limits.round_trip, f"the inverse is off by {tail:.1e} on one in a thousand {where}")
        weigh(most, limits.round_trip_max, f"the inverse is off by {most:.1e} on the worst of the {where}")
    far = report["round_trip"]["off_data"]
    weigh(far["max"], limits.off_data, f"far off the data the inverse is off by {far['max']:.1e}")
    weigh(far["non_finite"] / far["rows"], (0.0, 1.0), f"far off the data {far['non_finite']} points have no image")
    if report["log_det"] is not None:
        error = report["log_det"]["max"]
        weigh(error, limits.log_det, f"the log-determinant differs from autograd's by {error:.1e}")
    error, lost = report["density"]["p99.9"], report["density"]["non_finite"]
    weigh(error, limits.density, f"sampler and scorer disagree about the density of samples by {error:.1e}")
    weigh(lost / report["density"]["rows"], limits.non_finite, f"{lost} samples or their densities are not finite")

    samples = report["samples"]
    verdict.weigh_samples(samples)
    if "projections" in samples:
        part = samples["projections"]
        where = f"column {part['column']!r}" if part["column_distance"] > 0.8 * part["distance"] else "some direction"
        text = f"samples and rows differ by {part['distance']:.2f} in distribution function in {where}"
        verdict.weigh_test(part["distance"], part["p"], limits.projection, text)
    latents = report.get("latents")
    if latents is not None:
        text = f"latent {latents['column']} is {latents['distance']:.2f} away from the base's distribution"
        verdict.weigh_test(latents["distance"], latents["p"], limits.latents, text)
        distance = latents["radius_distance"]
        text = f"the latents' distances from 0 are {distance:.2f} away from the base's"
        verdict.weigh_test(distance, latents["radius_p"], limits.radius, text)
        entry, (a, b) = latents["covariance"], latents["covariance_columns"]
        text = f"the latents' covariance ({a}, {b}) is off by {entry:.2f}"
        verdict.weigh_test(entry, latents["covariance_p"], limits.covariance, text)
        weigh(latents["far"] / latents["rows"], limits.far, f"{latents['far']} rows have a latent beyond {FAR:g}")
    verdict.weigh_rows(report["rows"], report["likelihood"]["impossible"])
    verdict.weigh_likelihood(report["likelihood"])
    if "privacy" in report:
        verdict.weigh_copies(report["privacy"])
    return verdict.of(report["rows"])

"""Whether a mixed density can be trusted: ``check`` where cells are categories, whole numbers and gaps too."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.mixture import Mixture, OutOfFold
from diffeo.report.baselines import factor_log_prob, mixed_held_out
from diffeo.report.check import LEAST_SAMPLES, by_fold
from diffeo.report.compare import compare_samples, marginal_test, shuffle_columns
from diffeo.report.latents import normality
from diffeo.report.privacy import nearest_records
from diffeo.report.statistics import mean_and_error
from diffeo.report.verdict import FEWEST, Limits, Verdict
from diffeo.transforms.factor import Factor
from diffeo.transforms.mixed import Mixed

__all__ = ["MixedThresholds", "check_mixed", "judge_mixed", "noise_of"]

CHUNK = 4096  # rows at a time
SCORED = 4_000  # rows that are scored in every order, of which noise 0.04 away from uniform is significant
LEVELS = 30  # categories that a classifier is given one by one
NEAR = 0.01  # how far from itself a number may come back, in standard deviations
ORDER = "the order of the columns"


@dataclass(frozen=True)
class MixedThresholds(Limits):
    """Where care begins and where trust ends for a mixed density, beyond ``Limits``.

    Attributes:
        round_trip: share of the rows that do not come back from their noise.
        non_finite: share of samples with numbers that are infinite.
        marginal: total variation distance of samples from rows in the worst column, beyond chance, where significant.
        noise: Kolmogorov-Smirnov distance from uniform of the noise of the worst column, where significant.
        radius: the same of the noise's distance from 0 as normal scores.
        covariance: largest entry of |covariance of these scores - identity|, where significant.
        orders: standard deviation of log p over the orders of the columns, in nats per row and column.
    """

    round_trip: tuple[float, float] = (0.01, 0.1)
    non_finite: tuple[float, float] = (0.0, 1e-2)
    marginal: tuple[float, float] = (0.04, 0.15)
    noise: tuple[float, float] = (0.04, 0.15)
    radius: tuple[float, float] = (0.08, 0.4)
    covariance: tuple[float, float] = (0.15, 2.0)
    orders: tuple[float, float] = (0.2, 1.0)


THRESHOLDS = MixedThresholds()


def check_mixed(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    fold: Tensor | None = None,
    train: Tensor | None = None,
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
    names: Sequence[str] | None = None,
    limits: MixedThresholds = THRESHOLDS,
    seed: int = 0,
) -> dict[str, Any]:
    """Examine a mixed density on rows that it should describe, preferably not those that it was trained on.

    Args:
        flow: one whose transform is ``Mixed``, of D columns, or a stack of such.
        x: rows (n, D), NaN where a cell is missing.
        context: their contexts (n, C).
        fold: of a stack of folds, the one that each row was held out in (n,), as ``check`` takes it.
        train: rows (m, D) that it was trained on, if x are not: then it is known how close samples come to them, unless
            there is a context.
        bounds: ends of the range that samples of each column are kept in, (D,) each; infinite for none.
        names: of the columns, for messages.
        limits: where care begins and trust ends.
        seed: of samples, of the noise of what has a mass, and of which rows are scored, if not all.

    Samples are compared with all rows. At most 4,000 of these, drawn at random, are scored and encoded, which takes a
    pass of the network for each column in each of the orders.

    Returns:
        Plain data: sections ``round_trip``, ``noise``, ``samples``, ``likelihood``, ``columns``, ``orders``, perhaps
        ``privacy``, and the ``verdict`` with its ``reasons``.

    Raises:
        ValueError: for fewer than 20 rows, where statistics say nothing.
    """
    if len(x) < FEWEST:
        raise ValueError(f"expected at least {FEWEST} rows, got {len(x)}: too few to judge a model by")
    flow = copy.deepcopy(flow).eval()
    transform = flow.transform
    assert isinstance(transform, Mixed)
    factors = transform.factors
    names = list(names or (f"c{i}" for i in range(len(factors))))
    marker = flow.base.device_marker
    x = x.to(marker)
    context = None if context is None else context.to(marker)
    if fold is not None and isinstance(flow, Mixture):
        flow, context = by_fold(flow, fold, context)
    torch.manual_seed(seed)
    few = np.sort(np.random.default_rng(seed).permutation(len(x))[:SCORED])
    scored, their = x[few], None if context is None else context[few]
    with torch.no_grad():
        z, in_orders = _evaluate(flow, scored, their)
        again = flow.decode(z, their)
        count = max(len(x), LEAST_SAMPLES) if context is None and train is not None else len(x)
        drawn = _array(flow.sample((count,) if context is None else (), context))
    rows = _array(x)
    infinite = np.isinf(drawn).any(1)
    if bounds is not None:
        drawn = np.clip(drawn, *bounds)
    drawn = drawn[~infinite]
    if train is None:
        independent = mixed_held_out(factors, rows, seed)[few]
    else:
        independent = factor_log_prob(factors, _array(train), rows[few])
    report: dict[str, Any] = {
        "rows": len(x),
        "round_trip": _round_trip(rows[few], _array(again), factors),
        "noise": _noise(transform, z, names),
        "samples": {"rows": len(infinite), "non_finite": int(infinite.sum())},
        **_likelihood(in_orders, independent, names),
    }
    discrete = np.array([not factor.steps for factor in factors])
    if len(drawn) >= FEWEST:
        real, contexts = rows, None if context is None else _array(context)
        if contexts is not None:  # row i and sample i have the same
            real, contexts = rows[~infinite], contexts[~infinite]
        seen, marginals = None if train is None else _array(train), marginal_test(rows, drawn, [*map(bool, discrete)])
        features = _for_trees((real, drawn, shuffle_columns(real, seed)), discrete)
        report["samples"] |= {
            **compare_samples(real, drawn, names, seed, context=contexts, features=features, train=seen),
            "marginals": {**marginals, "column": names[marginals["column"]]},
        }
        if seen is not None and context is None:
            report["privacy"] = nearest_records(drawn, seen, rows, discrete, seed)
    report["verdict"], report["reasons"] = judge_mixed(report, limits)
    return report


def _array(x: Tensor) -> np.ndarray:
    result: np.ndarray = x.double().cpu().numpy()
    return result


def _evaluate(flow: Flow, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """The noise of rows (n, D), and log p of their cells in each of the orders (R, n, D)."""
    if isinstance(flow, OutOfFold) and context is not None:  # by the principal flow of each fold
        fold, members = context[:, 0].long(), flow.members
        parts = [(fold == k).nonzero()[:, 0] for k in fold.unique().tolist()]
        rest = [context[part, 1:] if context.shape[1] > 1 else None for part in parts]
        done = [_evaluate(members[int(fold[p[0]])].principal, x[p], c) for p, c in zip(parts, rest, strict=True)]
        order = torch.cat(parts).argsort()
        return torch.cat([z for z, _ in done])[order], torch.cat([shares for _, shares in done], 1)[:, order]
    transform: Any = flow.transform
    noise, in_orders = [], []
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        contexts = None if context is None else flow.normalize_context(context[start : start + CHUNK])
        z, shares = transform.encode_in_orders(part, contexts)
        noise.append(z)
        in_orders.append(shares)
    return torch.cat(noise), torch.cat(in_orders, 1)


def noise_of(transform: Mixed, z: Tensor, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the noise of each column, that of the order last, if there are several, and their names.

    Args:
        transform: of R orders.
        z: as it encodes rows, (n, D), where the first also says which order it is.
        names: of the D columns.

    Returns:
        ``(n, D)`` or ``(n, D + 1)`` in (0, 1): independent and uniform if the density is that of the rows.
    """
    noise, orders, every = _array(z).copy(), len(transform.orders), list(names)
    order = np.floor(noise[:, 0] * orders).clip(0, orders - 1)
    noise[:, 0] = noise[:, 0] * orders - order
    if orders > 1:
        within = np.random.default_rng(0).random(len(noise))  # an order has a mass, as a category has
        noise, every = np.column_stack([noise, (order + within) / orders]), [*every, ORDER]
    return noise.clip(1e-7, 1 - 1e-7), every


def _noise(transform: Mixed, z: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Compare the noise with independent uniform numbers; where cells have masses it is drawn, and sees less."""
    noise, every = noise_of(transform, z, names)
    result = normality(scipy.special.ndtri(noise), every)
    del result["far"]  # what is far out float32 does not tell
    randomised = [
        name
        for name, factor in zip(names, transform.factors, strict=True)
        if factor.levels or factor.copies or not factor.continuous
    ]
    return {**result, "randomised": randomised}


def _round_trip(rows: np.ndarray, again: np.ndarray, factors: Sequence[Factor]) -> dict[str, int]:
    """How many rows do not come back from their noise, of those whose cells can all be drawn.

    Cells that are marginalised, or were never seen, are drawn as others, and so is what depends on them.
    """
    lost, kept = np.zeros(len(rows), dtype=bool), np.ones(len(rows), dtype=bool)
    for cells, back, factor in zip(rows.T, again.T, factors, strict=True):
        missing = np.isnan(cells)
        near = 0.25 * min(factor.steps, default=1.0)
        if factor.continuous and not missing.all():
            near = NEAR * np.nanstd(cells)
        with np.errstate(invalid="ignore"):
            same = np.abs(back - cells) <= near + 1e-6 * np.abs(cells)
        lost |= ~(same | (missing & np.isnan(back)))
        kept &= ~missing | factor.gaps
        if not factor.steps:
            kept &= missing | np.isin(cells.astype(np.float32), np.array(factor.values, dtype=np.float32))
    return {"rows": int(kept.sum()), "lost": int((lost & kept).sum())}


def _for_trees(
    tables: tuple[np.ndarray, np.ndarray, np.ndarray], discrete: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three tables as a classifier sees them, coded alike: a gap is a category, or a median and a mark."""
    columns: list[np.ndarray] = []
    for cells, categories in zip(np.concatenate(tables).T, discrete, strict=True):
        missing = np.isnan(cells)
        met = np.unique(cells[~missing])
        if categories and len(met) <= LEVELS:
            columns.extend(cells == value for value in met)
        else:
            filler = -1.0 if categories or missing.all() else np.median(cells[~missing])
            columns.append(np.where(missing, filler, cells))
        columns.append(missing)
    coded = np.stack(columns, 1).astype(np.float64)
    first, second, third = np.split(coded, np.cumsum([len(table) for table in tables[:-1]]))
    return first, second, third


def _likelihood(in_orders: Tensor, independent: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The likelihood beside that of independent columns, the columns' parts of both, and what orders differ by."""
    log_prob = (in_orders.sum(2).double().logsumexp(0) - np.log(len(in_orders))).cpu().numpy()
    kept = np.isfinite(log_prob) & np.isfinite(independent).all(1)
    counts = {"rows": len(log_prob), "impossible": int((~np.isfinite(log_prob)).sum())}
    if kept.sum() < 2:
        return {"likelihood": counts, "columns": [], "orders": {"means": []}}
    # A row may be impossible in some of the orders only.
    sums = _array(in_orders.sum(2))[:, kept]
    finite = np.isfinite(sums).all(0)
    shares = _array(in_orders)[:, kept][:, finite].mean(0)
    columns = [
        {"column": name, **mean_and_error(share), "gain": mean_and_error(share - marginal)}
        for name, share, marginal in zip(names, shares.T, independent[kept][finite].T, strict=True)
    ]
    whole = independent.sum(1)
    return {
        "likelihood": {
            **counts,
            "flow": mean_and_error(log_prob[kept]),
            "marginals": mean_and_error(whole[kept]),
            "gain_over_marginals": mean_and_error(log_prob[kept] - whole[kept]),
        },
        "columns": sorted(columns, key=lambda part: part["mean"]),
        "orders": {
            "means": [float(order.mean()) for order in sums[:, finite]],
            "spread": float(sums[:, finite].std(0).mean()),
        },
    }


def judge_mixed(report: dict[str, Any], limits: MixedThresholds = THRESHOLDS) -> tuple[str, list[str]]:
    """Return the verdict in words, and every reason for less than full trust."""
    verdict = Verdict(limits)
    weigh = verdict.weigh
    rows, lost = report["round_trip"]["rows"], report["round_trip"]["lost"]
    weigh(lost / max(1, rows), limits.round_trip, f"{lost} of {rows} rows do not come back from their noise")
    verdict.weigh_rows(report["likelihood"]["rows"], report["likelihood"]["impossible"])
    samples = report["samples"]
    infinite = samples["non_finite"]
    weigh(infinite / samples["rows"], limits.non_finite, f"{infinite} of {samples['rows']} samples are not finite")
    verdict.weigh_samples(samples)
    if "marginals" in samples:
        part = samples["marginals"]
        text = f"samples and rows differ by {part['distance']:.2f} in the distribution of column {part['column']!r}"
        text += f" ({part['chance']:.2f} by chance)"
        verdict.weigh_test(part["distance"] - part["chance"], part["p"], limits.marginal, text)
    noise = report["noise"]
    what = noise["column"] if noise["column"] == ORDER else f"column {noise['column']!r}"
    text = f"the noise of {what} is {noise['distance']:.2f} away from uniform"
    verdict.weigh_test(noise["distance"], noise["p"], limits.noise, text)
    distance = noise["radius_distance"]
    text = f"the noise's distances from 0, as normal scores, are off by {distance:.2f}"
    verdict.weigh_test(distance, noise["radius_p"], limits.radius, text)
    entry, (a, b) = noise["covariance"], noise["covariance_columns"]
    text = f"the noise's covariance ({a}, {b}), as normal scores, is off by {entry:.2f}"
    verdict.weigh_test(entry, noise["covariance_p"], limits.covariance, text)
    verdict.weigh_likelihood(report["likelihood"])
    if "spread" in report["orders"]:
        spread = report["orders"]["spread"]
        text = (
            f"the log-likelihood of a row varies by {spread:.2f} nats (standard deviation) over orders of the columns"
        )
        weigh(spread / len(report["columns"]), limits.orders, text)
    if "privacy" in report:
        verdict.weigh_copies(report["privacy"])
    return verdict.of(report["rows"])

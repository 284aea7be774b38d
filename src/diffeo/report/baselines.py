"""Simple densities to hold a flow against."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from diffeo.transforms.factor import Factor

__all__ = ["factor_log_prob", "gaussian_log_prob", "held_out", "marginal_log_prob", "mixed_held_out"]


def gaussian_log_prob(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return log N(test; mean, covariance of train) per row.

    With context columns, give the residuals of a linear regression on them: the result is then a linear-Gaussian
    conditional density.
    """
    mean, d = train.mean(0), train.shape[1]
    covariance = np.cov(train, rowvar=False).reshape(d, d)
    scale = np.sqrt(np.diag(covariance))
    scale[scale == 0] = 1.0
    # a trace of ridge: columns may be copies of each other, which makes any density infinite
    correlation = covariance / np.outer(scale, scale) + 1e-6 * np.eye(d)
    factor = np.linalg.cholesky(correlation)
    z = np.linalg.solve(factor, ((test - mean) / scale).T)  # (d, n)
    log_det = np.log(np.diag(factor)).sum() + np.log(scale).sum()
    return -0.5 * (z**2).sum(0) - log_det - 0.5 * d * math.log(2 * math.pi)


def marginal_log_prob(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the sum of the columns' own log-densities, as if they were independent.

    Each is constant between neighbouring quantiles of the training rows and falls off exponentially beyond the outer
    ones.
    """
    total = np.zeros(len(test))
    knots = int(np.clip(len(train) ** 0.5, 4, 100))
    for column, values in zip(train.T, test.T, strict=True):
        spread = float(column.max() - column.min()) or 1.0
        edges = np.unique(np.quantile(column, np.linspace(0.5 / knots, 1 - 0.5 / knots, knots)))
        # A value that repeats would make a cell of no width and infinite density.
        edges = edges[np.concatenate([[True], np.diff(edges) > 1e-6 * spread])]
        cells = np.searchsorted(edges, column, side="right")  # 0: below; len(edges): above
        mass = (np.bincount(cells, minlength=len(edges) + 1) + 0.5) / (len(column) + 0.5 * (len(edges) + 1))
        below, above = edges[0] - column[cells == 0], column[cells == len(edges)] - edges[-1]
        tails = [max(float(t.mean()) if len(t) else 0.0, 1e-3 * spread) for t in (below, above)]
        width = np.concatenate([[tails[0]], np.diff(edges), [tails[1]]])
        place = np.searchsorted(edges, values, side="right")
        total += np.log(mass[place] / width[place])
        total -= np.maximum(edges[0] - values, 0) / tails[0] + np.maximum(values - edges[-1], 0) / tails[1]
    return total


def held_out(x: np.ndarray, context: np.ndarray | None, seed: int) -> dict[str, np.ndarray]:
    """Return both baselines' log-density of every row of x (n, D), each half fitted on the other half."""
    half = np.random.default_rng(seed).permutation(len(x)) % 2 == 0
    gaussian, marginals = np.empty(len(x)), np.empty(len(x))
    for fitted in (half, ~half):
        residuals = x if context is None else x - _regression(x[fitted], context[fitted], context)
        gaussian[~fitted] = gaussian_log_prob(residuals[fitted], residuals[~fitted])
        marginals[~fitted] = marginal_log_prob(x[fitted], x[~fitted])
    return {"gaussian": gaussian, "marginals": marginals}


def mixed_held_out(factors: Sequence[Factor], x: np.ndarray, seed: int) -> np.ndarray:
    """Return log-densities of the cells of x (n, D) by ``factor_log_prob``, each half fitted on the other half."""
    half = np.random.default_rng(seed).permutation(len(x)) % 2 == 0
    result = np.empty(x.shape)
    for fitted in (half, ~half):
        result[~fitted] = factor_log_prob(factors, x[fitted], x[~fitted])
    return result


def factor_log_prob(factors: Sequence[Factor], train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the columns' own log-densities of mixed cells (n, D), as if they were independent.

    With respect to the measure of each factor. Single values, gaps and the rest have masses (c + T / K) / (n + T), of K
    outcomes T of which were seen, this one c times in n (Witten and Bell 1991); the rest is spread over a grid or the
    line as by ``marginal_log_prob``. Gaps without a mass say nothing, as in ``Mixed``.
    """
    columns = (_factor_log_prob(*each) for each in zip(factors, train.T, test.T, strict=True))
    return np.stack(list(columns), 1)


def _factor_log_prob(factor: Factor, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    values = np.array(factor.values, dtype=np.float32).astype(np.float64)
    gap, rest = len(values), len(values) + 1

    def outcomes(cells: np.ndarray) -> np.ndarray:
        number = np.full(len(cells), rest)
        if len(values):
            nearest = np.searchsorted(values, cells).clip(max=len(values) - 1)
            number = np.where(values[nearest] == cells, nearest, rest)
        return np.where(np.isnan(cells), gap, number)

    possible = np.ones(rest + 1)
    possible[gap], possible[rest] = factor.gaps, bool(factor.steps or factor.unseen)
    counts = np.bincount(outcomes(train), minlength=rest + 1) * possible
    seen = max(1, int(np.count_nonzero(counts)))
    masses = (counts + seen * possible / possible.sum()) / (counts.sum() + seen)
    with np.errstate(divide="ignore"):
        result: np.ndarray = np.log(masses)[outcomes(test)]
    if not factor.gaps:
        result[np.isnan(test)] = 0.0
    smooth = outcomes(test) == rest
    if factor.steps and smooth.any():
        fitted = train[outcomes(train) == rest]
        if len(np.unique(fitted)) < 2:
            fitted = np.append(train[~np.isnan(train)], 0.0)
        result[smooth] += marginal_log_prob(fitted[:, None], test[smooth, None]) + math.log(factor.steps[0] or 1.0)
    return result


def _regression(x: np.ndarray, context: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the linear prediction of x at the wanted contexts."""
    mean, std = context.mean(0), context.std(0)
    std[std == 0] = 1.0
    design = np.concatenate([(context - mean) / std, np.ones((len(context), 1))], 1)
    solution = np.linalg.lstsq(design, x, rcond=None)[0]
    return np.concatenate([(wanted - mean) / std, np.ones((len(wanted), 1))], 1) @ solution

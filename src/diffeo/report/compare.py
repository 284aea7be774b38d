"""Can samples be distinguished from data? Tests that know nothing of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["classifier_test", "marginal_test", "projection_test"]

CELLS = 20  # into which numbers are counted
LEAST = 10  # rows and samples in a cell of its own
OFTEN = 0.02  # the share from which on a number is a cell of its own


def classifier_test(real: np.ndarray, sampled: np.ndarray, seed: int) -> dict[str, Any]:
    """Train a classifier to tell rows (n, D) of two tables apart, and return its AUC on rows that it has not seen.

    0.5 means that it cannot, 1 that it always can. Each half of the rows is judged by the classifier trained on the
    other half; the AUC is the mean of both, its standard error that of Hanley and McNeil (1982) for all rows.
    Lopez-Paz and Oquab 2017, arXiv:1610.06545.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    n = min(len(real), len(sampled))
    generator = np.random.default_rng(seed)
    half = np.arange(2 * n) % 2 == 0
    halves = np.concatenate([generator.permutation(half[:n]), generator.permutation(half[:n])])
    x = np.concatenate([real[:n], sampled[:n]])
    y = np.repeat([0, 1], n)
    aucs = []
    for part in (halves, ~halves):
        classifier = HistGradientBoostingClassifier(
            max_iter=100, learning_rate=0.1, max_leaf_nodes=15, min_samples_leaf=max(5, min(20, n // 20)),
            early_stopping=False, random_state=seed,
        ).fit(x[part], y[part])  # fmt: skip
        aucs.append(float(roc_auc_score(y[~part], classifier.predict_proba(x[~part])[:, 1])))
    auc = sum(aucs) / 2
    return {"rows": n, "auc": auc, "stderr": _auc_error(auc, n)}


def _auc_error(auc: float, n: int) -> float:
    """Return the standard error of an AUC from n rows of each kind (Hanley and McNeil 1982)."""
    auc = min(max(auc, 1e-6), 1 - 1e-6)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    return math.sqrt(max(0.0, auc * (1 - auc) + (n - 1) * (q1 + q2 - 2 * auc**2)) / n**2)


def projection_test(real: np.ndarray, sampled: np.ndarray, seed: int, directions: int = 50) -> dict[str, Any]:
    """Compare two tables along the axes and along random directions by two-sample Kolmogorov-Smirnov tests.

    Columns are first carried to normal scores of their pooled ranks, so that a heavy tail does not hide the others. The
    p-value is corrected for the number of directions (Bonferroni).
    """
    from scipy import stats

    pooled = np.concatenate([real, sampled])
    ranks = stats.rankdata(pooled, axis=0)
    scores = stats.norm.ppf((ranks - 0.5) / len(pooled))
    d = pooled.shape[1]
    axes = np.eye(d)
    if d > 1:
        axes = np.concatenate([axes, np.random.default_rng(seed).standard_normal((directions, d))])
    projected = scores @ axes.T
    tests = [stats.ks_2samp(column[: len(real)], column[len(real) :], method="asymp") for column in projected.T]
    distances = np.array([test.statistic for test in tests])
    return {
        "directions": len(axes),
        "distance": float(distances.max()),
        "column": int(distances[:d].argmax()),
        "column_distance": float(distances[:d].max()),
        "p": float(min(1.0, len(axes) * min(test.pvalue for test in tests))),
    }


def marginal_test(real: np.ndarray, sampled: np.ndarray, discrete: Sequence[bool]) -> dict[str, Any]:
    """Compare two tables (n, D) column by column, by how often each value is found; NaN is a value.

    Numbers that are not discrete are counted in 20 cells of equal counts, frequent ones by themselves. Of the column
    that differs most, beyond what chance explains, it returns the total variation distance sum |p - q| / 2, what two
    draws of one distribution differ by on average, and the p-value of the chi-squared test, corrected for the number
    of columns (Bonferroni).
    """
    from scipy import stats

    worst: dict[str, Any] = {}
    for i, (one, other) in enumerate(zip(real.T, sampled.T, strict=True)):
        cells = _cells(np.concatenate([one, other]), discrete[i])
        counts = np.stack([np.bincount(part, minlength=cells.max() + 1) for part in np.split(cells, [len(one)])])
        rare = counts.sum(0) < LEAST
        counts = np.concatenate([counts[:, ~rare], counts[:, rare].sum(1, keepdims=True)], 1)
        counts = counts[:, counts.sum(0) > 0]
        shares = counts / counts.sum(1, keepdims=True)
        pooled = counts.sum(0) / counts.sum()
        spread = np.sqrt(pooled * (1 - pooled) * (1 / counts.sum(1)).sum())  # of each difference
        distance, chance = np.abs(shares[0] - shares[1]).sum() / 2, math.sqrt(2 / math.pi) * spread.sum() / 2
        if not worst or distance - chance > worst["distance"] - worst["chance"]:
            p = stats.chi2_contingency(counts, correction=False).pvalue if counts.shape[1] > 1 else 1.0
            worst = {"column": i, "distance": float(distance), "chance": float(chance)}
            worst["p"] = float(min(1.0, real.shape[1] * p))
    return worst


def _cells(values: np.ndarray, discrete: bool) -> np.ndarray:
    """Number the cells that values (n,) are counted in; 0 is that of NaN."""
    known = ~np.isnan(values)
    cells = np.zeros(len(values), dtype=int)
    met, place, counts = np.unique(values[known], return_inverse=True, return_counts=True)
    if not len(met):
        return cells
    numbers = np.arange(len(met))
    if not discrete:
        frequent = counts >= OFTEN * len(values)
        rest = np.where(frequent, 0, counts)
        steps = (rest.cumsum() - rest) * CELLS // max(1, rest.sum())
        numbers = np.where(frequent, CELLS + numbers, steps)
    cells[known] = 1 + numbers[place]
    return cells

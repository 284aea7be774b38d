"""Can samples be distinguished from data? Tests that know nothing of the model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["classifier_test", "projection_test"]


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

"""Can samples be distinguished from data? Tests that know nothing of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy

from diffeo.report.privacy import repeats

__all__ = [
    "atom_test",
    "classifier_test",
    "compare_samples",
    "marginal_test",
    "projection_test",
    "shuffle_columns",
    "sign_test",
]

CELLS = 20  # into which numbers are counted
LEAST = 10  # rows and samples in a cell of its own
OFTEN = 0.02  # the share from which on a number is a cell of its own
HUGE = 1e30  # takes the place of infinity
QUANTILES = 200  # by which columns become normal scores
PRODUCTS = 40  # columns, at most, whose products a classifier sees
SIGNS = 16  # columns, at most, whose signs are multiplied
WINDOW = 10  # values on either side of one that say how often it should be there
FALLING = 2  # times as often as its neighbours may a value be where they are rounded
SIGNIFICANT, WORST = 0.001, 5  # atoms that are named


def classifier_test(real: np.ndarray, sampled: np.ndarray, seed: int) -> dict[str, Any]:
    """Train a classifier to tell rows (n, D) of two tables apart, and return its AUC on rows that it has not seen.

    0.5 means that it cannot, 1 that it always can. It adds the log-odds of boosted trees and of a logistic regression
    on the columns' normal scores, their squares and, of up to 40 columns, their products. Each half of the rows is
    judged by the classifier trained on the other half, and the AUC is the mean of both. Lopez-Paz and Oquab 2017,
    arXiv:1610.06545.

    Row i and sample i are always in the same half. They may have the same context: were they apart, the classifier
    would know the context of the one and take the other for its kind, AUC below one half. Together, each half has as
    many rows as samples of any context, which says nothing.

    As each half also decides the classifier of the other, their AUCs depend on each other. The standard error is that
    of one half (Hanley and McNeil 1982), which the mean of both never exceeds.
    """
    from sklearn.metrics import roc_auc_score

    n = min(len(real), len(sampled))
    half = np.random.default_rng(seed).permutation(np.arange(n) % 2 == 0)
    x = np.nan_to_num(np.concatenate([real[:n], sampled[:n]]), nan=0.0, posinf=HUGE, neginf=-HUGE)
    y, halves = np.repeat([0, 1], n), np.tile(half, 2)
    aucs = []
    for part in (halves, ~halves):
        log_odds = sum(
            classifier.fit(x[part], y[part]).decision_function(x[~part])
            for classifier in (_trees(n, seed), _quadratic(n, x.shape[1]))
        )
        aucs.append(float(roc_auc_score(y[~part], log_odds)))
    auc = sum(aucs) / 2
    return {"rows": n, "auc": auc, "stderr": _auc_error(auc, n // 2)}


def _trees(n: int, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=50, learning_rate=0.1, max_leaf_nodes=8, min_samples_leaf=max(5, min(20, n // 20)),
        early_stopping=False, random_state=seed,
    )  # fmt: skip


def _quadratic(n: int, columns: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures, QuantileTransformer, StandardScaler

    products = PolynomialFeatures(2, include_bias=False)
    return make_pipeline(
        QuantileTransformer(n_quantiles=min(QUANTILES, n // 2), output_distribution="normal"),
        products if columns <= PRODUCTS else FunctionTransformer(lambda x: np.concatenate([x, x**2], 1)),
        StandardScaler(),
        LogisticRegression(C=0.01, max_iter=1000),  # weak evidence in many products is to stay weak
    )


def _auc_error(auc: float, n: int) -> float:
    """Return the standard error of an AUC from n rows of each kind (Hanley and McNeil 1982)."""
    auc = min(max(auc, 1e-6), 1 - 1e-6)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    return math.sqrt(max(0.0, auc * (1 - auc) + (n - 1) * (q1 + q2 - 2 * auc**2)) / n**2)


def compare_samples(
    rows: np.ndarray,
    sampled: np.ndarray,
    names: Sequence[str],
    seed: int,
    *,
    context: np.ndarray | None = None,
    features: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    train: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compare samples with rows by whatever does not depend on the kind of columns.

    An AUC of 0.7 is little where a classifier tells rows from rows of shuffled columns with AUC 0.99, and everything
    where it tells these with 0.7: such a model knows nothing of how the columns depend on each other.

    Args:
        rows: (n, D), NaN where a cell is missing.
        sampled: (m, D).
        names: of the D columns.
        seed: of the classifier.
        context: of row i and of sample i (n, C), so that n = m.
        features: what a classifier sees of rows, of samples, and of ``shuffle_columns(rows, seed)``, (n, F), (m, F) and
            (n, F); by default themselves.
        train: training rows (t, D), without their contexts.

    Returns:
        Plain data: ``classifier``, ``shuffled`` (the same of rows of shuffled columns; not of one column without
        context), ``signs``, ``atoms``, ``repeated`` and perhaps ``trained``.
    """
    extra = np.empty((len(rows), 0)) if context is None else context
    every = [*names, *(f"context {i + 1}" for i in range(extra.shape[1]))]

    def jointly(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (real, fake) if context is None else (np.append(real, extra, 1), np.append(fake, extra, 1))

    signs = sign_test(*jointly(rows, sampled))
    seen, of_samples, of_shuffled = features or (rows, sampled, shuffle_columns(rows, seed))
    dependence = {}
    if len(every) > 1:
        dependence = {"shuffled": classifier_test(*jointly(seen, of_shuffled), seed)}
    return {
        "classifier": classifier_test(*jointly(seen, of_samples), seed),
        **dependence,
        "signs": {**signs, "columns": [every[i] for i in signs["columns"]]},
        "atoms": [{**atom, "column": names[atom["column"]]} for atom in atom_test(rows, sampled)],
        **repeats(rows, sampled, context, train),
    }


def shuffle_columns(rows: np.ndarray, seed: int) -> np.ndarray:
    """Return rows (n, D) with the cells of each column in an order of its own: independent columns, each as it was."""
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(column) for column in rows.T], 1)


def sign_test(real: np.ndarray, sampled: np.ndarray) -> dict[str, Any]:
    """Compare two tables (n, D) by the mean product of the signs of the columns of each subset.

    A sign says on which side of the median a cell is. It finds dependence of many columns at once, of which any fewer
    are independent, as in the parity of bits; no classifier of trees or products does. All 2^D - 1 means come from one
    Walsh-Hadamard transform; of more than 16 columns the first are taken.

    Returns:
        The ``columns`` of the subset that differs most, by what ``difference``, its ``p``-value (corrected for the
        number of subsets, Bonferroni), and how many columns were ``looked_at``.
    """
    n, d = len(real), min(real.shape[1], SIGNS)
    both = np.concatenate([real, sampled])[:, :d]
    both = np.where(np.isnan(both), -HUGE, both.clip(-HUGE, HUGE))
    median = np.median(both, 0)
    sides = np.where(
        np.abs((both > median).mean(0) - 0.5) < np.abs((both >= median).mean(0) - 0.5), both > median, both >= median
    )
    orthants = sides @ (1 << np.arange(d))
    means = []
    for part in (orthants[:n], orthants[n:]):
        spectrum = np.bincount(part, minlength=2**d) / len(part)
        for k in range(d):
            low, high = np.moveaxis(spectrum.reshape(-1, 2, 2**k), 1, 0)
            spectrum = np.stack([low + high, low - high], 1).reshape(-1)
        means.append(spectrum)
    difference = np.abs(means[0] - means[1])
    subset = int(difference[1:].argmax()) + 1
    z = difference[subset] / math.sqrt(1 / n + 1 / len(sampled))  # a product of signs has a variance of 1 at most
    return {
        "looked_at": d,
        "columns": [k for k in range(d) if subset >> k & 1],
        "difference": float(difference[subset]),
        "p": min(1.0, (2**d - 1) * math.erfc(z / math.sqrt(2))),
    }


def atom_test(real: np.ndarray, sampled: np.ndarray) -> list[dict[str, Any]]:
    """Find single values that rows (n, D) have more often than neighbouring values explain, and than samples do.

    Rounding makes values repeat, too, but then those next to them repeat as much. A value of a column is an atom if a
    Poisson variable with twice the rate of its neighbours would hardly reach its count, and if samples have it
    significantly less often.

    Returns:
        Of the columns with the largest atoms, at most five, ``column`` and the shares of ``rows`` and ``samples``, the
        largest first.
    """
    atoms: list[dict[str, Any]] = []
    n, m, d = len(real), len(sampled), real.shape[1]
    for column, (one, other) in enumerate(zip(real.T, np.sort(sampled.T), strict=True)):
        values, counts = np.unique(one[~np.isnan(one)], return_counts=True)
        p = scipy.stats.poisson.sf(counts - 1, FALLING * _rates(counts)) * len(values) * d
        likely = np.flatnonzero(p < SIGNIFICANT)
        values, counts = values[likely], counts[likely]
        drawn = np.searchsorted(other, values, "right") - np.searchsorted(other, values, "left")
        p = scipy.stats.binom.sf(counts - 1, counts + drawn, n / (n + m)) * len(values) * d
        excess = np.where(p < SIGNIFICANT, counts / n - drawn / m, 0.0)
        if (excess > 0).any():
            k = int(excess.argmax())
            atoms.append({"column": column, "rows": float(counts[k] / n), "samples": float(drawn[k] / m)})
    atoms.sort(key=lambda atom: atom["samples"] - atom["rows"])
    return atoms[:WORST]


def _rates(counts: np.ndarray) -> np.ndarray:
    """How often each of the values of a column is expected, by the counts of their neighbours."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(counts, WINDOW), 2 * WINDOW + 1)
    others = (windows > 0).sum(1) - 1
    mean = (windows.sum(1) - counts + 2) / (others + 1)  # and one more, that repeats: there may be few
    # of Poisson counts those above 0 have the mean rate / (1 - exp(-rate)), and the rate is less than either of these
    rate = np.minimum(2 * (mean - 1), mean)
    beside = windows[:, [WINDOW - 1, WINDOW + 1]]
    near = beside.sum(1) / np.maximum(1, (beside > 0).sum(1))
    # a peak stands out from its window, but not from the values next to it
    result: np.ndarray = np.where(near >= LEAST / 2, np.maximum(near, rate), rate)
    return result


def projection_test(real: np.ndarray, sampled: np.ndarray, seed: int, directions: int = 50) -> dict[str, Any]:
    """Compare two tables along the axes and along random directions by two-sample Kolmogorov-Smirnov tests.

    Columns are first carried to normal scores of their pooled ranks, so that a heavy tail does not hide the others. The
    p-value is corrected for the number of directions (Bonferroni).
    """
    pooled = np.concatenate([real, sampled])
    ranks = scipy.stats.rankdata(pooled, axis=0)
    scores = scipy.stats.norm.ppf((ranks - 0.5) / len(pooled))
    d = pooled.shape[1]
    axes = np.eye(d)
    if d > 1:
        axes = np.concatenate([axes, np.random.default_rng(seed).standard_normal((directions, d))])
    projected = scores @ axes.T
    tests = [scipy.stats.ks_2samp(column[: len(real)], column[len(real) :], method="asymp") for column in projected.T]
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
            p = scipy.stats.chi2_contingency(counts, correction=False).pvalue if counts.shape[1] > 1 else 1.0
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

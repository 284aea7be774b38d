"""Do samples repeat the rows that a model was trained on, and do rows repeat each other?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["nearest_records", "repeats"]

MOST = 2_000  # samples and held-out rows that are looked at
TRAINING = 20_000  # training rows
CHUNK = 2**16  # distances at a time, which fit in a processor's cache
ROUNDING = 1e-6  # of a distance
CLOSE = 0.05  # the share of held-out rows that are closest to a training row


def nearest_records(
    sampled: np.ndarray, train: np.ndarray, rows: np.ndarray, discrete: np.ndarray, seed: int
) -> dict[str, Any]:
    """Compare the distances of samples to training rows with those to rows that training has not seen.

    A model that copies has samples nearer to training rows. Rows are as far apart as their columns differ on average:
    by 1 where one cell is missing or categories differ, else by the difference of the numbers' ranks in [0, 1] (Gower
    1971), so that 0 means equal and 1 different throughout.

    ``share`` is that of the samples whose nearest row, of m training and m held-out rows, is a training row: 0.5 if
    nothing is copied. Its standard error is that under this hypothesis: then which row is of which kind is random. A
    tie counts in parts. As few of the training rows may be compared there, the rest is about all, 20,000 at most:
    ``distance`` is the median distance to the closest training row, of samples and of held-out rows, ``equal`` how
    many of each are equal to a training row, and ``close`` how many are ``within`` the distance that one in twenty of
    the held-out rows has.

    Args:
        sampled: samples (s, D), NaN where a cell is missing.
        train: training rows (n, D).
        rows: held-out rows (h, D).
        discrete: which columns are categories (D,).
        seed: which rows and samples are looked at, if not all.
    """
    generator = np.random.default_rng(seed)

    def some(values: np.ndarray, most: int) -> np.ndarray:
        return values[generator.permutation(len(values))[:most]]

    sampled, rows, train = some(sampled, MOST), some(rows, MOST), some(train, TRAINING)
    sampled, rows, train = _comparable([sampled, rows, train], discrete)
    m, n = min(len(rows), len(train)), len(sampled)
    weight = np.zeros(2 * m)
    for distances in _distances(sampled, np.concatenate([train[:m], rows[:m]])):
        nearest = distances <= distances.min(1, keepdims=True) + ROUNDING
        weight += (nearest / nearest.sum(1, keepdims=True)).sum(0)
    spread = ((weight - weight.mean()) ** 2).sum() / (4 * n**2) * 2 * m / max(1, 2 * m - 1)
    near = {
        name: np.concatenate([distances.min(1) for distances in _distances(part, train)])
        for name, part in (("samples", sampled), ("held_out", rows))
    }
    limit, columns = np.quantile(near["held_out"], CLOSE, method="lower"), len(discrete)
    return {
        "rows": {"samples": n, "train": len(train), "held_out": len(rows), "each": m},
        "share": float(weight[:m].sum() / n),
        "stderr": math.sqrt(spread),
        "distance": {name: float(np.median(part)) / columns for name, part in near.items()},
        "equal": {name: _share(part <= ROUNDING) for name, part in near.items()},
        "within": float(limit) / columns,
        "close": {name: _share(part <= limit + ROUNDING) for name, part in near.items()},
    }


def repeats(
    rows: np.ndarray, sampled: np.ndarray, context: np.ndarray | None = None, train: np.ndarray | None = None
) -> dict[str, Any]:
    """Count rows (n, D) that repeat others, which are fewer than they seem, beside as many samples.

    Of few categories rows repeat by chance, and then samples do, too.

    Args:
        rows: to look at, NaN where a cell is missing.
        sampled: samples (m, D).
        context: of row i and of sample i (n, C).
        train: training rows (t, D).

    Returns:
        ``repeated``: the share of ``rows`` that are equal to one before them, contexts included, and that of as many
        ``samples``; with training rows also ``trained``: the share of both that are equal to any of these. Each with
        its standard error.
    """
    n = min(len(rows), len(sampled))
    parts = {"rows": rows[:n], "samples": sampled[:n]}
    whole = {key: x if context is None else np.append(x, context[:n], 1) for key, x in parts.items()}
    result: dict[str, Any] = {"repeated": {}}
    for key, x in whole.items():
        again = np.ones(n, dtype=bool)
        again[np.unique(_bytes(x), return_index=True)[1]] = False
        result["repeated"][key] = _share(again)
    if train is not None:
        known = _bytes(train)
        result["trained"] = {key: _share(np.isin(_bytes(x), known)) for key, x in parts.items()}
    return result


def _bytes(x: np.ndarray) -> np.ndarray:
    """Rows (n, D) as (n,) strings of bytes, which are equal where these are; a missing cell equals another."""
    x = np.ascontiguousarray(np.where(np.isnan(x), np.nan, x + 0.0), dtype=np.float64)  # + 0: never -0
    return x.view(f"V{x.itemsize * x.shape[1]}")[:, 0]


def _share(hits: np.ndarray) -> dict[str, float]:
    """A share of independent cases and its standard error, which is not 0 where none or all are hits."""
    mean, n = float(hits.mean()), len(hits)
    centre = (hits.sum() + 1) / (n + 2)
    return {"mean": mean, "stderr": math.sqrt(centre * (1 - centre) / n)}


def _comparable(parts: list[np.ndarray], discrete: np.ndarray) -> list[np.ndarray]:
    """Cells as numbers whose absolute difference, cut off at 1, is their distance."""
    reference = np.concatenate(parts[1:])
    result = [np.empty(part.shape, dtype=np.float32) for part in parts]
    for i, categories in enumerate(discrete):
        known = np.sort(reference[~np.isnan(reference[:, i]), i])
        for part, cells in zip(parts, result, strict=True):
            values = part[:, i]
            if not categories and len(known):
                ranks = [np.searchsorted(known, values, side) for side in ("left", "right")]
                values = np.where(np.isnan(values), np.nan, (ranks[0] + ranks[1]) / (2 * len(known)))
            cells[:, i] = np.where(np.isnan(values), -2, values)
    return result


def _distances(some: np.ndarray, others: np.ndarray) -> Any:
    """Yield the distances of some rows to all others, times the number of columns, in chunks (rows, others)."""
    columns = np.ascontiguousarray(others.T)
    for part in np.array_split(some, max(1, min(len(some), len(some) * len(others) // CHUNK))):
        total = np.zeros((len(part), len(others)), dtype=np.float32)
        gaps = np.empty_like(total)
        for one, other in zip(part.T, columns, strict=True):
            np.subtract(one[:, None], other, out=gaps)
            np.abs(gaps, out=gaps)
            np.minimum(gaps, 1, out=gaps)
            total += gaps
        yield total

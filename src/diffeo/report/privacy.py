"""Do samples repeat the rows that a model was trained on?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["nearest_records"]

MOST = 2_000  # samples and held-out rows that are looked at
TRAINING = 20_000  # training rows
CHUNK = 2**24  # distances at a time
CLOSE = 0.05  # the share of held-out rows that are closest to a training row


def nearest_records(
    sampled: np.ndarray, train: np.ndarray, rows: np.ndarray, discrete: np.ndarray, seed: int
) -> dict[str, Any]:
    """Compare the distances of samples to training rows with those to rows that training has not seen.

    A model that copies has samples nearer to training rows. Rows are as far apart as their columns differ: by 1 where
    one cell is missing or categories differ, else by the difference of the numbers' ranks in [0, 1] (Gower 1971).

    ``share`` is that of the samples whose nearest row, of m training and m held-out rows, is a training row: 0.5 if
    nothing is copied. Its standard error is that under this hypothesis: then which row is of which kind is random. A
    tie counts in parts. As few of the training rows may be compared, ``close`` looks at all: the shares of samples and
    of held-out rows that are as near to a training row as one in twenty of the held-out rows is.

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
        nearest = distances <= distances.min(1, keepdims=True) + 1e-6
        weight += (nearest / nearest.sum(1, keepdims=True)).sum(0)
    spread = ((weight - weight.mean()) ** 2).sum() / (4 * n**2) * 2 * m / max(1, 2 * m - 1)
    near, usual = (
        np.concatenate([distances.min(1) for distances in _distances(part, train)]) for part in (sampled, rows)
    )
    limit = np.quantile(usual, CLOSE, method="lower") + 1e-6
    return {
        "rows": {"samples": n, "train": len(train), "held_out": len(rows), "each": m},
        "share": float(weight[:m].sum() / n),
        "stderr": math.sqrt(spread),
        "close": {name: _share(part <= limit) for name, part in (("samples", near), ("held_out", usual))},
    }


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
    """Yield the distances of some rows to all others, in chunks (rows, others)."""
    for part in np.array_split(some, max(1, min(len(some), len(some) * len(others) // CHUNK))):
        total = np.zeros((len(part), len(others)), dtype=np.float32)
        for one, other in zip(part.T, others.T, strict=True):
            total += np.minimum(np.abs(one[:, None] - other), 1)
        yield total

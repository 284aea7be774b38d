"""Which rows a model has seen: a number for each row that tells it from all others."""

from __future__ import annotations

import numpy as np
from torch import Tensor

__all__ = ["digests", "mixed"]


def digests(x: Tensor, context: Tensor | None = None) -> np.ndarray:
    """Return a 64-bit digest of each row's values in float32 ``(n,)``: equal rows have equal ones, others hardly ever.

    Args:
        x: rows ``(n, *event)``; NaN is equal to NaN.
        context: of each row ``(n, *context)``, which counts as well, or None.
    """
    parts = [part.flatten(1).cpu().float().numpy() for part in (x, context) if part is not None]
    result = np.zeros(len(x), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for column in (column for part in parts for column in part.T):
            values = np.where(np.isnan(column), np.float32(np.nan), column + np.float32(0))  # -0.0 + 0.0 is 0.0
            bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
            result = mixed(result + mixed(bits + np.uint64(0x9E3779B97F4A7C15)))
    return result.view(np.int64)


def mixed(bits: np.ndarray) -> np.ndarray:
    """Spread every bit over all 64: the finaliser of SplitMix64 (Steele et al. 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))

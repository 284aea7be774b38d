"""Which examples are trained on, and which are held out for validation and for a test: the seed decides it for good.

A run directory stores its seed, not the numbers of its rows: whoever looks at a run again divides its data again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.training.digests import mixed

__all__ = ["HELD_OUT", "Parts", "count_test", "divide", "held_out_of_stream", "split_evenly", "split_rows"]

HELD_OUT = 0.1  # the fraction for validation, of what the test leaves
MOST_HELD_OUT = 200_000  # of a stream, for validation and for the test each; more would only cost time


class Parts(NamedTuple):
    """The numbers of the examples of each part, int64: disjoint, and together all."""

    train: Tensor
    valid: Tensor
    test: Tensor


def divide(order: Tensor, fraction: float = HELD_OUT, test: int = 0) -> Parts:
    """Divide examples: of their numbers in this order the last for the test, the first for validation.

    Args:
        order: the numbers (n,), each once.
        fraction: of those without the test, for validation; at least one is taken.
        test: how many are for the test.

    Returns:
        The training part in its order; the others ascending, for the sake of memory's locality.
    """
    rest, tested = order[: len(order) - test], order[len(order) - test :]
    held = max(1, round(fraction * len(rest)))
    return Parts(rest[held:], rest[:held].sort().values, tested.sort().values)


def split_rows(count: int, seed: int, test: int = 0) -> Parts:
    """Draw so many of so many rows for a test, a tenth of the others for validation; shuffle those to train on."""
    return divide(torch.from_numpy(np.random.default_rng(seed).permutation(count)), test=test)


def split_evenly(count: int, seed: int, labels: np.ndarray | None = None) -> Parts:
    """Draw a tenth of so many examples for validation, evenly over their labels (count,); all parts ascend."""
    order = np.random.default_rng(seed).permutation(count)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]  # label after label, each shuffled
    held = max(1, round(HELD_OUT * count))
    spaced = order[((np.arange(held) + 0.5) * count / held).astype(int)]
    return divide(torch.from_numpy(np.concatenate([spaced, np.setdiff1d(order, spaced)])))


def held_out_of_stream(
    numbers: np.ndarray, total: int, key: int, test: float = 0.0, most: int = MOST_HELD_OUT
) -> tuple[np.ndarray, np.ndarray]:
    """Draw which rows of a stream of about ``total`` rows are for validation and which for a test, about so many.

    Each row is drawn by a hash of its number alone, so it does not matter which others are read with it.

    Args:
        numbers: of the rows ``(n,)``.
        total: of all rows.
        key: decides which.
        test: the fraction for the test; a tenth of the others is for validation.
        most: of either.

    Returns:
        Which are for validation, and which for the test, ``(n,)`` each.
    """
    with np.errstate(over="ignore"):
        bits = mixed(mixed(numbers.astype(np.uint64) + np.uint64(1)) + np.uint64(key))
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    tested = min(test, most / total)
    held = min(HELD_OUT * (1 - test), most / total)
    return (uniform >= tested) & (uniform < tested + held), uniform < tested


def count_test(count: int, fraction: float) -> int:
    """Return how many of so many rows are for the test.

    Raises:
        UserError: if none is left to train on.
    """
    test = max(1, round(fraction * count)) if fraction else 0
    if test and count - test < 2:
        raise UserError(f"expected at least 2 rows beside those of the test (--test {fraction:g}), got {count} in all")
    return test

"""From a schema and training rows to the factors of a mixed density: single values, copies, grids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from diffeo.modalities.tables.schema import Schema

__all__ = ["factors"]

LEVELS = 300  # distinct values of a column that all have masses of their own; and the most that do
COMMON = 0.002  # the share of the rows from which on a value has one anyway
LEAST = 20  # rows that a value or a copy is seen in, or a fiftieth of a small table's
COPIED = 0.02  # the share of the rows from which on copies count
CHANCE = 3.0  # times as often as they would agree by chance
LOOKED_AT = 20_000  # rows in which copies are looked for
MOST_COLUMNS = 60  # in wider tables none are


def factors(schema: Schema, x: Tensor) -> list[dict[str, Any]]:
    """Return the fields of a ``Factor`` for each feature, as these rows (n, features) of the training suggest.

    A category has a mass, and so has what was never seen (that of Good and Turing 1953: the share of the rows whose
    category no other row has). In a column of numbers a mass belongs to each of up to 300 values that occur twice, or
    in more a frequent one; and to being a copy of another column, a x_j + b, where that is so in at least 2 % of the
    rows and thrice as often as by chance.
    """
    values = x.double().numpy()
    result: list[dict[str, Any]] = []
    for column in schema.feature_columns:
        for grid in column.grids:
            cells = values[:, len(result)]
            seen, counts = np.unique(cells[~np.isnan(cells)], return_counts=True)
            if column.kind in ("categorical", "levels"):
                single = int((counts == 1).sum())
                unseen = min(0.05, max(1, single) / (counts.sum() + 1))
                each: dict[str, Any] = {"values": [float(k) for k in range(round(grid.high) + 1)], "unseen": unseen}
            else:
                steps: tuple[float, ...] = (grid.step,)
                origin = grid.low
                if column.steps and _on_grid(seen + column.origin, column.steps[0]):  # multiples, and so from 0 on
                    steps, origin = column.steps, -column.origin
                each = {"values": _single(seen, counts), "steps": list(map(float, steps)), "origin": float(origin)}
            result.append({**each, "gaps": column.missing})
    for i, copy in _copies(values, result):
        result[i].setdefault("copies", []).append(copy)
    return result


def _on_grid(values: np.ndarray, step: float) -> bool:
    """Tell whether all values are multiples of a step, to what float32 rounds."""
    return bool((np.abs(values - np.rint(values / step) * step) <= 0.005 * step + 2e-7 * np.abs(values)).all())


def _single(seen: np.ndarray, counts: np.ndarray) -> list[float]:
    """Return the values that have a mass of their own, ascending."""
    rows = counts.sum()
    least = 2.0 if len(seen) <= LEVELS else max(min(LEAST, rows / 50), COMMON * rows)
    frequent = np.flatnonzero(counts >= least)
    if len(frequent) > LEVELS:
        frequent = np.sort(frequent[np.argsort(-counts[frequent], kind="stable")[:LEVELS]])
    return [float(value) for value in seen[frequent]]


def _copies(values: np.ndarray, made: list[dict[str, Any]]) -> Iterator[tuple[int, list[float]]]:
    """Yield (i, [j, a, b]) where column i is often a x_j + b, not counting single values of its own."""
    numeric = [i for i, each in enumerate(made) if each.get("steps")]
    if len(numeric) > MOST_COLUMNS:
        return
    values = values[:LOOKED_AT]
    shuffled = values[np.random.default_rng(0).permutation(len(values))]
    least = max(COPIED * len(values), min(LEAST, len(values) / 10))
    for i in numeric:
        cells = np.where(np.isin(values[:, i], made[i]["values"]), np.nan, values[:, i])
        # of the points that a value may be told apart by: a cell, or what float32 rounds
        width = made[i]["steps"][0] / 2 or 1e-6 * np.nanmax(np.abs(values[:, i]), initial=1e-30)
        for j in numeric:
            if i == j:
                continue
            for a, b in _relations(cells, values[:, j], width, least):
                hits = np.sum(np.abs(cells - (a * values[:, j] + b)) < width)
                chance = np.sum(np.abs(cells - (a * shuffled[:, j] + b)) < width)
                if hits >= max(least, CHANCE * chance):
                    yield i, [j, a, b]


def _relations(x: np.ndarray, y: np.ndarray, width: float, least: float) -> Iterator[tuple[float, float]]:
    """Yield (a, b) of candidates x = a y + b: equality, the most frequent ratio, the most frequent difference."""
    yield 1.0, 0.0
    with np.errstate(all="ignore"):
        for a_of, shown in ((True, x / y), (False, x - y)):
            there = shown[np.isfinite(shown) & (y != 0)]
            if len(there) < least:
                continue
            keys = np.array([float(f"{value:.6g}") for value in there])
            usual, counts = np.unique(keys, return_counts=True)
            value, count = usual[np.argmax(counts)], counts.max()
            if count >= least and value != (1.0 if a_of else 0.0) and value != 0:
                yield (float(value), 0.0) if a_of else (1.0, float(value))

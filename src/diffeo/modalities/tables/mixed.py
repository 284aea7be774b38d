"""From a schema and training rows to the factors of a mixed density: single values, copies, grids."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from diffeo.modalities.tables.defaults import Bounds, ends_of
from diffeo.modalities.tables.schema import Schema

__all__ = ["factors"]

LEVELS = 300  # distinct values of a column that all have masses of their own; and the most that do
REPEATED = 3  # rows that these have on average: in a small table values coincide by chance
COMMON = 0.002  # the share of the rows from which on a value has one anyway
LEAST = 20  # rows that a value or a copy is seen in; of a small table a fiftieth, or for copies a fifth
COPIED = 0.02  # the share of the rows from which on copies count
CHANCE = 3.0  # times as often as they would agree by chance
LOOKED_AT = 5_000  # rows in which copies are looked for
MOST_COLUMNS = 60  # in wider tables none are
BITS = 18  # in which ratios and differences agree, of the 24 that float32 has


def factors(schema: Schema, x: Tensor, bounds: Bounds = MappingProxyType({})) -> list[dict[str, Any]]:
    """Return the fields of a ``Factor`` for each feature, as these rows (n, features) of the training suggest.

    A category has a mass, and so has what was never seen (that of Good and Turing 1953: the share of the rows whose
    category no other row has). In a column of numbers a mass belongs to each of up to 300 values that occur twice, if
    they occur thrice on average, else to the frequent ones; and to being a copy of another column, a x_j + b, where
    that is so in at least 2 % of the rows and thrice as often as by chance. A column with bounds has nothing beyond.
    """
    values = x.double().numpy()
    result: list[dict[str, Any]] = []
    for column in schema.feature_columns:
        for grid in column.grids:
            cells = values[:, len(result)]
            seen, counts = np.unique(cells[~np.isnan(cells)], return_counts=True)
            each: dict[str, Any]
            if column.kind == "categorical":
                single = int((counts == 1).sum())
                unseen = min(0.05, max(1, single) / (counts.sum() + 1))
                each = {"values": [float(k) for k in range(round(grid.high) + 1)], "unseen": unseen}
            else:  # levels, too: their order tells something
                steps: tuple[float, ...] = (grid.step,)
                origin = grid.low
                if column.steps and _on_grid(seen + column.origin, column.steps[0]):  # multiples, and so from 0 on
                    steps, origin = column.steps, -column.origin
                each = {"values": _single(seen, counts), "steps": list(map(float, steps)), "origin": float(origin)}
                low, high = ends_of(column, bounds, steps[0], middle=True)
                each |= {name: end for name, end in (("low", low), ("high", high)) if end is not None}
            result.append({**each, "gaps": column.missing})
    numeric = [k for c in schema.feature_columns for k in [c.kind in ("continuous", "integer")] * c.features]
    for i, copy in _copies(values, result, np.flatnonzero(numeric).tolist()):
        result[i].setdefault("copies", []).append(copy)
    return result


def _on_grid(values: np.ndarray, step: float) -> bool:
    """Tell whether all values are multiples of a step, to what float32 rounds."""
    return bool((np.abs(values - np.rint(values / step) * step) <= 0.005 * step + 2e-7 * np.abs(values)).all())


def _single(seen: np.ndarray, counts: np.ndarray) -> list[float]:
    """Return the values that have a mass of their own, ascending."""
    rows = counts.sum()
    few = len(seen) <= min(LEVELS, rows / REPEATED)
    least = 2.0 if few else max(min(LEAST, max(REPEATED, rows / 50)), COMMON * rows)
    frequent = np.flatnonzero(counts >= least)
    if len(frequent) > LEVELS:
        frequent = np.sort(frequent[np.argsort(-counts[frequent], kind="stable")[:LEVELS]])
    return [float(value) for value in seen[frequent]]


def _copies(
    values: np.ndarray, made: Sequence[Mapping[str, Any]], numeric: Sequence[int]
) -> Iterator[tuple[int, list[float]]]:
    """Yield (i, [j, a, b]) where numeric column i is often a x_j + b, not counting single values of its own.

    Of each other column j these are tried: x_j itself, the multiple and the difference that are most frequent, each
    where none before it is true.
    """
    if len(numeric) > MOST_COLUMNS:
        return
    rows = values[np.random.default_rng(0).permutation(len(values))[:LOOKED_AT]]
    others = np.roll(rows, 1, axis=0)  # rows that have nothing to do with these
    least = max(COPIED * len(rows), min(LEAST, len(rows) / 5), 5)
    for i in numeric:
        smooth = ~(np.isnan(rows[:, i]) | np.isin(rows[:, i], made[i]["values"]))
        x = rows[smooth, i]
        for j in numeric:
            y, other = rows[smooth, j], others[smooth, j]
            left = np.isfinite(y)
            for relation in (_equality, _multiple, _difference):
                if i == j or left.sum() < least:
                    break
                a, b = relation(x[left], y[left])
                hits = _agree(x, a * y + b, made[i]) & left
                if hits.sum() >= max(least, CHANCE * _agree(x, a * other + b, made[i]).sum()):
                    yield i, [j, a, b]
                    left &= ~hits


def _equality(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    return 1.0, 0.0


def _multiple(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    with np.errstate(all="ignore"):
        return _usual(x / y), 0.0


def _difference(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    return 1.0, _usual(x - y)


def _usual(values: np.ndarray) -> float:
    """Return the most frequent of values that float32 has rounded, NaN if there is none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan
    mantissa, exponent = np.frexp(values)
    _, place, counts = np.unique(
        np.ldexp(np.rint(mantissa * 2**BITS), exponent - BITS), return_inverse=True, return_counts=True
    )
    return float(np.median(values[place == counts.argmax()]))


def _agree(x: np.ndarray, meant: np.ndarray, made: Mapping[str, Any]) -> np.ndarray:
    """Tell which values are what is meant, moved to the nearest point of the column's grid, if it has one."""
    step, origin = made["steps"][0], made["origin"]
    if step:
        meant = origin + np.rint((meant - origin) / step) * step
    return np.abs(x - meant) <= 1e-6 * np.abs(x) + 0.01 * step

"""Which model a table gets when its owner does not choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffeo.modalities.tables.schema import Schema

__all__ = ["default_model", "preprocessing"]

LOOKED_AT = 50_000  # rows
OPEN = (None, None)  # ends of a column without bounds
STRETCHED = 5.0  # times the spread of the middle that the tails may stretch a standard deviation to


def default_model(rows: int) -> tuple[str, dict[str, Any]]:
    """Return the recipe and its arguments for a table of so many rows to train on.

    An autoregressive spline flow whose splines are placed by affine maps: splines for many modes and sharp edges,
    affine maps where one column nearly determines another. Small tables get a smaller network.
    """
    hidden = [128, 128] if rows >= 5_000 else [64, 64]
    network = {"hidden": hidden, "activation": "silu", "residual": True}
    return "nsf", {"transforms": 5, **network, "affine": True}


def preprocessing(schema: Schema, x: Tensor, bounds: Mapping[str, Sequence[float | None]] | None = None) -> list[Any]:
    """Return what stands between the data and any model, listed from the data inwards; x (n, features) are some rows.

    Columns with bounds are mapped to the whole line; a cell of a grid is within them if its value is. (Levels are
    coded, and have no others anyway.)

    Columns with tails like Cauchy's are made normal one by one first: divided by their standard deviation, all but a
    few of their values would lie in a single bin of a spline. Other tables are not, since that bends the straight lines
    along which one column may nearly determine another.
    """
    steps: list[Any] = []
    if any(grid.step for grid in schema.discrete):
        step, low = [grid.step for grid in schema.discrete], [grid.low for grid in schema.discrete]
        steps.append(["dequantize", {"step": step, "low": low}])
    if bounds:
        columns = list(zip(schema.feature_columns, schema.discrete, strict=True))
        ends: list[Any] = [
            bounds.get(column.name, OPEN) if column.kind in ("continuous", "integer") else OPEN for column, _ in columns
        ]
        both = list(zip(ends, columns, strict=True))
        lower = [None if low is None else low - column.origin for (low, _), (column, _) in both]
        upper = [None if high is None else high - column.origin + grid.step for (_, high), (column, grid) in both]
        steps.append(["bounded", {"low": lower, "high": upper}])
        x = x[:, [each == OPEN for each in map(tuple, ends)]]
    return [*steps, "standardize", *(["gaussianize"] if x.numel() and _stretched(x) else [])]


def _stretched(x: Tensor) -> bool:
    """Tell whether some column's standard deviation is due to its tails; columns of mostly one value do not count.

    (Kurtosis would not do: a single outlier among thousands of ordinary rows makes it as large as one likes.)
    """
    x = x[:LOOKED_AT].double()
    lowest, lower, upper, highest = (torch.quantile(x, level, dim=0) for level in (0.05, 0.25, 0.75, 0.95))
    spread = (highest - lowest) / 3.29  # the standard deviation of a normal column with that middle
    return bool(((lower < upper) & (x.std(0) > STRETCHED * spread)).any())

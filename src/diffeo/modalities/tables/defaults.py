"""Which model a table gets when its owner does not choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.modalities.tables.schema import Column, Schema
from diffeo.modalities.tables.table import Table
from diffeo.transforms import Bounded

__all__ = ["Bounds", "check_bounds", "default_model", "ends_of", "preprocessing"]

Bounds = Mapping[str, Sequence[float | None]]  # column -> its ends, None for none

LOOKED_AT = 50_000  # rows
BOUNDED = ("continuous", "integer")  # kinds of columns that may be bounded
STRETCHED = 5.0  # times the spread of the middle that the tails may stretch a standard deviation to


def default_model(rows: int) -> tuple[str, dict[str, Any]]:
    """Return the recipe and its arguments for a table of so many rows to train on.

    An autoregressive spline flow whose splines are placed by affine maps: splines for many modes and sharp edges,
    affine maps where one column nearly determines another. Small tables get a smaller network.
    """
    hidden = [128, 128] if rows >= 5_000 else [64, 64]
    network = {"hidden": hidden, "activation": "silu", "residual": True}
    return "nsf", {"transforms": 5, **network, "affine": True}


def preprocessing(schema: Schema, x: Tensor, bounds: Bounds = MappingProxyType({})) -> list[Any]:
    """Return what stands between the data and any model, listed from the data inwards; x (n, features) are some rows.

    Columns with tails like Cauchy's are made normal one by one first: divided by their standard deviation, all but a
    few of their values would lie in a single bin of a spline. Other tables are not, since that bends the straight lines
    along which one column may nearly determine another. Columns with bounds have no density beyond them.
    """
    steps: list[Any] = []
    if any(grid.step for grid in schema.discrete):
        step, low = [grid.step for grid in schema.discrete], [grid.low for grid in schema.discrete]
        steps.append(["dequantize", {"step": step, "low": low}])
    if bounds:
        columns = zip(schema.feature_columns, schema.discrete, strict=True)
        ends = [ends_of(column, bounds, grid.step) for column, grid in columns]
        lows, highs = [end[0] for end in ends], [end[1] for end in ends]
        steps.append(["bounded", {"low": lows, "high": highs}])
        x = Bounded(schema.features, lows, highs).inverse(x)
    return [*steps, "standardize", *(["gaussianize"] if _stretched(x) else [])]


def ends_of(
    column: Column, bounds: Bounds, step: float = 0.0, *, middle: bool = False
) -> tuple[float | None, float | None]:
    """Return the bounds of a column in encoded units; levels are coded, and have no others than those seen.

    A rounded value on a bound is one that may have been inside. A cell of a grid of this step begins at its value, or
    has that in the ``middle``.
    """
    low, high = bounds.get(column.name, (None, None)) if column.kind in BOUNDED else (None, None)
    below, above = (0.0, step) if column.kind == "integer" and not middle else (max(column.unit, step) / 2,) * 2
    return None if low is None else low - below - column.origin, None if high is None else high + above - column.origin


def check_bounds(table: Table, schema: Schema, bounds: Bounds) -> None:
    """Refuse bounds of columns that have none, or that some value is not within, which is named with its row.

    Raises:
        UserError: for the first of these.
    """
    columns = {column.name: column for column in schema.feature_columns}
    for name, ends in bounds.items():
        if name not in table.names:
            table.select([name])  # raises the error that lists the columns there are
        column = columns.get(name)
        shown = ":".join("" if end is None else f"{end:g}" for end in ends)
        if column is None or column.kind not in (*BOUNDED, "levels"):
            what = f"holds {column.kind} values" if column else "is not modelled"
            raise UserError(f"{table.name}: column {name!r} {what}; bounds are for numbers that are, leave it out")
        try:
            support = Bounded(1, *ends_of(column, bounds, column.step))
        except ValueError:
            raise UserError(f"{table.name}: column {name!r}: expected bounds LOW:HIGH, got {shown!r}") from None

        def beyond(values: np.ndarray, column: Column = column, support: Bounded = support) -> np.ndarray:
            cell = column.step / 2 if column.kind == "integer" else 0.0  # the middle of a cell of a grid
            encoded = torch.from_numpy(values + cell - column.origin).float()[:, None]  # what the model sees
            return torch.isinf(support.inverse_and_log_det(encoded)[1]).numpy()

        for where, value in table.find(name, beyond) if beyond(np.array([column.low, column.high])).any() else ():
            raise UserError(
                f"{table.name}: column {name!r} holds {value:g} in {where}, which is not within its bounds {shown}; "
                "give wider ones, or leave such rows out"
            )


def _stretched(x: Tensor) -> bool:
    """Tell whether some column's standard deviation is due to its tails; columns of mostly one value do not count.

    (Kurtosis would not do: a single outlier among thousands of ordinary rows makes it as large as one likes.)
    """
    x = x[:LOOKED_AT].double()
    lowest, lower, upper, highest = (torch.quantile(x, level, dim=0) for level in (0.05, 0.25, 0.75, 0.95))
    spread = (highest - lowest) / 3.29  # the standard deviation of a normal column with that middle
    return len(x) > 1 and bool(((lower < upper) & (x.std(0) > STRETCHED * spread)).any())

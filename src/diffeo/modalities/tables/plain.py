"""A table's rows as numbers, and as a flow takes them, in PyTorch's operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffeo.flow import DRAWS
from diffeo.modalities.base import Plain
from diffeo.modalities.tables.schema import Column, Schema

__all__ = ["PlainRows"]


class PlainRows(Plain):
    """Rows of a table as float64, one number for each column, missing cells NaN.

    A number is itself, a category its place among the column's, 0, 1, ..., as many as there are for one that training
    did not see; a date or time the seconds since 1970 or midnight; a boolean 0 or 1. Constant columns have their place,
    too. Context columns are apart.

    Args:
        schema: of the table.
        gaps: whether missing cells are values; else a row with one has NaN for a likelihood.
    """

    dtype = torch.float64

    def __init__(self, schema: Schema, gaps: bool) -> None:
        self.gaps, self.places = gaps, schema.places
        self.columns = tuple(column for column in schema.columns if column.name not in schema.context)
        self.log_grid = [schema.log_grid(column) for column in self.columns]
        self.conditions = tuple(column for name in schema.context for column in schema.columns if column.name == name)
        self.shape, self.context_shape = (len(self.columns),), (len(self.conditions),) if self.conditions else ()
        self.draws = DRAWS
        self.described = {
            "columns": [_described(column) for column in self.columns],
            "context": [_described(column) for column in self.conditions],
            "encoding": (
                "one float64 for each column, in this order: numbers as they are; booleans 0 or 1; a category its place"
                " in 'categories', their number for one that is none of them; dates and times the seconds since"
                " 1970-01-01 or midnight; a missing cell NaN"
            ),
        }

    def inwards(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features ``(n, features)``, float32, and what ``Schema.log_grid`` adds to their log-likelihoods ``(n,)``."""
        parts, total = [], torch.zeros_like(x[:, 0])
        for column, values, logs in zip(self.columns, x.unbind(1), self.log_grid, strict=True):
            features, off = column.features_of(values, self.gaps)
            total = total + column.log_grid(values, off, *logs).to(x.dtype)
            if column.name in self.places:
                parts.append(features)
        encoded = torch.cat(parts, 1).float()
        if not self.gaps:
            encoded = torch.where(torch.isfinite(x).all(1, keepdim=True), encoded, torch.nan)
        return encoded, total

    def context_inwards(self, context: Tensor) -> Tensor:
        """The context's numbers, float32."""
        parts = [
            column.encode_context(context[:, i])
            for i, column in enumerate(self.conditions)
            if column.kind != "constant"
        ]
        return torch.cat(parts, 1).float()

    def outwards(self, x: Tensor, context: Tensor | None, exact: bool = False) -> Tensor:
        """The columns' values, float64, within the range of the training and on its grids."""
        values = []
        for column in self.columns:
            if column.name not in self.places:
                values.append(torch.full_like(x[:, 0], column.low, dtype=self.dtype))
                continue
            part = x[:, self.places[column.name]].to(self.dtype)
            values.append(column.decode(part if column.kind == "date" else part[:, 0], not exact))
        return torch.stack(values, 1)

    def context_outwards(self, context: Tensor) -> Tensor:
        """The context columns' values, float64."""
        values, start = [], 0
        for column in self.conditions:
            part = context[:, start : start + column.context_size].to(self.dtype)
            start += column.context_size if column.kind != "constant" else 0
            if column.kind == "constant":
                values.append(torch.full_like(context[:, 0], column.low, dtype=self.dtype))
            elif column.kind == "categorical":
                values.append(part.argmax(1).to(self.dtype))
            elif column.kind == "date":
                values.append(column.decode(part))
            else:
                values.append(part[:, 0] + column.origin)
        return torch.stack(values, 1)


def _described(column: Column) -> dict[str, Any]:
    """A column for someone who has no diffeo."""
    known: dict[str, Any] = {"name": column.name, "kind": column.kind, "low": column.low, "high": column.high}
    if column.step:
        known["step"] = column.step
    if column.categories:
        known["categories"] = [*(column.values or column.categories)]
    if column.kind == "levels":
        known["values"] = [*column.values]
    if column.format:
        known |= {"format": column.format, "unit": "seconds since 1970-01-01, or since midnight of times alone"}
    if column.dtype == "bool":
        known["unit"] = "0 or 1"
    return known | {"missing": column.missing}

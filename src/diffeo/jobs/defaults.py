"""Which model a table gets when its owner does not choose."""

from __future__ import annotations

from typing import Any

from diffeo.data import Schema

__all__ = ["default_model", "preprocessing"]


def default_model(schema: Schema, rows: int) -> tuple[str, dict[str, Any]]:
    """Return the recipe and its arguments for a table of so many rows to train on."""
    hidden = [128, 128] if rows >= 5_000 else [64, 64]
    return "nsf", {"transforms": 5, "hidden": hidden, "preprocess": preprocessing(schema)}


def preprocessing(schema: Schema) -> list[Any]:
    """Return what stands between the data and any model, listed from the data inwards."""
    steps: list[Any] = []
    if any(grid.step for grid in schema.discrete):
        step, low = [grid.step for grid in schema.discrete], [grid.low for grid in schema.discrete]
        steps.append(["dequantize", {"step": step, "low": low}])
    return [*steps, "standardize"]

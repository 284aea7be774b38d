"""Which model a table gets when its owner does not choose."""

from __future__ import annotations

from typing import Any

from diffeo.data import Schema

__all__ = ["default_model", "preprocessing"]


def default_model(schema: Schema, rows: int) -> tuple[str, dict[str, Any]]:
    """Return the recipe and its arguments for a table of so many rows to train on.

    An autoregressive spline flow whose splines are placed by affine maps: splines for many modes and sharp edges,
    affine maps where one column nearly determines another. Small tables get a smaller network.
    """
    hidden = [128, 128] if rows >= 5_000 else [64, 64]
    network = {"hidden": hidden, "activation": "silu", "residual": True}
    return "nsf", {"transforms": 5, **network, "affine": True, "preprocess": preprocessing(schema)}


def preprocessing(schema: Schema) -> list[Any]:
    """Return what stands between the data and any model, listed from the data inwards."""
    steps: list[Any] = []
    if any(grid.step for grid in schema.discrete):
        step, low = [grid.step for grid in schema.discrete], [grid.low for grid in schema.discrete]
        steps.append(["dequantize", {"step": step, "low": low}])
    return [*steps, "standardize"]

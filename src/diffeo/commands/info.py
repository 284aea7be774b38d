"""What a run directory holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diffeo.modalities.audio.run import AudioRun
from diffeo.modalities.images.run import ImageRun
from diffeo.modalities.opening import AnyRun, open_any_run
from diffeo.modalities.tables.schema import Schema
from diffeo.training.run import read_model

__all__ = ["info"]


def info(run: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a run's model, columns, metrics and provenance; its weights are loaded, so a damaged one is found out.

    Raises:
        UserError: if anything about the directory is wrong.
    """
    model = read_model(run)
    opened = open_any_run(run, "cpu")
    arguments = model["recipe"]["arguments"]
    return {
        "run": os.fspath(run),
        "format": model["format"],
        "model": model["recipe"]["name"],
        "arguments": arguments,
        "parameters": sum(parameter.numel() for parameter in opened.flow.parameters()),
        "bytes": sum(file.stat().st_size for file in Path(run).glob("model.*")),
        "cheap": {"inverse": "scoring", "forward": "sampling"}.get(opened.flow.cheap, opened.flow.cheap),
        **_of(opened, model),
        "metrics": model["metrics"],
        "provenance": model["provenance"],
    }


def _of(opened: AnyRun, model: dict[str, Any]) -> dict[str, Any]:
    """What the run's data are like."""
    rows = model["provenance"].get("data", {}).get("rows", 0)
    if isinstance(opened, AudioRun):
        return {"rows": rows, "crop": opened.crop, **opened.form.to_json(), "context": opened.form.parts}
    return _of_images(opened, rows) if isinstance(opened, ImageRun) else _of_table(opened.schema)


def _of_images(opened: ImageRun, rows: int) -> dict[str, Any]:
    return {"rows": rows, "shape": list(opened.shape), "levels": opened.levels, "classes": list(opened.classes)}


def _of_table(schema: Schema) -> dict[str, Any]:
    return {
        "rows": schema.rows,
        "columns": [
            {
                "name": column.name,
                "kind": column.kind,
                "role": "context" if column.name in schema.context else "modelled",
                "low": column.low,
                "high": column.high,
                "step": column.step,
                "levels": len(column.values),
            }
            for column in schema.columns
        ],
    }

"""What a run directory holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diffeo.jobs.runs import open_run
from diffeo.training.run import read_model

__all__ = ["info"]


def info(run: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a run's model, columns, metrics and provenance; its weights are loaded, so a damaged one is found out.

    Raises:
        UserError: if anything about the directory is wrong.
    """
    model, opened = read_model(run), open_run(run, "cpu")
    arguments = model["recipe"]["arguments"]
    return {
        "run": os.fspath(run),
        "format": model["format"],
        "model": model["recipe"]["name"],
        "arguments": arguments,
        "parameters": sum(parameter.numel() for parameter in opened.flow.parameters()),
        "bytes": sum(file.stat().st_size for file in Path(run).glob("model.*")),
        "cheap": {"inverse": "scoring", "forward": "sampling"}.get(opened.flow.cheap, opened.flow.cheap),
        "rows": opened.schema.rows,
        "columns": [
            {
                "name": column.name,
                "kind": column.kind,
                "role": "context" if column.name in opened.schema.context else "modelled",
                "low": column.low,
                "high": column.high,
                "step": column.step,
                "levels": len(column.values),
            }
            for column in opened.schema.columns
        ],
        "metrics": opened.metrics,
        "provenance": opened.provenance,
    }

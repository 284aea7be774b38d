"""What a run directory holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diffeo.modalities import open_run
from diffeo.training.run import read_model, trained_recipe

__all__ = ["info"]


def info(run: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a run's model, data, metrics and provenance; its weights are loaded, so a damaged one is found out.

    Raises:
        UserError: if anything about the directory is wrong.
    """
    model = read_model(run)
    opened = open_run(run, "cpu")
    return {
        "run": os.fspath(run),
        "format": model["format"],
        "model": trained_recipe(model)["name"],
        "arguments": trained_recipe(model)["arguments"],
        "parameters": sum(parameter.numel() for parameter in opened.flow.parameters()),
        "bytes": sum(file.stat().st_size for file in Path(run).glob("model.*")),
        "fast": sorted(opened.flow.fast),
        "units": opened.words.many,
        **opened.facts(),
        "metrics": model["metrics"],
        "provenance": model["provenance"],
    }

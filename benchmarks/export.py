"""Exported programs: parity with diffeo, size, time to export and to load, and rows per second, for each recipe.

Each recipe is trained for a few seconds on a built-in set, then exported by `diffeo.export`, which compares it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import diffeo
from diffeo.errors import UserError

TABLES = ("maf", "iaf", "nsf", "realnvp", "nice", "mixed", "flow-matching", "default")
IMAGES = ("realnvp", "glow")
SETTINGS = {"mixed": {"any_order": False, "orders": 1}}


def trained(folder: Path, data: str, model: str, minutes: float) -> Path:
    """A run of a recipe; the default is what `diffeo fit` does by itself."""
    run = folder / f"{data}-{model}"
    how = {} if model == "default" else {"model": model, "folds": 1, "arguments": SETTINGS.get(model, {})}
    if data == "digits":
        how.pop("folds", None)
    diffeo.commands.fit(data, run, minutes=minutes, figures=False, **how)
    return run


def main() -> None:
    """Print one line for each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", default="wine", help="the table to train on")
    parser.add_argument("--models", nargs="*", default=[*TABLES, *(f"images:{name}" for name in IMAGES)])
    parser.add_argument("--what", nargs="*", default=["log-prob", "sample"])
    parser.add_argument("--to", nargs="*", default=["onnx", "pt2"])
    parser.add_argument("--minutes", type=float, default=0.1, help="of training, for each recipe")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; agrees: largest difference, of what is allowed")
    print(f"{'recipe':<22}{'what':<10}{'to':<6}{'agrees':>8}{'MB':>8}", end="")
    print(f"{'export s':>10}{'load s':>8}{'rows/s':>12}{'own':>12}")
    with TemporaryDirectory() as folder:
        for name in arguments.models:
            kind, _, model = name.rpartition(":")
            run = trained(Path(folder), "digits" if kind else arguments.table, model, arguments.minutes)
            for what in arguments.what:
                for to in arguments.to:
                    started = time.monotonic()
                    try:
                        found = diffeo.export(run, Path(folder) / f"{run.name}-{what}.{to}", what=what)
                    except UserError as error:
                        print(f"{name:<22}{what:<10}{to:<6} refused: {str(error).partition(': ')[2]}", flush=True)
                        continue
                    print(
                        f"{name:<22}{what:<10}{to:<6}{found['parity']['worst']:>8.2g}{found['bytes'] / 1e6:>8.2f}"
                        f"{time.monotonic() - started:>10.1f}{found['load_seconds']:>8.2f}"
                        f"{found['rows_per_second']:>12,.0f}{found['own_rows_per_second']:>12,.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()

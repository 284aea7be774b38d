"""Quantiles of some columns given the others, in a stream."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diffeo.commands.runs import open_for, with_likelihood
from diffeo.errors import UserError
from diffeo.modalities.tables.prediction import Prediction
from diffeo.modalities.tables.run import TableRun
from diffeo.modalities.tables.write import TableWriter
from diffeo.report.prediction import calibration
from diffeo.report.statistics import Moments

__all__ = ["predict"]


def predict(
    run: str | os.PathLike[str],
    source: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    crps: bool = False,
    keep: Sequence[str] = (),
    missing: str = "error",
    na: Sequence[str] = (),
    sep: str | None = None,
    decimal: str | None = None,
    seed: int = 0,
    device: str | None = None,
    force: bool = False,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write quantiles of every target column given the context of each row, in the units of the table, in order.

    Of a single target they are exact: the roots of its distribution function; of several they are those of 400 draws
    for each row. Where the table has the targets, too, the predictions are judged: coverage of the interval between the
    lowest and the highest quantile, F(y) against a uniform distribution (PIT), and the CRPS. A row that was trained on
    is then predicted by the part of the model that it was held out of.

    Args:
        run: a run directory of a table, trained with ``context``.
        source: a table with the columns of the context, as ``open_table`` takes it.
        out: a table to write, whose name decides the format; None or ``-`` is csv on standard output.
        quantiles: their levels, in (0, 1).
        crps: whether to write the continuous ranked probability score of each row; it takes the targets.
        keep: columns to pass through.
        missing: what becomes of rows with NaN, infinity or an empty cell: "error" or "drop".
        na: texts and numbers that stand for a missing cell, beside NA, NaN, null and the like; as in the training by
            default, as the next two are.
        sep: what separates the columns of a csv.
        decimal: the decimal mark of a csv, a point or a comma.
        seed: of the spread of discrete values, where F(y) is judged.
        device: where to compute; a GPU if there is one.
        force: replace ``out`` if it exists.
        progress: called with the number of rows done and the number of all, if known.

    Returns:
        rows, quantiles, seconds, rows per second, rows dropped and rows trained on; with targets by their name under
        ``targets``: coverage with its standard error and what it should be, the distance of F(y) from uniform with its
        p-value, and the mean CRPS with its standard error.

    Raises:
        UserError: for bad input, a run that predicts nothing, or an output that cannot be written.
    """
    levels = sorted({float(level) for level in quantiles})
    if not levels or not all(0 < level < 1 for level in levels):
        raise UserError(f"expected quantiles in (0, 1), such as .05,.5,.95, got {', '.join(map(str, quantiles))}")
    opened, options = open_for(
        "predict", run, device, keep=list(keep) or None, missing=missing, na=list(na) or None, sep=sep, decimal=decimal
    )
    with_likelihood(opened)
    if not isinstance(opened, TableRun):
        raise UserError(f"{opened.path}: was not trained on a table, but on {opened.words.data}")
    prediction = Prediction(replace(opened, flow=opened.flow.double()), source, levels, options, crps, seed)
    names = [f"{target}_q{level:g}" for target in prediction.targets for level in levels]
    names += [f"{target}_crps" for target in prediction.targets] if crps else []
    columns = [*prediction.columns, *names]
    taken = [name for name in columns if columns.count(name) > 1]
    if taken:
        raise UserError(f"column {taken[0]!r} cannot be kept, the result has that name; rename it")
    started = time.monotonic()
    progress(0, prediction.total)
    rows = trained = 0
    inside = [Moments() for _ in prediction.targets]
    scores = [Moments() for _ in prediction.targets]
    transforms: list[np.ndarray] = []
    with TableWriter(out, columns, [*prediction.types, *["float64"] * len(names)], force=force) as writer:
        for part in prediction:
            written = [part.cells, part.quantiles.reshape(len(part.cells), -1)]
            if part.y is not None and part.pit is not None:
                covered = (part.y >= part.quantiles[..., 0]) & (part.y <= part.quantiles[..., -1])
                for moments, column in zip(inside, covered.T, strict=True):
                    moments.add(column.astype(np.float64))
                transforms.append(part.pit)
            if part.crps is not None:
                written.append(part.crps)
                for moments, column in zip(scores, part.crps.T, strict=True):
                    moments.add(column)
            writer.write(np.concatenate(written, axis=1))
            rows, trained = rows + len(part.cells), trained + part.trained
            progress(rows, prediction.total)
    seconds = time.monotonic() - started
    judged = {}
    for t, target in enumerate(prediction.targets if prediction.judged else ()):
        judged[target] = {
            "coverage": {"mean": inside[t].mean, "stderr": inside[t].stderr, "nominal": levels[-1] - levels[0]},
            "pit": calibration(np.concatenate(transforms)[:, t]),
            **({"crps": {"mean": scores[t].mean, "stderr": scores[t].stderr}} if crps else {}),
        }
    return {
        "rows": rows, "unit": "row", "units": "rows", "quantiles": levels, "targets": judged,
        "dropped": prediction.dropped, "in_training": trained, "out": None if out is None else str(out),
        "seconds": seconds, "rows_per_second": rows / seconds if seconds else math.inf,
    }  # fmt: skip

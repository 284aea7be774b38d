"""Log-likelihoods of a table's rows, in a stream."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from diffeo.errors import UserError
from diffeo.modalities.runs import open_run, with_likelihood
from diffeo.modalities.tables.write import TableWriter
from diffeo.training.seeding import derive, seed_noise
from diffeo.transforms.ode import watched_solves

__all__ = ["score_table"]

COLUMN = "log_likelihood"


def score_table(
    run: str | os.PathLike[str],
    source: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    keep: Sequence[str] = (),
    missing: str = "error",
    seed: int = 0,
    device: str | None = None,
    force: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Write the log-likelihood of every row, in nats and in the data's own units, rows in order.

    Rows that hold a value to which the model gives no mass get -inf. Columns of whole numbers are dequantised with
    noise from the seed: the same call gives the same numbers.

    Args:
        run: a run directory.
        source: what ``open_table`` takes; columns are matched by name.
        out: a file whose name decides the format; None or ``-`` is csv on standard output.
        keep: columns of numbers to pass through, an identifier for instance.
        missing: what becomes of rows with NaN, infinity or an empty cell: "error" or "drop".
        seed: of the dequantisation noise.
        device: where to compute; a GPU if there is one.
        force: replace ``out`` if it exists.
        progress: called with the number of rows done and the number of all, if known.

    Returns:
        rows, mean and stderr of the finite log-likelihoods, min, impossible (rows of -inf) and the columns to blame,
        dropped rows, columns ignored, seconds and rows per second; of a continuous flow also what its solver took.

    Raises:
        UserError: for bad input, a bad run directory or an output that cannot be written.
    """
    model = with_likelihood(open_run(run, device))
    table = model.schema.open(source, missing=missing)
    extra = [name for name in table.extra if name not in keep]
    _check_keep(keep, table.all_names, table.name)
    names = list(dict.fromkeys([*model.schema.names, *keep]))
    table = table.select(names, model.schema.all_names) if keep else table
    kept = [names.index(name) for name in keep]
    dtypes = ["int64" if table.types[name] in ("integer", "bool") else "float64" for name in keep]

    started = time.monotonic()
    count = impossible = 0
    total = squares = 0.0
    low = math.inf
    reasons: dict[str, int] = {}
    tell = progress or (lambda done, total: None)
    tell(0, table.num_rows)
    with (
        TableWriter(out, [*keep, COLUMN], [*dtypes, "float64"], force=force) as writer,
        torch.no_grad(),
        watched_solves() as solves,
    ):
        for number, values in enumerate(table.batches(names)):
            encoded = model.schema.encode(values[:, : len(model.schema.names)])
            x = torch.from_numpy(encoded.x).to(model.device)
            context = None if encoded.context is None else torch.from_numpy(encoded.context).to(model.device)
            seed_noise(model.device, derive(seed, "score", number))
            log_prob = model.flow.log_prob(x, context).double().cpu().numpy()
            log_prob[encoded.impossible] = -np.inf
            writer.write(np.concatenate([values[:, kept], log_prob[:, None]], axis=1))
            for column, rows in encoded.reasons.items():
                reasons[column] = reasons.get(column, 0) + rows
            finite = log_prob[np.isfinite(log_prob)]
            impossible += len(log_prob) - len(finite)
            count += len(log_prob)
            total += float(finite.sum())
            squares += float((finite**2).sum())
            low = min(low, float(log_prob.min()))
            tell(count, table.num_rows)
    seconds = time.monotonic() - started
    good = count - impossible
    mean = total / good if good else -math.inf
    deviation = math.sqrt(max(0.0, squares / good - mean**2)) if good else math.nan
    return {
        "rows": count,
        "mean": mean,
        "stderr": deviation / math.sqrt(good) if good else math.nan,
        "min": low,
        "impossible": impossible,
        "impossible_by_column": reasons,
        "dropped": table.dropped,
        "ignored_columns": extra,
        "seconds": seconds,
        "rows_per_second": count / seconds if seconds else math.inf,
        **solves.summary(),
    }


def _check_keep(keep: Sequence[str], names: Sequence[str], where: str) -> None:
    for name in keep:
        if name not in names:
            raise UserError(f"{where}: has no column {name!r} to keep; it has {', '.join(map(repr, names))}")
        if name == COLUMN:
            raise UserError(f"{where}: column {name!r} cannot be kept, the result has that name; rename it")

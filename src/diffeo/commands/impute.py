"""Filling the gaps of tables."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from diffeo.commands.runs import open_for
from diffeo.errors import UserError
from diffeo.modalities.tables.run import TableRun
from diffeo.modalities.tables.write import TableWriter
from diffeo.training.seeding import derive, seed_noise

__all__ = ["impute"]


def impute(
    run: str | os.PathLike[str],
    source: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    draws: int = 1,
    seed: int = 0,
    device: str | None = None,
    force: bool = False,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write a table whose missing cells are drawn given the others of their row.

    Every column of the table comes back, those that the model does not know as they are. With several draws, multiple
    imputation (Rubin 1987), each row is written as often, one after the other, behind the columns ``row`` (from 1) and
    ``draw``.

    Args:
        run: a run directory of a mixed density.
        source: a table with the columns of the training.
        out: a table to write, whose name decides the format; None or ``-`` is csv on standard output.
        draws: how often each row is completed.
        seed: the same seed draws the same cells.
        device: where to compute; a GPU if there is one.
        force: replace ``out`` if it exists.
        progress: called with the number of rows done and the number of all, if known.

    Returns:
        rows, cells that were filled, in all and by column, draws, seconds and rows per second.

    Raises:
        UserError: for bad input, a run that is not one of a mixed density, or an output that cannot be written.
    """
    opened, _ = open_for("impute", run, device)
    if not isinstance(opened, TableRun):
        raise UserError(f"{opened.path}: was not trained on a table, but on {opened.words.data}")
    if draws < 1:
        raise UserError(f"expected at least 1 draw, got {draws}")
    table = opened.gaps(source, {})
    counters = ["row", "draw"] if draws > 1 else []
    taken = [name for name in counters if name in table.names]
    if taken:
        raise UserError(f"column {taken[0]!r} cannot be kept, the result has that name; rename it")
    started = time.monotonic()
    progress(0, table.total)
    rows = 0
    filled: dict[str, int] = {}
    names, types = [*counters, *table.names], [*["int64"] * len(counters), *table.types]
    with TableWriter(out, names, types, force=force, categories=table.categories) as writer:
        for number, (x, cells) in enumerate(table.chunks):
            known = ~x.isnan()
            for name, place in opened.schema.places.items():
                count = int((~known[:, place].all(1)).sum())
                if count:
                    filled[name] = filled.get(name, 0) + count
            versions = []
            for draw in range(draws):
                seed_noise(opened.device, derive(seed, "impute", number, draw))
                full = opened.flow.complete(x.to(opened.device), known.to(opened.device), gaps=False)
                version = opened.filled(full, known, cells, table.names)
                if counters:
                    numbers = np.arange(rows + 1, rows + len(x) + 1).astype(object)
                    version = np.column_stack([numbers, np.full(len(x), draw + 1, dtype=object), version])
                versions.append(version)
            writer.write(np.stack(versions, 1).reshape(-1, len(names)))
            rows += len(x)
            progress(rows, table.total)
    seconds = time.monotonic() - started
    return {
        "rows": rows, "filled": sum(filled.values()), "filled_by_column": filled, "draws": draws,
        "out": None if out is None else str(out), "seconds": seconds, "rows_per_second": rows / max(seconds, 1e-9),
    }  # fmt: skip

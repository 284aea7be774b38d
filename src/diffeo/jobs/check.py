"""Whether a run can be trusted on a table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.data import Table
from diffeo.errors import UserError
from diffeo.jobs.rows import ENOUGH, LARGE, draw_rows, split_rows
from diffeo.jobs.runs import OpenRun, open_run
from diffeo.report.check import FEWEST, check
from diffeo.training.batches import fingerprint

__all__ = ["Judging", "check_run", "rows_to_judge_by"]

ROWS = 10_000


def check_run(
    run: str | os.PathLike[str],
    source: Any,
    *,
    rows: int = ROWS,
    missing: str = "error",
    seed: int = 0,
    device: str | None = None,
) -> dict[str, Any]:
    """Examine a run on a table: numerics, latents, samples, likelihood, and a verdict.

    If the table is the one that the run was trained on, only the rows that were held out are used.

    Args:
        run: a run directory.
        source: what ``open_table`` takes.
        rows: at most so many rows are used, drawn at random.
        missing: what becomes of rows with NaN, infinity or an empty cell: "error" or "drop".
        seed: of the draws.
        device: where to compute; a GPU if there is one.

    Raises:
        UserError: for bad input, fewer than 20 usable rows, or a bad run directory.
    """
    if rows < FEWEST:
        raise UserError(f"expected at least {FEWEST} rows to check by, got {rows}")
    model = open_run(run, device)
    table = model.schema.open(source, missing=missing)
    found = rows_to_judge_by(model, table, rows, seed)
    x, context, which = found.x, found.context, found.which
    if len(x) < FEWEST:
        raise UserError(f"{table.name}: has {len(x)} usable rows, expected at least {FEWEST} to check by")
    schema = model.schema
    bounds = np.array([grid.low for grid in schema.discrete]), np.array([grid.high for grid in schema.discrete])
    report = check(model.flow, x, context, bounds=bounds, names=schema.feature_names, seed=seed)
    return {"run": os.fspath(run), "data": table.name, "which": which, "impossible_by_column": found.reasons, **report}


@dataclass(frozen=True)
class Judging:
    """Rows to judge a run by, as its flow takes them: x (n, features), context (n, context_size) or None.

    ``contexts`` are those of all other rows of the table, or of all where none were set aside. ``reasons`` counts the
    impossible rows by column; ``which`` says what the rows are.
    """

    x: Tensor
    context: Tensor | None
    contexts: Tensor | None
    reasons: dict[str, int]
    which: str


def rows_to_judge_by(model: OpenRun, table: Table, rows: int, seed: int) -> Judging:
    """Return at most so many rows of a table; of the one that the run was trained on, those that were held out.

    Raises:
        UserError: for bad input.
    """
    schema = model.schema
    # To find out whether these are the rows of training takes all of them.
    small = 4 * schema.rows * (schema.features + schema.context_size) <= LARGE
    x, context, reasons, read = draw_rows(table, schema, max(rows, schema.rows) if small else rows, seed)
    contexts, which = context, "all rows"
    if small and read == schema.rows and fingerprint(x, context) == _trained_on(model):
        rest, held_out = split_rows(len(x), model.provenance["seed"])
        which = "the rows of training"  # too few were held out to judge by
        if len(held_out) >= ENOUGH:
            which = "rows held out of training"
            contexts = None if context is None else context[rest]
            x, context = x[held_out], None if context is None else context[held_out]
    if len(x) > rows:
        chosen = torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(len(x))[:rows]))
        x, context = x[chosen], None if context is None else context[chosen]
        which = f"{rows:,} of {which}"
    return Judging(x, context, contexts, reasons, which)


def _trained_on(model: OpenRun) -> str | None:
    data = model.provenance.get("data")
    if not isinstance(data, dict) or not isinstance(model.provenance.get("seed"), int):
        return None
    return data.get("sha256")

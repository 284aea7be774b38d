"""Whether a run can be trusted."""

from __future__ import annotations

import os
from typing import Any

from diffeo.commands.runs import open_for, with_likelihood
from diffeo.errors import UserError
from diffeo.report.check import FEWEST

__all__ = ["IN_SAMPLE", "check"]

ROWS = 10_000
IN_SAMPLE = "in sample: says nothing about new data"


def check(
    run: str | os.PathLike[str],
    source: Any,
    *,
    rows: int = ROWS,
    missing: str = "error",
    seed: int = 0,
    device: str | None = None,
) -> dict[str, Any]:
    """Examine a run on data of its kind: numerics, latents, samples, likelihood, and a verdict.

    If the data are those that the run was trained on, the rows used are those kept for the test, or else those for
    validation. Where these are fewer than 100, the rows of training are looked at, and the verdict is never that the
    run can be trusted: in sample, nothing is known about new rows.

    Args:
        run: a run directory.
        source: what ``open_table``, ``open_images`` or ``open_audio`` takes.
        rows: at most so many rows, images or crops of audio are used, drawn at random.
        missing: of a table, what becomes of rows with NaN, infinity or an empty cell: "error" or "drop".
        seed: of the draws.
        device: where to compute; a GPU if there is one.

    Raises:
        UserError: for bad input, fewer than 20 usable rows (two crops of audio), or a bad run directory.
    """
    if rows < FEWEST:
        raise UserError(f"expected at least {FEWEST} rows to check by, got {rows}")
    opened, options = open_for("check", run, device, missing=missing)
    with_likelihood(opened)
    examples = opened.examples(source, rows, seed, options)
    report = opened.examine(examples, seed)
    # A model that does well on rows that it was trained on may be overfitted to them.
    if examples.in_sample and report["verdict"] != "not trustworthy":
        report = {**report, "verdict": IN_SAMPLE}
    return {
        "run": opened.path, "data": examples.name, "which": examples.which, "in_sample": examples.in_sample,
        "impossible_by_column": dict(examples.reasons), **report,
    }  # fmt: skip

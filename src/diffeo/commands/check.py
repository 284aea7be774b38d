"""Whether a run can be trusted."""

from __future__ import annotations

import os
from typing import Any

from diffeo.commands.runs import open_for, with_likelihood
from diffeo.errors import UserError
from diffeo.modalities.base import Examples, OpenRun
from diffeo.report.verdict import FEWEST, IN_SAMPLE, TRUST, Limits, Verdict, gravest

__all__ = ["IN_SAMPLE", "ROWS", "check", "checked"]

ROWS = 10_000


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
    run can be trusted: in sample, nothing is known about new rows. Nor is it on fewer than 100 rows, or where there are
    rows with a value off its grid: these are left out of all but the verdict.

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
    with_likelihood(opened, or_bound=True)
    return checked(opened, opened.examples(source, rows, seed, options), seed)


def checked(opened: OpenRun, examples: Examples, seed: int) -> dict[str, Any]:
    """Examine a run that was opened on examples; see ``check``.

    Args:
        opened: with a likelihood, or bounds of it.
        examples: as its ``examples`` returns them.
        seed: of the draws.
    """
    report = opened.examine(examples, seed)
    left_out = Verdict(Limits(enough=0))
    left_out.weigh_rows(examples.read, examples.off_grid, "have a value off its grid")
    # A model that does well on rows that it was trained on may be overfitted to them.
    verdict, reasons = gravest(
        (report["verdict"], report["reasons"]),
        left_out.of(examples.read),
        (IN_SAMPLE if examples.in_sample else TRUST, []),
    )
    return {
        "run": opened.path, "data": examples.name, "which": examples.which, "in_sample": examples.in_sample,
        "read": examples.read, "off_grid": examples.off_grid, "off_grid_by_column": dict(examples.reasons),
        **report, "verdict": verdict, "reasons": reasons,
    }  # fmt: skip

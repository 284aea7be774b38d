"""Rows that are unlike those of the training, and the columns that make them so."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffeo.commands.runs import open_for, with_likelihood
from diffeo.errors import UserError
from diffeo.modalities.base import chunks_of
from diffeo.modalities.tables.anomalies import Anomalies, find_anomalies
from diffeo.modalities.tables.held_out import HeldOut
from diffeo.modalities.tables.run import TableRun
from diffeo.modalities.tables.write import TableWriter
from diffeo.report.anomalies import POINTS, plot_anomalies
from diffeo.transforms.ode import watched_solves

__all__ = ["anomalies"]

EXPLAINED, MOST_EXPLAINED = 100, 1_000  # rows that have shares: the worst, or all that are flagged up to so many
EVALUATIONS = 2**19  # of the density, that the shares of more than the worst may take
TOLD = 10  # rows in the summary
BLOCK = 65536  # rows written at a time
RESULTS = ("log_likelihood", "score", "p_value", "anomaly")


@torch.no_grad()
def anomalies(
    run: str | os.PathLike[str],
    source: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    alpha: float = 0.01,
    plot: str | os.PathLike[str] | None = None,
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
    """Write how rare the likelihood of every row is, which are anomalies, and what each column adds; the worst first.

    A row's score is its log-likelihood, lowered where the row is stranger when it is looked at less sharply, with noise
    of a fifth of each column's standard deviation (``report.conformal.Scatter``): in a likelihood alone, values that
    are recorded often count for more than how far off a row is. A p-value compares the score with those that rows of
    the training had when they were held out (``report.conformal.Conformal``): of rows like these a share of about alpha
    is flagged by mistake. Rows of the training are compared by what has not been trained on them, as far as there is
    that.

    The columns written are the row's number, those to ``keep``, ``log_likelihood``, ``score``, ``p_value``, ``anomaly``
    (whether the p-value is at most alpha), ``share_`` of every column, in nats above what is usual (``column_shares``),
    and ``column``, the one that adds most: a value off its grid adds what it costs. Shares belong to the worst hundred
    rows, or all that are flagged, up to a thousand or what half a million evaluations of the density allow; their cells
    are empty elsewhere. All scores are held in memory to be sorted, some 60 bytes for a row, and what is kept.

    Args:
        run: a run directory of a table.
        source: a table, as ``open_table`` takes it.
        out: a table to write, whose name decides the format; None or ``-`` is csv on standard output.
        alpha: the p-value up to which rows are flagged.
        plot: a picture (.png) of the log-likelihoods and of the worst rows.
        keep: columns to pass through, an identifier for instance.
        missing: what becomes of rows with NaN, infinity or an empty cell: "error" or "drop"; as in ``score``.
        na: texts and numbers that stand for a missing cell, beside NA, NaN, null and the like; as in the training by
            default, as the next two are.
        sep: what separates the columns of a csv.
        decimal: the decimal mark of a csv, a point or a comma.
        seed: of the samples that shares are measured by; p-values do not depend on it.
        device: where to compute; a GPU if there is one.
        force: replace ``out`` and ``plot`` if they exist.
        progress: called with the number of rows done and the number of all, if known.

    Returns:
        rows, how many are flagged, alpha, how many rows were held out and the least p-value that they allow; how many
        flagged rows each column is responsible for; the worst rows; how many have shares; seconds and rows per second;
        and what ``score`` says of the data.

    Raises:
        UserError: for bad input, a run that knows no held-out rows, or an output that cannot be written.
    """
    opened, options = open_for(
        "anomalies", run, device, keep=list(keep) or None, missing=missing, na=list(na) or None, sep=sep,
        decimal=decimal,
    )  # fmt: skip
    if not isinstance(opened, TableRun):
        raise UserError(f"{opened.path}: was not trained on a table, but on {opened.words.data}")
    if not 0 < alpha < 1:
        raise UserError(f"expected alpha in (0, 1), got {alpha}")
    _refuse_picture(plot, force)
    with_likelihood(opened)
    held_out = HeldOut.of(opened)
    law = held_out.law
    names = list(opened.schema.places)
    shares = [f"share_{name}" for name in names]
    columns = [*RESULTS, *shares, "column"]
    taken = [name for name in keep if name in columns]
    if taken:
        raise UserError(f"column {taken[0]!r} cannot be kept, the result has that name; rename it")
    scoring = opened.scoring(source, options, "anomalies")
    types = [*scoring.types, "float64", "float64", "float64", "bool", *["float64"] * len(names), "string"]
    started = time.monotonic()
    most = min(MOST_EXPLAINED, max(EXPLAINED, EVALUATIONS // (POINTS * opened.schema.features)))
    with (
        TableWriter(out, [*scoring.columns, *columns], types, force=force) as writer,
        watched_solves() as solves,
    ):
        chunks = chunks_of(opened, scoring, seed, progress)
        result = find_anomalies(opened, held_out, chunks, scoring.draws, alpha, seed, (EXPLAINED, most))
        scored, order, flagged = result.scored, result.order, result.flagged
        for block in _blocks(result):
            writer.write(block)
        if plot is not None:
            plot_anomalies(plot, law, scored.score, alpha, result.worst, names)
    seconds = time.monotonic() - started
    counts: dict[str, int] = {}
    explained = len(result.worst)
    for k in np.flatnonzero(flagged[order[:explained]]):
        counts[result.blamed[k]] = counts.get(result.blamed[k], 0) + 1
    rows = len(order)
    return {
        "rows": rows,
        "unit": opened.words.one,
        "units": opened.words.many,
        "alpha": alpha,
        "flagged": int(flagged.sum()),
        "held_out": len(law),
        "folds": len(held_out.members),
        "least_p_value": law.least,
        "impossible": int(np.isneginf(scored.log_prob).sum()),
        "flagged_by_column": dict(sorted(counts.items(), key=lambda pair: -pair[1])),
        "worst": [each.facts(names) for each in result.worst[:TOLD]],
        "explained": explained,
        "plot": None if plot is None else str(plot),
        "out": None if out is None else str(out),
        **scoring.facts(),
        "seconds": seconds,
        "rows_per_second": rows / seconds if seconds else math.inf,
        **solves.summary(),
    }


def _refuse_picture(plot: str | os.PathLike[str] | None, force: bool) -> None:
    """Refuse, before any work, a picture that cannot be written under its name."""
    if plot is None:
        return
    path = Path(plot)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: expected a picture that ends in .png")
    if path.exists() and not force:
        raise UserError(f"{path}: exists already; choose another name or replace it with --force")


def _blocks(result: Anomalies) -> Iterator[np.ndarray]:
    """The lines of the result, in blocks, shares where there are some."""
    scored, order, flagged, shares, blamed = (
        result.scored, result.order, result.flagged, result.strange, result.blamed
    )  # fmt: skip
    explained, columns = shares.shape
    for start in range(0, len(order), BLOCK):
        rows = order[start : start + BLOCK]
        block = np.full((len(rows), scored.cells.shape[1] + len(RESULTS) + columns + 1), None, dtype=object)
        block[:, : scored.cells.shape[1]] = scored.cells[rows]
        numbers = (scored.log_prob[rows], scored.score[rows], scored.p_value[rows], flagged[rows])
        block[:, scored.cells.shape[1] : -columns - 1] = np.stack([each.astype(object) for each in numbers], 1)
        if start < explained:
            block[: explained - start, -columns - 1 : -1] = shares[start : start + BLOCK]
            block[: explained - start, -1] = blamed[start : start + BLOCK]
        yield block

"""Rows that are unlike those of the training, and the columns that make them so."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.commands.runs import chunks_of, open_for, with_likelihood
from diffeo.errors import UserError
from diffeo.modalities.base import Chunk
from diffeo.modalities.tables.held_out import HeldOut
from diffeo.modalities.tables.run import TableRun
from diffeo.modalities.tables.write import TableWriter
from diffeo.report.anomalies import POINTS, Worst, column_shares, plot_anomalies
from diffeo.training.seeding import derive, seed_noise
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
    (whether the p-value is at most alpha), ``share_`` of every column, in nats above what is usual
    (``column_shares``), and ``column``, the one with the largest. Shares belong to the worst hundred rows, or all that
    are flagged, up to a thousand or what half a million evaluations of the density allow; their cells are empty
    elsewhere. All scores are held in memory to be sorted, some 60 bytes for a row, and what is kept.

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
        parts = [
            _Scored.of(held_out, chunk, scoring.draws, most) for chunk in chunks_of(opened, scoring, seed, progress)
        ]
        scored = _Scored.joined(parts)
        order = scored.order()
        flagged = scored.p_value <= alpha
        explained = min(most, max(EXPLAINED, int(flagged.sum())), len(order))
        seed_noise(opened.device, derive(seed, "anomalies"))
        strange, blamed = _explained(opened, scored, order[:explained])
        for block in _blocks(scored, order, flagged, strange, blamed):
            writer.write(block)
        worst = [
            Worst(
                int(scored.cells[i, 0]), float(scored.log_prob[i]), float(scored.score[i]), float(scored.p_value[i]),
                strange[k], blamed[k],
            )
            for k, i in enumerate(order[:explained])
        ]  # fmt: skip
        if plot is not None:
            plot_anomalies(plot, law, scored.score, alpha, worst, names)
    seconds = time.monotonic() - started
    counts: dict[str, int] = {}
    for k in np.flatnonzero(flagged[order[:explained]]):
        counts[blamed[k]] = counts.get(blamed[k], 0) + 1
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
        "worst": [each.facts(names) for each in worst[:TOLD]],
        "explained": explained,
        "plot": None if plot is None else str(plot),
        "out": None if out is None else str(out),
        **scoring.facts(),
        "seconds": seconds,
        "rows_per_second": rows / seconds if seconds else math.inf,
        **solves.summary(),
    }


@dataclass(frozen=True)
class _Scored:
    """Rows, scored.

    Attributes:
        cells: what is written before the scores ``(n, columns)``.
        log_prob, score, p_value: of each ``(n,)``.
        low: the numbers of the rows that may be among the worst of all ``(m,)``, and their ``x``, ``context``, ``part``
            and ``blamed``, as a chunk has them.
    """

    cells: np.ndarray
    log_prob: np.ndarray
    score: np.ndarray
    p_value: np.ndarray
    low: np.ndarray
    x: Tensor
    context: Tensor | None
    part: Tensor
    blamed: np.ndarray

    @classmethod
    def of(cls, held_out: HeldOut, chunk: Chunk, draws: int, most: int) -> _Scored:
        """Score a chunk of rows, of which at most so many may be among the worst."""
        assert chunk.part is not None
        assert chunk.blamed is not None
        part = chunk.part
        log_prob, score, p_value = held_out.judged(chunk, draws)
        values = log_prob.numpy(), score.numpy(), p_value.numpy()
        low = np.lexsort(values)[:most]
        context = None if chunk.context is None else chunk.context[low].cpu()
        return cls(chunk.cells, *values, low, chunk.x[low].cpu(), context, part[low], chunk.blamed[low])

    @classmethod
    def joined(cls, parts: Sequence[_Scored]) -> _Scored:
        """All rows of several chunks, in order."""
        starts = np.cumsum([0, *(len(part.log_prob) for part in parts)])
        cells, log_prob, score, p_value, blamed = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("cells", "log_prob", "score", "p_value", "blamed")
        )
        low = np.concatenate([start + part.low for start, part in zip(starts, parts, strict=False)])
        contexts = [part.context for part in parts if part.context is not None]
        return cls(
            cells, log_prob, score, p_value, low, torch.cat([part.x for part in parts]),
            torch.cat(contexts) if contexts else None, torch.cat([part.part for part in parts]), blamed,
        )  # fmt: skip

    def order(self) -> np.ndarray:
        """The numbers of the rows by p-value, then by score and log-likelihood, the worst first."""
        return np.lexsort((self.log_prob, self.score, self.p_value))


def _refuse_picture(plot: str | os.PathLike[str] | None, force: bool) -> None:
    """Refuse, before any work, a picture that cannot be written under its name."""
    if plot is None:
        return
    path = Path(plot)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: expected a picture that ends in .png")
    if path.exists() and not force:
        raise UserError(f"{path}: exists already; choose another name or replace it with --force")


def _explained(run: TableRun, scored: _Scored, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The shares of these rows ``(m, columns)``, and the name of the column with the largest."""
    places = {row: k for k, row in enumerate(scored.low.tolist())}
    chosen = [places[row] for row in rows.tolist()]
    context = None if scored.context is None else scored.context[chosen].to(run.device)
    shares = column_shares(run.flow, scored.x[chosen].to(run.device), context, scored.part[chosen]).numpy()
    names = [column.name for column in run.schema.columns]
    by_column = np.stack([shares[:, place].sum(1) for place in run.schema.places.values()], 1)
    columns = list(run.schema.places)
    blamed = []
    for share, wrong in zip(by_column, scored.blamed[chosen], strict=True):
        if wrong >= 0 and names[wrong] in columns:
            share[columns.index(names[wrong])] = np.inf
        blamed.append(names[wrong] if wrong >= 0 else columns[int(share.argmax())])
    return by_column, blamed


def _blocks(
    scored: _Scored, order: np.ndarray, flagged: np.ndarray, shares: np.ndarray, blamed: Sequence[str]
) -> Iterator[np.ndarray]:
    """The lines of the result, in blocks, shares where there are some."""
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

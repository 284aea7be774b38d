"""The rows of a table that are unlike those of the training, and the columns that make them so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffeo.modalities.base import Chunk
from diffeo.modalities.tables.held_out import HeldOut
from diffeo.modalities.tables.run import TableRun
from diffeo.report.anomalies import Worst, column_shares
from diffeo.training.seeding import derive, seed_noise

__all__ = ["Anomalies", "Scored", "by_column", "find_anomalies"]


@dataclass(frozen=True)
class Scored:
    """Rows, scored.

    Attributes:
        cells: what is written before the scores ``(n, columns)``.
        log_prob, score, p_value: of each ``(n,)``.
        low: the numbers of the rows that may be among the worst of all ``(m,)``, and their ``x``, ``context``, ``part``
            and ``off_grid``, as a chunk has them.
    """

    cells: np.ndarray
    log_prob: np.ndarray
    score: np.ndarray
    p_value: np.ndarray
    low: np.ndarray
    x: Tensor
    context: Tensor | None
    part: Tensor
    off_grid: np.ndarray

    @classmethod
    def of(cls, held_out: HeldOut, chunk: Chunk, draws: int, most: int) -> Scored:
        """Score a chunk of rows, of which at most so many may be among the worst."""
        assert chunk.part is not None
        assert chunk.off_grid is not None
        part = chunk.part
        log_prob, score, p_value = held_out.judged(chunk, draws)
        values = log_prob.numpy(), score.numpy(), p_value.numpy()
        low = np.lexsort(values)[:most]
        context = None if chunk.context is None else chunk.context[low].cpu()
        return cls(chunk.cells, *values, low, chunk.x[low].cpu(), context, part[low], chunk.off_grid[low])

    @classmethod
    def joined(cls, parts: Sequence[Scored]) -> Scored:
        """All rows of several chunks, in order."""
        starts = np.cumsum([0, *(len(part.log_prob) for part in parts)])
        cells, log_prob, score, p_value, off_grid = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("cells", "log_prob", "score", "p_value", "off_grid")
        )
        low = np.concatenate([start + part.low for start, part in zip(starts, parts, strict=False)])
        contexts = [part.context for part in parts if part.context is not None]
        return cls(
            cells, log_prob, score, p_value, low, torch.cat([part.x for part in parts]),
            torch.cat(contexts) if contexts else None, torch.cat([part.part for part in parts]), off_grid,
        )  # fmt: skip

    def order(self) -> np.ndarray:
        """The numbers of the rows by p-value, then by score and log-likelihood, the worst first."""
        return np.lexsort((self.log_prob, self.score, self.p_value))


@dataclass(frozen=True)
class Anomalies:
    """Rows that were scored, and the worst of them.

    Attributes:
        scored: all rows.
        order: their numbers, the worst first.
        flagged: which of them have a p-value of at most alpha.
        strange: the shares of the columns in the worst rows ``(m, columns)``, in nats above what is usual.
        blamed: of each of these, the column with the largest share.
        worst: the same rows, one by one.
    """

    scored: Scored
    order: np.ndarray
    flagged: np.ndarray
    strange: np.ndarray
    blamed: list[str]
    worst: list[Worst]


@torch.no_grad()
def find_anomalies(
    run: TableRun,
    held_out: HeldOut,
    chunks: Iterable[Chunk],
    draws: int,
    alpha: float,
    seed: int,
    explained: tuple[int, int],
) -> Anomalies:
    """Score rows and say of the worst which columns are responsible.

    Args:
        run: of a table.
        held_out: what it knows of held-out rows.
        chunks: the rows, as ``chunks_of`` yields them.
        draws: of the noise that discrete values are spread by.
        alpha: the p-value up to which rows are flagged.
        seed: of the samples that shares are measured by.
        explained: how many rows have shares: at least, and at most where more are flagged.
    """
    least, most = explained
    scored = Scored.joined([Scored.of(held_out, chunk, draws, most) for chunk in chunks])
    order = scored.order()
    flagged = scored.p_value <= alpha
    count = min(most, max(least, int(flagged.sum())), len(order))
    seed_noise(run.device, derive(seed, "anomalies"))
    strange, blamed = _explained(run, scored, order[:count])
    worst = [
        Worst(
            int(scored.cells[i, 0]), float(scored.log_prob[i]), float(scored.score[i]), float(scored.p_value[i]),
            strange[k], blamed[k],
        )
        for k, i in enumerate(order[:count])
    ]  # fmt: skip
    return Anomalies(scored, order, flagged, strange, blamed, worst)


def _explained(run: TableRun, scored: Scored, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The shares of these rows ``(m, columns)``, and the name of the column with the largest."""
    places = {row: k for k, row in enumerate(scored.low.tolist())}
    chosen = [places[row] for row in rows.tolist()]
    context = None if scored.context is None else scored.context[chosen].to(run.device)
    shares = column_shares(run.flow, scored.x[chosen].to(run.device), context, scored.part[chosen])
    return by_column(run, shares, scored.off_grid[chosen])


def by_column(run: TableRun, shares: Tensor, off_grid: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The shares of the columns ``(m, columns)``, of those of features, and the name of the column with the largest.

    Args:
        run: of a table.
        shares: of rows ``(m, features)``.
        off_grid: which of their values are off their grids, as a chunk has it ``(m, all columns)``: these add what such
            a value costs. A constant has no share, but may be the one with the largest.
    """
    schema = run.schema
    costs = np.array([-schema.log_grid(column)[1] for column in schema.columns])
    every = np.where(off_grid, costs, 0.0)
    modelled = [schema.names.index(name) for name in schema.places]
    every[:, modelled] += np.stack([shares.numpy()[:, place].sum(1) for place in schema.places.values()], 1)
    candidates = np.full_like(every, -np.inf)
    candidates[:, modelled] = every[:, modelled]
    candidates[off_grid] = every[off_grid]
    largest = [schema.names[place] for place in candidates.argmax(1)]
    return every[:, modelled], largest

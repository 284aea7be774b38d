"""Which columns make a row an anomaly, and a picture of the worst."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.mixture import Mixture
from diffeo.report.conformal import Conformal
from diffeo.report.figures import short
from diffeo.report.style import MODEL, OTHER, REAL, figure, heat, histogram, span
from diffeo.training.folds import out_of_fold
from diffeo.transforms.mixed import Mixed

__all__ = ["ColumnShares", "Worst", "column_shares", "plot_anomalies"]

DRAWN, PER_CONTEXT = 4_000, 128  # samples that a column's own density comes from; given a context so many of each
ORDINARY = 64  # samples that say what is usual
POINTS = 32  # values of a column that are integrated over; a column of no more has masses
FLOOR = 1e-4  # the weight of a heavy tail under a column's own density
TOGETHER = 256  # rows at a time
WORST, WIDEST = 15, 12  # rows and columns plotted


class ColumnShares:
    """How much each column adds to the strangeness of a row, in nats above what is usual.

    Of a mixed density these are the terms of the chain rule, -log p(x_i | those before it), averaged over its orders of
    the columns; they add up to -log p(x), averaged in the same way. Of any other density it is the mean of the first
    and the last term that i can have in an order,

        1/2 (-log p(x_i) - log p(x_i | all others)),  p(x_i | all others) = p(x) / int p(t, others) dt.

    (The mean over all orders is a Shapley value: Lundberg and Lee 2017, arXiv:1705.07874.) p(x_i) comes from samples,
    and the integral from the values t that they have. What is usual is the mean of the same over samples.

    Args:
        flow: a density of vectors; of ``fit_folds`` where there are folds.
        context: of the rows, ``(n, *context)``, at least one, or None; the samples are drawn given these.
    """

    @torch.no_grad()
    def __init__(self, flow: Flow, context: Tensor | None = None) -> None:
        self._flow, self._context = flow, context
        places = torch.arange(ORDINARY) % (1 if context is None else len(context))
        contexts = None if context is None else context[places]
        ordinary = flow.sample(ORDINARY) if contexts is None else flow.sample((), contexts)
        self._mixed = all(isinstance(leaf.transform, Mixed) for _, leaf in _leaves(flow))
        if self._mixed:
            self._samples = ordinary[:0, None]
        elif context is None:
            self._samples = flow.sample((1, DRAWN))  # (1, S, D)
        else:
            self._samples = flow.sample(PER_CONTEXT, context).transpose(0, 1)  # (n, S, D)
        self._columns = [_Values.of(column) for column in self._samples.flatten(0, 1).mT]
        self._usual = self._terms(flow, ordinary, contexts, places).mean(0).cpu()

    @torch.no_grad()
    def of(self, x: Tensor, fold: Tensor | None = None) -> Tensor:
        """The shares of rows: ``(n, D)``, double precision, infinite where a value is impossible.

        Args:
            x: ``(n, D)``, each with the context in the same place.
            fold: in which each row was, negative for a row that no part of the flow has seen, ``(n,)``; each row's
                shares are of the density that has not seen it.
        """
        context = self._context

        def shares(density: Flow, rows: Tensor) -> Tensor:
            parts = rows.to(x.device).split(TOGETHER)
            return torch.cat([self._terms(density, x[i], None if context is None else context[i], i) for i in parts])

        return out_of_fold(self._flow, torch.full((len(x),), -1) if fold is None else fold, shares) - self._usual

    def _terms(self, density: Flow, x: Tensor, context: Tensor | None, rows: Tensor) -> Tensor:
        if self._mixed:
            return _by_orders(density, x, context)
        drawn = self._samples if len(self._samples) == 1 else self._samples[rows]
        first = [_alone(x[:, i], drawn[:, :, i], column) for i, column in enumerate(self._columns)]
        return (torch.stack(first, 1) + _given_others(density, x, context, self._columns)) / 2


def column_shares(flow: Flow, x: Tensor, context: Tensor | None = None, fold: Tensor | None = None) -> Tensor:
    """The shares of the columns in rows, as ``ColumnShares`` has them: ``(n, D)``, double precision.

    Args:
        flow: a density of vectors; of ``fit_folds`` where there is a fold.
        x: ``(n, D)``.
        context: ``(n, *context)``, or None.
        fold: in which each row was, negative for a row that no part of the flow has seen, ``(n,)``.
    """
    return ColumnShares(flow, context).of(x, fold) if len(x) else x.new_zeros(x.shape, dtype=torch.float64)


def _leaves(flow: Flow, log_weight: float = 0.0) -> list[tuple[float, Any]]:
    """The members of a mixture, and of the mixtures among them, with the logarithms of their weights."""
    if not isinstance(flow, Mixture):
        return [(log_weight, flow)]
    pairs = zip(flow.members, flow.log_weights.tolist(), strict=True)
    return [leaf for member, more in pairs for leaf in _leaves(member, log_weight + more)]


def _by_orders(flow: Flow, x: Tensor, context: Tensor | None) -> Tensor:
    """-log p of each column given those before it, averaged over orders, of mixed densities or a mixture of them.

    p(x_1, ..., x_t) of a mixture is the weighted mean of its members', and a conditional the ratio of two of those.
    """
    leaves = _leaves(flow)
    nothing = torch.zeros_like(x, dtype=torch.bool)
    orders = max((leaf.transform.orders for _, leaf in leaves), key=len)
    total = x.new_zeros(x.shape, dtype=torch.float64)
    for order in orders:
        up_to = []
        for log_weight, leaf in leaves:
            each = leaf.transform.log_in_orders(x, nothing, leaf.normalize_context(context), order[None])[0]
            up_to.append(each[:, order].double().cumsum(1) + log_weight)
        joint = torch.logsumexp(torch.stack(up_to), 0)
        total[:, order] += (-joint).diff(dim=1, prepend=torch.zeros_like(joint[:, :1])).nan_to_num(0.0, torch.inf)
    return total / len(orders)


@dataclass(frozen=True)
class _Values:
    """Values of a column that it is integrated over.

    Attributes:
        points: ascending ``(P,)``.
        all_of_them: whether the column has no others: then it has masses.
    """

    points: Tensor
    all_of_them: bool

    @classmethod
    def of(cls, column: Tensor) -> _Values:
        """Those of samples (S,); of many the ones at evenly spaced quantiles."""
        values = column[torch.isfinite(column)].double().sort().values
        distinct = values.unique()
        if len(distinct) <= POINTS:
            return cls(distinct, True)
        places = (torch.arange(POINTS, device=values.device) + 0.5) * (len(values) / POINTS)
        return cls(values[places.long()].unique(), False)

    @property
    def widths(self) -> Tensor:
        """How much of the line each point stands for, to the middle between it and its neighbours: ``(P,)``."""
        gaps = self.points.diff() if len(self.points) > 1 else torch.ones_like(self.points)
        ends = torch.cat([gaps[:1], gaps, gaps[-1:]])[: len(self.points) + 1]
        return (ends[1:] + ends[:-1]) / 2

    @property
    def spread(self) -> Tensor:
        """The standard deviation of the points, 1 of a single one."""
        return self.points.std() if len(self.points) > 1 else torch.ones_like(self.points[0])


def _given_others(flow: Flow, x: Tensor, context: Tensor | None, columns: Sequence[_Values]) -> Tensor:
    """-log p(x_i | all others) of every column ``(n, D)``, each integrated over its values."""

    def score(rows: Tensor, contexts: Tensor | None) -> Tensor:
        return flow.log_mass(rows, contexts, nan="propagate", draws=1).double().nan_to_num(-torch.inf, torch.inf)

    here, result = score(x, context), []
    for i, column in enumerate(columns):
        count = len(column.points)
        rows = x[:, None].repeat(1, count, 1)  # (n, values, D)
        rows[:, :, i] = column.points.to(x)
        contexts = None if context is None else context.repeat_interleave(count, 0)
        each = score(rows.flatten(0, 1), contexts).view(len(x), count)
        result.append(torch.logsumexp(each + column.widths.log(), 1) - here)
    return torch.stack(result, 1).nan_to_num(0.0, torch.inf)


def _alone(x: Tensor, samples: Tensor, column: _Values) -> Tensor:
    """-log p(x_i) of a column (n,) by samples (1 or n, S): their frequencies, or Gaussian kernels of Silverman's width.

    Below it lies a Student's t of two degrees of freedom, so that it grows as a logarithm far from all samples.
    """
    x, samples = x.double(), samples.double()
    low, middle, high = samples.quantile(samples.new_tensor([0.25, 0.5, 0.75]), 1)  # (1 or n,)
    scale = (high - low) / 1.349
    scale = torch.where(scale > 1e-3 * column.spread, scale, column.spread)
    if column.all_of_them:
        density = (x[:, None] == samples).double().mean(1)
    else:
        width = 0.9 * scale * samples.shape[1] ** -0.2
        kernels = torch.exp(-0.5 * ((x[:, None] - samples) / width[:, None]).square())
        density = kernels.mean(1) / (width * math.sqrt(2 * math.pi))
    tail = -1.5 * torch.log1p(((x - middle) / scale).square() / 2) - scale.log() - 1.5 * math.log(2)
    return -torch.logaddexp(density.log() + math.log1p(-FLOOR), tail + math.log(FLOOR))


@dataclass(frozen=True)
class Worst:
    """One of the strangest rows.

    Attributes:
        row: its number.
        log_prob, score, p_value: its log-likelihood and its score, in nats, and how rare that is.
        shares: of each column ``(D,)``, in nats.
        column: the name of the one that is most responsible.
    """

    row: int
    log_prob: float
    score: float
    p_value: float
    shares: np.ndarray
    column: str

    def facts(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain data, shares by the names of the columns, the largest first."""
        order = np.argsort(-self.shares, kind="stable")
        shares = {names[i]: float(self.shares[i]) for i in order}
        return {
            "row": self.row, "log_likelihood": self.log_prob, "score": self.score, "p_value": self.p_value,
            "column": self.column, "shares": shares,
        }  # fmt: skip


def plot_anomalies(
    path: str | os.PathLike[str],
    law: Conformal,
    scores: np.ndarray,
    alpha: float,
    worst: Sequence[Worst],
    names: Sequence[str],
) -> None:
    """Plot the scores of rows beside those held out, and of the worst rows which columns are responsible.

    Args:
        path: of the PNG.
        law: knows the rows held out.
        scores: of the rows ``(n,)``.
        alpha: the p-value up to which they are flagged.
        worst: rows, the worst first.
        names: of the columns.
    """
    held_out = law.scores.numpy()
    shown = worst[:WORST]
    shares = np.stack([row.shares for row in shown]).clip(0)
    finite = np.where(np.isfinite(shares), shares, 0.0)
    most = float(max(finite.max(), 1.0))
    columns = np.argsort(-np.where(np.isfinite(shares), shares, 2 * most).max(0), kind="stable")[:WIDEST]
    columns = np.sort(columns)
    with figure(os.fspath(path), (6.4 + 0.42 * len(columns), max(3.4, 0.25 * len(shown) + 1.6))) as fig:
        left, right = fig.subplots(1, 2, width_ratios=(4.2, 1.4 + 0.42 * len(columns)))
        _plot_scores(left, held_out, scores, law.threshold(alpha), alpha)
        edges = [np.arange(len(part) + 1) - 0.5 for part in (columns, shown)]
        heat(right, edges, np.minimum(np.where(np.isfinite(shares), shares, most), most)[:, columns], MODEL, most)
        for y, x in np.ndindex(len(shown), len(columns)):
            share = shares[y, columns[x]]
            if share > 0.1 * most:
                text = f"{share:.0f}" if np.isfinite(share) else "∞"
                dark = share > 0.6 * most
                right.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
        right.set_xticks(range(len(columns)), [short(names[i]) for i in columns], rotation=45, ha="right")
        right.set_yticks(range(len(shown)), [f"row {row.row:,} (p = {row.p_value:.2g})" for row in shown])
        right.tick_params(length=0)
        right.invert_yaxis()
        more = "" if len(columns) == len(names) else f", the {len(columns)} of {len(names)} columns with most"
        right.set_title(f"the worst rows: nats of each column above what is usual{more}", fontsize=9)


def _plot_scores(axes: Any, held_out: np.ndarray, scores: np.ndarray, threshold: float, alpha: float) -> None:
    """Plot the distributions of held-out and of new scores, and up to where these are flagged.

    What lies far below, or is impossible, stands in the first bin.
    """
    finite = [part[np.isfinite(part)] for part in (held_out, scores)]
    low, high = span(np.concatenate(finite), 0.0, 1.0, margin=0.02)
    start, stop = np.quantile(finite[0], [0.005, 0.995]) if len(finite[0]) else (low, high)
    least = start - 1.0 * (stop - start)
    cut = bool(low < least or len(finite[1]) < len(scores))
    low = max(low, least)
    edges = np.linspace(low, high, int(np.clip(2.5 * len(held_out) ** (1 / 3), 12, 50)) + 1)
    inside = [np.maximum(part, low) for part in (held_out, scores)]
    histogram(axes, inside[0], edges, REAL, filled=True, label=f"held out ({len(held_out):,})")
    histogram(axes, inside[1], edges, OTHER, filled=False, label=f"these rows ({len(scores):,})")
    if threshold > low:
        axes.axvline(threshold, color="black", lw=1, ls=(0, (4, 3)), label=f"p = {alpha:g}")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.set_ylabel("density")
    axes.set_xlabel("score (nats per row)" + "; all below in the first bin" * cut)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1.2, handlelength=1.6, fontsize=8)

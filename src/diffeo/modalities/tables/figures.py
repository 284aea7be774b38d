"""The figures of a run directory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.mixture import Mixture
from diffeo.modalities.base import ENOUGH
from diffeo.modalities.tables.dates import DAY, show_dates
from diffeo.modalities.tables.rows import Split, TableStream
from diffeo.modalities.tables.schema import Column, Schema
from diffeo.modalities.tables.seen import SeenRows
from diffeo.report import figures, trajectories
from diffeo.report.check import FEWEST, by_fold
from diffeo.report.latents import normal_scores
from diffeo.report.mixed import noise_of
from diffeo.report.numerics import continuous_part
from diffeo.report.prediction import has_cdf, pit
from diffeo.report.style import Figures
from diffeo.training.folds import out_of_fold
from diffeo.training.seeding import derive, seed_noise
from diffeo.transforms.mixed import Mixed

__all__ = ["Rows", "held_out_pit", "plot_figures", "plot_pairs", "plot_rows"]

ROWS = 20_000  # plotted at most
FEWER = 5_000  # of a mixed density, which takes a pass for each column
NUMBERS = 4  # columns of numbers whose pairs it plots


@dataclass(frozen=True)
class Rows:
    """Rows as a flow takes them.

    Attributes:
        x, context: the rows ``(n, features)``.
        what: they are called.
        part: the fold that each was in, negative for a row that no member of a stack has seen; or None.
    """

    x: Tensor
    context: Tensor | None
    what: str
    part: Tensor | None = None

    def first(self, most: int) -> Rows:
        """So many of them."""
        context, part = (None if each is None else each[:most] for each in (self.context, self.part))
        return Rows(self.x[:most], context, self.what, part)


@torch.no_grad()
def plot_figures(run: Path, flow: Flow, schema: Schema, rows: Split, seed: int) -> list[str]:
    """Write ``run/figures/*.png`` and return their paths: learning curves, and what ``plot_rows`` plots.

    Raises:
        UserError: if they cannot be written.
    """
    path = Figures(run)
    figures.training(path, flow)
    device = flow.base.device_marker.device
    streamed = isinstance(rows.x, TableStream)
    x, context = (rows.valid_x, rows.valid_context) if streamed else (rows.x, rows.context)
    assert isinstance(x, Tensor)
    data = Rows(x[:ROWS].to(device), None if context is None else context[:ROWS].to(device), "training rows")
    judged = data
    if len(rows.valid_x) >= ENOUGH:
        held_out = None if rows.valid_context is None else rows.valid_context[:ROWS].to(device)
        judged = Rows(rows.valid_x[:ROWS].to(device), held_out, "held-out rows")
    seen = SeenRows.load(run)
    if seen is not None:
        judged = replace(judged, part=seen.parts(judged.x, judged.context))
    plot_rows(path, flow, schema, data, judged, seed)
    return path.plotted


@torch.no_grad()
def plot_rows(
    path: Figures, flow: Flow, schema: Schema, data: Rows, judged: Rows, seed: int, density: bool = True
) -> None:
    """Plot rows beside samples, and what the flow makes of rows.

    Data against samples in pairs of columns, the latents, for two continuous columns the density, for one column given
    others its distribution function at the rows. Of a mixed density data against samples column by column and in pairs
    of numbers, and the noise.

    Args:
        path: of the figures.
        flow: the density; of a stack, a row is judged by what was not trained on it, where its fold is known.
        schema: of the rows.
        data: rows beside samples.
        judged: rows whose latents are shown.
        seed: of the samples.
        density: plot that of two columns, which takes tens of thousands of evaluations.
    """
    seed_noise(flow.base.device_marker.device, derive(seed, "figures"))
    if isinstance(flow.transform, Mixed):
        _plot_mixed(path, flow, flow.transform, schema, data.first(FEWER), judged.first(FEWER))
        return
    x, context = data.x, data.context
    # One sample in each row's context; a small table gets more samples than it has rows.
    sampled = flow.sample((max(len(x), ROWS // 4),)) if context is None else flow.sample((), context)
    real_columns, sampled_columns = plot_pairs(schema, x, sampled, path("pairs"))

    if flow.has_log_prob:  # a few fixed steps are no bijection
        by_member, context, what = _held_out(flow, judged)
        bijection, points = continuous_part(by_member, judged.x)
        scores = normal_scores(by_member.base, bijection.encode(points, context))
        if scores is not None:
            figures.latents(scores, path("latents"), what)

    if judged.context is not None and has_cdf(flow):
        _, _, what = _held_out(flow, judged)
        figures.noise(held_out_pit(flow, schema, judged, seed), schema.feature_names, path("pit"), what, "F(y)")

    plane = schema.features == 2 and not schema.context_size and not any(grid.step for grid in schema.discrete)
    if density and plane and flow.has_log_prob:
        origins = [column.origin for column in schema.feature_columns]
        figures.density_2d(flow, real_columns, sampled_columns, schema.feature_names, path("density"), origins)
        if flow.ode is not None:
            trajectories.plot(flow.ode, flow.base, schema.feature_names, path("trajectories"))
            trajectories.animate(flow.ode, flow.base, path("trajectories", ".gif"))


def _held_out(flow: Flow, rows: Rows) -> tuple[Flow, Tensor | None, str]:
    """A density that has not seen the rows, where their folds are known, the contexts for it, and what to call them."""
    if not isinstance(flow, Mixture) or rows.part is None or not (rows.part >= 0).any():
        return flow, rows.context, rows.what
    density, context = by_fold(flow, rows.part, rows.context)
    return density, context, "held-out rows" if (rows.part >= 0).all() else rows.what


def held_out_pit(flow: Flow, schema: Schema, rows: Rows, seed: int) -> np.ndarray:
    """F(y) of rows ``(n, features)`` by what was not trained on them, where that is known: uniform if it is right.

    Args:
        flow: conditional.
        schema: of the rows.
        rows: with a context.
        seed: of the spread of discrete values.
    """
    x, context = rows.x, rows.context
    assert context is not None
    steps = [grid.step for grid in schema.discrete]
    part = torch.full((len(x),), -1) if rows.part is None else rows.part

    def below(density: Flow, mine: Tensor) -> Tensor:
        return torch.from_numpy(pit(density, x[mine], context[mine], steps, seed))

    return np.asarray(out_of_fold(flow, part, below).numpy())


def _plot_mixed(path: Figures, flow: Flow, transform: Mixed, schema: Schema, data: Rows, judged: Rows) -> None:
    x, context = data.x, data.context
    sampled = flow.sample((max(len(x), ROWS // 4),)) if context is None else flow.sample((), context)
    real_columns, sampled_columns = (_in_units(schema, part) for part in (x, sampled))
    columns = schema.feature_columns
    parts = zip(columns, real_columns.T, sampled_columns.T, strict=True)
    figures.marginals([_marginal(*each) for each in parts], path("marginals"))
    numbers = [i for i, column in enumerate(columns) if column.kind in ("continuous", "integer")][:NUMBERS]
    if len(numbers) > 1:
        both = [part[:, numbers] for part in (real_columns, sampled_columns)]
        complete = [part[np.isfinite(part).all(1)] for part in both]
        if min(map(len, complete)) >= FEWEST:
            names, steps = [columns[i].name for i in numbers], [columns[i].step for i in numbers]
            figures.pairs(complete[0], complete[1], names, path("pairs"), steps)
    density, context, what = _held_out(flow, judged)
    figures.noise(*noise_of(transform, density.encode(judged.x, context), schema.feature_names), path("noise"), what)


def _marginal(column: Column, real: np.ndarray, sampled: np.ndarray) -> figures.Marginal:
    """A column as a figure shows it; levels are categories, as they may lie anywhere."""
    if column.kind == "levels":
        real, sampled = (
            np.where(np.isnan(part), np.nan, np.searchsorted(column.values, part)) for part in (real, sampled)
        )
        return figures.Marginal(column.name, real, sampled, labels=[f"{value:g}" for value in column.values])
    if column.kind == "date":
        format_ = "%Y-%m-%d" if column.high - column.low > 3 * DAY else "%H:%M" if column.high < DAY else "%m-%d %H:%M"
        return figures.Marginal(
            column.name, real, sampled, dates=True, show=lambda value: show_dates(np.array([value]), format_)[0]
        )
    labels = [str(value) for value in column.values or column.categories]
    return figures.Marginal(column.name, real, sampled, labels, column.step)


def plot_pairs(
    schema: Schema, x: Tensor, sampled: Tensor, path: Path, whose: tuple[str, str] = ("data", "samples")
) -> tuple[np.ndarray, np.ndarray]:
    """Compare rows with samples, both as a flow has them, in pairs of columns; return both in the table's own units.

    ``whose`` says where the two come from.
    """
    real_columns, sampled_columns = (_in_units(schema, part) for part in (x, sampled))
    columns = schema.feature_columns
    labels = [[f"{value:g}" for value in column.values] for column in columns]
    real_codes, sampled_codes = (
        np.stack([part[:, i] if labels[i] else in_units[:, i] for i in range(len(columns))], axis=1)
        for part, in_units in ((x.cpu().numpy(), real_columns), (sampled.cpu().numpy(), sampled_columns))
    )
    steps = [1.0 if column.values else column.step for column in columns]
    figures.pairs(real_codes, sampled_codes, schema.feature_names, path, steps, labels, whose)
    return real_columns, sampled_columns


def _in_units(schema: Schema, x: Tensor) -> np.ndarray:
    """Return the columns as the table has them, dates in seconds, categories as codes."""
    values = x.double().cpu().numpy()
    parts = [values[:, place] for place in schema.places.values()]
    return np.stack(
        [
            column.decode(part if column.kind == "date" else part[:, 0])
            for column, part in zip(schema.feature_columns, parts, strict=True)
        ],
        axis=1,
    )

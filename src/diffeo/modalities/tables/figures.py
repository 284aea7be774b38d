"""The figures of a run directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.modalities.base import ENOUGH
from diffeo.modalities.tables.dates import DAY, show_dates
from diffeo.modalities.tables.rows import Split, TableStream
from diffeo.modalities.tables.schema import Column, Schema
from diffeo.modalities.tables.seen import SeenRows
from diffeo.report import figures, trajectories
from diffeo.report.check import FEWEST
from diffeo.report.latents import normal_scores
from diffeo.report.mixed import noise_of
from diffeo.report.numerics import continuous_part
from diffeo.report.prediction import has_cdf, pit
from diffeo.report.style import Figures
from diffeo.training.folds import out_of_fold
from diffeo.training.seeding import derive, seed_noise
from diffeo.transforms.mixed import Mixed

__all__ = ["plot_figures", "plot_pairs"]

ROWS = 20_000  # plotted at most
FEWER = 5_000  # of a mixed density, which takes a pass for each column
NUMBERS = 4  # columns of numbers whose pairs it plots


@torch.no_grad()
def plot_figures(run: Path, flow: Flow, schema: Schema, rows: Split, seed: int) -> list[str]:
    """Write ``run/figures/*.png`` and return their paths.

    Learning curves, data against samples in pairs of columns, the latents, for two continuous columns the density, for
    one column given others its distribution function at the rows. Of a
    mixed density learning curves, data against samples column by column and in pairs of numbers, and the noise.

    Raises:
        UserError: if they cannot be written.
    """
    path = Figures(run)
    figures.training(path, flow)
    device = flow.base.device_marker.device
    streamed = isinstance(rows.x, TableStream)
    x, context = (rows.valid_x, rows.valid_context) if streamed else (rows.x, rows.context)
    assert isinstance(x, Tensor)
    x = x[:ROWS].to(device)
    context = None if context is None else context[:ROWS].to(device)
    seed_noise(device, derive(seed, "figures"))
    if isinstance(flow.transform, Mixed):
        _plot_mixed(path, flow, flow.transform, schema, rows, x[:FEWER], None if context is None else context[:FEWER])
        return path.plotted
    # One sample in each row's context; a small table gets more samples than it has rows.
    sampled = flow.sample((max(len(x), ROWS // 4),)) if context is None else flow.sample((), context)
    real_columns, sampled_columns = plot_pairs(schema, x, sampled, path("pairs"))

    x, context, what = _judged(rows, x, context)
    bijection, points = continuous_part(flow, x)
    scores = normal_scores(flow.base, bijection.encode(points, context))
    if scores is not None:
        figures.latents(scores, path("latents"), what)

    if context is not None and has_cdf(flow):
        _plot_pit(path, flow, schema, x, context, what, seed)

    if schema.features == 2 and not schema.context_size and not any(grid.step for grid in schema.discrete):
        origins = [column.origin for column in schema.feature_columns]
        figures.density_2d(flow, real_columns, sampled_columns, schema.feature_names, path("density"), origins)
        if flow.ode is not None:
            trajectories.plot(flow.ode, flow.base, schema.feature_names, path("trajectories"))
            trajectories.animate(flow.ode, flow.base, path("trajectories", ".gif"))
    return path.plotted


def _plot_pit(path: Figures, flow: Flow, schema: Schema, x: Tensor, context: Tensor, what: str, seed: int) -> None:
    """Plot F(y) of rows by what was not trained on them, where the run remembers that: uniform if it is right."""
    seen = SeenRows.load(path.run)
    part = torch.full((len(x),), -1) if seen is None else seen.parts(x, context)
    steps = [grid.step for grid in schema.discrete]

    def below(density: Flow, mine: Tensor) -> Tensor:
        return torch.from_numpy(pit(density, x[mine], context[mine], steps, seed))

    values = out_of_fold(flow, part, below).numpy()
    if (part >= 0).all():
        what = "held-out rows"  # each by the part that held it out
    figures.noise(values, schema.feature_names, path("pit"), what, "F(y)")


def _plot_mixed(
    path: Figures, flow: Flow, transform: Mixed, schema: Schema, rows: Split, x: Tensor, context: Tensor | None
) -> None:
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
    x, context, what = _judged(rows, x, context)
    z = flow.encode(x[:FEWER], None if context is None else context[:FEWER])
    figures.noise(*noise_of(transform, z, schema.feature_names), path("noise"), what)


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


def _judged(rows: Split, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None, str]:
    """The rows held out, if they are enough, else those of training that are given, and which they are."""
    if len(rows.valid_x) < ENOUGH:
        return x, context, "training rows"
    held_out = None if rows.valid_context is None else rows.valid_context[:ROWS].to(x.device)
    return rows.valid_x[:ROWS].to(x.device), held_out, "held-out rows"


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

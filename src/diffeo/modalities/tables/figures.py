"""The figures of a run directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.modalities.base import ENOUGH
from diffeo.modalities.tables.rows import Split, TableStream
from diffeo.modalities.tables.schema import Schema
from diffeo.report import figures, trajectories
from diffeo.report.latents import normal_scores
from diffeo.report.numerics import continuous_part
from diffeo.report.style import Figures
from diffeo.training.seeding import derive, seed_noise

__all__ = ["plot_figures", "plot_pairs"]

ROWS = 20_000  # plotted at most


@torch.no_grad()
def plot_figures(run: Path, flow: Flow, schema: Schema, rows: Split, seed: int) -> list[str]:
    """Write ``run/figures/*.png`` and return their paths.

    Learning curves, data against samples in pairs of columns, the latents, for two continuous columns the density.

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
    # One sample in each row's context; a small table gets more samples than it has rows.
    sampled = flow.sample((max(len(x), ROWS // 4),)) if context is None else flow.sample((), context)
    real_columns, sampled_columns = plot_pairs(schema, x, sampled, path("pairs"))

    held_out = len(rows.valid_x) >= ENOUGH
    if held_out:
        x, context = rows.valid_x[:ROWS].to(device), rows.valid_context
        context = None if context is None else context[:ROWS].to(device)
    bijection, points = continuous_part(flow, x)
    scores = normal_scores(flow.base, bijection.encode(points, context))
    if scores is not None:
        figures.latents(scores, path("latents"), "held-out rows" if held_out else "training rows")

    if schema.features == 2 and not schema.context_size and not any(grid.step for grid in schema.discrete):
        origins = [column.origin for column in schema.feature_columns]
        figures.density_2d(flow, real_columns, sampled_columns, schema.feature_names, path("density"), origins)
        if flow.ode is not None:
            trajectories.plot(flow.ode, flow.base, schema.feature_names, path("trajectories"))
            trajectories.animate(flow.ode, flow.base, path("trajectories", ".gif"))
    return path.plotted


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
    """Return the features as the table has them."""
    values = x.double().cpu().numpy()
    return np.stack([column.decode(values[:, i]) for i, column in enumerate(schema.feature_columns)], axis=1)

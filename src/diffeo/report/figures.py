"""Pictures of a training and of what it made; each function writes one PNG."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffeo.report.style import GREY, MODEL, REAL, figure, shades

__all__ = ["density_2d", "latents", "learning_curve", "pairs"]

COLUMNS = 6  # columns shown in a grid of pairs, and latents
FEW = 1500  # rows plotted as points, not as counts


def learning_curve(
    metrics: str | Path,
    path: str | Path,
    dimensions: int | None = None,
    step: float = 1.0,
    unit: str = "bits/dim",
    likelihood: bool = True,
) -> None:
    """Plot the losses of training and validation, epoch by epoch, from a ``metrics.jsonl``.

    Args:
        metrics: the file.
        path: of the PNG.
        dimensions: of an image or a sound: losses are then plotted in bits for each of them, else in nats per row.
        step: the distance of neighbouring values, in which those bits are counted.
        unit: what they are called.
        likelihood: whether the losses are negative log-likelihoods; else they have no unit.
    """
    unit, scale = ("nats", 1.0) if dimensions is None else (unit, 1 / (dimensions * np.log(2)))
    offset = 0.0 if dimensions is None else -np.log2(step)
    name = f"negative log-likelihood ({unit}{' per row' * (dimensions is None)})"
    if not likelihood:
        unit, scale, offset, name = "", 1.0, 0.0, "loss"
    entries = [json.loads(line) for line in Path(metrics).read_text().splitlines() if line.strip()]
    epoch = np.array([entry["epoch"] for entry in entries], dtype=float)

    def series(name: str) -> np.ndarray:
        values = [entry.get(name) if entry.get(name) is not None else np.nan for entry in entries]
        return scale * np.array(values, dtype=float)

    train, valid, error = offset + series("loss"), offset + series("val_loss"), series("val_stderr")
    with figure(path, (6.4, 3.8)) as fig:
        axes = fig.add_subplot()
        marker = "o" if len(epoch) < 15 else None
        axes.plot(epoch, train, color=GREY, lw=1.2, marker=marker, ms=3, label="training")
        shown = [train]
        if np.isfinite(valid).any():
            axes.plot(epoch, valid, color=REAL, lw=1.6, marker=marker, ms=3, label="validation")
            axes.fill_between(epoch, valid - error, valid + error, color=REAL, alpha=0.18, lw=0)
            best = int(np.nanargmin(valid))
            axes.plot(epoch[best], valid[best], "o", color=MODEL, ms=6, zorder=5)
            axes.axhline(valid[best], color=MODEL, lw=0.7, ls=(0, (4, 4)), zorder=0)
            axes.set_title(f"best {valid[best]:.3f} ± {error[best]:.3f} {unit} in epoch {int(epoch[best])}")
            shown += [valid, valid[best:] - np.nan_to_num(error[best:])]
        axes.set_ylim(*_curve_limits(np.concatenate(shown)))
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)  # above, never in the way


def _curve_limits(values: np.ndarray) -> tuple[float, float]:
    """Return limits that show the best values well and leave out the first epochs' heights."""
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = values.min(), np.quantile(values, 0.9 if len(values) >= 20 else 1.0)
    margin = 0.08 * max(high - low, 1e-3 * max(1.0, abs(low)))
    return low - margin, high + 2 * margin


def pairs(
    real: np.ndarray,
    sampled: np.ndarray,
    names: Sequence[str],
    path: str | Path,
    steps: Sequence[float] | None = None,
    labels: Sequence[Sequence[str]] | None = None,
    whose: tuple[str, str] = ("data", "samples"),
) -> None:
    """Compare rows with samples, for the first columns: marginals on the diagonal, pairs below it and above it.

    Args:
        real: rows (n, D).
        sampled: rows (m, D).
        names: of the columns.
        path: of the PNG.
        steps: distance between neighbouring values of discrete columns, 0 for continuous ones.
        labels: for columns that hold codes 0, 1, ..., what these stand for; empty for others.
        whose: what rows and samples are called.
    """
    count = min(COLUMNS, real.shape[1])
    steps = [0.0] * count if steps is None else steps
    bins = int(np.clip(2.5 * len(real) ** (1 / 3), 10, 40 if count > 2 else 60))
    edges = [_edges(real[:, i], steps[i], bins) for i in range(count)]
    cloud = _points if len(real) < FEW else _counts
    plotted = sampled[: len(real)] if len(real) < FEW else sampled  # as many points of each kind
    size = 1.45 if count > 3 else 2.4
    with figure(path, (max(size * count, 3.4) + 0.6, max(size * count, 2.6) + 0.7)) as fig:
        grid = fig.subplots(count, count, squeeze=False)
        for i in range(count):
            for j in range(count):
                axes = grid[i, j]
                if i == j:
                    _marginals(axes, real[:, i], sampled[:, i], edges[i])
                elif i > j:
                    cloud(axes, real[:, [j, i]], edges[j], edges[i], (steps[j], steps[i]), REAL)
                else:
                    cloud(axes, plotted[:, [j, i]], edges[j], edges[i], (steps[j], steps[i]), MODEL)
                axes.set_xlim(edges[j][0], edges[j][-1])
                if i != j:
                    axes.set_ylim(edges[i][0], edges[i][-1])
                _ticks(axes.xaxis, steps[j], edges[j], labels[j] if labels else ())
                if i == j:
                    axes.set_yticks([])
                else:
                    _ticks(axes.yaxis, steps[i], edges[i], labels[i] if labels else ())
                below, beside = i == count - 1, j == 0 and i > 0
                axes.tick_params(labelbottom=below, bottom=below, labelleft=beside, left=beside)
            grid[count - 1, i].set_xlabel(_short(names[i]))
            grid[i, 0].set_ylabel(_short(names[i]) if count > 1 else "density")
        fig.align_ylabels(grid[:, 0])
        _legend(fig, (f"{whose[0]} (below the diagonal)", f"{whose[1]} (above)") if count > 1 else whose)
        if real.shape[1] > count:
            fig.supxlabel(f"the first {count} of {real.shape[1]} columns", fontsize=8, color=GREY)


def _edges(values: np.ndarray, step: float, bins: int) -> np.ndarray:
    """Return the edges of bins, whole cells of a discrete column, without the outermost 0.5 % of the values."""
    low, high = np.quantile(values, [0.005, 0.995])
    if step > 0:
        cells = round((high - low) / step) + 1
        width = step * max(1, math.ceil(cells / bins))
        # half a cell to the left, so that values stand in the middle of their bins
        return low - step / 2 + width * np.arange(math.ceil(cells * step / width - 1e-9) + 1)
    if not high > low:
        low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or 0.5
    return np.linspace(low - margin, high + margin, bins + 1)


def _ticks(axis: Any, step: float, edges: np.ndarray, labels: Sequence[str]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    values = edges[:-1] + step / 2
    if step > 0 and len(values) <= 5:  # each value has its tick
        axis.set_ticks(
            values, [_short(labels[round(v)], 6) for v in values] if labels else [_compact(v) for v in values]
        )
        return
    axis.set_major_locator(MaxNLocator(3, integer=step >= 1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _compact(value)))


def _compact(value: float) -> str:
    """Return a number in few characters: 250k, 1.5M, 0.25, 3e-05."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if 1e4 <= abs(value) < 1e15 and abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _marginals(axes: Any, real: np.ndarray, sampled: np.ndarray, edges: np.ndarray) -> None:
    for values, style in (
        (real, {"histtype": "stepfilled", "color": REAL, "alpha": 0.35, "lw": 0}),
        (sampled, {"histtype": "step", "color": MODEL, "lw": 1.3}),
    ):
        # by all rows, not only those that are shown: a sampler that strays must not look better
        weights = np.full(len(values), 1 / (max(len(values), 1) * (edges[1] - edges[0])))
        axes.hist(values, bins=edges, weights=weights, **style)
    axes.set_ylim(bottom=0)


def _points(
    axes: Any, xy: np.ndarray, x_edges: np.ndarray, y_edges: np.ndarray, steps: tuple[float, float], colour: str
) -> None:
    # discrete values are spread over their cells, or they would hide each other
    spread = np.random.default_rng(0).uniform(-0.4, 0.4, xy.shape) * steps
    x, y = (xy + spread).T
    axes.plot(x, y, color=colour, lw=0, marker=".", ms=5 if len(xy) < 400 else 3, mew=0, alpha=0.6)


def _counts(
    axes: Any, xy: np.ndarray, x_edges: np.ndarray, y_edges: np.ndarray, steps: tuple[float, float], colour: str
) -> None:
    from matplotlib.colors import PowerNorm

    counts, _, _ = np.histogram2d(xy[:, 0], xy[:, 1], bins=(x_edges, y_edges))
    most = np.quantile(counts[counts > 0], 0.995) if (counts > 0).any() else 1.0
    axes.pcolormesh(
        x_edges, y_edges, counts.T, cmap=shades(colour), norm=PowerNorm(0.5, 0, max(most, 1.0)), rasterized=True
    )


def _legend(fig: Any, labels: tuple[str, str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=REAL, alpha=0.6, label=labels[0]), Patch(color=MODEL, label=labels[1])]
    fig.legend(handles=handles, loc="outside upper center", ncols=2)


def _short(name: str, length: int = 18) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def latents(scores: np.ndarray, path: str | Path, what: str = "data") -> None:
    """Hold the latents of rows (n, D), as normal scores, against the standard normal: histograms and Q-Q plots.

    Of more than six dimensions, those farthest from the normal are shown. ``what`` names the rows.
    """
    from scipy import stats

    n, d = scores.shape
    distances = [stats.kstest(column, "norm").statistic for column in scores.T]
    shown = sorted(np.argsort(distances)[::-1][:COLUMNS])
    count = len(shown)
    line = np.linspace(-4, 4, 200)
    # Order statistics: all of a few, of many those that stand evenly along the axis.
    spots = np.unique(np.rint(n * stats.norm.cdf(np.linspace(-5, 5, 400)) - 0.5).clip(0, n - 1).astype(int))
    theory = stats.norm.ppf((spots + 0.5) / n)
    chance = [stats.norm.ppf(stats.beta.ppf(level, spots + 1, n - spots)) for level in (0.005, 0.995)]
    reach = max(4.0, min(8.0, float(np.abs(scores[:, shown]).max())))
    with figure(path, (1.7 * max(count, 2) + 0.5, 3.9)) as fig:
        grid = fig.subplots(2, count, squeeze=False)
        for axes, i in zip(grid[0], shown, strict=True):
            bins = int(np.clip(2 * n ** (1 / 2.5), 12, 60))
            axes.hist(scores[:, i], bins=np.linspace(-4, 4, bins + 1), density=True, color=REAL, alpha=0.35, lw=0)
            axes.plot(line, stats.norm.pdf(line), color="black", lw=1)
            axes.set_xlim(-4, 4)
            axes.set_title(f"z{i + 1}")
            axes.set_yticks([])
        for axes, i in zip(grid[1], shown, strict=True):
            axes.fill_between(theory, *chance, color="#D0D0D0", lw=0)
            axes.plot([-reach, reach], [-reach, reach], color="black", lw=0.8)
            axes.plot(theory, np.sort(scores[:, i])[spots], color=REAL, lw=0, marker=".", ms=3)
            axes.set_xlim(-reach, reach)
            axes.set_ylim(-reach, reach)
            axes.set_aspect("equal")
            axes.set_xlabel("normal quantile")
        grid[1, 0].set_ylabel("latent quantile")
        which = "" if count == d else f": the {count} of {d} farthest from it"
        title = f"latents of {what} (blue), the base (black), the range of chance (99 %, grey){which}"
        fig.suptitle(title if count > 3 else title.replace(", the range", "\nand the range"), fontsize=9, color=GREY)


def density_2d(
    flow: Any,
    data: np.ndarray,
    sampled: np.ndarray,
    names: Sequence[str],
    path: str | Path,
    origins: Sequence[float] = (0.0, 0.0),
) -> None:
    """Plot data, density and samples of a flow over the plane side by side, on the same scale.

    Args:
        flow: a ``Flow`` of event shape (2,) without context.
        data: rows (n, 2).
        sampled: rows (m, 2).
        names: of the two columns.
        path: of the PNG.
        origins: what is subtracted from the two columns before the flow sees them.
    """
    import torch
    from matplotlib.colors import PowerNorm

    limits = [_limits(data[:, i]) for i in range(2)]
    edges = [np.linspace(*limit, 221) for limit in limits]
    centres = [(e[1:] + e[:-1]) / 2 for e in edges]
    points = np.stack(np.meshgrid(*centres), -1).reshape(-1, 2)  # (cells, 2), x running fastest
    with torch.no_grad():
        inputs = torch.from_numpy(points - np.asarray(origins)).to(flow.base.device_marker)
        log_prob = flow.log_prob(inputs, nan="propagate")
    density = log_prob.double().exp().nan_to_num(0.0).cpu().numpy().reshape(len(centres[1]), len(centres[0]))
    coarse = [np.linspace(*limit, int(np.clip(len(data) ** 0.5 / 2, 20, 110)) + 1) for limit in limits]
    clouds = []
    for rows in (data, sampled):
        counts, _, _ = np.histogram2d(rows[:, 0], rows[:, 1], bins=coarse)
        area = (coarse[0][1] - coarse[0][0]) * (coarse[1][1] - coarse[1][0])
        clouds.append((counts / (len(rows) * area)).T)
    norm = PowerNorm(0.6, 0, float(np.quantile(density, 0.995)) or 1.0)
    spans = [high - low for low, high in limits]
    equal = max(spans) < 3 * min(spans)
    with figure(path, (10.2, 3.1 * (spans[1] / spans[0] if equal else 1.0) + 0.8)) as fig:
        panels = fig.subplots(1, 3, sharex=True, sharey=True)
        for axes, title, where, values, colour in (
            (panels[0], f"data ({len(data):,} rows)", coarse, clouds[0], REAL),
            (panels[1], "density", edges, density, "#3B1C8C"),
            (panels[2], f"samples ({len(sampled):,})", coarse, clouds[1], MODEL),
        ):
            axes.pcolormesh(*where, values, cmap=shades(colour), norm=norm, rasterized=True)
            axes.set_title(title)
            axes.set_xlabel(_short(names[0]))
            if equal:
                axes.set_aspect("equal")
        panels[0].set_ylabel(_short(names[1]))


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Return the range of nearly all values, and a margin that shows whether the density ends where they do."""
    low, high = np.quantile(values, [0.001, 0.999])
    margin = 0.08 * (high - low) or 0.5
    return float(low - margin), float(high + margin)

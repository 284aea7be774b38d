"""Pictures of a training and of what it made; each function writes one PNG."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from diffeo.flow import Flow
from diffeo.objectives import MaximumLikelihood, objective_of
from diffeo.report.style import DENSITY, GREY, MODEL, REAL, Figures, figure, heat, histogram, legend_above, span

__all__ = ["Marginal", "density_2d", "latents", "learning_curve", "marginals", "noise", "pairs", "short", "training"]

COLUMNS = 6  # columns shown in a grid of pairs, and latents
PANELS = 16  # columns shown one by one
BARS = 12  # categories shown, the most frequent ones
MISSING = "missing"
FEW = 1500  # rows plotted as points, not as counts


def training(path: Figures, flow: Flow, run: Path | None = None, **units: Any) -> None:
    """Plot the learning curve of a run, where its training wrote of its epochs.

    Args:
        path: of the figures.
        flow: that was trained.
        run: its directory, where the figures go elsewhere.
        units: as of ``learning_curve``.
    """
    metrics = (run or path.run) / "train" / "metrics.jsonl"
    if metrics.is_file() and metrics.stat().st_size:
        bound = flow.has_bound
        likelihood = bound or isinstance(objective_of(flow), MaximumLikelihood)
        learning_curve(metrics, path("learning_curve"), likelihood=likelihood, bound=bound, **units)


def learning_curve(
    metrics: str | Path,
    path: str | Path,
    dimensions: int | None = None,
    step: float = 1.0,
    unit: str = "bits/dim",
    likelihood: bool = True,
    bound: bool = False,
) -> None:
    """Plot the losses of training and validation, epoch by epoch, from a ``metrics.jsonl``.

    Args:
        metrics: the file.
        path: of the PNG.
        dimensions: of an image or a sound: losses are then plotted in bits for each of them, else in nats per row.
        step: the distance of neighbouring values, in which those bits are counted.
        unit: what they are called.
        likelihood: whether the losses are negative log-likelihoods; else they have no unit.
        bound: whether they are bounds of these, as of a VAE.
    """
    what = "bound of the negative log-likelihood" if bound else "negative log-likelihood"
    scale, offset, name, said = 1.0, 0.0, f"{what} (nats per row)", " nats"
    if not likelihood:
        name, said = "loss", ""
    elif dimensions is not None:
        scale, offset = 1 / (dimensions * math.log(2)), -math.log2(step)
        name, said = f"{what} ({unit})", f" {unit}"
    entries = [json.loads(line) for line in Path(metrics).read_text().splitlines() if line.strip()]
    epoch, train, valid, error = (
        np.array([entry.get(key) for entry in entries], dtype=float)  # None becomes NaN
        for key in ("epoch", "loss", "val_loss", "val_stderr")
    )
    train, valid, error = offset + scale * train, offset + scale * valid, scale * error
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
            axes.set_title(f"best {valid[best]:.3f} ± {error[best]:.3f}{said} in epoch {int(epoch[best])}")
            shown += [valid, valid[best:] - np.nan_to_num(error[best:])]
        axes.set_ylim(*_curve_limits(np.concatenate(shown)))
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        legend_above(axes, 2)


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
    from matplotlib.patches import Patch

    count = min(COLUMNS, real.shape[1])
    names = [short(name) for name in names[:count]]
    cells = np.array([0.0] * count if steps is None else steps[:count])
    labels = labels or [()] * count
    bins = int(np.clip(2.5 * len(real) ** (1 / 3), 10, 40 if count > 2 else 60))
    edges = [_edges(real[:, i], cells[i], bins) for i in range(count)]
    few = len(real) < FEW
    clouds = {REAL: real, MODEL: sampled[: len(real)] if few else sampled}  # as many points of each kind
    size = 1.45 if count > 3 else 2.4
    with figure(path, (max(size * count, 3.4) + 0.6, max(size * count, 2.6) + 0.7)) as fig:
        grid = fig.subplots(count, count, squeeze=False)
        for (i, j), axes in np.ndenumerate(grid):
            if i == j:
                histogram(axes, real[:, i], edges[i], REAL, filled=True)
                histogram(axes, sampled[:, i], edges[i], MODEL, filled=False)
                axes.set_ylim(bottom=0)
                axes.set_yticks([])
            else:
                colour, columns = REAL if i > j else MODEL, [j, i]
                _cloud(axes, clouds[colour][:, columns], [edges[j], edges[i]], cells[columns], colour, few)
                axes.set_ylim(edges[i][0], edges[i][-1])
                _ticks(axes.yaxis, float(cells[i]), edges[i], labels[i], count)
            axes.set_xlim(edges[j][0], edges[j][-1])
            _ticks(axes.xaxis, float(cells[j]), edges[j], labels[j], count)
            below, beside = i == count - 1, j == 0 and i > 0
            axes.tick_params(labelbottom=below, bottom=below, labelleft=beside, left=beside)
        for axes, name in zip(grid[-1], names, strict=True):
            axes.set_xlabel(name)
        for axes, name in zip(grid[:, 0], names if count > 1 else ["density"], strict=True):
            axes.set_ylabel(name)
        fig.align_ylabels(grid[:, 0])
        said = (f"{whose[0]} (below the diagonal)", f"{whose[1]} (above)") if count > 1 else whose
        handles = [Patch(color=REAL, alpha=0.6, lw=0, label=said[0]), Patch(color=MODEL, lw=0, label=said[1])]
        fig.legend(handles=handles, loc="outside upper center", ncols=2)
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
    shares = (0.005, 0.995) if high > low else (0.0, 1.0)
    return np.linspace(*span(values, *shares, margin=0.04), bins + 1)


def _ticks(axis: Any, step: float, edges: np.ndarray, labels: Sequence[str], count: int) -> None:
    from matplotlib.ticker import MaxNLocator

    values = edges[:-1] + step / 2
    if step > 0 and len(values) <= 5:  # each value has its tick
        axis.set_ticks(
            values, [short(labels[round(v)], 6) for v in values] if labels else [_compact(v) for v in values]
        )
        return
    axis.set_major_locator(MaxNLocator(3 if count > 3 else 5, integer=step >= 1))
    axis.set_major_formatter(lambda value, _: _compact(value))


def _compact(value: float) -> str:
    """Return a number in few characters: 250k, 1.5M, 0.25, 3e-05."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if 1e4 <= abs(value) < 1e15 and abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _cloud(
    axes: Any, xy: np.ndarray, edges: Sequence[np.ndarray], steps: np.ndarray, colour: str, points: bool
) -> None:
    """Plot rows (n, 2), as points or as counts in the cells between the edges."""
    if points:
        # discrete values are spread over their cells, or they would hide each other
        x, y = (xy + np.random.default_rng(0).uniform(-0.4, 0.4, xy.shape) * steps).T
        axes.plot(x, y, color=colour, lw=0, marker=".", ms=5 if len(xy) < 400 else 3, mew=0, alpha=0.6)
    else:
        counts = _counts(xy, edges)
        heat(axes, edges, counts, colour, float(np.quantile(counts[counts > 0], 0.995)) if counts.any() else 1.0)


def _counts(xy: np.ndarray, edges: Sequence[np.ndarray]) -> np.ndarray:
    """Count rows (n, 2) in the cells between edges of x and of y: (y cells, x cells)."""
    return np.histogram2d(xy[:, 0], xy[:, 1], bins=tuple(edges))[0].T


def short(name: str, length: int = 18) -> str:
    """Return a name as it fits beside an axis."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


@dataclass(frozen=True)
class Marginal:
    """A column of rows and of samples, side by side.

    Attributes:
        name: of the column.
        real, sampled: its values (n,) and (m,), NaN where a cell is missing; codes 0, 1, ... of categories.
        labels: what the codes stand for; empty for numbers.
        step: distance between neighbouring numbers, 0 if there is none.
        show: the text of a number, for ticks.
        dates: whether the numbers are points in time, in seconds.
    """

    name: str
    real: np.ndarray
    sampled: np.ndarray
    labels: Sequence[str] = ()
    step: float = 0.0
    show: Callable[[float], str] = _compact
    dates: bool = False


def marginals(columns: Sequence[Marginal], path: str | Path) -> None:
    """Compare columns of rows with those of samples one by one, of what is missing its share.

    Bars are shares of the rows with a category, or of the rows with a number in a bin; of more than 16 columns the
    first are shown.

    Args:
        columns: any number.
        path: of the PNG.
    """
    from matplotlib.patches import Patch

    shown = columns[:PANELS]
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    with figure(path, (2.6 * across + 0.4, 2.1 * down + 0.5)) as fig:
        grid = fig.subplots(down, across, squeeze=False)
        for axes in grid.flat[len(shown) :]:
            axes.remove()
        for axes, column in zip(grid.flat, shown, strict=False):
            (_bars if column.labels else _bins)(axes, column)
            axes.set_title(short(column.name, 30))
        handles = [Patch(color=REAL, alpha=0.35, lw=0, label="data"), Patch(fill=False, ec=MODEL, label="samples")]
        fig.legend(handles=handles, loc="outside upper right", ncols=2)
        if len(columns) > len(shown):
            fig.supxlabel(f"the first {len(shown)} of {len(columns)} columns", fontsize=8, color=GREY)


def _bars(axes: Any, column: Marginal) -> None:
    """Plot shares of the most frequent categories, from top to bottom, of all others, and of what is missing."""
    counts = [
        np.bincount(values[~np.isnan(values)].astype(int), minlength=len(column.labels)) / max(1, len(values))
        for values in (column.real, column.sampled)
    ]
    order = np.argsort(-counts[0], kind="stable")
    often, rest = order[:BARS], order[BARS:]
    names = [short(column.labels[code], 20) or "''" for code in often]
    shares = [[*part[often], *([part[rest].sum()] if len(rest) else [])] for part in counts]
    names += [f"{len(rest)} others"] if len(rest) else []
    missing = [float(np.isnan(values).mean()) for values in (column.real, column.sampled)]
    if any(missing):
        names, shares = [*names, MISSING], [[*part, share] for part, share in zip(shares, missing, strict=True)]
    places = np.arange(len(names))
    axes.barh(places, shares[0], 0.8, color=REAL, alpha=0.35, lw=0)
    axes.barh(places, shares[1], 0.8, fill=False, edgecolor=MODEL, lw=1.1)
    axes.set_yticks(places, names, fontsize=7 if len(names) > 6 else 8)
    axes.invert_yaxis()
    axes.tick_params(left=False)
    _shares(axes.xaxis)


def _bins(axes: Any, column: Marginal) -> None:
    """Plot shares of the numbers in bins, and at the right of what is missing."""
    real, sampled = (values[np.isfinite(values)] for values in (column.real, column.sampled))
    edges = _edges(real if len(real) else np.zeros(1), column.step, int(np.clip(2.5 * len(real) ** (1 / 3), 8, 40)))
    for values, whole, look in (
        (real, column.real, {"fill": True, "color": REAL, "alpha": 0.35, "lw": 0}),
        (sampled, column.sampled, {"fill": False, "color": MODEL, "lw": 1.3}),
    ):
        axes.stairs(np.histogram(values, edges)[0] / max(1, len(whole)), edges, **look)
    low, high = edges[0], edges[-1]
    missing = [float(np.isnan(values).mean()) for values in (column.real, column.sampled)]
    ticks = _numbers(low, high, column.step >= 1)
    if column.dates:  # whose texts are long
        ticks = [low + share * (high - low) for share in ((0.15, 0.7) if any(missing) else (0.2, 0.8))]
    if any(missing):
        width = 0.09 * (high - low)
        place = high + 1.6 * width
        axes.bar(place, missing[0], width, color=REAL, alpha=0.35, lw=0)
        axes.bar(place, missing[1], width, fill=False, edgecolor=MODEL, lw=1.1)
        ticks = [tick for tick in ticks if tick < high - width]
        axes.set_xticks([*ticks, place], [*map(column.show, ticks), MISSING])
        high = place + width
    else:
        axes.set_xticks(ticks, [*map(column.show, ticks)])
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    _shares(axes.yaxis)


def _shares(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(3))
    axis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")


def _numbers(low: float, high: float, whole: bool) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    return [tick for tick in MaxNLocator(3, integer=whole).tick_values(low, high) if low <= tick <= high]


def noise(
    values: np.ndarray, names: Sequence[str], path: str | Path, what: str = "data", called: str = "noise"
) -> None:
    """Hold the noise of rows (n, D), or what is ``called`` otherwise, against the uniform distribution, by column.

    Of more than 16 columns, those farthest from uniform are shown. ``what`` names the rows.
    """
    n, d = values.shape
    distances = [scipy.stats.kstest(column, "uniform").statistic for column in values.T]
    shown = sorted(np.argsort(distances)[::-1][:PANELS])
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    bins = int(np.clip(n ** (1 / 2.5), 5, 25))
    chance = scipy.stats.binom.ppf([0.005, 0.995], n, 1 / bins) * bins / n
    with figure(path, (1.9 * max(across, 2) + 0.3, 1.5 * down + 0.7)) as fig:
        grid = fig.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(shown) :]:
            axes.remove()
        for axes, i in zip(grid.flat, shown, strict=False):
            axes.axhspan(*chance, color="#D0D0D0", lw=0)
            histogram(axes, values[:, i], np.linspace(0, 1, bins + 1), REAL, filled=True)
            axes.axhline(1.0, color="black", lw=1)
            axes.set_title(short(names[i], 24))
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.tick_params(labelbottom=True)
        grid[0, 0].set_ylim(bottom=0)
        for axes in grid[:, 0]:
            axes.set_ylabel("density")
        which = "" if len(shown) == d else f": the {len(shown)} of {d} farthest from it"
        title = f"{called} of {what} (blue), uniform (black), the range of chance (99 %, grey){which}"
        fig.suptitle(title if across > 3 else title.replace(", the range", "\nand the range"), fontsize=9, color=GREY)


def latents(scores: np.ndarray, path: str | Path, what: str = "data") -> None:
    """Hold the latents of rows (n, D), as normal scores, against the standard normal: histograms and Q-Q plots.

    Of more than six dimensions, those farthest from the normal are shown. ``what`` names the rows.
    """
    from matplotlib.ticker import MaxNLocator

    n, d = scores.shape
    distances = [scipy.stats.kstest(column, "norm").statistic for column in scores.T]
    shown = sorted(np.argsort(distances)[::-1][:COLUMNS])
    count = len(shown)
    edges = np.linspace(-4, 4, int(np.clip(2 * n ** (1 / 2.5), 12, 60)) + 1)
    line = np.linspace(-4, 4, 200)
    # Order statistics: all of a few, of many those that stand evenly along the axis.
    spots = np.unique(np.rint(n * scipy.stats.norm.cdf(np.linspace(-5, 5, 400)) - 0.5).clip(0, n - 1).astype(int))
    theory = scipy.stats.norm.ppf((spots + 0.5) / n)
    chance = [scipy.stats.norm.ppf(scipy.stats.beta.ppf(level, spots + 1, n - spots)) for level in (0.005, 0.995)]
    reach = max(4.0, min(8.0, float(np.abs(scores[:, shown]).max())))
    with figure(path, (1.7 * max(count, 2) + 0.5, 3.9)) as fig:
        grid = fig.subplots(2, count, squeeze=False)
        for (marginal, quantiles), i in zip(grid.T, shown, strict=True):
            histogram(marginal, scores[:, i], edges, REAL, filled=True)
            marginal.plot(line, scipy.stats.norm.pdf(line), color="black", lw=1)
            marginal.set_xlim(-4, 4)
            marginal.set_ylim(bottom=0)
            marginal.set_title(f"z{i + 1}")
            marginal.set_yticks([])
            quantiles.fill_between(theory, *chance, color="#D0D0D0", lw=0)
            quantiles.plot([-reach, reach], [-reach, reach], color="black", lw=0.8)
            quantiles.plot(theory, np.sort(scores[:, i])[spots], color=REAL, lw=0, marker=".", ms=3)
            quantiles.set_xlabel("normal quantile")
            quantiles.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
            for axis in (quantiles.xaxis, quantiles.yaxis):
                axis.set_major_locator(MaxNLocator(4, integer=True))
        grid[0, 0].set_ylabel("density")
        grid[1, 0].set_ylabel("latent quantile")
        which = "" if count == d else f": the {count} of {d} farthest from it"
        title = f"latents of {what} (blue), the base (black), the range of chance (99 %, grey){which}"
        fig.suptitle(title if count > 3 else title.replace(", the range", "\nand the range"), fontsize=9, color=GREY)


def density_2d(
    flow: Flow,
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

    # nearly all values, and a margin that shows whether the density ends where they do
    limits = [span(column, 0.001, 0.999, margin=0.08) for column in data.T]
    edges = [np.linspace(*limit, 221) for limit in limits]
    points = np.stack(np.meshgrid(*((e[1:] + e[:-1]) / 2 for e in edges)), -1)  # (y cells, x cells, 2)
    with torch.no_grad():
        inputs = torch.from_numpy(points - np.asarray(origins)).to(flow.base.device_marker)
        log_prob = flow.log_prob(inputs, nan="propagate")
    density = log_prob.double().exp().nan_to_num(0.0).cpu().numpy()
    most = float(np.quantile(density, 0.995)) or 1.0
    coarse = [np.linspace(*limit, int(np.clip(len(data) ** 0.5 / 2, 20, 110)) + 1) for limit in limits]
    area = math.prod(e[1] - e[0] for e in coarse)
    spans = [high - low for low, high in limits]
    equal = max(spans) < 3 * min(spans)
    with figure(path, (10.2, 3.1 * (spans[1] / spans[0] if equal else 1.0) + 0.8)) as fig:
        panels = fig.subplots(1, 3, sharex=True, sharey=True)
        for axes, title, rows, colour in (
            (panels[0], f"data ({len(data):,} rows)", data, REAL),
            (panels[2], f"samples ({len(sampled):,} rows)", sampled, MODEL),
        ):
            heat(axes, coarse, _counts(rows, coarse) / (len(rows) * area), colour, most)
            axes.set_title(title)
        heat(panels[1], edges, density, DENSITY, most)
        panels[1].set_title("density of the model")
        for axes in panels:
            axes.set_xlabel(short(names[0]))
            axes.set_aspect("equal" if equal else "auto")
        panels[0].set_ylabel(short(names[1]))

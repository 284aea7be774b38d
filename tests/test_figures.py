"""Figures must show what they say: each is compared, artist by artist, with the data that it was given."""

import json
import math
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle, StepPatch
from PIL import Image, ImageSequence
from scipy import stats

from diffeo.bases import StandardNormal
from diffeo.errors import UserError
from diffeo.flow import Flow, bits_per_dim
from diffeo.modalities.audio import figures as audio_figures
from diffeo.modalities.images import figures as image_figures
from diffeo.modalities.tables import figures as table_figures
from diffeo.modalities.tables.schema import Column, Schema
from diffeo.recipes import mixed
from diffeo.report import distillation, figures, step_distillation, trajectories
from diffeo.report.style import GREY, MODEL, OTHER, REAL
from diffeo.spectral import magnitudes
from diffeo.transforms import ODE, Affine, Chain, Elementwise
from diffeo.transforms.base import Transform


class Tilted(Transform):
    """x = (3 z_1, z_1 + z_2 / 2): unlike in x and y, so that a figure with exchanged axes is another one."""

    lower = torch.tensor([[3.0, 0.0], [1.0, 0.5]])

    def forward_and_log_det(self, z, context=None):
        return z @ self.lower.T, z.new_full(z.shape[:-1], math.log(1.5))

    def inverse_and_log_det(self, x, context=None):
        return x @ self.lower.inverse().T, x.new_full(x.shape[:-1], -math.log(1.5))


class Drift(torch.nn.Module):
    """v(x, t) = (x_1, -x_2): x(t) = (e^t z_1, e^-t z_2), of density N(x; 0, diag(e^2t, e^-2t))."""

    def forward(self, x, t, context=None):
        return x * x.new_tensor([1.0, -1.0])

    def with_divergence(self, x, t, context=None):
        return self(x, t), torch.zeros_like(t)


def lines(axes, colour=None):
    """What is drawn as lines or points of a colour: pairs of x and y."""
    return [
        np.array(line.get_data(), dtype=float)
        for line in axes.lines
        if colour is None or to_hex(line.get_color()) == colour.lower()
    ]


def steps(axes, colour):
    """The histograms of a colour: (counts, edges), and whether they are filled."""
    found = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
    return [
        (patch.get_data().values, patch.get_data().edges, patch.get_fill())
        for patch in found
        if to_hex(patch.get_facecolor() if patch.get_fill() else patch.get_edgecolor()) == colour.lower()
    ]


def mesh(axes):
    """The cells of a heat map: values (y, x), edges of x and of y, and the colour of half of the most."""
    (quads,) = axes.collections
    corners = quads.get_coordinates()
    values = quads.get_array().reshape(corners.shape[0] - 1, corners.shape[1] - 1)
    return np.asarray(values), corners[0, :, 0], corners[:, 0, 1], to_hex(quads.cmap(0.5)).upper()


def near(colour, other):
    """Whether colours are the same up to the rounding of a colour map."""
    channels = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in (colour, other))
    return np.abs(np.subtract(*channels)).max() <= 3


def title(axes):
    return axes.get_title(loc="left")


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def expected_density(values, edges):
    return np.histogram(values, edges)[0] / len(values) / np.diff(edges)


# Training


def journal(path, **changes):
    entries = [
        {"epoch": i + 1, "loss": 1 + 5 / (i + 1), "val_loss": 1.2 + 4 / (i + 1) + (i > 20), "val_stderr": 0.1 + i / 99}
        for i in range(30)
    ]
    entries[3]["loss"] = None  # what a journal holds for NaN
    entries = [{**entry, **changes} for entry in entries]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + "\n")
    return [np.array([entry[key] for entry in entries], float) for key in ("epoch", "loss", "val_loss", "val_stderr")]


@pytest.mark.parametrize(
    ("units", "scale", "offset", "label", "unit"),
    [
        ({}, 1, 0, "negative log-likelihood (nats per row)", " nats"),
        ({"likelihood": False, "dimensions": 4}, 1, 0, "loss", ""),
        ({"dimensions": 4}, 1 / (4 * math.log(2)), 0, "negative log-likelihood (bits/dim)", " bits/dim"),
        (
            {"dimensions": 4, "step": 1 / 8, "unit": "bits/sample"}, 1 / (4 * math.log(2)), 3,
            "negative log-likelihood (bits/sample)", " bits/sample",
        ),
    ],
)  # fmt: skip
def test_a_learning_curve_shows_the_journal(tmp_path, plotted, units, scale, offset, label, unit):
    epoch, loss, valid, error = journal(tmp_path / "metrics.jsonl")
    figures.learning_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png", **units)
    (axes,) = plotted["curve"].axes
    np.testing.assert_allclose(lines(axes, GREY), [[epoch, offset + scale * loss]])
    np.testing.assert_allclose(lines(axes, REAL), [[epoch, offset + scale * valid]])
    point, best_line = lines(axes, MODEL)
    best = offset + scale * (1.2 + 4 / 21)
    np.testing.assert_allclose(point, [[21], [best]])
    np.testing.assert_allclose(best_line[1], best)
    (band,) = axes.collections
    low, high = offset + scale * (valid - error), offset + scale * (valid + error)
    corners = band.get_paths()[0].vertices
    for x, bottom, top in zip(epoch, low, high, strict=True):
        assert corners[corners[:, 0] == x, 1].min() == pytest.approx(bottom)
        assert corners[corners[:, 0] == x, 1].max() == pytest.approx(top)
    assert title(axes) == f"best {best:.3f} ± {scale * (0.1 + 20 / 99):.3f}{unit} in epoch 21"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", label)
    assert texts(axes.get_legend()) == ["training", "validation"]
    bottom, top = axes.get_ylim()
    assert bottom < low[20]
    assert best < top < offset + scale * loss[0], "the first epoch's height hides the others"
    legend, data = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert legend.y0 >= data.y1 - 1, "the legend lies over the data"


def test_a_learning_curve_without_validation(tmp_path, plotted):
    epoch, loss, _, _ = journal(tmp_path / "metrics.jsonl", val_loss=None, val_stderr=None)
    figures.learning_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    (axes,) = plotted["curve"].axes
    np.testing.assert_allclose(lines(axes), [[epoch, loss]])
    assert (title(axes), len(axes.collections), texts(axes.get_legend())) == ("", 0, ["training"])


# Pairs


@pytest.mark.parametrize("columns", [1, 2, 9])
@pytest.mark.parametrize("rows", [500, 2000])
def test_pairs(tmp_path, plotted, rows, columns):
    """Data below the diagonal, samples above it, and x and y as the labels say."""
    generator = np.random.default_rng(0)
    real, fake = generator.standard_t(1.2, size=(2, rows, columns))
    fake = np.concatenate([fake, fake + 1])
    real[:, 0], fake[:, 0] = np.round(real[:, 0]), 0  # a discrete column, and samples that are all the same
    names = [f"price in $ of column number_{i}^2" for i in range(columns)]
    figures.pairs(real, fake, names, tmp_path / "pairs.png", [1.0] + [0.0] * (columns - 1), whose=("a", "b"))
    fig, count = plotted["pairs"], min(columns, 6)
    grid = np.array(fig.axes).reshape(count, count)
    for (i, j), axes in np.ndenumerate(grid):
        middle = np.quantile(real[:, j], [0.01, 0.99])
        assert axes.get_xlim()[0] < middle[0] < middle[1] < axes.get_xlim()[1]
        if i == j:
            for values, colour, filled in ((real, REAL, True), (fake, MODEL, False)):
                ((heights, edges, fill),) = steps(axes, colour)
                np.testing.assert_allclose(heights, expected_density(values[:, i], edges))
                assert fill is filled
                assert axes.get_xlim() == (edges[0], edges[-1])
            continue
        rows_shown, colour = (real, REAL) if i > j else (fake, MODEL)
        assert axes.get_ylim()[0] < np.quantile(real[:, i], 0.01) < axes.get_ylim()[1]
        if rows < figures.FEW:
            ((x, y),) = lines(axes, colour)
            xy = rows_shown[:rows, [j, i]]  # as many samples as there are rows
            moved = np.abs(np.stack([x, y], 1) - xy)
            assert (moved <= [0.4 * (j == 0), 0.4 * (i == 0)]).all(), "only discrete values move, within their cells"
        else:
            values, x_edges, y_edges, shade = mesh(axes)
            xy = rows_shown[:, [j, i]]
            np.testing.assert_array_equal(values, np.histogram2d(*xy.T, bins=(x_edges, y_edges))[0].T)
            assert near(shade, colour)
    shown = [name[:17] + "…" for name in names[:count]]
    assert [axes.get_xlabel() for axes in grid[-1]] == shown
    assert [axes.get_ylabel() for axes in grid[:, 0]] == (shown if count > 1 else ["density"])
    assert texts(fig.legends[0]) == (["a (below the diagonal)", "b (above)"] if count > 1 else ["a", "b"])
    colours = [to_hex(handle.get_facecolor()) for handle in fig.legends[0].legend_handles]
    assert colours == [REAL.lower(), MODEL.lower()]
    assert fig.get_supxlabel() == ("the first 6 of 9 columns" if columns == 9 else "")


def test_levels_have_their_names_as_ticks(tmp_path, plotted):
    codes = np.random.default_rng(0).integers(3, size=(2, 100, 2)).astype(float)
    names = [["0.1", "0.5", "2.5"], ["1", "10", "100"]]
    figures.pairs(*codes, ["a", "b"], tmp_path / "pairs.png", [1, 1], names)
    below = plotted["pairs"].axes[2]
    for axis, labels in ((below.xaxis, names[0]), (below.yaxis, names[1])):
        assert [text.get_text() for text in axis.get_ticklabels()] == labels
        np.testing.assert_allclose(axis.get_ticklocs(), [0, 1, 2])


def test_pairs_are_in_the_table_s_own_units(tmp_path, plotted):
    """Shifted in the model, but not where they are shown; levels by their codes, named by their values."""
    generator = np.random.default_rng(0)
    codes = generator.integers(3, size=300)
    x = np.stack([1e6 + generator.normal(size=300), 7 + 2 * generator.integers(9, size=300), 10.0**codes], 1)
    columns = (
        Column("far", "float64", "continuous", x[:, 0].min(), x[:, 0].max(), origin=1e6),
        Column("even", "int64", "integer", 7, 23, step=2, origin=5),
        Column("level", "float64", "levels", 1, 100, values=(1.0, 10.0, 100.0)),
    )
    schema = Schema(columns)
    encoded = torch.from_numpy(schema.encode(x).x)
    real, sampled = table_figures.plot_pairs(schema, encoded, encoded.flip(0), tmp_path / "pairs.png")
    np.testing.assert_allclose(real, x, atol=1e-3)
    np.testing.assert_allclose(sampled, x[::-1], atol=1e-3)
    grid = np.array(plotted["pairs"].axes).reshape(3, 3)
    shown, spread = x.copy(), [1e-3, 0.8, 0.4]  # discrete ones over their cells, of width 2 and 1
    shown[:, 2] = codes
    for (i, j), axes in np.ndenumerate(grid):
        if i != j:
            (xy,) = lines(axes)
            expected = (shown if i > j else shown[::-1])[:, [j, i]].T
            assert (np.abs(xy - expected) <= np.array([[spread[j]], [spread[i]]])).all()
    assert [text.get_text() for text in grid[2, 2].get_xticklabels()] == ["1", "10", "100"]
    assert [axes.get_xlabel() for axes in grid[2]] == ["far", "even", "level"]


def test_figures_of_a_flow_of_a_table(tmp_path, plotted):
    """Each is given what it is to show: training rows and samples, the latents of held-out rows, the density."""
    flow = Flow(StandardNormal(2), Tilted()).eval()
    x, valid = flow.sample(2000), flow.sample(500)
    columns = [
        Column(name, "float64", "continuous", 10 * i - 50.0, 10 * i + 50.0, origin=10.0 * i)
        for i, name in enumerate("ab")
    ]
    (tmp_path / "train").mkdir()
    epoch, loss, _, _ = journal(tmp_path / "train" / "metrics.jsonl")
    rows = SimpleNamespace(x=x, context=None, valid_x=valid, valid_context=None)
    paths = table_figures.plot_figures(tmp_path, flow, Schema(tuple(columns)), rows, seed=0)
    names = ["learning_curve", "pairs", "latents", "density"]
    assert paths == [str(tmp_path / "figures" / f"{name}.png") for name in names]
    np.testing.assert_allclose(lines(plotted["learning_curve"].axes[0], GREY), [[epoch, loss]])
    in_units = x.numpy() + np.array([0, 10])
    below = plotted["pairs"].axes[2]
    values, *edges, _ = mesh(below)
    np.testing.assert_array_equal(values, np.histogram2d(*in_units.T, bins=edges)[0].T)
    for i, axes in enumerate(plotted["latents"].axes[:2]):
        ((heights, edges, _),) = steps(axes, REAL)
        np.testing.assert_allclose(heights, expected_density(flow.encode(valid)[:, i].numpy(), edges))
    assert "held-out rows" in plotted["latents"].get_suptitle()
    left, middle, right = plotted["density"].axes
    values, *edges, _ = mesh(middle)
    centres = np.stack(np.meshgrid(*((e[1:] + e[:-1]) / 2 for e in edges)), -1)
    np.testing.assert_allclose(
        values, flow.log_prob(torch.from_numpy(centres - [0, 10]).float()).exp(), rtol=1e-4, atol=1e-9
    )
    values, *edges, _ = mesh(left)
    cells = np.diff(edges[0]) * np.diff(edges[1])[:, None]
    np.testing.assert_allclose(values, np.histogram2d(*in_units.T, bins=edges)[0].T / 2000 / cells)
    assert title(right) == "samples (5,000 rows)"


# Mixed densities


def bars(axes):
    """The bars of data and of samples: pairs of place and length."""
    rectangles = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    sideways = any(patch.get_height() == 0.8 for patch in rectangles)
    return [
        [
            (p.get_y() + 0.4, p.get_width()) if sideways else (p.get_x() + p.get_width() / 2, p.get_height())
            for p in rectangles
            if p.get_fill() == filled
        ]
        for filled in (True, False)
    ]


def gappy(generator, values, share):
    return np.where(generator.random(len(values)) < share, np.nan, values)


def test_marginals_show_shares_of_categories_of_numbers_and_of_gaps(tmp_path, plotted):
    g = np.random.default_rng(0)
    codes = [gappy(g, g.integers(20, size=n) ** 2 // 20, 0.1) for n in (900, 500)]
    numbers = [gappy(g, g.normal(size=n), share) for n, share in ((900, 0.2), (500, 0.1))]
    days = [1e9 + 86400 * part.round() for part in numbers]
    columns = [
        figures.Marginal("category", *codes, labels=[f"label {i}" for i in range(19)]),
        figures.Marginal("number", *numbers),
        figures.Marginal("full", *(part[~np.isnan(part)] for part in numbers)),
        figures.Marginal("whole", *(part.round() for part in numbers), step=1.0),
        figures.Marginal("day", *days, dates=True, show=lambda value: f"day {value / 86400:.0f}"),
        *(figures.Marginal(f"more {i}", *numbers) for i in range(12)),
    ]
    figures.marginals(columns, tmp_path / "marginals.png")
    axes = plotted["marginals"].axes
    assert [title(each) for each in axes] == [column.name for column in columns[:16]]
    assert plotted["marginals"].get_supxlabel() == "the first 16 of 17 columns"
    names = [text.get_text() for text in axes[0].get_yticklabels()]
    assert (len(names), names[-2:]) == (14, ["7 others", "missing"])
    often = [int(name.split()[1]) for name in names[:-2]]
    counts = [np.array([(part == code).mean() for code in range(19)]) for part in codes]
    assert list(counts[0][often]) == sorted(counts[0], reverse=True)[:12]
    for count, part, drawn in zip(counts, codes, bars(axes[0]), strict=True):
        lengths = [*count[often], count.sum() - count[often].sum(), np.isnan(part).mean()]
        np.testing.assert_allclose(drawn, np.stack([np.arange(14), lengths], 1), atol=1e-9)
    for panel, column in zip(axes[1:5], columns[1:5], strict=True):
        for colour, values, drawn in zip((REAL, MODEL), (column.real, column.sampled), bars(panel), strict=True):
            ((heights, edges, filled),) = steps(panel, colour)
            np.testing.assert_allclose(heights, np.histogram(values[~np.isnan(values)], edges)[0] / len(values))
            assert filled == (colour == REAL)
            gaps = np.isnan(values).mean()
            assert [length for _, length in drawn] == ([pytest.approx(gaps)] if gaps else [])
            assert all(place > edges[-1] for place, _ in drawn)
    assert axes[1].get_xticklabels()[-1].get_text() == "missing"
    assert all(text.get_text() != "missing" for text in axes[2].get_xticklabels())
    assert (steps(axes[3], REAL)[0][1] % 1 == 0.5).all()
    assert [text.get_text().split()[0] for text in axes[4].get_xticklabels()] == ["day", "day", "missing"]
    assert texts(plotted["marginals"].legends[0]) == ["data", "samples"]


@pytest.mark.parametrize("columns", [1, 20])
def test_noise_beside_the_uniform_distribution(tmp_path, plotted, columns):
    values = np.random.default_rng(0).random((1000, columns)) ** np.linspace(1, 2, columns)
    figures.noise(values, [f"column {i}" for i in range(columns)], tmp_path / "noise.png", "held-out rows")
    axes, count = plotted["noise"].axes, min(columns, 16)
    assert [title(each) for each in axes] == [f"column {i}" for i in range(columns - count, columns)]  # the farthest
    for number, panel in zip(range(columns - count, columns), axes, strict=True):
        ((heights, edges, _),) = steps(panel, REAL)
        np.testing.assert_allclose(heights, expected_density(values[:, number], edges))
        ((_, line),) = lines(panel)
        assert (line == 1).all()
        assert panel.get_ylim()[1] >= heights.max()
    assert ("the 16 of 20 farthest from it" in plotted["noise"].get_suptitle()) == (columns == 20)
    assert "held-out rows" in plotted["noise"].get_suptitle()


def test_figures_of_a_mixed_density(tmp_path, plotted):
    """Columns in the table's own units, complete rows of pairs, the noise of held-out rows."""
    form = "%Y-%m-%d %H:%M"
    columns = (
        Column("kind", "string", "categorical", 0, 1, categories=("a", "b")),
        Column("size", "float64", "continuous", -50.0, 70.0, origin=10.0, missing=True),
        Column("level", "float64", "levels", 0.5, 77.0, values=(0.5, 2.25, 77.0), missing=True),
        Column("when", "string", "date", 1e9, 1e9 + 86400 * 99.5, 3600.0, values=(0.0, 82800.0), format=form),
        Column("count", "int64", "integer", 3, 40, step=1.0, origin=3.0),
    )
    schema = Schema(columns)
    factors = [{"values": [0, 1]}, {"steps": [0], "gaps": True}, {"values": [0, 1, 2], "gaps": True}]
    flow = mixed(6, columns=[*factors, *[{"steps": [1]}] * 3], hidden=16, layers=1, orders=2).eval()
    x = torch.rand(300, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([2, 9, 3, 99, 20, 30])
    x[:, [0, 2, 3, 4, 5]] = x[:, [0, 2, 3, 4, 5]].floor()
    x[:, 4] *= 3600
    x[:30, 1], x[20:60, 2] = torch.nan, torch.nan
    rows = SimpleNamespace(x=x, context=None, valid_x=x[:150].flip(0), valid_context=None)
    paths = table_figures.plot_figures(tmp_path, flow, schema, rows, seed=0)
    assert paths == [str(tmp_path / "figures" / f"{name}.png") for name in ("marginals", "pairs", "noise")]
    panels = {title(axes): axes for axes in plotted["marginals"].axes}
    assert list(panels) == [column.name for column in columns]
    names = [text.get_text() for text in panels["level"].get_yticklabels()]
    shares = {f"{value:g}": (x[:, 2] == i).float().mean().item() for i, value in enumerate((0.5, 2.25, 77))}
    shown = dict(zip(names, [length for _, length in bars(panels["level"])[0]], strict=True))
    assert shown == pytest.approx(shares | {"missing": 40 / 300})
    assert bars(panels["size"])[0][0][1] == pytest.approx(0.1)
    ((heights, edges, _),) = steps(panels["size"], REAL)
    size = x[:, 1].numpy() + 10.0
    np.testing.assert_allclose(heights, np.histogram(size[30:], edges)[0] / 300)
    assert panels["when"].get_xticklabels()[0].get_text().startswith("2001-")
    grid = np.array(plotted["pairs"].axes).reshape(2, 2)
    assert [axes.get_xlabel() for axes in grid[1]] == ["size", "count"]
    (xy,) = lines(grid[1, 0])
    np.testing.assert_allclose(xy[0], size[30:], atol=1e-4)
    assert [title(axes) for axes in plotted["noise"].axes] == [*schema.feature_names, "the order of the columns"]
    assert "held-out rows" in plotted["noise"].get_suptitle()


# Latents


@pytest.mark.parametrize(("rows", "columns"), [(20, 1), (5000, 9)])
def test_latents_beside_the_standard_normal(tmp_path, plotted, rows, columns):
    scores = np.random.default_rng(0).normal(size=(rows, columns)) * np.linspace(1, 2, columns)
    figures.latents(scores, tmp_path / "latents.png", "held-out rows")
    fig, count = plotted["latents"], min(columns, 6)
    marginals, quantiles = np.array(fig.axes).reshape(2, count)
    for number, top, bottom in zip(range(columns - count, columns), marginals, quantiles, strict=True):  # the farthest
        column = scores[:, number]
        ((heights, edges, _),) = steps(top, REAL)
        np.testing.assert_allclose(heights, expected_density(column, edges))
        ((x, density),) = lines(top)
        np.testing.assert_allclose(density, stats.norm.pdf(x))
        assert title(top) == f"z{number + 1}"
        diagonal, (theory, found) = lines(bottom)
        np.testing.assert_allclose(*diagonal)
        ranks = np.rint(rows * stats.norm.cdf(theory) - 0.5).astype(int)
        np.testing.assert_allclose(found, np.sort(column)[ranks])
        (band,) = bottom.collections
        corners = band.get_paths()[0].vertices
        middle = len(theory) // 2
        chance = stats.norm.ppf(stats.beta.interval(0.99, ranks[middle] + 1, rows - ranks[middle]))
        at = corners[np.isclose(corners[:, 0], theory[middle]), 1]
        np.testing.assert_allclose([at.min(), at.max()], chance)
        assert bottom.get_xlim() == bottom.get_ylim()
        np.testing.assert_allclose(bottom.get_xticks(), bottom.get_yticks())
        assert bottom.get_xlabel() == "normal quantile"
    assert (marginals[0].get_ylabel(), quantiles[0].get_ylabel()) == ("density", "latent quantile")
    assert "held-out rows" in fig.get_suptitle()
    assert ("6 of 9" in fig.get_suptitle()) == (columns == 9)


# The density


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_a_density_lies_over_its_data(tmp_path, plotted, factor):
    """exp(log p) at the middle of every cell, and densities of rows and samples on the same scale of shades."""
    flow = Flow(StandardNormal(2), Tilted()).eval()
    origin = np.array([10.0, 20.0])
    rows = flow.sample(3000).numpy() + origin
    samples = flow.sample(500).numpy() + origin + [1.0, 0.0]
    if factor > 1:  # so unlike in range that the axes are not to be equal
        flow = Flow(StandardNormal(2), Chain([Tilted(), Stretched()])).eval()
        rows, samples, origin = (part * [factor, 1] for part in (rows, samples, origin))
    figures.density_2d(flow, rows, samples, ["a", "b"], tmp_path / "density.png", origin)
    left, middle, right = plotted["density"].axes
    for axes, data, colour in ((left, rows, REAL), (right, samples, MODEL)):
        values, x, y, shade = mesh(axes)
        counts = np.histogram2d(*data.T, bins=(x, y))[0].T
        np.testing.assert_allclose(values, counts / len(data) / (np.diff(x) * np.diff(y)[:, None]))
        assert near(shade, colour)
    values, x, y, _ = mesh(middle)
    centres = np.stack(np.meshgrid((x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2), -1)
    covariance = np.array([[9.0, 3.0], [3.0, 1.25]]) * np.outer([factor, 1], [factor, 1])
    np.testing.assert_allclose(values, stats.multivariate_normal(origin, covariance).pdf(centres), rtol=1e-3)
    assert values.sum() * (x[1] - x[0]) * (y[1] - y[0]) == pytest.approx(1, abs=0.02)
    assert len({axes.collections[0].norm.vmax for axes in (left, middle, right)}) == 1
    assert [title(axes) for axes in (left, middle, right)] == [
        "data (3,000 rows)", "density of the model", "samples (500 rows)",
    ]  # fmt: skip
    assert [axes.get_xlabel() for axes in (left, middle, right)] == ["a", "a", "a"]
    assert left.get_ylabel() == "b"
    assert (left.get_aspect() == 1) == (factor == 1)


class Stretched(Transform):
    """x = (1000 z_1, z_2)."""

    def forward_and_log_det(self, z, context=None):
        return z * z.new_tensor([1000.0, 1.0]), z.new_full(z.shape[:-1], math.log(1000))

    def inverse_and_log_det(self, x, context=None):
        return x / x.new_tensor([1000.0, 1.0]), x.new_full(x.shape[:-1], -math.log(1000))


# Trajectories


def test_trajectories_of_a_known_field(tmp_path, plotted, monkeypatch):
    monkeypatch.setattr(trajectories, "CELLS", 20)
    base, ode = StandardNormal(2), ODE(Drift(), 2, solver="rk4", steps=8)
    torch.manual_seed(3)
    trajectories.plot(ode, base, ["a", "b"], tmp_path / "paths.png")
    torch.manual_seed(3)
    z = base.sample((trajectories.PARTICLES,)).numpy()
    paths, deformed, *panels = plotted["paths"].axes
    passed = np.array(lines(paths, GREY))  # (particles, 2, times)
    grown = np.exp(np.linspace(0, 1, passed.shape[2]))
    np.testing.assert_allclose(passed, np.stack([z[:, :1] * grown, z[:, 1:] / grown], 1), atol=1e-4)
    np.testing.assert_allclose(lines(paths, REAL)[0], z.T)
    np.testing.assert_allclose(lines(paths, MODEL)[0], (z * [math.e, 1 / math.e]).T, atol=1e-4)
    grid = np.array(lines(deformed)) / np.array([math.e, 1 / math.e])[:, None]  # carried back, a square of 17 lines
    assert grid.shape == (34, 2, 81)
    for line in grid:
        constant = int(np.ptp(line[1]) < 1e-3)
        assert np.ptp(line[constant]) < 1e-3
        np.testing.assert_allclose(line[1 - constant], np.linspace(-2, 2, 81), atol=1e-3)
    assert sum(np.ptp(line[0]) < 1e-3 for line in grid) == 17
    for axes, time in zip(panels, trajectories.TIMES, strict=True):
        values, x, y, _ = mesh(axes)
        x, y = (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2
        expected = stats.norm.pdf(x, scale=math.exp(time)) * stats.norm.pdf(y, scale=math.exp(-time))[:, None]
        np.testing.assert_allclose(values, expected, atol=1e-4)
        assert title(axes) == f"density at t = {time:g}"
    assert (paths.get_xlabel(), paths.get_ylabel()) == ("a (preprocessed)", "b (preprocessed)")


def test_paths_of_several_flows(tmp_path, plotted):
    moved = {name: torch.randn(5, 7, 2) for name in ("teacher", "student")}
    trajectories.compare(moved, tmp_path / "paths.png")
    for axes, (name, passed) in zip(plotted["paths"].axes, moved.items(), strict=True):
        assert title(axes) == name
        np.testing.assert_allclose(lines(axes, GREY), passed.permute(1, 2, 0))
        np.testing.assert_allclose(lines(axes, REAL)[0], passed[0].T)
        np.testing.assert_allclose(lines(axes, MODEL)[0], passed[-1].T)


def test_an_animation_ends_where_the_samples_are(tmp_path, monkeypatch):
    """The cloud of dots widens by e and flattens by e, and stays for a while."""
    monkeypatch.setattr(trajectories, "FRAMES", 3)
    trajectories.animate(ODE(Drift(), 2, solver="rk4", steps=8), Small(2), tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as animation:
        frames = [np.asarray(frame.convert("RGB"), dtype=int) for frame in ImageSequence.Iterator(animation)]
        held = animation.info["duration"]
    assert len(frames) in (3, 3 + trajectories.HELD)  # equal frames may be stored as one that lasts
    assert held >= 60
    spreads = []
    for frame in frames[:3]:
        red, green, blue = np.moveaxis(frame, -1, 0)
        y, x = np.nonzero((red - blue > 120) & (red - green > 60))
        spreads.append((np.ptp(x), np.ptp(y)))
    for (wide, high), factor in zip(spreads[1:], (math.exp(0.5), math.e), strict=True):
        assert wide == pytest.approx(spreads[0][0] * factor, rel=0.1)
        assert high == pytest.approx(spreads[0][1] / factor, rel=0.15)


class Small(StandardNormal):
    """Noise in a square of +-0.8, which e times as wide is still in sight."""

    def sample(self, shape=()):
        return 1.6 * torch.rand(*shape, 2) - 0.8


# Images


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stand_in_their_cells(tmp_path, plotted, channels):
    sets = {name: torch.rand(count, channels, 4, 5) * 16 for name, count in (("data", 20), ("samples", 16))}
    sets["samples"][0, 0, 0, 0], sets["samples"][1] = torch.nan, 99.0
    image_figures.boards(sets, 16, tmp_path / "boards.png", side=4)
    for axes, (name, images) in zip(plotted["boards"].axes, sets.items(), strict=True):
        assert title(axes) == name
        (board,) = axes.images
        pixels = np.moveaxis(board.get_array(), -1, 0)
        assert pixels.shape == (3, 4 * 5 - 1, 4 * 6 - 1)
        seen = np.zeros(pixels.shape[1:], dtype=bool)
        for i in range(16):
            cell = np.s_[i // 4 * 5 : i // 4 * 5 + 4, i % 4 * 6 : i % 4 * 6 + 5]
            expected = (images[i].nan_to_num(0.0) / 16).clamp(0, 1).expand(3, 4, 5)
            np.testing.assert_allclose(pixels[:, *cell], expected)
            seen[cell] = True
        assert (pixels[:, ~seen] == 1).all()


def test_figures_of_a_flow_of_images(tmp_path, plotted, monkeypatch):
    """Data, samples of the model, paths from image to image, latents drawn anew, what is hidden and completed."""
    monkeypatch.setattr(image_figures, "STEPS", 20)
    boards = {}
    original = image_figures.boards

    def noted(parts, top, path, side=8):
        boards[path.stem] = ({name: part.clone() for name, part in parts.items()}, top)
        original(parts, top, path, side)

    monkeypatch.setattr(image_figures, "boards", noted)
    x = torch.randint(17, (70, 1, 4, 4)).byte()
    flow = Flow(StandardNormal((1, 4, 4)), Elementwise(Affine(), (1, 4, 4))).eval()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter)
    (tmp_path / "train").mkdir()
    epoch, loss, _, _ = journal(tmp_path / "train" / "metrics.jsonl")
    paths = image_figures.plot(tmp_path, flow, x, None, 17, seed=0)
    names = ["learning_curve", "samples", "between", "inpainting"]
    assert paths == [str(tmp_path / "figures" / f"{name}.png") for name in names]
    np.testing.assert_allclose(lines(plotted["learning_curve"].axes[0], GREY), [[epoch, loss / (16 * math.log(2))]])
    assert {top for _, top in boards.values()} == {16}
    samples = boards["samples"][0]
    torch.testing.assert_close(samples["data"], x[:64].float())
    assert samples["samples"].shape == (64, 1, 4, 4)
    assert flow.encode(samples["samples"]).square().mean().item() == pytest.approx(1, abs=0.2)
    (between,) = boards["between"][0].values()
    torch.testing.assert_close(between[::8], x[:8].float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(between[7::8], x[8:16].float(), atol=1e-3, rtol=0)
    parts = boards["inpainting"][0]
    torch.testing.assert_close(parts["data"], x[:16].float())
    for name in ("hidden", "completed"):
        torch.testing.assert_close(parts[name][:, :, :2], x[:16, :, :2].float(), atol=0.02, rtol=0)
    assert (parts["hidden"][:, :, 2:] == 8).all()
    assert (parts["completed"][:, :, 2:] != x[:16, :, 2:]).float().mean() > 0.9


# Sounds


def test_sounds_and_their_spectrograms(tmp_path, plotted):
    """Each set in its own column and colour: waveforms in seconds, spectra in kHz and on one scale of dB."""
    rate, samples = 2000, 500
    time = torch.arange(samples) / rate
    sets = {
        name: 0.3 * torch.sin(2 * math.pi * torch.tensor([100.0, 150, 200, 250, 300])[:, None] * (k + 1) * time)
        for k, name in enumerate(("data", "teacher", "student"))
    }
    sets["student"][0, 3] = torch.nan
    audio_figures.sounds(sets, rate, tmp_path / "sounds.png")
    *panels, bar = plotted["sounds"].axes
    grid = np.array(panels).reshape(6, 3)
    for k, ((name, part), colour) in enumerate(zip(sets.items(), (REAL, MODEL, OTHER), strict=True)):
        assert title(grid[0, k]) == name
        for row, number in enumerate((0, 2, 4)):  # evenly spaced
            sound = part[number].double().nan_to_num(0.0)
            wave, spectrogram = grid[2 * row, k], grid[2 * row + 1, k]
            np.testing.assert_allclose(lines(wave, colour), [[time, sound]], rtol=1e-6)
            (image,) = spectrogram.images
            decibels = 20 * magnitudes(sound, 64, 8).clamp_min(1e-7).log10()
            np.testing.assert_allclose(image.get_array(), decibels)
            assert (image.origin, image.get_extent()) == ("lower", [0, samples / rate, 0, rate / 2000])
            kilohertz = (decibels.mean(1).argmax() / 32).item()  # 33 bins up to 1 kHz
            assert kilohertz == pytest.approx((k + 1) * (100 + 50 * number) / 1000, abs=0.03)
    limits = {panel.images[0].get_clim() for panel in grid[1::2].flat}
    assert len(limits) == 1
    (low, high) = limits.pop()
    assert high - low == pytest.approx(audio_figures.DEPTH)
    assert len({panel.get_ylim() for panel in grid[::2].flat}) == 1
    assert [panel.get_ylabel() for panel in grid[:, 0]] == ["amplitude", "kHz"] * 3
    assert [panel.get_xlabel() for panel in grid[-1]] == ["seconds"] * 3
    assert bar.get_ylabel() == "dB"


def test_figures_of_a_flow_of_sounds(tmp_path, plotted):
    """Held-out sounds and drawn ones, and the bits of both under the model."""
    flow = Flow(StandardNormal(100), Elementwise(Affine(), 100)).eval()  # the identity: louder than the data
    x = torch.randn(64, 100).clamp(-3, 3) / 4
    paths = audio_figures.plot(tmp_path, flow, x, None, rate=1000, step=2**-15, seed=0)
    assert paths == [str(tmp_path / "figures" / f"{name}.png") for name in ("sounds", "likelihoods")]
    spaced = x[torch.linspace(0, 63, 32).long()]  # neighbours come from the same recording
    shown = [line[1] for axes in plotted["sounds"].axes for line in lines(axes, REAL)]
    np.testing.assert_allclose(shown, spaced[[0, 15, 31]])
    drawn = np.concatenate([line[1] for axes in plotted["sounds"].axes for line in lines(axes, MODEL)])
    assert drawn.std() == pytest.approx(stats.norm.rvs(size=9999, random_state=0).clip(-1, 1).std(), abs=0.1)
    (axes,) = plotted["likelihoods"].axes
    bits = bits_per_dim(flow.log_prob(spaced), 100, 2**-15).detach()
    assert texts(axes.get_legend())[0] == f"data: mean {bits.mean():.2f}"
    assert texts(axes.get_legend())[1].startswith("samples: mean ")
    assert axes.get_xlabel() == "bits per sample under the model"


def test_likelihoods_of_sounds(tmp_path, plotted):
    generator = np.random.default_rng(0)
    bits = {name: generator.normal(k, 1, 40) for k, name in enumerate(("data", "teacher", "student"))}
    bits["teacher"][0] = np.nan
    audio_figures.likelihoods(bits, tmp_path / "likelihoods.png", "teacher")
    (axes,) = plotted["likelihoods"].axes
    finite = [part[np.isfinite(part)] for part in bits.values()]
    for values, colour in zip(finite, (REAL, MODEL, OTHER), strict=True):
        found = steps(axes, colour)
        assert [filled for *_, filled in found] == [True, False]
        for heights, edges, _ in found:
            np.testing.assert_allclose(heights, expected_density(values, edges))
            assert (heights * np.diff(edges)).sum() == pytest.approx(1), "a sound is left out"
    assert texts(axes.get_legend()) == [f"{name}: mean {v.mean():.2f}" for name, v in zip(bits, finite, strict=True)]
    assert axes.get_xlabel() == "bits per sample under the teacher"
    with pytest.raises(ValueError, match="at most 3 sets"):
        audio_figures.likelihoods({**bits, "fourth": bits["data"]}, tmp_path / "more.png")


# Distillation


def test_divergences_stage_after_stage(tmp_path, plotted):
    histories = {
        name: [{"step": 10 * i, "val_loss": top / i, "val_stderr": 0.01 * i} for i in (1, 2, 3)]
        for name, top in (("forward KL", 60), ("reverse KL", 6))
    }
    distillation.divergence_curve(histories, tmp_path / "kl.png", units=2, unit="sample")
    (axes,) = plotted["kl"].axes
    np.testing.assert_allclose(lines(axes, GREY), [[[10, 20, 30], [30, 15, 10]]])
    np.testing.assert_allclose(lines(axes, MODEL), [[[40, 50, 60], [3, 1.5, 1]]])
    for band, loss in zip(axes.collections, (30, 3), strict=True):
        corners = band.get_paths()[0].vertices[:, 1]
        assert corners.max() == pytest.approx(loss + 0.005)
        assert corners.min() == pytest.approx(loss / 3 - 0.015)
    assert texts(axes.get_legend()) == ["forward KL: 10.000", "reverse KL: 1.000"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("step", "nats per sample", "log")


def test_distances_by_steps(tmp_path, plotted):
    distances = {
        name: {str(count): {"distance": factor / count, "raw": 9.0} for count in (1, 2, 4)}
        for name, factor in (("teacher", 3.0), ("student", 1.0))
    }
    report = {"steps": 2, "chance": {"mean": 5.0, "std": 0.05}, "distances": distances}
    step_distillation.distance_curve(report, tmp_path / "distances.png")
    (axes,) = plotted["distances"].axes
    np.testing.assert_allclose(lines(axes, REAL), [[[1, 2, 4], [3, 1.5, 0.75]]])
    curve, trained = lines(axes, MODEL)
    np.testing.assert_allclose(curve, [[1, 2, 4], [1, 0.5, 0.25]])
    np.testing.assert_allclose(trained, [[2], [0.5]])
    (band,) = axes.patches
    np.testing.assert_allclose(sorted({round(y, 6) for y in band.get_corners()[:, 1]}), [-0.1, 0.1])
    assert texts(axes.get_legend()) == ["teacher", "student (trained for 2 steps)"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "4"]


@pytest.mark.parametrize("held_out", [True, False])
def test_likelihoods_of_both(tmp_path, plotted, held_out):
    """By all rows: what lies below the range is in the first bin."""
    generator = np.random.default_rng(0)
    teacher, student, real = generator.normal([[0.0], [-1.0], [0.5]], size=(3, 400))
    student[0] = -1e3
    draws = SimpleNamespace(log_p_x=teacher, log_p_s=student)
    distillation.likelihoods(draws, real if held_out else None, tmp_path / "likelihoods.png")
    (axes,) = plotted["likelihoods"].axes
    expected = {"the student's rows (400)": (student, MODEL), "the teacher's rows (400)": (teacher, REAL)}
    if held_out:
        expected["the teacher's rows (400)"] = (teacher, GREY)
        expected["real rows, held out (400)"] = (real, REAL)
    found = {patch.get_label(): patch for patch in axes.patches}
    assert found.keys() == expected.keys() == set(texts(axes.get_legend()))
    low = np.quantile(np.concatenate([real if held_out else teacher, student]), 0.005)
    for label, (values, colour) in expected.items():
        patch = found[label]
        x, y = patch.get_path().vertices.T if isinstance(patch, StepPatch) else patch.get_xy().T
        for value in (-0.5, 0.0, 0.7):  # the outline at a value, and the density of the bin there
            inside = (x[:-1] <= value) & (value < x[1:])
            width = np.diff(x)[inside].max()
            left = x[:-1][inside].max()
            share = ((values >= left) & (values < left + width)).mean() / width
            assert y[:-1][inside].max() == pytest.approx(share, abs=1e-9)
        shown = to_hex(patch.get_facecolor() if patch.get_fill() else patch.get_edgecolor())
        assert shown == colour.lower()
        assert x.min() == pytest.approx(low)
    assert axes.get_xlabel() == "log-likelihood under the teacher (nats per row, standardised units)"


# Files


def test_figures_are_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "a.png").write_bytes(b"older")
    with pytest.raises(RuntimeError), figures.figure(tmp_path / "a.png", (2, 2)):
        raise RuntimeError
    assert (tmp_path / "a.png").read_bytes() == b"older"
    with pytest.raises(UserError, match="cannot write"):
        figures.latents(np.zeros((5, 1)), tmp_path / "no" / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_figures_leave_the_program_s_own_alone():
    assert "matplotlib.pyplot" not in __import__("sys").modules
    assert matplotlib.rcParams["axes.spines.top"] is True

"""The built-in sets: shapes, seeds, and that the planar ones are what their formulas say."""

import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from diffeo.data import BUILTIN, ENTROPY, load_builtin, open_table
from diffeo.errors import UserError

PLANAR = ("moons", "rings", "checkerboard", "8gaussians", "pinwheel", "spirals")


@pytest.mark.parametrize("name", BUILTIN)
def test_every_set(name):
    x, names, labels = load_builtin(name, rows=100, seed=3)
    assert x.shape == (100, len(names))
    assert x.dtype == np.float64
    assert np.isfinite(x).all()
    if name == "flower":
        assert labels is None
    else:
        assert labels.shape == (100,)
        assert labels.dtype.kind == "i"
    assert len(set(names)) == len(names)
    again, other = load_builtin(name, 100, 3), load_builtin(name, 100, 4)
    np.testing.assert_array_equal(x, again.x)
    np.testing.assert_array_equal(labels, again.labels)
    assert not np.array_equal(x, other.x)
    assert BUILTIN[name].__doc__


@pytest.mark.parametrize(("name", "shape"), [("digits", (1797, 64)), ("breast_cancer", (569, 30)), ("wine", (178, 13))])
def test_bundled_sets(name, shape):
    x, names, labels = load_builtin(name)
    assert x.shape == shape
    assert len(names) == shape[1]
    assert len(labels) == shape[0]
    table = open_table(name)
    assert table.names == names
    assert table.num_rows == shape[0]
    assert table.name == name
    np.testing.assert_array_equal(np.concatenate(list(table.batches())), x)
    with pytest.raises(UserError, match=f"'{name}' has {shape[0]} rows, fewer than the 5000 asked for"):
        load_builtin(name, rows=5000)
    some = load_builtin(name, rows=50)
    assert all((x == row).all(axis=1).any() for row in some.x)
    if name == "digits":
        assert x.min() == 0
        assert x.max() == 16


def test_the_flower_is_the_picture():
    picture = load_sample_image("flower.jpg")
    x, names, _ = load_builtin("flower")
    assert x.shape == (picture.shape[0] * picture.shape[1], 5)
    assert names == ("x", "y", "red", "green", "blue")
    red, green, blue = (part.astype(int) for part in x[:, 2:].T)
    assert np.array_equal(
        picture[picture.shape[0] - 1 - x[:, 1].astype(int), x[:, 0].astype(int)].T, (red, green, blue)
    )
    assert len(np.unique(x[:, :2], axis=0)) == len(x)
    with pytest.raises(UserError, match="'flower' has 273280 rows, fewer than the 300000 asked for"):
        load_builtin("flower", rows=300_000)


@pytest.mark.parametrize("name", PLANAR)
def test_planar_sets(name):
    x, names, labels = load_builtin(name)
    assert x.shape == (100_000, 2)
    assert names == ("x", "y")
    counts = np.bincount(labels)
    assert abs(counts - counts.mean()).max() < 5 * math.sqrt(counts.mean())


def test_the_checkerboard_is_uniform_on_its_dark_squares():
    x, _, labels = load_builtin("checkerboard")
    board = x * 0.45
    assert board.min() >= -2
    assert board.max() < 2
    squares = np.floor(board).astype(int)
    assert (squares.sum(axis=1) % 2 == 0).all()
    _, counts = np.unique(squares, axis=0, return_counts=True)
    assert len(counts) == 8
    assert abs(counts - 12_500).max() < 5 * math.sqrt(12_500)
    assert len(np.unique(np.column_stack([squares, labels]), axis=0)) == 8
    inside = board - squares
    assert abs(inside.mean(axis=0) - 0.5).max() < 0.005
    assert abs(inside.var(axis=0) - 1 / 12).max() < 0.001
    assert ENTROPY["checkerboard"] == pytest.approx(3.67646, abs=5e-6)


def test_formulas():
    x, _, label = load_builtin("8gaussians")
    t = label * math.pi / 4
    rest = x * math.sqrt(2) - 4 * np.column_stack([np.cos(t), np.sin(t)])
    assert np.std(rest, axis=0) == pytest.approx([0.5, 0.5], rel=0.02)
    x, _, label = load_builtin("rings")
    rest = np.hypot(*x.T) - 0.75 * (label + 1)
    assert abs(rest.mean()) < 0.01
    assert rest.std() == pytest.approx(0.08, rel=0.02)
    x, _, label = load_builtin("moons")
    rest = np.where(label == 0, np.hypot(*x.T), np.hypot(x[:, 0] - 1, x[:, 1] - 0.5)) - 1
    assert abs(rest.mean()) < 0.01
    assert rest.std() == pytest.approx(0.1, rel=0.02)
    x, _, label = load_builtin("spirals")
    np.testing.assert_allclose(x[label == 0].mean(axis=0), -x[label == 1].mean(axis=0), atol=0.05)
    x, _, label = load_builtin("pinwheel")
    turn = label * 2 * math.pi / 5
    back = np.column_stack(
        [np.cos(turn) * x[:, 0] + np.sin(turn) * x[:, 1], np.cos(turn) * x[:, 1] - np.sin(turn) * x[:, 0]]
    )
    means = np.stack([back[label == i].mean(axis=0) for i in range(5)])
    assert np.ptp(means, axis=0).max() < 0.03
    assert np.hypot(*means[0]) > 1.5


def test_mistakes():
    with pytest.raises(
        UserError, match="no built-in set 'moon'; there are digits, breast_cancer, wine, flower, moons, rings"
    ):
        load_builtin("moon")
    with pytest.raises(UserError, match="expected rows >= 1, got 0"):
        load_builtin("moons", rows=0)


def test_a_built_in_name_comes_before_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moons").mkdir()
    assert open_table("moons").num_rows == 100_000
    for folder in ("./moons", tmp_path / "moons", Path("moons")):
        with pytest.raises(UserError, match="is a folder"):
            open_table(folder)

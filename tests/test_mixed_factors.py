"""From a table's schema and rows to masses: single values, copies of other columns, grids, what was never seen."""

import numpy as np
import pandas as pd
import pytest
import torch

from diffeo.data import infer_schema, load, open_table
from diffeo.modalities.tables.mixed import factors
from diffeo.recipes import mixed


def factors_of(frame):
    """The factors of a frame by the names of its features."""
    table = open_table(frame, missing="keep")
    schema = infer_schema(table)
    x, _ = load(open_table(table, missing="keep").select(schema.names), schema)
    return dict(zip(schema.feature_names, factors(schema, torch.from_numpy(x)), strict=True))


def copies_of(frame):
    """Column -> [(other column, a, b)] of what it often equals."""
    each = factors_of(frame)
    names = list(each)
    return {
        name: [(names[int(j)], a, b) for j, a, b in factor["copies"]]
        for name, factor in each.items()
        if "copies" in factor
    }


@pytest.fixture
def generator():
    return np.random.default_rng(1)


@pytest.mark.parametrize(("a", "b"), [(1, 0), (0.75, 0), (3, 0), (1, 250.5), (1, -2)])
@pytest.mark.parametrize("n", [120, 8000])
def test_planted_copies_are_found(generator, a, b, n):
    y, x = generator.lognormal(6, 1, n), generator.lognormal(6, 1, n)
    copied = generator.random(n) < 0.3
    frame = pd.DataFrame({"y": y, "x": np.where(copied, a * y + b, x), "z": generator.normal(size=n)})
    (found,) = copies_of(frame)["x"]
    assert found == ("y", pytest.approx(a, rel=1e-6), pytest.approx(b, rel=1e-5, abs=1e-9))
    assert set(copies_of(frame)) == {"x", "y"}


def test_several_copies_of_one_column_are_found(generator):
    n = 4000
    y, which = generator.lognormal(6, 1, n), generator.integers(0, 5, n)
    x = np.select([which == 0, which == 1, which == 2], [y, 2 * y, y - 10], generator.lognormal(6, 1, n))
    found = copies_of(pd.DataFrame({"x": x, "y": y}))["x"]
    assert [name for name, *_ in found] == ["y"] * 3
    np.testing.assert_allclose([each[1:] for each in found], [(1, 0), (2, 0), (1, -10)], rtol=1e-5, atol=1e-9)


def test_copies_on_a_grid_are_those_after_rounding(generator):
    """A third of a whole number, rounded, is a copy; its values stay whole."""
    n = 3000
    y = generator.integers(10**6, 10**8, n)
    x = np.where(generator.random(n) < 0.4, np.rint(0.37 * y), generator.integers(10**6, 10**8, n)).astype(np.int64)
    (found,) = copies_of(pd.DataFrame({"x": x, "y": y}))["x"]
    assert found[0] == "y"
    assert found[1] == pytest.approx(0.37, rel=1e-5)


@pytest.mark.parametrize("n", [20, 40, 100, 1000, 8000])
def test_independent_columns_of_few_values_have_no_copies(n):
    for seed in range(5):
        generator = np.random.default_rng(seed)
        frame = pd.DataFrame(
            {
                "a": generator.integers(0, 1000, n),
                "b": generator.integers(0, 1000, n),
                "c": generator.normal(size=n).round(1),
                "d": generator.normal(size=n).round(1),
                "e": generator.integers(0, 5, n),
                "f": (generator.random(n) * 20).round(1),
            }
        )
        assert not copies_of(frame)


def test_copies_are_looked_for_in_rows_with_gaps(generator):
    n = 2000
    y, x = generator.normal(size=n), generator.normal(size=n)
    x = np.where(generator.random(n) < 0.3, y, x)
    x[::7], y[::5] = np.nan, np.nan
    each = factors_of(pd.DataFrame({"x": x, "y": y}))
    assert each["x"]["copies"] == [[1, 1.0, 0.0]]
    assert each["x"]["gaps"]
    assert each["y"]["gaps"]


def test_values_that_occur_twice_have_masses_and_of_many_only_frequent_ones(generator):
    n = 3000
    few = np.concatenate([np.repeat(np.arange(50.0), 6), [1000.5]])
    (factor,) = factors_of(pd.DataFrame({"few": few})).values()
    assert factor["values"] == list(range(50))
    pairs = np.repeat(np.arange(50.0) ** 1.1, 2)  # so few rows coincide by chance
    (factor,) = factors_of(pd.DataFrame({"pairs": pairs})).values()
    assert factor["values"] == []
    spike = np.where(generator.random(n) < 0.1, 0.0, generator.normal(size=n))
    (factor,) = factors_of(pd.DataFrame({"spike": spike})).values()
    assert factor["values"] == [0.0]
    assert factor["steps"] == [0.0]


def test_unseen_categories_have_the_share_of_those_seen_once(generator):
    n = 1000
    common = generator.choice(["a", "b"], n - 20).tolist()
    (factor,) = factors_of(pd.DataFrame({"c": common + [f"rare{i}" for i in range(20)]})).values()
    assert factor["unseen"] == pytest.approx(20 / (n + 1))
    assert len(factor["values"]) == 22
    (factor,) = factors_of(pd.DataFrame({"c": common})).values()
    assert factor["unseen"] == pytest.approx(1 / (n - 19))
    (factor,) = factors_of(pd.DataFrame({"c": [f"rare{i}" for i in range(15)] + ["a"] * 5})).values()
    assert factor["unseen"] == 0.05


def test_levels_have_all_the_mass(generator):
    """The schema has the mass of any other number, so nothing is kept back for it."""
    (factor,) = factors_of(pd.DataFrame({"x": generator.choice([0.5, 2.25, 77.0], 300)})).values()
    assert factor.get("unseen", 0.0) == 0.0
    assert factor["values"] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_tiny_tables(n):
    generator = np.random.default_rng(n)
    frame = pd.DataFrame(
        {
            "real": np.arange(n) + 0.25,
            "same": np.arange(n) + 0.25,
            "whole": np.arange(n) % 2,
            "text": ["ab"[i % 2] for i in range(n)],
            "gappy": [None, *generator.normal(size=n - 1)],
        }
    )
    each = factors_of(frame)
    assert all("copies" not in factor for factor in each.values()) == (n < 5)  # five rows do say that two are the same
    mixed(len(each), columns=list(each.values()), hidden=8)


def test_columns_that_are_single_values_only(generator):
    """Nothing is left to compare: no copies, no warnings, and a flow that has them."""
    n = 500
    frame = pd.DataFrame({"a": generator.integers(0, 3, n), "b": generator.integers(0, 3, n), "c": [1.5, 2.5] * 250})
    each = factors_of(frame)
    assert all("copies" not in factor for factor in each.values())
    flow = mixed(len(each), columns=list(each.values()), hidden=8)
    assert torch.isfinite(flow.log_prob(torch.tensor([[0.0, 1.0, 1.5]]))).all()


def test_no_cell_of_a_column_among_the_rows():
    """All of it may be missing from the rows that are trained on."""
    frame = pd.DataFrame({"x": [1.25, 2.5, None, None], "t": ["a", "b", None, None], "y": [1.0, 2.0, 3.0, 4.0]})
    schema = infer_schema(open_table(frame, missing="keep"))
    rows = torch.full((5, schema.features), torch.nan)
    each = factors(schema, rows)
    assert all(torch.isfinite(torch.tensor(factor.get("unseen", 0.0))) for factor in each)
    assert each[0]["values"] == []
    mixed(len(each), columns=each, hidden=8)


def test_wide_tables_are_not_searched(generator):
    x = generator.normal(size=(300, 61))
    assert copies_of(pd.DataFrame({f"x{i}": x[:, 0] for i in range(3)}))
    x[:, 1] = x[:, 0]
    assert not copies_of(pd.DataFrame(x, columns=[f"x{i}" for i in range(61)]))

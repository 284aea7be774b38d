"""What columns are taken for, and that their values survive the way to a model and back."""

import copy
import json
import math

import numpy as np
import pandas as pd
import pytest

from diffeo.data import EXTENSIONS, Schema, TableWriter, infer_schema, load, open_table
from diffeo.errors import UserError
from diffeo.modalities.tables.infer import find_grid


def frame(**columns):
    """Return a structured array, the shortest table with names."""
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    table = np.empty(len(next(iter(arrays.values()))), dtype=[(name, a.dtype) for name, a in arrays.items()])
    for name, column in arrays.items():
        table[name] = column
    return table


def inferred(**columns):
    return infer_schema(open_table(frame(**columns)))


def kind_of(column, source=None):
    other = np.random.default_rng(9).standard_normal(len(column))
    return inferred(x=column, other=other).columns[0]


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.fixture
def mixed(generator):
    n = 2000
    return frame(
        real=generator.standard_normal(n),
        count=generator.poisson(3, n),
        flag=generator.random(n) < 0.3,
        fixed=np.full(n, 7.5),
        half=generator.integers(0, 9, n) * 0.5 + 0.25,
        code=generator.choice([1.5, 2.0, 77.0], n),
        when=1.7e9 + generator.uniform(0, 1e4, n),
        given=generator.standard_normal(n) * 10,
    )


def test_every_kind_is_recognised(mixed):
    schema = infer_schema(open_table(mixed), context=["given"])
    kinds = {c.name: c.kind for c in schema.columns}
    assert kinds == {
        "real": "continuous",
        "count": "integer",
        "flag": "integer",
        "fixed": "constant",
        "half": "integer",
        "code": "levels",
        "when": "continuous",
        "given": "continuous",
    }
    assert schema.names == mixed.dtype.names
    assert schema.rows == 2000
    assert schema.feature_names == ("real", "count", "flag", "half", "code", "when")
    assert (schema.features, schema.context_size, schema.context) == (6, 1, ("given",))
    assert schema.dtypes == ("float64", "int64", "bool", *["float64"] * 5)
    assert [grid.step for grid in schema.discrete] == [0, 1, 1, 0.5, 1, 0]
    assert schema.discrete[3][:2] == (0.5, 0.25)
    notes = " | ".join(schema.notes())
    assert "samples carry it back: 'fixed'" in notes
    assert "step 0.5: 'half'" in notes
    assert "levels: 'code'" in notes


def test_the_way_there_and_back(mixed, tmp_path):
    schema = infer_schema(open_table(mixed), context=["given"])
    values = next(open_table(mixed).batches())
    x, context, log_grid, off_grid, reasons, unseen = schema.encode(values)
    assert x.shape == (2000, 6)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert context.shape == (2000, 1)
    assert context.dtype == np.float32
    np.testing.assert_allclose(log_grid, 5 * math.log1p(-1 / 5 / 2002))
    assert (reasons, unseen) == ({}, {})
    assert not off_grid.any()
    assert abs(x[:, 5]).max() < 1e4  # timestamps: the origin is subtracted before rounding
    back = schema.decode(x, values[:, [7]])
    exact = [i for i, name in enumerate(schema.names) if name not in ("real", "when")]
    np.testing.assert_array_equal(back[:, exact], values[:, exact])
    np.testing.assert_allclose(back, values, rtol=1e-6, atol=1e-3)
    np.testing.assert_array_equal(schema.encode(back).x, x)
    for extension in EXTENSIONS:
        with TableWriter(tmp_path / f"t{extension}", schema.names, schema.dtypes) as writer:
            writer.write(back)
        table = schema.open(tmp_path / f"t{extension}")
        read = schema.encode(np.concatenate(list(table.batches())))
        np.testing.assert_array_equal(read.x, x)
        assert not read.off.any()
    text = (tmp_path / "t.csv").read_text().splitlines()
    assert text[0] == "real,count,flag,fixed,half,code,when,given"
    assert text[1].split(",")[1:4] == [str(mixed["count"][0]), str(mixed["flag"][0]).lower(), "7.5"]


@pytest.mark.parametrize("at", [20.0, 300.0, 900.0])
def test_float32_does_not_blur_what_lies_some_spreads_from_zero(generator, at):
    """Days since 4713 BC are told apart to the minute, seconds since 1970 to the second."""
    days = 1000 * (at + generator.normal(size=1000))
    schema = inferred(day=days, second=np.rint(86_400 * days))
    x = schema.encode(np.stack([days, np.rint(86_400 * days)], 1)).x
    back = schema.decode(x.astype(np.float32).astype(np.float64))
    np.testing.assert_allclose(back[:, 0], days, atol=1e-3, rtol=0)
    assert np.abs(back[:, 1] - np.rint(86_400 * days)).max() <= 16


def test_decoding_rounds_and_stays_inside_the_observed_range(generator):
    real = np.concatenate([[1e6, 1e6 + 1], 1e6 + generator.random(498)])  # far from 0, so it has an origin
    schema = inferred(a=generator.integers(-3, 4, 500), b=generator.choice([0.1, 0.2, 5.0], 500), c=real)
    at = schema.columns[2].origin
    assert at
    x = np.array([[-9.0, -4.0, 0], [1.4, 0.6, 0.25], [99.0, 99.0, 1.5], [-1e30, 1e30, -1e30], [0, 0, np.inf]])
    expected = [[-3, 0.1, at], [1, 0.2, at + 0.25], [3, 5, 1e6 + 1], [-3, 5, 1e6], [0, 0.1, np.inf]]
    np.testing.assert_array_equal(schema.decode(x), expected)
    with pytest.raises(ValueError, match=r"expected x of shape \(n, 3\), got \(3,\)"):
        schema.decode(np.zeros(3))
    with pytest.raises(ValueError, match="expected no context"):
        schema.decode(x, x)


def test_zero_has_no_sign(generator):
    column = np.where(generator.random(500) < 0.5, -0.0, 0.3) - generator.integers(0, 2, 500) * 0.6
    schema = inferred(x=column.round(1), y=generator.standard_normal(500))
    decoded = schema.decode(np.array([[-0.6, 0], [0.0, 0], [-0.0, 0]]))
    assert decoded[:, 0].tolist() == [-0.6, 0, 0]
    assert not np.signbit(decoded[1:, 0]).any()
    assert not np.signbit(inferred(x=-np.arange(0.0, 9), y=generator.random(9)).columns[0].high)


def test_decimal_grids_come_back_exactly(generator):
    for step, low, places in [(0.1, 0, 1), (0.01, -3.17, 2), (0.05, 1e4, 2), (2.5, 0.3, 1), (1e-5, 0, 5)]:
        column = np.round(low + step * generator.integers(0, 300, 20_000), places)
        schema = inferred(x=column, y=generator.standard_normal(20_000))
        described = schema.columns[0]
        assert described.kind == "integer"
        assert described.step == pytest.approx(step, rel=1e-9)
        values = np.stack([column, column], axis=1)
        np.testing.assert_array_equal(schema.decode(schema.encode(values).x)[:, 0], column)


def test_a_grid_printed_with_five_digits(generator):
    k = np.round(generator.standard_normal(30_000) * 50).clip(-70, 281)
    column = np.array([float(f"{v - 0.975071:.5g}") for v in k])
    described = kind_of(column)
    assert (described.kind, described.step) == ("integer", 1.0)
    assert described.low == pytest.approx(k.min() - 0.975071, abs=1e-6)
    assert described.high == pytest.approx(k.max() - 0.975071, abs=1e-6)
    # Printed values differ from the grid by up to 0.005; equal cells must become equal numbers.
    encoded, off = described.encode(column)
    assert not off.any()
    np.testing.assert_allclose(encoded, k - 0.975071 - described.origin, atol=1e-5)


def test_float_noise_hides_no_grid(generator):
    k = generator.integers(0, 200, 20_000)
    for column in (k * 0.1, np.cumsum(np.full(200, 0.1))[k], (k * 0.1).astype(np.float32), (k - 70.3) / 41.7):
        described = kind_of(column)
        assert described.kind == "integer"
        assert described.step == pytest.approx(0.1 if column[k == 0][0] > -1 else 1 / 41.7)
        assert round((described.high - described.low) / described.step) == np.ptp(k)
    thirds = kind_of(k / 3)
    assert thirds.step == pytest.approx(1 / 3)
    for column in (k % 20 / 20, ((k % 20 - 9.7) / 5.3).astype(np.float32)):
        assert kind_of(column).kind == "integer"
    assert kind_of(k / 255).low == 0
    few = kind_of(np.cumsum(np.full(20, 0.1))[k % 20])
    assert few.kind == "integer"
    assert few.step == pytest.approx(0.1)


def test_a_few_stray_values_hide_no_grid(generator):
    column = generator.integers(1, 98, 7200) / 100
    column[[5, 600]] = 0.515, 0.5219
    described = kind_of(column)
    assert (described.kind, described.step, described.slack) == ("integer", 0.01, 0.5)


def test_whole_numbers(generator):
    n = 1000
    assert kind_of(generator.integers(-5, 100_000, n)).step == 1
    assert kind_of(generator.integers(-5, 100_000, n) * 1000 + 7).step == 1000
    assert kind_of(generator.integers(0, 2, 50) * 1000).kind == "levels"  # 50 rows prove no divisor
    assert kind_of(generator.choice([0, 1, 999], n)).kind == "levels"
    heavy = generator.poisson(5, n)
    heavy[0] = 1000  # seen once: no level
    assert (kind_of(heavy).kind, kind_of(heavy).step) == ("integer", 1)
    beyond = frame(x=generator.integers(0, 2**62, n), y=generator.standard_normal(n))
    assert infer_schema(open_table(beyond)).identifiers == ("x",)  # no float holds its digits
    forced = infer_schema(open_table(beyond), continuous=["x"]).columns[0]
    assert (forced.kind, forced.dtype) == ("continuous", "float64")
    assert kind_of(np.round(generator.standard_normal(n) * 1e3)).dtype == "float64"  # declared so, though whole


def test_what_stays_continuous(generator):
    n = 5000
    real = generator.standard_normal(n)
    columns = {
        "plain": real,
        "atom": np.where(generator.random(n) < 0.3, 0, real),
        "mostly atom": np.where(generator.random(n) < 0.95, 0, real),
        "single": real.astype(np.float32),
        "five digits": np.array([float(f"{v:.5g}") for v in real]),
        "heavy": generator.standard_cauchy(n),
        "bounded": generator.beta(0.5, 0.5, n),
        "duplicated": np.repeat(real[:500], 10),
        "few rows": None,
    }
    for name, column in columns.items():
        column = real[:6] if column is None else column
        assert kind_of(column).kind == "continuous", name
    levels = real[:3].repeat(100)
    assert kind_of(levels).kind == "levels"
    table = open_table(frame(x=levels, y=generator.standard_normal(300)))
    assert infer_schema(table, continuous=["x"]).columns[0].kind == "continuous"


def test_the_result_does_not_depend_on_the_batches(mixed):
    schemas = {infer_schema(open_table(mixed), rows=rows) for rows in (7, 640, 10_000)}
    assert len(schemas) == 1


def test_rows_off_a_grid(generator):
    n = 1000
    table = frame(
        fixed=np.full(n, 3.0),
        count=generator.integers(0, 5, n),
        code=generator.choice([0.1, 0.25, 7.0], n),
        fine=generator.integers(0, 90, n) / 10,
    )
    schema = infer_schema(open_table(table))
    good = [3.0, 2, 0.25, 4.4]
    rows = np.array(
        [good, [3.1, 2, 0.25, 4.4], [3, 2.5, 0.25, 4.4], [3, 2, 0.3, 4.4], [3, 99, 0.25, 4.444], [4, 2, 9, 1]]
    )
    encoded = schema.encode(rows)
    assert encoded.off.tolist() == [False, True, True, True, False, True]
    assert encoded.reasons == {"fixed": 2, "count": 1, "code": 2}
    assert np.isfinite(encoded.x).all()
    assert encoded.context is None
    with pytest.raises(UserError, match=r"column 'fixed': 2 rows hold a value off its grid"):
        load(schema.open(rows), schema)


def test_the_masses_on_and_off_a_grid_sum_to_one(mixed, generator):
    """A column is strict if some finite value is off its grid, and only then has such a value a mass."""
    seconds = pd.to_datetime(1.7e9 + 86400 * generator.integers(0, 90, len(mixed)), unit="s")
    rare = np.concatenate([generator.choice([0.3, 0.4, 7.7], len(mixed) - 2), [19.1, 23.7]])
    data = pd.DataFrame({name: mixed[name] for name in mixed.dtype.names})
    data = data.assign(day=seconds, moment=seconds + pd.to_timedelta(generator.random(len(data)), unit="D"))
    data = data.assign(rare=rare, fine=generator.integers(0, 90, len(data)) / 10)
    schema = infer_schema(open_table(data), context=["given"])
    off = {}
    for column in schema.columns:
        values = np.array([column.low, column.low + 0.1234 * (column.high - column.low + 1) + 0.4567])
        log_on, log_off = schema.log_grid(column)
        assert math.exp(log_on) + math.exp(log_off) == pytest.approx(1)
        assert column.encode(values)[1].tolist() == [False, column.strict]
        assert column.strict == (log_off > -math.inf)
        off[column.name] = math.exp(log_off)
    strict = [name for name, p in off.items() if p]
    assert strict == ["count", "flag", "fixed", "half", "code", "day", "rare"]
    assert off["fixed"] == pytest.approx(1 / 7 / 2002)
    assert off["rare"] == pytest.approx((1 / 7 + 2) / 2002)  # new levels are as frequent as those seen once (Good 1953)
    assert Schema.from_json(schema.to_json()) == schema


def test_what_is_given_adds_no_mass(mixed):
    schema = infer_schema(open_table(mixed), context=["given"])
    values = next(open_table(mixed).batches())[:3]
    values[1, 3], values[2, 1] = 8, 0.5  # fixed, count
    (log_on, log_off), strict = schema.log_grid(schema.columns[3]), 5
    whole = schema.encode(values)
    np.testing.assert_allclose(whole.log_grid, [strict * log_on, *[(strict - 1) * log_on + log_off] * 2])
    others = schema.encode(values, without={"fixed"})
    np.testing.assert_allclose(others.log_grid, whole.log_grid - [log_on, log_off, log_on])
    assert others.off.tolist() == [False, True, True]


def test_missing_values_that_are_kept(generator):
    n = 100
    table = frame(
        fixed=np.ones(n),
        real=generator.standard_normal(n),
        code=generator.choice([0.1, 0.25, 7.0], n),
        given=generator.standard_normal(n),
    )
    schema = infer_schema(open_table(table, missing="keep"), context=["given"])
    rows = np.tile([1, 0.5, 7.0, 2], (6, 1))
    rows[np.arange(1, 5), np.arange(4)] = [np.nan, np.inf, np.nan, -np.inf]
    rows[5, :2] = 2, np.nan
    encoded = schema.encode(rows)
    assert np.isnan(encoded.x).all(axis=1).tolist() == [False, True, True, True, True, True]
    assert not encoded.off.any()
    table["real"][7] = np.nan
    for refused in (dict(missing="error"), dict(missing="keep", numbers=True)):
        with pytest.raises(UserError, match="1 missing"):
            infer_schema(open_table(table, missing=refused.pop("missing")), **refused)
    assert [c.missing for c in infer_schema(open_table(table, missing="keep")).columns] == [False, True, False, False]
    schema = infer_schema(open_table(table, missing="drop"))
    assert schema.rows == n - 1
    assert len(load(open_table(table, missing="drop"), schema)[0]) == n - 1


def test_far_and_extreme_values(generator):
    schema = inferred(t=generator.standard_normal(100) + 1e9, x=generator.standard_normal(100))
    x = schema.encode(np.array([[1e9, 1e300], [-1e300, 0]])).x
    assert np.isfinite(x).all()
    grid = kind_of(generator.integers(0, 50, 1000) + 1_600_000_000)
    assert grid.origin == round(grid.origin) > 0
    assert grid.grid().low == grid.low - grid.origin
    for column in (generator.random(50) * 1e35, generator.random(50) * 1e-35):
        with pytest.raises(UserError, match=r"column 'x' reaches from .* single precision can hold; rescale"):
            inferred(x=column, y=generator.random(50))


def test_context(generator):
    n = 500
    table = frame(
        a=generator.standard_normal(n),
        k=generator.integers(0, 3, n),
        year=generator.integers(0, 3, n) + 2.0e6,
        same=np.ones(n),
    )
    schema = infer_schema(open_table(table), context=["year", "same", "k"])
    assert (schema.features, schema.context_size) == (1, 2)
    assert any("'same'" in note and "ignored" in note for note in schema.notes())
    values = np.concatenate(list(open_table(table).batches()))
    encoded = schema.encode(values)
    years = schema.columns[2]
    np.testing.assert_array_equal(encoded.context, np.stack([table["year"] - years.origin, table["k"]], axis=1))
    context = np.array([[2e6 + 9, 1, 8.5]])  # a context may take any value
    back = schema.decode(np.array([[0.5]]), context)
    np.testing.assert_array_equal(back, [[0.5, 8.5, 2e6 + 9, 1]])
    np.testing.assert_array_equal(schema.encode_context(context), [[2e6 + 9 - years.origin, 8.5]])
    source = frame(k=[1], other=[5], same=[1], year=[2e6])
    np.testing.assert_array_equal(next(schema.open(source, schema.context).batches()), [[2e6, 1, 1]])
    with pytest.raises(UserError, match="lacks column 'same'"):
        schema.open(frame(k=[1], year=[2e6]), schema.context)
    with pytest.raises(ValueError, match="expected context values"):
        schema.decode(np.zeros((1, 1)))
    only = infer_schema(open_table(table), context=["same"])
    assert only.encode(values).context is None
    assert only.context_size == 0


def test_scoring_matches_columns(mixed, tmp_path):
    schema = infer_schema(open_table(mixed), drop=["when", "code"])
    assert "when" not in schema.names
    assert schema.all_names == mixed.dtype.names
    reordered = mixed[["given", "half", "fixed", "flag", "count", "real"]]
    table = schema.open(reordered)
    np.testing.assert_array_equal(next(table.batches())[:, 0], mixed["real"])
    assert schema.open(mixed).extra == ("code", "when")
    whole = np.concatenate(list(open_table(mixed).batches()))  # without names: all columns, or those that are used
    np.testing.assert_array_equal(next(schema.open(whole).batches())[:, -1], mixed["given"])
    with pytest.raises(UserError, match="has 7 columns without names, expected 6 or 8"):
        schema.open(whole[:, :7])
    with pytest.raises(UserError, match=r"lacks columns 'count', 'flag'; it has 'real'"):
        schema.open(mixed[["real", "fixed", "half", "given"]])


def test_what_cannot_be_modelled(generator):
    table = open_table(frame(a=generator.standard_normal(9), b=np.ones(9)))
    cases = [
        (dict(context=["z"]), "lacks column 'z'; it has 'a', 'b'"),
        (dict(drop=["z"]), "lacks column 'z'"),
        (dict(continuous=["z"]), "lacks column 'z'"),
        (dict(context=["a"], drop=["a"]), "column 'a' is both context and dropped"),
        (dict(context=["a", "b"]), "no column is left to model"),
        (dict(drop=["a", "b"]), "no column is left to model"),
        (dict(drop=["a"]), "every column is constant"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            infer_schema(table, **arguments)
    with pytest.raises(UserError, match="has 1 row, expected at least 2"):
        infer_schema(open_table(np.ones((1, 2))))


def test_load(mixed, tmp_path):
    schema = infer_schema(open_table(mixed), context=["given"])
    table = open_table(mixed)
    x, context = load(table, schema)
    assert x.shape == (2000, 6)
    assert context.shape == (2000, 1)
    whole = schema.encode(np.concatenate(list(table.batches(schema.names))))
    np.testing.assert_array_equal(x, whole.x)
    np.testing.assert_array_equal(context, whole.context)


def test_json(mixed):
    schema = infer_schema(open_table(mixed), context=["given"], drop=["when"])
    text = json.dumps(schema.to_json(), allow_nan=False)
    assert Schema.from_json(json.loads(text)) == schema


def test_hostile_json(mixed):
    good = json.loads(json.dumps(infer_schema(open_table(mixed), context=["given"]).to_json()))

    def changed(path, value):
        data = copy.deepcopy(good)
        place = data
        for key in path[:-1]:
            place = place[key]
        if value is KeyError:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        return data

    column = ["columns", 1]
    hostile = [
        None,
        [],
        "schema",
        {},
        changed(["more"], 1),
        *(changed([key], KeyError) for key in good),
        changed(["columns"], []),
        changed(["columns"], {}),
        changed(["columns"], [good["columns"][3]]),
        changed(["columns", 0], good["columns"][1]),
        changed(column, None),
        changed([*column, "name"], ""),
        changed([*column, "name"], 3),
        changed([*column, "kind"], "odd"),
        changed([*column, "kind"], ["integer"]),
        changed([*column, "dtype"], "object"),
        changed([*column, "more"], 1),
        changed([*column, "low"], KeyError),
        changed([*column, "low"], "0"),
        changed([*column, "low"], True),
        changed([*column, "low"], float("nan")),
        changed([*column, "low"], 10**400),
        changed([*column, "high"], -1e9),
        changed([*column, "step"], 0),
        changed([*column, "step"], -1),
        changed([*column, "slack"], 0.6),
        changed([*column, "origin"], None),
        changed([*column, "values"], [1, 2]),
        changed(["columns", 5, "values"], []),
        changed(["columns", 5, "values"], [2, 1]),
        changed(["columns", 5, "values"], ["a", "b"]),
        changed(["columns", 0, "step"], 1),
        changed(["context"], ["nobody"]),
        changed(["context"], ["given", "given"]),
        changed(["context"], "given"),
        changed(["context"], list(mixed.dtype.names)),
        changed(["all_names"], ["real"]),
        changed(["all_names"], [1]),
        changed(["rows"], -1),
        changed(["rows"], 1.5),
        changed(["rows"], True),
    ]
    for data in hostile:
        with pytest.raises(UserError, match=r"schema: expected .*, got") as caught:
            Schema.from_json(data)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_find_grid_prefers_the_coarsest():
    assert find_grid(np.array([0.5, 1.5, 3.5]), exact=True) == (1.0, 0.5, 3.5)
    assert find_grid(np.array([-1.0, 0.25, 4.0]), exact=True) == (1.25, -1.0, 4.0)
    assert find_grid(np.sqrt(np.arange(2.0, 40)), exact=True) is None
    assert find_grid(np.sqrt(np.arange(2.0, 400))) is None


def test_inferring_many_rows_takes_little_memory():
    import tracemalloc

    x = np.random.default_rng(0).standard_normal((200_000, 5)).astype(np.float32)
    tracemalloc.start()
    try:
        schema = infer_schema(open_table(x), rows=8192)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert schema.rows == 200_000
    assert peak < 30e6

"""Columns of any kind as the context of any model of a table."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from diffeo import commands
from diffeo.cli import main
from diffeo.data import infer_schema, open_table
from diffeo.errors import UserError
from diffeo.modalities.tables.schema import Schema

MODELS = {
    "nsf": {"hidden": [16, 16], "transforms": 2},
    "realnvp": {"hidden": [16, 16], "transforms": 4},
    "flow_matching": {"hidden": [16, 16], "tolerance": 1e-4},
    "mixed": {"hidden": 32, "layers": 1, "orders": 2},
}
TINY = {"model": "nsf", "arguments": {"hidden": [8], "transforms": 1}, "epochs": 1, "folds": 1, "figures": False}
CONTEXT = ["kind", "size", "code", "flag", "day", "when", "year", "same"]


def frame_of(n=120, seed=0):
    """Two columns of numbers, and one of each kind to be conditional on."""
    generator = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "kind": generator.choice(["red", "green", "blue, dark"], n),
            "x": generator.normal(size=n),
            "size": pd.Categorical(
                generator.choice(["small", "medium", "big"], n), categories=["small", "medium", "big"], ordered=True
            ),
            "code": generator.choice([3, 5, 70], n),
            "flag": generator.random(n) < 0.3,
            "day": [f"{d:02d}.{m:02d}.2024" for d, m in generator.integers(1, [29, 13], (n, 2))],
            "when": pd.to_datetime("2024-01-01") + pd.to_timedelta(generator.integers(0, 10**6, n), "s"),
            "year": generator.integers(1990, 2020, n),
            "same": "always",
            "y": generator.normal(size=n),
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the numbers given all the others, beside its table."""
    folder = tmp_path_factory.mktemp("context")
    frame_of().to_parquet(folder / "data.parquet", index=False)
    commands.fit(folder / "data.parquet", folder / "run", context=CONTEXT, categorical=["code"], **TINY)
    return folder / "run"


def test_categories_are_one_hot_dates_and_numbers_as_they_are():
    frame = frame_of()
    table = open_table(frame)
    schema = infer_schema(table, context=CONTEXT, categorical=["code"])
    assert schema.features == 2
    assert not schema.mixed
    (values,) = open_table(table).batches()
    context = schema.encode(values, table.dictionaries).context
    expected = [
        *(frame["kind"] == kind for kind in ("blue, dark", "green", "red")),
        *(frame["size"] == size for size in ("small", "medium", "big")),
        *(frame["code"] == code for code in (3, 5, 70)),
        frame["flag"],
        (days := pd.to_datetime(frame["day"], format="%d.%m.%Y")).sub(days.min()).dt.days,
        (frame["when"].dt.floor("D") - frame["when"].dt.floor("D").min()).dt.days,
        (frame["when"] - frame["when"].dt.floor("D")).dt.total_seconds(),
        frame["year"] - next(column.origin for column in schema.columns if column.name == "year"),
    ]
    np.testing.assert_array_equal(context, np.stack(expected, axis=1).astype(np.float32))
    assert schema.context_size == len(expected)
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
    notes = " | ".join(schema.notes())
    assert "categories in the context, one-hot: 'kind' (3), 'size' (3), 'code' (3)" in notes
    assert "context column 'same' is always always" in notes


def test_a_missing_cell_stays_missing_and_what_is_no_category_is_none():
    schema = infer_schema(open_table(frame_of()), context=["kind"], drop=CONTEXT[1:])
    np.testing.assert_array_equal(
        schema.encode_context([[0.0], [2.0], [3.0], [np.nan]]), [[1, 0, 0], [0, 0, 1], [0, 0, 0], [np.nan] * 3]
    )


@pytest.mark.parametrize("model", MODELS)
def test_any_model_learns_what_categories_say(model, tmp_path):
    """Samples given a category are like its rows, and the density given each integrates to one."""
    generator = np.random.default_rng(0)
    kind = generator.choice(["a", "b"], 2000)
    columns = ["x", "y"] if model == "realnvp" else ["x"]  # a coupling takes two
    frame = pd.DataFrame(generator.normal(size=(2000, len(columns))), columns=columns).assign(kind=kind)
    frame["x"] += np.where(kind == "a", 4.0, -4.0)
    options = {"arguments": MODELS[model], "epochs": 12, "batch_size": 128, "folds": 1, "figures": False}
    commands.fit(frame, tmp_path / "run", model=model, context=["kind"], **options)
    fine = np.linspace(-9, 9, 73)
    grid = np.stack(np.meshgrid(*[fine] * len(columns), indexing="ij"), axis=-1).reshape(-1, len(columns))
    for name, centre in (("a", 4.0), ("b", -4.0)):
        commands.sample(tmp_path / "run", 300, tmp_path / f"{name}.csv", given={"kind": name})
        drawn = pd.read_csv(tmp_path / f"{name}.csv")
        assert (drawn["kind"] == name).all()
        assert abs(drawn["x"].mean() - centre) < 1.0
        assert drawn["x"].std() < 2.5
        table = pd.DataFrame(grid, columns=columns).assign(kind=name)
        commands.score(tmp_path / "run", table, tmp_path / f"s{name}.csv")
        density = np.exp(pd.read_csv(tmp_path / f"s{name}.csv")["log_likelihood"])
        assert density.sum() * 0.25 ** len(columns) == pytest.approx(1, abs=0.02)
        assert np.average(grid[:, 0], weights=density) == pytest.approx(centre, abs=1.0)


def test_samples_carry_what_was_given(run, tmp_path):
    table = frame_of(30, seed=1)
    table.to_csv(tmp_path / "given.csv", index=False)
    for source in (tmp_path / "given.csv", table):
        assert commands.sample(run, 2, tmp_path / "s.parquet", given_from=source, force=True)["rows"] == 60
        drawn = pd.read_parquet(tmp_path / "s.parquet")
        pd.testing.assert_frame_equal(drawn[CONTEXT][::2].reset_index(drop=True), table[CONTEXT], check_dtype=False)
    types = {each.name: str(each.type) for each in pq.read_schema(tmp_path / "s.parquet")}
    assert [types[name] for name in ("kind", "code", "flag", "when")] == ["string", "int64", "bool", "timestamp[us]"]
    assert "ordered=1" in types["size"]
    given = {"kind": "red", "size": "big", "code": "70", "flag": "true", "day": "03.04.2024", "year": "2001.5"}
    commands.sample(run, 3, tmp_path / "t.csv", given={**given, "when": "2024-01-05 12:30:15"})
    cells = pd.read_csv(tmp_path / "t.csv", dtype=str)
    assert (cells[list(given)] == pd.Series(given)).all(axis=None)
    assert (cells["same"] == "always").all()


def test_scores_info_and_check(run, tmp_path):
    frame = frame_of()
    frame.to_csv(tmp_path / "data.csv", index=False)
    for source in (frame, tmp_path / "data.csv"):
        commands.score(run, source, tmp_path / "s.csv", force=True)
        first = pd.read_csv(tmp_path / "s.csv")["log_likelihood"]
        commands.score(run, run.parent / "data.parquet", tmp_path / "t.csv", force=True)
        np.testing.assert_array_equal(first, pd.read_csv(tmp_path / "t.csv")["log_likelihood"])
    other = frame.assign(kind=np.roll(frame["kind"], 1))
    commands.score(run, other, tmp_path / "u.csv")
    assert (first != pd.read_csv(tmp_path / "u.csv")["log_likelihood"])[other["kind"] != frame["kind"]].all()
    roles = {column["name"]: (column["kind"], column["role"]) for column in commands.info(run)["columns"]}
    assert roles["kind"] == ("categorical", "context")
    assert roles["when"] == ("date", "context")
    assert roles["x"] == ("continuous", "modelled")
    assert commands.check(run, frame)["in_sample"]  # these are the rows of training, recognised


def test_a_run_goes_on_with_its_context(run, tmp_path):
    commands.fit(frame_of(), tmp_path / "run", context=["kind", "flag"], drop=["size", "day", "when", "same"], **TINY)
    longer = commands.fit(frame_of(), tmp_path / "run", resume=True, epochs=2, figures=False)
    assert longer["epochs"] == 2


def test_a_mixed_table_has_a_context_beside_its_columns(tmp_path):
    frame = frame_of()
    frame.loc[::7, "x"] = np.nan
    options = {"arguments": MODELS["mixed"], "epochs": 1, "folds": 1, "figures": False}
    summary = commands.fit(frame, tmp_path / "run", context=["kind", "flag"], drop=["when", "day"], **options)
    assert summary["model"] == "mixed"
    commands.sample(tmp_path / "run", 20, tmp_path / "s.csv", given={"kind": "green", "flag": "false"})
    drawn = pd.read_csv(tmp_path / "s.csv")
    assert set(drawn["kind"]) == {"green"}
    assert set(drawn["flag"]) == {False}
    assert set(drawn["size"]) <= {"small", "medium", "big"}


def test_numbers_keep_their_default_model_given_texts(tmp_path):
    settings = {key: value for key, value in TINY.items() if key != "model"}
    frame = frame_of()[["kind", "x", "y"]]
    assert commands.fit(frame, tmp_path / "run", context=["kind"], **settings)["model"] == "nsf"


@pytest.mark.parametrize(
    ("name", "value", "gist"),
    [
        ("kind", "violet", "'violet'; they are 'blue, dark', 'green', 'red'"),
        ("size", "huge", "'huge'; they are 'small', 'medium', 'big'"),
        ("code", "4", "'4'; they are '3', '5', '70'"),
        ("same", "never", "'never'; they are 'always'"),
        ("flag", "0.5", "'0.5'; they are false, true"),
        ("flag", "maybe", "expected a number for context column 'flag', got 'maybe'"),
        ("day", "31.31.2024", "column 'day': '31.31.2024' is no date"),
        ("year", "inf", "expected a finite value of context column 'year'"),
    ],
)
def test_bad_values_of_a_context_are_refused(run, tmp_path, capsys, name, value, gist):
    given = {"kind": "red", "size": "big", "code": 70, "flag": "true", "day": "03.04.2024", "year": 2001}
    given |= {"when": "2024-01-05 12:30:15", name: value}
    words = [word for each in given.items() for word in ("--given", "=".join(map(str, each)))]
    assert main(["sample", str(run), "-n", "2", "--out", str(tmp_path / "s.csv"), *words]) == 2
    assert gist in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("command", ["score", "check", "sample"])
def test_a_context_that_is_no_date_is_named_with_its_row(run, command, tmp_path):
    table = frame_of(40)
    table.loc[6, "day"] = "soon"
    call = {
        "score": lambda: commands.score(run, table, tmp_path / "s.csv"),
        "check": lambda: commands.check(run, table),
        "sample": lambda: commands.sample(run, out=tmp_path / "s.csv", given_from=table),
    }[command]
    with pytest.raises(UserError, match="row 7, column 'day': 'soon' is no date"):
        call()


@pytest.mark.parametrize("command", ["score", "check", "sample"])
@pytest.mark.parametrize("run_of", ["nsf", "mixed"])
def test_rows_with_an_unknown_context_are_named(command, run_of, tmp_path):
    options = {"arguments": MODELS[run_of] | ({"transforms": 1} if run_of == "nsf" else {}), "epochs": 1, "folds": 1}
    small = frame_of()[["kind", "x", "y"]]
    commands.fit(small, tmp_path / "run", model=run_of, context=["kind"], figures=False, **options)
    call = {
        "score": lambda table: commands.score(tmp_path / "run", table, tmp_path / "s.csv"),
        "check": lambda table: commands.check(tmp_path / "run", table),
        "sample": lambda table: commands.sample(tmp_path / "run", out=tmp_path / "s.csv", given_from=table),
    }[command]
    for value, gist in (("violet", "training saw no values such as 'violet'"), (None, "missing")):
        table = small.copy()
        table.loc[4, "kind"] = value
        with pytest.raises(UserError, match=rf"row 5.* column 'kind'.*{gist}|{gist}.*row 5, column 'kind'"):
            call(table)
        assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize(
    ("table", "gist"),
    [
        (frame_of().assign(kind=[f"name {i}" for i in range(120)]), "'kind': nearly all of its values differ"),
        (frame_of().assign(kind=[None, *frame_of()["kind"][1:]]), "1 missing .* in column 'kind'"),
        (frame_of().assign(kind=None), "'kind' has no values"),
    ],
)
def test_bad_contexts_leave_nothing_behind(table, gist, tmp_path):
    with pytest.raises(UserError, match=gist):
        commands.fit(table, tmp_path / "run", context=["kind"], drop=["size", "day", "when", "same"], **TINY)
    assert not (tmp_path / "run").exists()


def test_a_context_of_too_many_categories_is_refused(tmp_path):
    table = pd.DataFrame({"k": [f"n{i}" for i in range(5000)], "x": np.arange(5000.0)})
    with pytest.raises(UserError, match="the context has 5000 numbers, 5000 of them the categories of 'k'"):
        infer_schema(open_table(table), context=["k"], categorical=["k"])

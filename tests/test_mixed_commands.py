"""The life of a run of a mixed table: fit, score, sample given any columns, impute, resume; and bad input."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from diffeo import commands
from diffeo.cli import main
from diffeo.errors import UserError
from test_tables import written

N = 240
TINY = {"arguments": {"hidden": 32, "orders": 1}, "epochs": 3, "folds": 1, "figures": False}


def frame_of(n=N, seed=0):
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "kind": generator.choice(["red", "green", "blue, dark"], n),
            "size": pd.Categorical(
                generator.choice(["small", "big"], n), categories=["small", "medium", "big"], ordered=True
            ),
            "count": pd.array(generator.integers(0, 9, n), "Int64"),
            "real": generator.normal(size=n),
            "flag": generator.random(n) < 0.3,
            "day": [f"{d:02d}.{m:02d}.2024" for d, m in generator.integers(1, [29, 13], (n, 2))],
            "when": pd.to_datetime("2024-01-01") + pd.to_timedelta(generator.integers(0, 10**6, n), "s"),
        }
    )
    for name, k in (("kind", 7), ("count", 5), ("real", 9), ("day", 11)):
        frame.loc[frame.index % k == 3, name] = None
    return frame


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one order of the columns, its frame, and where both are."""
    folder = tmp_path_factory.mktemp("mixed")
    frame_of().to_parquet(folder / "data.parquet", index=False)
    commands.fit(folder / "data.parquet", folder / "run", **TINY)
    return folder / "run"


def said_in_one_line(capsys):
    """The error on stderr, which is one line behind the notes."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1
    return lines[0]


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_default_of_a_mixed_table_and_of_a_complete_one(run, tmp_path):
    assert json.loads((run / "model.json").read_text())["recipe"]["name"] == "mixed"
    complete = pd.DataFrame(np.random.default_rng(0).normal(size=(100, 2)), columns=["a", "b"])
    small = {"arguments": {"hidden": [8], "transforms": 1}, "epochs": 1, "folds": 1, "figures": False}
    assert commands.fit(complete, tmp_path / "run", **small)["model"] == "nsf"


@pytest.mark.parametrize("suffix", ["csv", "parquet", None])
def test_scores_are_those_of_the_frame(run, tmp_path, suffix):
    """Whatever holds the rows; with seed, for the density depends on no noise."""
    source = frame_of()
    if suffix == "parquet":
        source = run.parent / "data.parquet"
    elif suffix == "csv":
        source = tmp_path / "data.csv"
        frame_of().to_csv(source, index=False)
    commands.score(run, source, tmp_path / "s.csv", seed=3)
    commands.score(run, frame_of(), tmp_path / "again.csv")
    np.testing.assert_allclose(*(pd.read_csv(tmp_path / f"{n}.csv")["log_likelihood"] for n in ("s", "again")))


def test_conditional_scores_are_ratios_where_the_order_puts_the_given_first(run, tmp_path):
    """log p(all) = log p(kind, size) + log p(rest | kind, size): the rest is missing and marginalised, or given."""
    frame = frame_of().drop(columns=["count", "real", "day"]).dropna()
    run = tmp_path / "run"
    commands.fit(frame, run, **TINY)
    whole = tmp_path / "whole.csv"
    commands.score(run, frame, whole)
    commands.score(run, frame, tmp_path / "rest.csv", conditions=["kind", "size"])
    first = frame.assign(flag=None, when=pd.NaT)
    commands.score(run, first, tmp_path / "first.csv")
    whole, rest, first = (pd.read_csv(tmp_path / f"{n}.csv")["log_likelihood"] for n in ("whole", "rest", "first"))
    np.testing.assert_allclose(whole, first + rest, atol=1e-4)


def test_dropped_columns_are_summed_over(run, tmp_path):
    """By enumeration of a column that comes last: its categories, a gap, and what was never seen."""
    frame = frame_of()[["flag", "count", "kind"]]
    commands.fit(frame, tmp_path / "run", **TINY)

    def scores(table, **options):
        commands.score(tmp_path / "run", table, tmp_path / "s.csv", force=True, **options)
        return pd.read_csv(tmp_path / "s.csv")["log_likelihood"].to_numpy()

    kinds = ("red", "green", "blue, dark", None, "violet")
    each = [scores(frame.assign(kind=pd.Series([kind] * N, dtype="string"))) for kind in kinds]
    without = scores(frame, drop=["kind"])
    np.testing.assert_allclose(np.logaddexp.reduce(each), without, atol=1e-5)
    assert np.isfinite(without).all()
    assert (without > np.max(each, axis=0)).all()
    np.testing.assert_array_equal(scores(frame.drop(columns="kind"), drop=["kind"]), without)
    # p(count | flag) = p(flag, count) / p(flag)
    given = scores(frame, drop=["kind"], conditions=["flag"])
    np.testing.assert_allclose(given, without - scores(frame, drop=["kind", "count"]), atol=1e-5)


def test_infinite_and_huge_numbers_are_impossible(run, tmp_path):
    frame = frame_of(8)
    huge = [np.inf, -np.inf, 1e31, -1e38, 1e308]
    frame["count"] = frame["count"].astype(float)
    for column, conditions in (("real", []), ("count", []), ("real", ["real"])):
        changed = frame.copy()
        changed.loc[:4, column] = huge
        summary = commands.score(run, changed, tmp_path / "s.csv", conditions=conditions, force=True)
        scores = pd.read_csv(tmp_path / "s.csv")["log_likelihood"].to_numpy()
        assert np.isneginf(scores[:5]).all()
        assert np.isfinite(scores[5:]).all()
        assert summary["impossible"] == summary["off_grid"] == 5


def test_unseen_categories_are_counted_and_finite(run, tmp_path):
    frame = frame_of()
    frame.loc[:4, "kind"] = "violet"
    summary = commands.score(run, frame, tmp_path / "s.csv")
    assert summary["unseen_by_column"] == {"kind": 5}
    assert summary["impossible"] == 0


def test_samples_have_types_formats_and_no_other_values(run, tmp_path):
    out = tmp_path / "s.parquet"
    commands.sample(run, 300, out)
    assert pq.read_schema(out).remove_metadata().names == list(frame_of().columns)
    types = {each.name: str(each.type) for each in pq.read_schema(out)}
    assert types["count"] == "int64"
    assert types["flag"] == "bool"
    assert types["size"].endswith("ordered=1>")
    assert types["when"].startswith("timestamp")
    samples, frame = pd.read_parquet(out), frame_of()
    for name in ("kind", "size", "flag", "count"):
        assert set(samples[name].dropna()) <= set(frame[name].dropna())
    assert samples["day"].dropna().str.fullmatch(r"\d\d\.\d\d\.2024").all()
    assert samples["real"].dropna().between(frame["real"].min(), frame["real"].max()).all()
    assert not samples[["size", "flag", "when"]].isna().any().any()
    assert samples["kind"].isna().any()


def test_what_is_given_is_kept_exactly(run, tmp_path, capsys):
    out = tmp_path / "s.csv"
    words = ["kind=blue, dark", "day=05.03.2024", "real=0.123456789012345", "count=40", "flag=true"]
    options = [word for each in words for word in ("--given", each)]
    assert main(["sample", str(run), "-n", "20", *options, "--out", str(out)]) == 0
    for row in read(out):
        assert row["kind"] == "blue, dark"
        assert row["day"] == "05.03.2024"
        assert float(row["real"]) == 0.123456789012345
        assert row["count"] == "40"
        assert row["flag"] == "true"


def test_columns_given_by_a_table_with_gaps(run, tmp_path):
    given = written(tmp_path / "g.csv", "day,kind\n05.03.2024,\n,red\n")
    commands.sample(run, 3, tmp_path / "s.csv", given_from=given)
    rows = read(tmp_path / "s.csv")
    assert [row["day"] for row in rows[:3]] == ["05.03.2024"] * 3
    assert [row["kind"] for row in rows[3:]] == ["red"] * 3
    assert len(rows) == 6


def test_imputing_keeps_what_is_known_and_leaves_no_gap(run, tmp_path):
    frame = frame_of().assign(note=[f"n{i}" for i in range(N)])
    full = []
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        commands.impute(run, frame, tmp_path / f"{name}.parquet", seed=seed)
        full.append(pd.read_parquet(tmp_path / f"{name}.parquet"))
    for name in frame.columns:
        there = frame[name].notna()
        assert full[0][name].notna().all()
        assert (full[0][name][there].astype(str) == frame[name][there].astype(str)).all()
    pd.testing.assert_frame_equal(full[0], full[1])
    assert not full[0].equals(full[2])
    summary = commands.impute(run, frame, tmp_path / "many.csv", draws=3)
    rows = read(tmp_path / "many.csv")
    assert [(row["row"], row["draw"]) for row in rows[:4]] == [("1", "1"), ("1", "2"), ("1", "3"), ("2", "1")]
    assert len(rows) == 3 * N
    assert summary["filled_by_column"] == {n: int(k) for n, k in frame.isna().sum().items() if k}


def test_what_a_model_knows_as_constant_or_whole_is_not_put_in_the_place_of_what_is_given(tmp_path):
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "a": generator.normal(size=60),
            "always": 7,
            "k": generator.poisson(4, 60),
            "kind": generator.choice([*"pq"], 60),
        }
    )
    commands.fit(frame.assign(a=frame["a"].where(frame["k"] > 2)), tmp_path / "run", **TINY)
    path = written(tmp_path / "g.csv", "a,always,k,kind\n,8,6,p\n0.5,,2,q\n")
    commands.impute(tmp_path / "run", path, tmp_path / "full.csv")
    assert [(row["always"], row["k"], row["kind"]) for row in read(tmp_path / "full.csv")] == [
        ("8", "6", "p"), ("7", "2", "q"),
    ]  # fmt: skip
    path = written(tmp_path / "h.csv", "a,always,k,kind\n0.1,7,6,p\n,7,6.5,p\n")
    with pytest.raises(
        UserError, match=r"row 2 \(line 3\), column 'k': holds 6.5, where the model knows whole numbers"
    ):
        commands.impute(tmp_path / "run", path, tmp_path / "half.csv")
    assert not (tmp_path / "half.csv").exists()


def test_the_seed_decides_the_weights_and_runs_are_replaced_and_resumed(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    commands.fit(frame_of(), whole, **{**TINY, "epochs": 4})
    commands.fit(frame_of(), parts, **{**TINY, "epochs": 4})
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds a run"):
        commands.fit(frame_of(), parts, **TINY)
    commands.fit(frame_of(), parts, force=True, **TINY)
    assert commands.fit(frame_of(), parts, resume=True, epochs=4, figures=False)["epochs"] == 4


def test_kinds_and_readings_that_are_asked_for(tmp_path):
    rows = "\n".join(
        f"{i % 4};{i % 9};{i},5;2024{1 + i % 9:02d}01;{'-' if i % 6 == 1 else 'ab'[i % 2]}" for i in range(90)
    )
    path = written(tmp_path / "a.csv", "code;n;x;d;t\n" + rows)
    words = ["--categorical", "code", "--integer", "n", "--continuous", "x", "--date", "d", "--na=-"]
    words += ["--sep", ";", "--decimal", ",", "--set", "hidden=16", "--epochs", "1", "--folds", "1", "--no-figures"]
    assert main(["fit", str(path), "--out", str(tmp_path / "run"), *words]) == 0
    columns = {
        each["name"]: each for each in json.loads((tmp_path / "run/model.json").read_text())["schema"]["columns"]
    }
    assert [columns[name]["kind"] for name in ["code", "n", "x", "d", "t"]] == [
        "categorical", "integer", "continuous", "date", "categorical",
    ]  # fmt: skip
    assert columns["t"]["missing"]
    assert columns["t"]["categories"] == ["a", "b"]
    assert main(["score", str(tmp_path / "run"), str(path), "--out", str(tmp_path / "s.csv")]) == 0


def test_rows_with_gaps_are_left_out_where_asked(tmp_path):
    summary = commands.fit(frame_of(), tmp_path / "run", missing="drop", **TINY)
    whole = len(frame_of().dropna())
    assert summary["rows"]["train"] + summary["rows"]["validation"] == whole
    assert commands.score(tmp_path / "run", frame_of(), tmp_path / "s.csv", missing="drop")["dropped"] == N - whole


def test_a_table_of_one_column_is_fitted(tmp_path):
    frame = pd.DataFrame({"t": ["a", "b"] * 20})
    assert commands.fit(frame, tmp_path / "run", **TINY)["columns"] == 1


@pytest.mark.parametrize(
    ("words", "gist"),
    [
        (["--given", "kind=violet"], "column 'kind': training saw no values such as 'violet'; they are"),
        (["--given", "day=31.31.2024"], "column 'day': '31.31.2024' is no date"),
        (["--given", "count=2.5"], "column 'count': training saw no values such as '2.5'; they lie between 0 and 8"),
        (["--given", "count=1e20"], "column 'count'"),
        (["--given", "flag=7"], "column 'flag'"),
        (["--given", "real=1e308"], "finite value of column 'real'"),
        (["--given", "real=abc"], "expected a number for column 'real', got 'abc'"),
        (["--given", "nope=1"], "'nope' is no modelled column"),
    ],
)
def test_bad_values_are_refused(run, capsys, words, gist):
    assert main(["sample", str(run), "-n", "2", *words]) == 2
    assert gist in said_in_one_line(capsys)


@pytest.mark.parametrize(
    ("text", "gist"),
    [
        ("foo\n1\n", "g.csv: has none of the columns"),
        ("kind\nred\nviolet\n", "g.csv: row 2 (line 3), column 'kind': training saw no values such as 'violet'"),
    ],
)
def test_bad_tables_of_given_columns_are_refused(run, tmp_path, capsys, text, gist):
    assert main(["sample", str(run), "--given-file", str(written(tmp_path / "g.csv", text))]) == 2
    assert gist in said_in_one_line(capsys)


@pytest.mark.parametrize(
    ("words", "gists"),
    [
        (["--model", "maf"], ["'kind' holds text", "'day' holds dates"]),
        (["--sep", "||"], ["one character"]),
        (["--decimal", "x"], ["a point or a comma"]),
        (["--set", "orders=0"], ["orders >= 1"]),
        (["--integer", "kind"], ["'kind' holds text"]),
    ],
)
def test_bad_trainings_leave_nothing_behind(tmp_path, capsys, words, gists):
    frame_of().to_csv(tmp_path / "a.csv", index=False)
    assert main(["fit", str(tmp_path / "a.csv"), "--out", str(tmp_path / "run"), *words]) == 2
    said = said_in_one_line(capsys)
    assert all(gist in said for gist in gists)
    assert not (tmp_path / "run").exists()


def test_a_model_of_one_order_lives_the_same_life_without_other_conditionals(tmp_path, capsys):
    data, run = str(tmp_path / "data.parquet"), str(tmp_path / "run")
    frame_of().to_parquet(data, index=False)
    tiny = {**TINY, "arguments": {"hidden": 32, "any_order": False}, "figures": True}
    assert not {"marginals", "noise"} - {Path(plot).stem for plot in commands.fit(data, run, **tiny)["figures"]}
    commands.score(run, data, tmp_path / "scores.csv")
    assert np.isfinite(pd.read_csv(tmp_path / "scores.csv")["log_likelihood"]).all()
    commands.sample(run, 50, tmp_path / "new.parquet")
    assert pq.read_schema(tmp_path / "new.parquet").names == [*frame_of()]
    assert commands.check(run, data)["orders"]["spread"] == 0
    for command in (
        ["sample", run, "-n", "3", "--given", "kind=red"],
        ["score", run, data, "--given", "kind"],
        ["impute", run, data],
    ):
        assert main([*command, "--out", str(tmp_path / "none.csv")]) == 2
        assert "any_order" in said_in_one_line(capsys)
    gappy = frame_of()
    gappy.loc[3, "when"] = None
    gappy.to_parquet(tmp_path / "gappy.parquet", index=False)
    assert main(["score", run, str(tmp_path / "gappy.parquet"), "--out", str(tmp_path / "none.csv")]) == 2
    assert "row 4: column 'when' is missing" in said_in_one_line(capsys)
    assert not (tmp_path / "none.csv").exists()

"""Many Parquet files as one table: how they are found, compared, read and scored."""

import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffeo import commands
from diffeo.data import open_table
from diffeo.errors import UserError
from diffeo.modalities.tables.parquet import ParquetSource

SMALL = {"epochs": 1, "folds": 1, "figures": False, "arguments": {"hidden": [8], "transforms": 1}}
SIZES = {"0.parquet": 300, "1.parquet": 0, "3.parquet": 200, "sub/2.parquet": 500}


def frame(rows, seed=0, **more):
    generator = np.random.default_rng(seed)
    columns = {"a": generator.normal(size=rows), "b": generator.normal(size=rows), "key": np.arange(rows)}
    return pd.DataFrame({**columns, **more})


def write(folder, sizes=SIZES):
    for seed, (name, rows) in enumerate(sizes.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        frame(rows, seed).to_parquet(folder / name, row_group_size=128, index=False)
    return folder


@pytest.fixture
def data(tmp_path):
    folder = write(tmp_path / "data")
    for name in ("_temporary/4.parquet", ".hidden.parquet", "_SUCCESS"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("none of the table")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    commands.fit(frame(400), folder / "run", drop=["key"], **SMALL)
    return folder / "run"


def values(table):
    return np.concatenate(list(table.batches()))


def test_a_folder_a_pattern_and_a_list_are_one_table(data):
    folder = open_table(data)
    expected = np.concatenate([frame(rows, seed) for seed, rows in enumerate(SIZES.values())])
    assert (folder.num_rows, folder.names) == (1000, ("a", "b", "key"))
    assert np.array_equal(values(folder), expected)
    assert sum(folder.row_groups) == 1000
    assert np.array_equal(values(open_table(f"{data}/*.parquet")), expected[:500])
    some = open_table([data / "3.parquet", str(data / "0.parquet")])
    assert [str(file) for file in some.files] == ["3.parquet", "0.parquet"]
    assert np.array_equal(values(some), np.concatenate([expected[300:500], expected[:300]]))
    parts = [values(folder.row_group(i)) for i, rows in enumerate(folder.row_groups) if rows]
    assert np.array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("empty", "is a folder without .parquet files"),
        ("data/*.csv", "no such file; check the pattern"),
        ("data/_*", "_SUCCESS: is no .parquet file; a table of several files is made of these, convert it"),
        (["data/0.parquet", "data/9.parquet"], "9.parquet: no such file"),
        (["data/0.parquet", "data/0.parquet"], "0.parquet: is named twice"),
    ],
)
def test_what_is_no_table_of_files(data, monkeypatch, source, message):
    monkeypatch.chdir(data.parent)
    (data.parent / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        open_table(source)


def test_a_file_that_differs_is_named(data):
    """With the column, the other file and the remedy; without that column the others are a table."""
    frame(50, b="text").to_parquet(data / "5.parquet")
    frame(50).drop(columns="a").to_parquet(data / "6.parquet")
    with pytest.raises(UserError) as caught:
        commands.fit(data, data.parent / "run", **SMALL)
    text = str(caught.value)
    assert f"column 'b' is double in {data}/0.parquet and " in text
    assert f"string in {data}/5.parquet" in text
    assert f"column 'a' is missing in {data}/6.parquet, and {data}/0.parquet has it" in text
    assert "give all files the same columns, or use --drop b" in text
    assert not (data.parent / "run").exists()
    assert commands.fit(data, data.parent / "run", drop=["a", "b"], **SMALL)["rows"]["train"] == 990


def test_types_that_one_column_can_have(tmp_path):
    """Whole numbers and fractions, widths, categories with other codes, columns without a value, other orders."""
    frames = [
        {"n": pa.array([1, 2], pa.int32()), "f": pa.array([1, 2]), "t": pa.array(["x", "y"]), "e": pa.nulls(2)},
        {
            "e": pa.array([0.5, 1.5]), "t": pa.array(["y", "z"]).dictionary_encode(), "f": pa.array([0.5, None]),
            "n": pa.array([3, 4], pa.int64()),
        },
        {"n": pa.nulls(1), "f": pa.array([1.0], pa.float32()), "t": pa.nulls(1), "e": pa.nulls(1)},
    ]  # fmt: skip
    for i, columns in enumerate(frames):
        pq.write_table(pa.table(columns), tmp_path / f"{i}.parquet")
    table = open_table(tmp_path, missing="keep")
    assert table.types == {"n": "integer", "f": "float", "t": "text", "e": "float"}
    cells = values(table)
    assert table.dictionaries["t"] == ["x", "y", "z"]
    expected = [
        [1, 1, 0, np.nan],
        [2, 2, 1, np.nan],
        [3, 0.5, 1, 0.5],
        [4, np.nan, 2, 1.5],
        [np.nan, 1, np.nan, np.nan],
    ]
    assert np.array_equal(cells, expected, equal_nan=True)


def test_gaps_and_damage_are_said_with_file_and_row(data, run):
    bad = frame(200)
    bad.loc[150, "b"] = np.nan
    bad.to_parquet(data / "3.parquet", row_group_size=64)
    with pytest.raises(UserError, match=f"the first in {data}/3.parquet, row 151, column 'b'"):
        commands.score(run, data, data.parent / "scored")
    scored = commands.score(run, data, data.parent / "scored", missing="drop")
    assert (scored["rows"], scored["dropped"]) == (999, 1)
    assert 151 not in pd.read_parquet(data.parent / "scored" / "3.parquet")["row"].to_numpy()
    whole = (data / "sub/2.parquet").read_bytes()
    (data / "sub/2.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"sub/2.parquet: cannot be read as Parquet"):
        commands.score(run, data, data.parent / "other")


def test_scores_of_a_folder_are_those_of_its_files(data, run, tmp_path):
    """To the byte, whatever is scored beside; a single table of them counts its rows on."""
    summary = commands.score(run, data, tmp_path / "scored", keep=["key"])
    assert summary["rows"] == 1000
    files = sorted(path.relative_to(tmp_path / "scored") for path in (tmp_path / "scored").rglob("*.parquet"))
    assert [str(file) for file in files] == list(SIZES)
    for file in files:
        scored = pd.read_parquet(tmp_path / "scored" / file)
        assert scored["row"].tolist() == list(range(1, SIZES[str(file)] + 1))
        if len(scored):
            commands.score(run, data / file, tmp_path / "one.parquet", keep=["key"], force=True)
            assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "scored" / file).read_bytes()
    commands.score(run, data, tmp_path / "all.parquet", keep=["key"])
    together = pd.read_parquet(tmp_path / "all.parquet")
    assert together["row"].tolist() == list(range(1, 1001))
    parts = pd.concat([pd.read_parquet(tmp_path / "scored" / file) for file in files])
    assert np.array_equal(together["log_likelihood"], parts["log_likelihood"])
    assert np.array_equal(together["key"], parts["key"])


def test_an_output_that_cannot_be(data, run, tmp_path):
    """The data's own folder, or one that holds something else, is never touched; a failure leaves the earlier one."""
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    for place in (data, data.parent):
        with pytest.raises(UserError, match="holds the data themselves"):
            commands.score(run, data, place, force=True)
    commands.score(run, data, tmp_path / "scored")
    with pytest.raises(UserError, match="holds files already"):
        commands.score(run, data, tmp_path / "scored")
    earlier = (tmp_path / "scored" / "0.parquet").read_bytes()
    frame(10, b=np.inf).to_parquet(data / "sub/9.parquet")
    with pytest.raises(UserError, match="infinite"):
        commands.score(run, data, tmp_path / "scored", force=True)
    assert (tmp_path / "scored" / "0.parquet").read_bytes() == earlier
    (data / "sub/9.parquet").unlink()
    assert commands.score(run, data, tmp_path / "scored", force=True)["rows"] == 1000
    with pytest.raises(UserError, match=r"holds '1.parquet', so it is not replaced"):
        commands.score(run, [data / "0.parquet", data / "3.parquet"], tmp_path / "scored", force=True)
    (tmp_path / "scored" / "sub" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'sub/notes.txt', so it is not replaced"):
        commands.score(run, data, tmp_path / "scored", force=True)
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob("*.tmp"))


def test_several_files_on_the_command_line(data, run, tmp_path):
    argv = [sys.executable, "-m", "diffeo", "score", run, data / "0.parquet", data / "3.parquet", "-o", tmp_path / "s"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "500 rows" in done.stdout
    assert len(pd.read_parquet(tmp_path / "s" / "3.parquet")) == 200


def test_only_what_is_asked_for_is_read(data, monkeypatch):
    """A row group is read alone: the other files may as well be gone."""
    table = open_table(data)
    numbers = [i for i, rows in enumerate(table.row_groups) if rows][-2:]
    expected = values(table)[-244:]
    for file in ("0.parquet", "3.parquet"):
        (data / file).unlink()
    assert np.array_equal(values(table.row_group(*numbers)), expected)


def test_identity_is_of_what_the_files_hold(data, tmp_path):
    def identity(source):
        return open_table(source).identity

    known = identity(data)
    shutil.copytree(data, tmp_path / "copy")
    assert identity(tmp_path / "copy") == known
    frame(200, seed=9).to_parquet(tmp_path / "copy/3.parquet", row_group_size=128, index=False)
    assert identity(tmp_path / "copy") != known
    assert open_table(frame(10)).identity == ""
    assert isinstance(open_table(data)._source, ParquetSource)

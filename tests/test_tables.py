"""Reading tables: every format, in a stream, and one clear line for everything that is wrong."""

import gzip
import re
import subprocess
import sys
import tracemalloc
import zipfile
from contextlib import suppress

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from diffeo.data import EXTENSIONS, Table, TableWriter, open_table
from diffeo.errors import UserError
from diffeo.modalities.tables import delimited as delimited_module


def everything(table, names=None, rows=65536):
    return np.concatenate(list(table.batches(names, rows)))


def numbers(table):
    """Read a table all of whose columns must be numbers."""
    table.declare(dict.fromkeys(table.names, "number"))
    return everything(table)


def written(path, text):
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def one_line(call, *gist):
    """Check that the call raises a UserError of one line in which all the pieces of the gist occur in this order."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    pattern = ".*".join(re.escape(piece) for piece in gist)
    assert re.search(pattern, message), f"{gist} not found in: {message}"
    return message


@pytest.fixture
def values():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((1000, 3)) * [1, 1e-8, 1e12]
    x[:, 1] = generator.integers(-5, 5, 1000)
    return x


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_format_is_read_back_as_it_was_written(tmp_path, values, extension):
    path = tmp_path / f"t{extension}"
    with TableWriter(path, ["a", "b", "c d"], ["float64", "int64", "float64"]) as writer:
        for start in range(0, 1000, 300):
            writer.write(values[start : start + 300])
    table = open_table(path)
    assert table.names == (("c0", "c1", "c2") if extension == ".npy" else ("a", "b", "c d"))
    assert table.num_rows in (None, 1000)
    for _ in range(2):  # a table is read as often as one likes
        np.testing.assert_array_equal(everything(table), values)
    batches = list(table.batches([table.names[2], table.names[0]], rows=300))
    assert [batch.shape for batch in batches] == [(300, 2)] * 3 + [(100, 2)]
    assert all(batch.dtype == np.float64 for batch in batches)
    np.testing.assert_array_equal(np.concatenate(batches), values[:, [2, 0]])


def test_a_header_is_recognised(tmp_path):
    table = open_table(written(tmp_path / "with.csv", "a,b\n1,2\n"))
    assert table.names == ("a", "b")
    assert table.has_names
    table = open_table(written(tmp_path / "without.csv", "1,2\n3,4.5\n"))
    assert table.names == ("c0", "c1")
    assert not table.has_names
    np.testing.assert_array_equal(everything(table), [[1, 2], [3, 4.5]])
    table = open_table(written(tmp_path / "years.csv", "2019,2020\n3,4.5\n"), header=True)
    assert table.names == ("2019", "2020")
    assert open_table(written(tmp_path / "bom.csv", "\ufeffa,b\n1,2\n")).names == ("a", "b")
    assert open_table(written(tmp_path / "index.csv", ",a\n0,1\n")).names == ("c0", "a")
    assert open_table(written(tmp_path / "UPPER.CSV", "\n\na , b\n1,2\n")).names == ("a", "b")


def test_spellings_of_numbers(tmp_path):
    text = 'a,b,c\n1, 2.5 ,"3"\n-1e3,.5,+7\n1.,1E-2,9007199254740993\n4.9e-324,0,123456789012345678901234567890\n'
    expected = [[1, 2.5, 3], [-1000, 0.5, 7], [1, 0.01, 2**53], [4.9e-324, 0, 123456789012345678901234567890.0]]
    np.testing.assert_array_equal(everything(open_table(written(tmp_path / "a.csv", text))), expected)
    semicolons = written(tmp_path / "b.csv", text.replace(",", ";"))
    np.testing.assert_array_equal(everything(open_table(semicolons)), expected)
    windows = written(tmp_path / "c.csv", text.replace("\n", "\r\n"))
    np.testing.assert_array_equal(everything(open_table(windows)), expected)


def test_booleans_are_numbers(tmp_path):
    table = open_table(written(tmp_path / "a.csv", "a,b\nTrue,1\nfalse,2\ntrue,3\n"))
    assert table.types == {"a": "bool", "b": "number"}
    np.testing.assert_array_equal(everything(table), [[1, 1], [0, 2], [1, 3]])
    late = "a,b\n" + "1,1\n" * 200 + "true,2\n"  # they turn up after the rows that are looked at beforehand
    assert everything(open_table(written(tmp_path / "b.csv", late)))[-1].tolist() == [1, 2]


def test_types_that_change_from_block_to_block(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited_module, "BLOCK", 1 << 12)
    rows = [f"{i},{i},7" for i in range(5000)] + ["1.5,-2e-3,8", "+3,4,9"] + [f"{i}.25,{i},7" for i in range(5000)]
    expected = np.array([[float(cell) for cell in row.split(",")] for row in rows])
    for name in ("a.csv", "a.csv.gz"):
        table = open_table(written(tmp_path / name, "a,b,c\n" + "\n".join(rows)))
        np.testing.assert_array_equal(everything(table, rows=777), expected)
    text = "a,b,c\n" + "\n".join([*rows, "1,,3", "1,x,3"])
    one_line(lambda: everything(open_table(written(tmp_path / "b.csv", text))), "column 'b'", "row 10004", "'x'")
    text = "a,b,c\n" + "\n".join([*rows, "1,,3", "1,NA,3"])
    one_line(lambda: everything(open_table(written(tmp_path / "b.csv", text))), "2 missing", "'b' (2)", "row 10003")


def test_text_is_welcome_where_it_is_not_read(tmp_path):
    text = 'id,a,note\nx1,1,"two\nlines, and a comma"\nx2,2,\u00e9\n'
    path = written(tmp_path / "a.csv", text)
    np.testing.assert_array_equal(everything(open_table(path, columns=["a"])), [[1], [2]])
    path.write_bytes(text.encode("latin-1"))
    np.testing.assert_array_equal(everything(open_table(path, columns=["a"])), [[1], [2]])
    frame = pd.DataFrame({"id": ["x", "y"], "a": [1, 2]})
    np.testing.assert_array_equal(everything(open_table(frame, columns=["a"])), [[1], [2]])


def test_objects(values):
    frame = pd.DataFrame(values, columns=["a", "b", "c"])
    arrow = pa.Table.from_pandas(frame)
    sources = [frame, frame.astype({"b": "Int64"}), frame.set_index(frame.index + 5), arrow, arrow.to_batches()[0]]
    for source in [*sources, arrow.to_reader(max_chunksize=100), values]:
        table = open_table(source)
        assert table.names == (("c0", "c1", "c2") if source is values else ("a", "b", "c"))
        for _ in range(2):
            np.testing.assert_array_equal(everything(table), values)
    assert open_table(frame).num_rows == 1000
    structured = np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "i4"), ("b", "f8")])
    table = open_table(structured)
    assert table.names == ("a", "b")
    np.testing.assert_array_equal(everything(table), [[1, 2.5], [3, 4.5]])
    with pytest.raises(TypeError, match="expected a path, an array or a data frame, got int"):
        open_table(3)


class Foreign:
    """A data frame of a library that nobody here knows."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


def test_the_capsule_interface_is_enough(values):
    arrow = pa.table({"a": values[:, 0], "b": pa.array(["x"] * 1000, pa.string_view())})
    table = open_table(Foreign(arrow))
    assert (table.name, table.names, table.num_rows) == ("Foreign", ("a", "b"), None)
    for _ in range(2):
        np.testing.assert_array_equal(everything(table, ["a"]), values[:, :1])
    one_line(lambda: numbers(table), "Foreign: column 'b' holds text (row 1: 'x')")


def test_a_table_can_be_opened_again(tmp_path):
    path = written(tmp_path / "a.csv", "a,b,c\n1,2,3\n4,,6\n")
    table = open_table(path, columns=["c", "b"], missing="drop")
    np.testing.assert_array_equal(everything(open_table(table)), [[3, 2]])
    np.testing.assert_array_equal(everything(open_table(table, columns=["c"], missing="error")), [[3], [6]])


def test_arrow_types(tmp_path):
    arrow = pa.table(
        {
            "half": pa.array([1.5, 2.5], pa.float16()),
            "big": pa.array([2**62 + 1, 3], pa.int64()),
            "unsigned": pa.array([2**64 - 1, 3], pa.uint64()),
            "bool": [True, False],
            "decimal": pa.array([1, 2], pa.decimal128(5, 2)),
            "coded": pa.array([5.5, 6.5]).dictionary_encode(),
            "a.b": [1, 2],
        }
    )
    expected = [[1.5, 2.0**62, 2.0**64, 1, 1, 5.5, 1], [2.5, 3, 3, 0, 2, 6.5, 2]]
    pq.write_table(arrow, tmp_path / "a.parquet")
    pa.feather.write_feather(arrow, str(tmp_path / "a.feather"))
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), arrow.schema) as stream:
        stream.write_table(arrow)
    for source in (arrow, *(tmp_path / f"a.{kind}" for kind in ("parquet", "feather", "arrow"))):
        table = open_table(source)
        np.testing.assert_array_equal(everything(table), expected)
        np.testing.assert_array_equal(everything(table, ["a.b", "bool"]), np.array(expected)[:, [6, 3]])
        assert table.types["bool"] == "bool"
        assert table.types["big"] == "integer"
        assert table.types["half"] == "float"


def test_arrays_in_archives(tmp_path, values):
    np.savez(tmp_path / "a.npz", X=values, y=np.zeros(1000))
    np.testing.assert_array_equal(everything(open_table(tmp_path / "a.npz")), values)
    np.savez_compressed(tmp_path / "b.npz", data=values.astype(np.float32))
    np.testing.assert_array_equal(everything(open_table(tmp_path / "b.npz")), values.astype(np.float32))
    np.savez(tmp_path / "c.npz", u=values, v=values[:, :2])
    assert open_table(tmp_path / "c.npz", key="v").names == ("c0", "c1")
    one_line(lambda: open_table(tmp_path / "c.npz"), "c.npz", "several tables", "u, v")
    one_line(lambda: open_table(tmp_path / "c.npz", key="w"), "no array 'w'", "u, v")
    np.savez(tmp_path / "d.npz", u=np.zeros(3), v=np.zeros(4))
    one_line(lambda: open_table(tmp_path / "d.npz"), "no two-dimensional array", "u, v")
    np.savez(tmp_path / "e.npz", X=np.array([[1, "x"]], dtype=object))
    one_line(lambda: open_table(tmp_path / "e.npz"), "pickled objects, which are never loaded")
    np.save(tmp_path / "f.npy", np.array([[1, "x"]], dtype=object), allow_pickle=True)
    one_line(lambda: open_table(tmp_path / "f.npy"), "f.npy", "pickled objects, which are never loaded")


def test_arrays_that_are_no_tables():
    one_line(lambda: open_table(np.zeros(3)), "expected an array of shape (rows, columns), got shape (3,)", "reshape")
    one_line(lambda: open_table(np.zeros((2, 3, 4))), "got shape (2, 3, 4)")
    one_line(lambda: open_table(np.zeros((0, 3))), "no rows")
    one_line(lambda: open_table(np.zeros((3, 0))), "no columns")
    one_line(lambda: open_table(np.array([["a"]])), "expected numbers, got text")
    one_line(lambda: open_table(np.array([["2020-01-01"]], dtype="M8[D]")), "expected numbers, got dates")
    one_line(lambda: open_table(np.ones((2, 2)) * 1j), "expected numbers, got complex numbers")


@pytest.mark.parametrize(
    ("name", "text", "gist"),
    [
        ("a.csv", "", ["a.csv: is empty"]),
        ("a.csv", "\n\n", ["a.csv: is empty"]),
        ("a.csv.gz", "", ["a.csv.gz: is empty"]),
        ("a.csv", "a,b\n", ["a.csv: has a header but no rows"]),
        ("a.csv.gz", "a,b", ["a.csv.gz: has a header but no rows"]),
        ("a.csv", "a,b\n1,2\n3,red\n", ["a.csv: column 'b' holds text (row 2 (line 3): 'red')", "--drop b"]),
        ("a.csv", "1,2\n3,red\n", ["a.csv: column 'c1' holds text (row 2 (line 2): 'red')"]),
        ("a.tsv", "a\tb\n1\tred green\n", ["a.tsv: column 'b' holds text (row 1 (line 2): 'red green')"]),
        ("a.csv", "d,x\n2020-01-31,1\n", ["column 'd' holds dates or times (row 1 (line 2): '2020-01-31')", "numbers"]),
        ("a.csv", "d,x\n31/12/2020 12:30,1\n", ["column 'd' holds dates or times"]),
        ("a.csv", "d,x\n12:30:01,1\n", ["column 'd' holds dates or times"]),
        ("a.csv", 'a,b\n1,"x\ny"\n', ["column 'b' holds text (row 1 (line 3): 'x\\ny')"]),
        ("a.csv", "my col,b\nred,1\n", ["column 'my col'", "--drop 'my col'"]),
        ("a.csv", '"my\ncol",b\nred,1\n', ["column 'my\\ncol' holds text", "or leave it out"]),
        ("a.csv", "a,b\n1," + "x" * 100 + "\n", ["'" + "x" * 37 + "...'"]),
        (
            "a.csv",
            "a,b\n1,2\n\n1,nan\n,inf\n",
            ["2 missing (NaN or empty) and 1 infinite values in columns 'a' (1), 'b'"],
        ),
        (
            "a.csv",
            "a,b\n1,2\n\n1,nan\n,inf\n",
            ["'b' (2), the first in row 2 (line 4), column 'b'; ", "--drop-missing"],
        ),
        ("a.csv", "a,b\n1,1e999\n", ["1 infinite value in column 'b' (1)"]),
        ("a.csv", "a,b,a\n1,2,3\n", ["column 'a' named more than once ('a' in positions 1, 3)"]),
        ("a.csv", "a,b\n1,2\n3\n", ["a.csv: row 2 (line 3) has 1 cell where the others have 2"]),
        ("a.csv", "a,b\n1,2,\n3,4\n", ["row 1 (line 2) has 3 cells where the others have 2"]),
        ("a.csv", "a\n" + "1\n" * 3 + "1,2\n", ["row 4 (line 5) has 2 cells where the others have 1"]),
        ("a.parquet", "no parquet", ["a.parquet: cannot be read as Parquet, it is damaged"]),
        ("a.feather", "no feather", ["a.feather: cannot be read as Feather, it is damaged"]),
        ("a.npy", "no array", ["a.npy: cannot be read as .npy, it is damaged"]),
        ("a.npz", "no archive", ["a.npz: cannot be read as .npz, it is damaged"]),
        (
            "a.xlsx",
            "x",
            ["a.xlsx: unknown extension '.xlsx'", ".csv .csv.gz .tsv .tsv.gz .parquet .feather .arrow .npy"],
        ),
        ("a.gz", "x", ["unknown extension '.gz'"]),
        ("a", "x", ["unknown extension ''"]),
    ],
)
def test_bad_files(tmp_path, name, text, gist):
    path = written(tmp_path / name, text)
    one_line(lambda: numbers(open_table(path)), str(tmp_path), *gist)


def test_files_that_cannot_be_opened(tmp_path):
    one_line(lambda: open_table(tmp_path / "none.csv"), "none.csv: no such file")
    one_line(lambda: open_table("moonz"), "moonz: no such file, and no built-in set of this name", "moons")
    one_line(lambda: open_table("8gaussianz"), "8gaussianz: no such file, and no built-in set of this name")
    one_line(lambda: open_table(tmp_path), str(tmp_path), "is a folder")
    path = tmp_path / "a.csv"
    path.write_bytes("a,b\n1,2\n".encode("utf-16"))
    assert everything(open_table(path)).tolist() == [[1, 2]]
    path = tmp_path / "a.csv.gz"
    path.write_text("a,b\n1,2\n")
    one_line(lambda: open_table(path), "not compressed by gzip", "name it a.csv")
    one_line(lambda: open_table("/dev/null"), "unknown extension")


def test_truncated_files(tmp_path, values):
    for kind in (".csv.gz", ".parquet", ".feather", ".npy", ".npz"):
        path = tmp_path / f"a{kind}"
        with TableWriter(path, ["a", "b", "c"]) as writer:
            writer.write(values)
        path.write_bytes(path.read_bytes()[:-2000])
        one_line(
            lambda path=path: everything(open_table(path)), f"a{kind}: cannot be read", "damaged or incomplete"[:7]
        )


def test_flipped_bytes_are_noticed_or_harmless(tmp_path, values):
    generator = np.random.default_rng(1)
    for kind in (".csv.gz", ".parquet", ".feather", ".npy", ".npz"):
        path = tmp_path / f"a{kind}"
        with TableWriter(path, ["a", "b", "c"]) as writer:
            writer.write(values)
        original = path.read_bytes()
        for _ in range(20):
            data = bytearray(original)
            for place in generator.integers(len(data), size=3):
                data[place] ^= int(generator.integers(1, 256))
            path.write_bytes(data)
            with suppress(UserError):
                everything(open_table(path, missing="keep"))


def test_bad_columns_of_typed_tables(tmp_path):
    frame = pd.DataFrame(
        {
            "text": [None, "red"],
            "when": pd.to_datetime(["2020-01-01", None]),
            "kind": pd.Categorical(["u", "v"]),
            "list": [[1], [2]],
            "gap": [1.0, None],
            "none": [None, None],
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    pa.feather.write_feather(pa.Table.from_pandas(frame), str(tmp_path / "a.feather"))
    for source in (frame, tmp_path / "a.parquet", tmp_path / "a.feather"):
        table = open_table(source)

        def reading(*names, table=table):
            return lambda: numbers(table.select(names))

        one_line(reading("text"), "column 'text' holds text (row 2: 'red')", "--drop text")
        one_line(reading("when"), "column 'when' holds dates or times (row 1: '2020-01-01", "--drop when")
        one_line(reading("kind"), "column 'kind' holds text (row 1: 'u')")
        one_line(reading("list"), "column 'list' holds no numbers but list<")
        one_line(reading("gap"), "1 missing", "'gap' (1), the first in row 2")
        one_line(reading("none"), "2 missing", "'none' (2)")
    one_line(lambda: open_table(pd.DataFrame([[1, 2]], columns=["a", "a"])), "Duplicate column names")
    one_line(lambda: open_table(pd.Series([1.0])), "cannot be read as a table (Series)")
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "b.parquet")
    one_line(lambda: open_table(tmp_path / "b.parquet"), "column 'a' named more than once")
    pq.write_table(pa.table({"a": pa.array([], pa.float64())}), tmp_path / "c.parquet")
    one_line(lambda: open_table(tmp_path / "c.parquet"), "has columns but no rows")


def test_missing_values_can_be_dropped_or_kept(tmp_path):
    path = written(tmp_path / "a.csv", "a,b\n1,2\n,4\n5,6\ninf,8\n9,\n11,12\n")
    table = open_table(path, missing="drop")
    for _ in range(2):
        np.testing.assert_array_equal(everything(table, rows=2), [[1, 2], [5, 6], [11, 12]])
        assert table.dropped == 3
    np.testing.assert_array_equal(everything(table, ["b"]), [[2], [4], [6], [8], [12]])
    assert table.dropped == 1
    kept = everything(open_table(path, missing="keep"))
    np.testing.assert_array_equal(kept, [[1, 2], [np.nan, 4], [5, 6], [np.inf, 8], [9, np.nan], [11, 12]])
    path = written(tmp_path / "b.csv", "a,b\n1,\n,4\n")
    one_line(lambda: everything(open_table(path, missing="drop")), "every row has a missing or infinite value")
    with pytest.raises(ValueError, match="expected missing to be one of error, drop, keep, got 'no'"):
        open_table(path, missing="no")


def test_columns_are_matched_by_name(tmp_path):
    table = open_table(written(tmp_path / "a.csv", "c,a,x,b\n3,1,0,2\n"))
    chosen = table.select(["a", "b", "c"])
    np.testing.assert_array_equal(everything(chosen), [[1, 2, 3]])
    assert chosen.extra == ("x",)
    assert chosen.names == ("a", "b", "c")
    assert table.names == ("c", "a", "x", "b")
    one_line(lambda: table.select(["a", "d", "e"]), "a.csv: lacks columns 'd', 'e'; it has 'c', 'a', 'x', 'b'")
    one_line(lambda: open_table(tmp_path / "a.csv", columns=["d"]), "lacks column 'd'")


def test_without_names_columns_are_matched_by_position():
    table = open_table(np.array([[1.0, 2, 3]]))
    np.testing.assert_array_equal(everything(table.select(["u", "v", "w"])), [[1, 2, 3]])
    # The model knows u and w; the file holds all three as the training file did, or just the two.
    np.testing.assert_array_equal(everything(table.select(["u", "w"], ["u", "v", "w"])), [[1, 3]])
    table = open_table(np.array([[1.0, 3]]))
    np.testing.assert_array_equal(everything(table.select(["u", "w"], ["u", "v", "w"])), [[1, 3]])
    table = open_table(np.ones((1, 5)))
    gist = "has 5 columns without names, expected 2 or 3: 'u', 'v', 'w'"
    one_line(lambda: table.select(["u", "w"], ["u", "v", "w"]), gist)


@pytest.mark.parametrize("extension", [".csv", ".parquet", ".feather", ".npy"])
def test_memory_does_not_grow_with_the_rows(tmp_path, extension):
    path = tmp_path / f"a{extension}"
    generator = np.random.default_rng(0)
    total = 0.0
    with TableWriter(path, [f"x{i}" for i in range(5)]) as writer:
        for _ in range(10):
            part = generator.standard_normal((20_000, 5)).round(3)
            writer.write(part)
            total += part.sum()
    table = open_table(path)
    before = pa.total_allocated_bytes()
    peak = 0
    tracemalloc.start()
    try:
        summed = 0.0
        for batch in table.batches(rows=2000):
            summed += batch.sum()
            peak = max(peak, pa.total_allocated_bytes() - before)
        peak += tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert summed == pytest.approx(total)
    limit = {".csv": 60e6, ".parquet": 6e6}.get(extension, 4e6)  # the whole is 8e6; csv reads some blocks of 4e6 ahead
    assert peak < limit


def test_reading_tables_does_not_import_torch_or_pandas():
    code = "import sys, diffeo.data; print([m for m in ('torch', 'pandas', 'sklearn', 'scipy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.fixture
def parsed(monkeypatch):
    """A list that grows by the columns of every reading of a csv."""
    readings = []
    read = delimited_module.DelimitedSource.read

    def counted(source, columns, rows):
        readings.append(list(columns))
        return read(source, columns, rows)

    monkeypatch.setattr(delimited_module.DelimitedSource, "read", counted)
    return readings


def table_file(tmp_path, values, missing=False):
    x = values.copy()
    if missing:
        x[5, 2] = np.nan
    pd.DataFrame(x, columns=["a", "b", "c"]).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def test_a_csv_to_learn_is_parsed_once(tmp_path, values, parsed, monkeypatch):
    """What is learned is that of two readings, which a table that does not fit takes; nothing is kept afterwards."""
    from diffeo.modalities.tables import rows
    from diffeo.modalities.tables.dataset import TableDataset

    path = table_file(tmp_path, values, missing=True)
    settings = {"missing": "drop", "drop": ["b"], "test": 0.1}
    once = TableDataset(path, settings, 0)
    assert parsed == [[0, 2]]
    assert once.table.dropped == 1
    monkeypatch.setattr(rows, "LARGE", 12_000)  # the encoded rows fit, the parsed ones do not
    twice = TableDataset(path, settings, 0)
    assert parsed == [[0, 2]] * 3
    assert (once.hash, once.schema, once.notes) == (twice.hash, twice.schema, twice.notes)
    assert np.array_equal(once.x, twice.x)
    everything(once.table, ["a", "c"])
    assert len(parsed) == 4, "whoever reads it then reads the file"


def test_a_stream_is_never_held(tmp_path, values, parsed, monkeypatch):
    from diffeo.modalities.tables import rows
    from diffeo.modalities.tables.dataset import TableDataset

    monkeypatch.setattr(rows, "LARGE", 4_000)
    dataset = TableDataset(table_file(tmp_path, values), {"batch_size": 50}, 0)
    assert len(parsed) == 2
    for epoch in (3, 4):
        assert len(list(dataset.x)) == len(dataset.x)
        assert len(parsed) == epoch


def test_what_is_held_is_what_a_reading_gives(tmp_path, values, parsed):
    path = table_file(tmp_path, values)
    expected = everything(open_table(path))
    table = open_table(path)
    table.hold(2**20)
    assert np.array_equal(everything(table, rows=7), expected)
    assert np.array_equal(everything(table, rows=300), expected)
    assert len(parsed) == 2
    table.hold(2**20)
    next(table.batches(rows=7))  # who stops has not read it all: the next reading is kept
    assert np.array_equal(everything(table), expected)
    everything(table)
    assert len(parsed) == 4
    table.hold(2**20)
    everything(table)
    assert np.array_equal(everything(table, ["c", "a"]), expected[:, [2, 0]]), "other columns are read"
    table.hold(1000 * 3 * 8 - 1)
    everything(table)
    everything(table)
    assert len(parsed) == 8


def test_batches_checks_its_arguments():
    table = open_table(np.ones((2, 2)))
    assert isinstance(table, Table)
    assert "2 rows" in repr(table)
    with pytest.raises(ValueError, match="expected rows >= 1, got 0"):
        next(table.batches(rows=0))
    with pytest.raises(ValueError, match="at least one column"):
        next(table.batches([]))


def test_an_archive_cannot_ask_for_all_memory(tmp_path):
    header = str({"descr": "<f8", "fortran_order": False, "shape": (10**13, 10)}).encode().ljust(117) + b"\n"
    entry = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 80
    (tmp_path / "a.npy").write_bytes(entry)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("X.npy", entry)
    one_line(lambda: open_table(tmp_path / "a.npy"), "a.npy: cannot be read")
    one_line(lambda: open_table(tmp_path / "a.npz"), "a.npz: cannot be read")

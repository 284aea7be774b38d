"""Tables with text, categories, dates and gaps: read, described, encoded, and decoded back with their types."""

import csv
import datetime
import decimal
import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from diffeo.cli import main
from diffeo.data import Schema, TableWriter, infer_schema, load, open_table
from diffeo.errors import UserError
from diffeo.modalities.tables import delimited as delimited_module
from diffeo.modalities.tables.dataset import TableDataset
from diffeo.modalities.tables.dates import find_formats, parse_dates, show_dates
from test_tables import one_line, written

ROWS = 400


def gappy(values, every=7):
    """Return the values as a list in which every seventh is missing."""
    return [None if i % every == 3 else value for i, value in enumerate(values)]


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.fixture
def everything(generator):
    """A table with a column of every kind, each but the first ones with gaps."""
    n = ROWS
    seconds = 1_600_000_000 + generator.integers(0, 4 * 10**7, n)
    days = pa.array(generator.integers(10_000, 12_000, n), pa.int32())
    dates = days.cast(pa.date32()).to_pylist()
    stamps = pa.array(seconds * 10**6, pa.timestamp("us")).to_pylist()
    hours = [datetime.time(int(i) % 24, 30) for i in generator.integers(0, 24, n)]
    sizes = generator.choice(["small", "medium", "large"], n).tolist()
    colours = generator.choice(["red", "green", "blue, dark", 'say "grey"'], n).tolist()
    return pa.table(
        {
            "real": pa.array(generator.standard_normal(n).astype(np.float32).astype(np.float64)),
            "real gaps": pa.array(gappy(generator.standard_normal(n).astype(np.float32).tolist()), pa.float64()),
            "count": pa.array(gappy(generator.integers(0, 9, n).tolist()), pa.int64()),
            "flag": pa.array(gappy((generator.random(n) < 0.3).tolist()), pa.bool_()),
            "levels": pa.array(gappy(generator.choice([0.5, 2.25, 77.0], n).tolist()), pa.float64()),
            "text": pa.array(colours),
            "text gaps": pa.array(gappy(colours)),
            "coded": pa.array(gappy(colours)).dictionary_encode(),
            "ordered": pa.DictionaryArray.from_arrays(
                pa.array(gappy([["small", "medium", "large"].index(size) for size in sizes]), pa.int32()),
                pa.array(["small", "medium", "large"]),
                ordered=True,
            ),
            "day": pa.array(gappy(dates), pa.date32()),
            "seconds": pa.array(gappy(stamps), pa.timestamp("s")),
            "micro": pa.array(gappy(stamps), pa.timestamp("us")),
            "nano": pa.array(gappy(stamps), pa.timestamp("ns", "Europe/Berlin")),
            "clock": pa.array(gappy(hours), pa.time32("s")),
            "fixed text": pa.array(["same"] * n),
            "fixed day": pa.array([dates[0]] * n, pa.date32()),
            "one or none": pa.array(gappy([7] * n), pa.int64()),
        }
    )


def encoded(source, schema=None, **options):
    """Return a table's schema and its rows as a model sees them and as they come back."""
    table = open_table(source, missing="keep", **options)
    schema = schema or infer_schema(table)
    opened = schema.open(source, missing="keep", **options)
    x, _ = load(opened, schema)
    return schema, x, schema.decode(x)


def save(path, schema, rows):
    with TableWriter(path, schema.names, schema.dtypes, categories=schema.categories) as writer:
        writer.write(rows[:150])
        writer.write(rows[150:])


def lines(path):
    """Return the lines of a text file as lists of cells."""
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return list(csv.reader(text.decode().splitlines(), delimiter="\t" if ".tsv" in path.name else ","))


def same(given, expected):
    """Compare cells, instants of other precision or zone by what they mean."""
    for one, other in zip(given, expected, strict=True):
        if isinstance(other, datetime.datetime):
            one, other = pd.Timestamp(one), pd.Timestamp(other)
        assert one == other, (one, other)


def test_kinds(everything):
    schema = infer_schema(open_table(everything, missing="keep"))
    kinds = {column.name: (column.kind, column.dtype) for column in schema.columns}
    assert kinds == {
        "real": ("continuous", "float64"),
        "real gaps": ("continuous", "float64"),
        "count": ("integer", "int64"),
        "flag": ("integer", "bool"),
        "levels": ("levels", "float64"),
        "text": ("categorical", "string"),
        "text gaps": ("categorical", "string"),
        "coded": ("categorical", "category"),
        "ordered": ("categorical", "ordered"),
        "day": ("date", "date"),
        "seconds": ("date", "date"),
        "micro": ("date", "date"),
        "nano": ("date", "date"),
        "clock": ("date", "date"),
        "fixed text": ("constant", "string"),
        "fixed day": ("constant", "date"),
        "one or none": ("categorical", "int64"),
    }
    by_name = {column.name: column for column in schema.columns}
    assert by_name["ordered"].categories == ("small", "medium", "large")
    assert by_name["text"].categories == ("blue, dark", "green", "red", 'say "grey"')
    features = {name: column.features for name, column in by_name.items() if column.features != 1}
    assert features == {"seconds": 2, "micro": 2, "nano": 2, "fixed text": 0, "fixed day": 0}
    assert schema.features == len(schema.discrete) == 18
    assert {c.name for c in schema.columns if c.missing} == set(by_name) - {"real", "text", "fixed text", "fixed day"}
    assert Schema.from_json(json.loads(json.dumps(schema.to_json(), allow_nan=False))) == schema
    assert schema.mixed


@pytest.mark.parametrize("extension", [".parquet", ".feather", ".arrow"])
def test_arrow_types_come_back(everything, tmp_path, extension):
    schema, x, back = encoded(everything)
    assert x.dtype == np.float32
    assert np.isnan(x).sum() == sum(everything.column(n).null_count * c.features for n, c in zip(
        everything.column_names, schema.columns, strict=True))  # fmt: skip
    path = tmp_path / f"a{extension}"
    save(path, schema, back)
    read = pq.read_table(path) if extension == ".parquet" else pyarrow.feather.read_table(path)
    for name in everything.column_names:
        expected = everything.column(name)
        if extension == ".parquet" and name in ("seconds", "clock"):
            assert read.column(name).type in (pa.timestamp("ms"), pa.time32("ms"))  # Parquet has nothing coarser
        elif not pa.types.is_dictionary(expected.type):
            assert read.column(name).type == expected.type, name
        else:
            assert read.column(name).type.ordered == expected.type.ordered
        same(read.column(name).to_pylist(), expected.to_pylist())
    np.testing.assert_array_equal(encoded(path, schema)[1], x)
    assert [c.kind for c in infer_schema(open_table(path, missing="keep")).columns] == [c.kind for c in schema.columns]


@pytest.mark.parametrize("extension", [".csv", ".csv.gz", ".tsv", ".tsv.gz"])
def test_text_comes_back_as_it_was(everything, tmp_path, extension):
    """What is read from a csv is written as the same cells."""
    schema, _, back = encoded(everything)
    first, second = tmp_path / f"a{extension}", tmp_path / f"b{extension}"
    save(first, schema, back)
    schema, x, back = encoded(first)
    kinds = {column.name: column.kind for column in schema.columns}
    assert kinds["seconds"] == kinds["day"] == kinds["clock"] == "date"
    assert kinds["coded"] == kinds["text"] == "categorical"
    assert {column.format for column in schema.columns} >= {"%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%H:%M:%S"}
    save(second, schema, back)
    assert lines(first) == lines(second)
    np.testing.assert_array_equal(encoded(second, schema)[1], x)


def test_frames(everything):
    pandas = everything.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}.get)
    pandas["ordered"] = pd.Categorical(pandas["ordered"], ["small", "medium", "large"], ordered=True)
    schema, x, _ = encoded(pandas)
    expected, y, _ = encoded(everything)
    by_name = {column.name: column for column in schema.columns}
    assert by_name["ordered"].categories == ("small", "medium", "large")
    assert by_name["count"].dtype == "int64"
    assert by_name["nano"].format == "timestamp[ns, tz=Europe/Berlin]"
    assert [c.kind for c in schema.columns] == [c.kind for c in expected.columns]
    np.testing.assert_array_equal(x, y)
    polars = pytest.importorskip("polars")
    np.testing.assert_array_equal(encoded(polars.from_arrow(everything), expected)[1], y)


@pytest.mark.parametrize("extension", [".parquet", ".feather"])
def test_numbers_keep_their_width(tmp_path, extension):
    n = 120
    values = np.random.default_rng(0).normal(size=n)
    cents = [decimal.Decimal(f"{i * 7919 % 10**4}.{i % 90 + 10}") for i in range(n)]
    table = pa.table(
        {
            "tiny": pa.array(gappy([i % 9 for i in range(n)]), pa.int8()),
            "natural": pa.array([i % 9 + 2**40 for i in range(n)], pa.uint64()),
            "single": pa.array(np.float32(values)),
            "half": pa.array(np.float16(values)),
            "few": pa.array(gappy([decimal.Decimal(f"{i % 7}.25") for i in range(n)]), pa.decimal128(10, 2)),
            "cents": pa.array(gappy(cents), pa.decimal128(12, 2)),
            "huge": pa.array([10**30 + i % 5 for i in range(n)], pa.decimal128(38, 0)),
            "large": pa.array([2**63 + i % 5 for i in range(n)], pa.uint64()),
            "same": pa.array([3] * n, pa.int16()),
        }
    )
    schema, x, back = encoded(table)
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
    path = tmp_path / f"a{extension}"
    save(path, schema, back)
    read = pq.read_table(path) if extension == ".parquet" else pyarrow.feather.read_table(path)
    assert read.schema.types == table.schema.types
    for name in table.column_names:
        same(read.column(name).to_pylist(), table.column(name).to_pylist())
    np.testing.assert_array_equal(encoded(path, schema)[1], x)
    save(tmp_path / "a.csv", schema, back)
    assert [row[5] for row in lines(tmp_path / "a.csv")[1:]] == [
        "" if cell is None else str(cell) for cell in gappy(cents)
    ]


def test_a_schema_reads_other_formats(everything, tmp_path):
    """What was learned from one format is scored in another."""
    schema, x, back = encoded(everything)
    save(tmp_path / "a.csv", schema, back)
    np.testing.assert_array_equal(encoded(tmp_path / "a.csv", schema)[1], x)
    text, y, _ = encoded(tmp_path / "a.csv")
    np.testing.assert_array_equal(encoded(everything, text)[1], y)


def test_texts_are_numbered_as_they_are_met(tmp_path):
    path = written(tmp_path / "a.csv", "t,u,x\nb, q,1\na,q ,2\n,?,3\nb,NA,4\n")
    table = open_table(path, missing="keep")
    assert table.types == {"t": "text", "u": "text", "x": "number"}
    values = np.concatenate(list(table.batches()))
    np.testing.assert_array_equal(values, [[0, 0, 1], [1, 0, 2], [np.nan, np.nan, 3], [0, np.nan, 4]])
    assert table.dictionaries == {"t": ["b", "a"], "u": ["q"]}
    assert table.cells(values, table.names)[:, 0].tolist() == ["b", "a", None, "b"]
    again = np.concatenate(list(open_table(table).batches(["t"], rows=2)))
    np.testing.assert_array_equal(again, values[:, :1])


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_late_text_makes_a_column_text_from_its_first_row(tmp_path, monkeypatch, name):
    monkeypatch.setattr(delimited_module, "BLOCK", 1 << 12)
    rows = [f"{i % 3},{i}.5" for i in range(3000)] + [f"{'xyz'[i % 3]},{i}.5" for i in range(3000)]
    schema, _, back = encoded(written(tmp_path / name, "k,x\n" + "\n".join(rows)))
    assert schema.columns[0].categories == ("0", "1", "2", "x", "y", "z")
    assert back[:, 0].tolist() == [row.split(",")[0] for row in rows]


def test_mixed_types(tmp_path):
    rows = [f"{i},{i}" for i in range(1000)]
    rows[500], rows[700] = "500,-", "700,-"
    path = written(tmp_path / "a.csv", "a,b\n" + "\n".join(rows))
    gist = [
        "a.csv: column 'b' has mixed types, 2 of its 1000 cells",
        "(row 501 (line 502): '-', row 701 (line 702): '-')",
    ]
    one_line(lambda: infer_schema(open_table(path)), *gist, "--na -", "--categorical b", "--drop b")
    with pytest.raises(UserError, match="2 missing"):
        infer_schema(open_table(path, na=["-"]))
    assert infer_schema(open_table(path, na=["-"], missing="keep")).columns[1].missing
    assert infer_schema(open_table(path), categorical=["b"]).columns[1].kind == "categorical"
    half = written(tmp_path / "b.csv", "a,b\n" + "\n".join(f"{i},{i if i < 150 else f'z{i % 4}'}" for i in range(300)))
    one_line(lambda: infer_schema(open_table(half)), "column 'b' holds text (row 151 (line 152): 'z2')")


def test_markers_of_missing_cells(tmp_path):
    path = written(tmp_path / "a.csv", "a,b,c\n1.5,x,-9\n-,-,3\n -9,y,4\n")
    expected = [[1.5, 0, np.nan], [np.nan, np.nan, 3], [np.nan, 1, 4]]
    table = open_table(path, na=["-", "-9"], missing="keep")
    np.testing.assert_array_equal(next(table.batches()), expected)
    frame = pd.DataFrame({"a": [1.5, -9.0], "t": ["-", "x"]})
    table = open_table(frame, na=["-", "-9"], missing="keep")
    np.testing.assert_array_equal(next(table.batches()), [[1.5, np.nan], [np.nan, 0]])


@pytest.mark.parametrize(
    ("texts", "formats"),
    [
        (["2024-05-31", "2024-06-01"], ["%Y-%m-%d"]),
        (["31.05.2024", "01.12.2024"], ["%d.%m.%Y"]),
        (["31.5.2024", "1.12.2024"], ["%-d.%-m.%Y"]),
        (["05/31/2024"], ["%m/%d/%Y"]),
        (["31/05/2024"], ["%d/%m/%Y"]),
        (["03/05/2024"], ["%m/%d/%Y", "%d/%m/%Y"]),
        (["01-02-2024", "13-02-2024"], ["%d-%m-%Y"]),
        (["31 May 2024", "01 Jun 2024"], ["%d %b %Y"]),
        (["31-Jan-24"], ["%d-%b-%y"]),
        (["2024-05-31 12:00"], ["%Y-%m-%d %H:%M"]),
        (["2024-05-31T12:00:00Z"], ["%Y-%m-%dT%H:%M:%SZ"]),
        (["2024-05-31 12:00:00+02:00"], ["%Y-%m-%d %H:%M:%S+02:00"]),
        (["2024-05-31 12:00:00.250", "2024-05-31 12:00:01.000"], ["%Y-%m-%d %H:%M:%S.%L"]),
        (["2024-05-31 12:00:00", "2024-05-31 12:00:00.250001"], ["%Y-%m-%d %H:%M:%S.%_f"]),
        (["1/2/2024 9:05 PM", "11/30/2024 10:15 AM"], ["%-m/%-d/%Y %-I:%M %p"]),
        (["12:30", "09:05"], ["%H:%M"]),
        (["30.02.2024"], []),
        (["31/05/2024", "05/31/2024"], []),
        (["20240531"], []),
        (["1.2"], []),
        (["May"], []),
        ([], []),
    ],
)
def test_formats_of_dates(texts, formats):
    assert find_formats(texts) == formats
    for form in formats:
        assert show_dates(parse_dates(texts, form), form) == texts


def test_seconds_of_dates():
    stamps = ["1969-12-31 23:59:59.500000", "2024-05-31 12:00:00.000001"]
    seconds = parse_dates(stamps, "%Y-%m-%d %H:%M:%S.%f")
    expected = np.array(stamps, dtype="M8[us]").astype(np.int64) / 1e6
    np.testing.assert_array_equal(seconds, expected)
    assert np.isnan(parse_dates(["31.02.2024", "x", None], "%d.%m.%Y")).all()
    assert find_formats(["20240531", "20241231"], compact=True) == ["%Y%m%d"]


def test_dates_are_told_from_text(tmp_path, generator):
    def of(column, **options):
        path = tmp_path / "a.csv"
        path.write_text("d,x\n" + "\n".join(f"{cell},{i}" for i, cell in enumerate(column)))
        table = open_table(path, missing="keep")
        return infer_schema(table, **options).columns[0], table

    months = [f"{i % 12 + 1:02}/{i * 5 % 12 + 1:02}/2024" for i in range(100)]
    column, table = of(months)
    assert (column.kind, column.format) == ("date", "%m/%d/%Y")
    assert table.notes == ["'d' could be %d/%m/%Y as well, all its dates were read as %m/%d/%Y"]
    assert of([*months, "13/01/2024"])[0].format == "%d/%m/%Y"
    assert of(months, categorical=["d"])[0].kind == "categorical"
    assert of([f"202405{i % 30 + 1:02}" for i in range(100)])[0].kind == "integer"
    assert of([f"202405{i % 30 + 1:02}" for i in range(100)], dates=["d"])[0].format == "%Y%m%d"
    one_line(lambda: of([f"{i % 29 + 1:02}.02.2023" for i in range(99)]), "'01.02.2023'", "'29.02.2023' is none")
    one_line(lambda: of(["x", "y"] * 9, dates=["d"]), "column 'd' holds no dates")
    noon, _ = of([f"2024-05-{i % 30 + 1:02} 12:00" for i in range(99)])
    assert (noon.features, noon.step) == (1, 0)
    careless, _ = of([f"{i % 9 + 1}.{i % 9 + 1:02}.2024" if i % 2 else f"{i % 9 + 1:02}.11.2024" for i in range(99)])
    assert (careless.kind, careless.format) == ("date", "%d.%m.%Y")
    hours, _ = of([f"2024-05-31 {i % 12:02}:15" for i in range(99)])
    assert (hours.features, hours.step, hours.values) == (1, 3600, (900, 40500))


def test_seconds_of_the_day_of_a_long_column(generator):
    """More distinct points in time than are remembered, in several batches."""
    seconds = generator.integers(0, 10**6, 150_000) * 1800 + 600
    table = pa.table({"d": pa.array(seconds, pa.int64()).cast(pa.timestamp("s")), "x": generator.random(150_000)})
    column = infer_schema(open_table(table), rows=10_000).columns[0]
    assert (column.step, column.values) == (1800, (600, 85200))
    assert column.grids == ((1, 0, column.high // 86400), (1800, 600, 85200))


def test_what_scoring_says_of_other_values(tmp_path):
    rows = [f"{'abc'[i % 3]},{i % 28 + 1:02}.05.2024,{i % 5},{i}" for i in range(100)]
    schema, _, _ = encoded(written(tmp_path / "a.csv", "t,d,k,x\n" + "\n".join(rows)))
    table = schema.open(written(tmp_path / "b.csv", "t,d,k,x\nz,30.06.2025,3,4\na,1.5.2024,2,5\nz,01.05.2024,1,6\n"))
    result = schema.encode(next(table.batches()), table.dictionaries)
    assert result.unseen == {"t": 2}
    assert result.x[:, 0].tolist() == [3, 0, 3]
    assert result.x[:, 1].tolist() == [425, 0, 0]
    assert not result.off.any()
    for text, gist in {
        "t,d,k,x\na,1.5.2024,1,2\na,31.06.2024,1,2\n": [
            *("c.csv: row 2 (line 3), column 'd': '31.06.2024' is no date", "'01.05.2024' (%d.%m.%Y)")
        ],
        "t,d,k,x\na,01.06.2024,red,2\n": ["'k' holds text (row 1 (line 2): 'red')", "or leave out such rows"],
        "t,d,x\na,01.06.2024,2\n": ["lacks column 'k'"],
    }.items():
        path = written(tmp_path / "c.csv", text)
        one_line(lambda path=path: load(schema.open(path), schema), *gist)
    late = "t,d,k,x\n" + "a,01.06.2024,1,2\n" * 200 + "a,01.06.2024,red,2\n"
    one_line(lambda: load(schema.open(written(tmp_path / "c.csv", late)), schema), "column 'k'", "row 201", "'red'")
    numbers = "t,d,k,x\n" + "7,01.06.2024,1,2\n" * 3  # categories that look like numbers are texts all the same
    table = schema.open(written(tmp_path / "d.csv", numbers))
    assert schema.encode(next(table.batches()), table.dictionaries).unseen == {"t": 3}
    frame = pd.DataFrame({"t": ["a"], "d": ["01.05.2024"], "k": [1.5], "x": [np.inf]})
    table = schema.open(frame, missing="keep")
    result = schema.encode(next(table.batches()), table.dictionaries)
    assert result.reasons == {"k": 1, "x": 1}
    assert np.isnan(result.x).tolist() == [[False, False, False, True]]  # no infinity reaches a model
    with pytest.raises(UserError, match="column 't' holds numbers, expected text"):
        schema.open(frame.assign(t=1.5))


def test_identifiers_are_set_aside(tmp_path, generator):
    ids = [f"u{i:03}" for i in range(ROWS)]
    big = [2**60 + i for i in range(ROWS)]
    rows = "\n".join(
        f"{i},{j},{generator.normal():.4f},{2**60 + k % 3}" for k, (i, j) in enumerate(zip(ids, big, strict=True))
    )
    frame = pd.DataFrame(
        {"id": ids, "big": big, "x": generator.normal(size=ROWS), "few": [2**60 + k % 3 for k in range(ROWS)]}
    )
    for source in (written(tmp_path / "a.csv", "id,big,x,few\n" + rows), frame):
        schema = infer_schema(open_table(source))
        assert schema.identifiers == ("id", "big")
        assert schema.names == ("x", "few")
        assert schema.columns[1].categories == tuple(str(2**60 + k) for k in range(3))  # not a digit is lost
        assert Schema.from_json(schema.to_json()) == schema
        assert "set aside as identifiers (else --categorical): 'id', 'big'" in " ".join(schema.notes())
        table = open_table(source, columns=["id"])
        assert table.cells(next(table.batches()), ["id"])[:, 0].tolist() == ids
        assert infer_schema(open_table(source), categorical=["id"]).names == ("id", "x", "few")
    chosen = infer_schema(open_table(frame), categorical=["big"]).columns[0]
    assert chosen.categories == tuple(str(number) for number in big)
    with pytest.raises(UserError, match="every column is an identifier or constant"):
        infer_schema(open_table(frame[["id", "big"]]))


def test_steps(generator):
    def of(column):
        return infer_schema(open_table(pd.DataFrame({"x": column, "y": generator.normal(size=len(column))}))).columns[0]

    n = 5000
    whole = np.round(57 + 2 * generator.normal(size=n))
    assert of(whole).steps == ()
    whole[:50] = np.round(57 + 2 * generator.normal(size=50), 1)
    assert (of(whole).kind, of(whole).step, of(whole).steps) == ("integer", 0.1, (0.1, 1))
    amounts = generator.lognormal(8, 1.5, n)
    assert of(np.round(amounts)).steps == ()
    rounded = [
        np.round(value, -int(places)) for value, places in zip(amounts, generator.integers(0, 4, n), strict=True)
    ]
    assert of(np.where(generator.random(n) < 0.3, 0, rounded)).steps == (1, 100, 1000)
    assert of(np.round(amounts, 2)).steps == of(amounts).steps == of(generator.integers(0, 100, n)).steps == ()


def test_samples_have_as_many_decimals_as_the_data(generator):
    values = generator.normal(size=500)
    frame = pd.DataFrame(
        {
            "two": np.round(values, 2),
            "whole": np.round(values * 1e5) + 0.0,
            "all": values,
            "far": 5e6 + np.round(values, 3),
        }
    )
    schema = infer_schema(open_table(frame), continuous=["two", "whole", "far"])
    assert [column.unit for column in schema.columns] == [0.01, 1.0, 0.0, 0.001]
    x, _ = load(open_table(frame), schema)
    back = schema.decode(x + np.float32(1e-4))
    np.testing.assert_array_equal(back[:, 0], frame["two"])
    assert (np.round(back[:, 3], 3) == back[:, 3]).all()
    assert len(np.unique(back[:, 2])) == 500


def test_kinds_are_overridden(tmp_path):
    rows = "\n".join(f"{i % 4},{[0, 1, 999][i % 3]},{i % 2 + 0.5},{'ab'[i % 2]}" for i in range(100))
    table = open_table(written(tmp_path / "a.csv", "k,l,f,t\n" + rows))
    assert [c.kind for c in infer_schema(table).columns] == ["integer", "levels", "integer", "categorical"]
    schema = infer_schema(open_table(table), categorical=["k"], integer=["l"], continuous=["f"])
    assert [c.kind for c in schema.columns] == ["categorical", "integer", "continuous", "categorical"]
    numbers = infer_schema(open_table(np.arange(100.0).reshape(-1, 2) % 7), categorical=["c0"]).columns[0]
    assert (numbers.values, numbers.categories[:2]) == (tuple(range(7)), ("0", "1"))
    cases = [
        (dict(integer=["f"]), "'f' holds fractions"),
        (dict(continuous=["t"]), "'t' holds text"),
        (dict(dates=["t"]), "'t' holds no dates"),
        (dict(categorical=["k"], integer=["k"]), "'k' is said to be categorical and integer"),
        (dict(context=["t"], integer=["t"]), r"'t' holds text \(row 1 \(line 2\): 'a'\)"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            infer_schema(open_table(tmp_path / "a.csv"), **options)


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    rows = "\n".join(f"{'abc'[i % 3]},2024-05-{i % 30 + 1:02},{'' if i % 9 == 4 else i},," for i in range(100))
    path = written(tmp_path / "a.csv", "t,d,k,e,x\n" + rows)
    gist = ["column 't' holds text (row 1 (line 2): 'a')", "--drop t", "column 'd' holds dates", "--drop d"]
    gist += [
        "column 'e' has no values",
        "column 'x' has no values",
        "missing (NaN or empty) values in columns 'k' (11)",
    ]
    one_line(lambda: infer_schema(open_table(path), numbers=True), "a.csv: ", *gist)
    one_line(
        lambda: infer_schema(open_table(path, missing="keep")), "'e' has no values", "'x' has no values", "--drop x"
    )


@pytest.mark.parametrize(
    ("text", "names", "notes"),
    [
        ("a;b\n1,5;x\n2,5;y\n", ("a", "b"), ["';'", "comma"]),
        ("a;b\n1.5;x,y\n2;z\n", ("a", "b"), ["';'"]),
        ("1,5;2,5\n3,5;4,5\n", ("c0", "c1"), ["';'", "comma"]),
        ("a\tb\n1,5\tx\n2,5\ty\n", ("a", "b"), [r"'\t'", "comma"]),
        ("a|b\n1|x\n2|y\n", ("a", "b"), ["'|'"]),
        ("a,b\n1,x;y\n2,z\n", ("a", "b"), []),
        ("2019,2020\n0.5,1.5\n2,3\n", ("2019", "2020"), ["'2019,2020', was taken for the columns' names"]),
        ("land,2019\nx,1.5\ny,2.5\n", ("land", "2019"), ["names"]),
        ("0,1,2\n0.5,0.5,x\n0.7,0.1,y\n", ("0", "1", "2"), ["names"]),
        ("1,2,3\n0.5,0.5,0.1\n0.7,0.1,0.2\n", ("1", "2", "3"), ["names"]),
        ("1,2\n3,4.5\n", ("c0", "c1"), []),
        ("39, x, 7\n50, y, 9\n", ("c0", "c1", "c2"), ["taken for data"]),
    ],
)
def test_separators_decimals_and_headers(tmp_path, text, names, notes):
    table = open_table(written(tmp_path / "a.csv", text), missing="keep")
    assert table.names == names
    assert np.isfinite(np.concatenate(list(table.batches()))).all()
    assert len(table.notes) == len(notes)
    for note, gist in zip(table.notes, notes, strict=True):
        assert gist in note


def test_separators_and_decimals_that_are_given(tmp_path):
    path = written(tmp_path / "a.csv", "a|b\n1,5|2\n3|4,25\n")
    table = open_table(path, sep="|", decimal=",")
    np.testing.assert_array_equal(next(table.batches()), [[1.5, 2], [3, 4.25]])
    assert open_table(path, sep=";").names == ("a|b",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("late", [False, True])
def test_encodings(tmp_path, encoding, late):
    path = tmp_path / "a.csv"
    rows = [f"{'ab'[i % 2] if late and i < 300 else 'öü'[i % 2]},{i}.5" for i in range(400)]
    path.write_bytes(("\n".join(["name,x" if late else "näme,x", *rows])).encode(encoding))
    table = open_table(path)
    schema = infer_schema(table)
    assert schema.names == ("name" if late else "näme", "x")
    assert schema.columns[0].categories == (("a", "b", "ö", "ü") if late else ("ö", "ü"))
    assert [note for note in table.notes if "Latin-1" in note] == table.notes
    assert bool(table.notes) == (encoding == "latin-1")


@pytest.mark.parametrize(
    ("text", "gist"),
    [
        (
            "a,b\n1,5,2,5\n3,5,4,5\n",
            ["row 1 (line 2) has 4 cells where the others have 2; if these are decimal commas"],
        ),
        ("1,05,2,25\n3,50,4,75\n", ["looks like numbers with decimal commas, cut in two ('1,05,2,25' in line 1)"]),
        ("a;b\n" + "1;2\n" * 200 + "1,5;2\n" * 200, ["column 'a' holds decimal commas (row 201 (line 202): '1,5')"]),
        (
            "a,b\n" + "".join(f"{i % 7},{i}.5\n" for i in range(99)) + "1e25,2\n",
            ["'a' holds 1e+25 in row 100 (line 101)"],
        ),
        ("a,b\n" + "".join(f"{i % 7},{i}.5\n" for i in range(99)) + "1,1e308\n", ["'b' holds 1e+308 in row 100"]),
        ("a,b\n-1e308,1\n1e308,2\n", ["'a' reaches from -1e+308 to 1e+308"]),
        (",".join(f"x{i}" for i in range(5000)) + "\n" + ",".join("1" * 5000) + "\n", ["5000 columns, at most 4096"]),
    ],
)
def test_bad_tables(tmp_path, text, gist):
    path = written(tmp_path / "a.csv", text)
    one_line(lambda: infer_schema(open_table(path)), *gist)


def column(*cells, beside="x"):
    """Return the text of a csv with these cells, taken in turn, and a column of numbers beside them."""
    return f"a,{beside}\n" + "".join(f"{cells[i % len(cells)]},{i / 8}\n" for i in range(120))


def spoiled(cell, row=77):
    """Return ``column`` of dates of which one is something else."""
    lines = column(*(f"2024-01-{day:02}" for day in range(1, 29))).splitlines()
    lines[row] = f"{cell},{row / 8}"
    return "\n".join(lines)


NUMBERS = [f"{i}.{i * 7 % 10}5" for i in range(97)]
MISTAKES = {
    "points, not commas": (
        column(*NUMBERS),
        dict(decimal=","),
        {},
        ["'a' holds decimal points (row 1 (line 2): '0.05')", "--decimal ."],
    ),
    "commas, not points": (
        "a;x\n" + "".join(f"-{i},5;{i}\n" for i in range(99)),
        dict(decimal="."),
        {},
        ["'a' holds decimal commas (row 1 (line 2): '-0,5')", "--decimal ,"],
    ),
    "another separator": (column("u", "v"), dict(sep=";"), {}, ["one column, 'a,x', where ',' would make", "--sep ,"]),
    "separated by blanks": (
        "a b\n" + "".join(f"{i} x\n" for i in range(99)),
        {},
        {},
        ["one column, 'a b'", "--sep ' '"],
    ),
    "numbers as dates": (
        column("3.7", "1.2"),
        {},
        dict(dates=["a"]),
        ["'a' holds no dates or times (row 1 (line 2): '3.7')", "--date"],
    ),
    "counts as years": (column("1000", "1200"), {}, dict(dates=["a"]), ["no dates or times (row 1 (line 2): '1000')"]),
    "no date": (
        spoiled("soon"),
        {},
        {},
        ["dates or times as '2024-01-01', but 'soon' is none (row 77 (line 78))", "--categorical a"],
    ),
    "no date at first": (
        spoiled("soon", 1),
        {},
        {},
        ["dates or times as '2024-01-02', but 'soon' is none (row 1 (line 2))"],
    ),
    "no such day": (spoiled("2024-02-31"), {}, {}, ["but '2024-02-31' is none (row 77 (line 78))"]),
    "a text among few numbers": (
        column(*range(7)).replace("\n6,", "\n-,", 1),
        {},
        {},
        ["mixed types, 1 of its 120 cells", "row 7 (line 8): '-'", "--na -"],
    ),
    "texts among numbers": (
        column("red", *NUMBERS),
        {},
        {},
        ["mixed types, 2 of its 120", "row 1 (line 2): 'red', row 99 (line 100): 'red'"],
    ),
    "currencies": (
        column(*(f"${n}" for n in NUMBERS)),
        {},
        {},
        ["'a' holds numbers with currency signs", "row 1 (line 2): '$0.05'"],
    ),
    "thousands": (
        "a;x\n" + "".join(f"1.{i}0,5;{i}\n" for i in range(10, 99)),
        {},
        {},
        ["thousands separators (row 1 (line 2): '1.100,5')"],
    ),
    "whole numbers asked of text": (
        column("u", "v"),
        {},
        dict(integer=["a"]),
        ["column 'a' holds text (row 1 (line 2): 'u')"],
    ),
    "whole numbers asked of fractions": (
        column("1", "2.5"),
        {},
        dict(integer=["a"]),
        ["'a' holds fractions (row 2 (line 3): 2.5)", "--integer"],
    ),
    "whole numbers beyond": (column(2**60, 5.5), {}, dict(integer=["a"]), ["'a' holds whole numbers beyond 2**53"]),
    "dropped and of a kind": (
        column("u", "v"),
        {},
        dict(integer=["a"], drop=["a"]),
        ["'a' is said to be integer and is dropped"],
    ),
    "only identifiers": (
        "a\n" + "".join(f"u{i}\n" for i in range(99)),
        {},
        {},
        ["every column is an identifier", "'a'"],
    ),
    "a header that is too short": (
        "a,b\n" + "1,2,\n" * 9,
        {},
        {},
        ["row 1 (line 2) has 3 cells where the header has 2"],
    ),
    "a comment": (
        "# made by hand\na;b;c\n" + "1;2;3\n" * 9,
        dict(sep=";"),
        {},
        ["row 1 (line 2) has 3 cells where the header has 1"],
    ),
    "a line of Excel": ("sep=;\na;b\n1;2\n", {}, {}, ["line 1, 'sep=;', is no header", "--sep"]),
    "zeros": ("a,b\n1,2\n3,\0004\n", {}, {}, ["is no text, line 3 holds bytes of 0"]),
}


@pytest.mark.parametrize(("text", "reading", "options", "gist"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named_with_file_row_column_and_remedy(tmp_path, text, reading, options, gist):
    path = written(tmp_path / "a.csv", text)
    one_line(lambda: infer_schema(open_table(path, missing="keep", **reading), **options), "a.csv: ", *gist)


@pytest.mark.parametrize("sep", [",", ";", "\t"])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
def test_zeros_in_front_count(tmp_path, monkeypatch, sep, late, encoding):
    """A column of digits in which some have a leading zero is text: its values are no numbers."""
    monkeypatch.setattr(delimited_module, "SEARCHED", 1000)
    zips = [f"{10_000 + i % 90}" if late and i < 900 else f"0{1000 + i % 9}" for i in range(1000)]
    rows = [(zip_, f"{i % 2}", f"0.{i % 7}5", f"{i % 12}:30", f"-0{i % 3}", f"{i}") for i, zip_ in enumerate(zips)]
    lines_ = [sep.join(["zip", "bit", "share", "clock", "signed", "x"]), *map(sep.join, rows)]
    path = tmp_path / ("a.tsv" if sep == "\t" else "a.csv")
    path.write_bytes("\r\n".join(lines_).encode(encoding))
    schema, _, back = encoded(path)
    assert [c.dtype for c in schema.columns] == ["string", "int64", "float64", "string", "int64", "int64"]
    assert back[:, 0].tolist() == zips
    schema = infer_schema(open_table(path, missing="keep"), integer=["zip"])
    assert (schema.columns[0].kind, schema.columns[0].high) == ("integer", max(map(int, zips)))
    if sep == "," and not late:
        columns = ["zip", "share", "x"]
        one_line(
            lambda: infer_schema(open_table(path, columns=columns), numbers=True), "codes of digits", "--integer zip"
        )


def test_no_codes_are_searched_for_where_columns_are_known(tmp_path, monkeypatch):
    path = written(tmp_path / "a.csv", "k,x\n" + "".join(f"{i % 9},{i}\n" for i in range(200)))
    schema = infer_schema(open_table(path))
    monkeypatch.setattr(delimited_module.DelimitedSource, "_has_codes", lambda self: pytest.fail("searched for"))
    load(schema.open(path), schema)
    infer_schema(open_table(written(tmp_path / "b.csv", "x,y\n" + "".join(f"{i}.5,{i / 3}\n" for i in range(99)))))


def test_digits_beyond_float64_are_text(tmp_path):
    cells = [str(2**53 + i % 3) if i % 2 else str(i % 3) for i in range(120)]
    path = written(tmp_path / "a.csv", "a,x\n" + "".join(f"{cell},{i / 8}\n" for i, cell in enumerate(cells)))
    _, _, back = encoded(path)
    assert back[:, 0].tolist() == cells
    large = written(tmp_path / "b.csv", column("1e20", "3.5e21", "2e20"))
    assert infer_schema(open_table(large)).columns[0].dtype == "float64"


def test_ten_thousand_columns_are_refused_in_a_sentence():
    wide = pa.table({f"x{i}": [1.0, 2.0] for i in range(10_000)})
    one_line(lambda: infer_schema(open_table(wide)), "10000 columns, at most 4096")


@pytest.mark.parametrize(
    ("frame", "gist"),
    [
        (
            pd.DataFrame({"a": [1, "x"], "x": [1, 2]}, dtype=object),
            ["'a' has mixed types, int in row 1 and str in row 2"],
        ),
        (pa.table({"a": [["u", "v"]] * 2, "x": [1, 2]}), ["'a' holds no numbers but list<item: string>", "--drop a"]),
        (pa.table({"a": [b"u", b"\xff\xfe"], "x": [1, 2]}), ["'a' holds bytes that are no UTF-8 text (row 2"]),
        (pa.table({"a": pa.array([1, 2], pa.duration("s")), "x": [1, 2]}), ["'a' holds no numbers but duration[s]"]),
        (pa.table({"a": [{"u": 1}] * 2, "x": [1, 2]}), ["'a' holds no numbers but struct<u: int64>"]),
    ],
)
def test_bad_frames(frame, gist):
    one_line(lambda: infer_schema(open_table(frame)), *gist)


@pytest.mark.parametrize(
    "changes",
    [
        {"categories": ["a", "a"]},
        {"categories": []},
        {"categories": [1]},
        {"values": [1.0]},
        {"missing": 1},
        {"format": None},
        {"type": "int9"},
        {"steps": [2, 1]},
        {"kind": "date"},
        {"dtype": "date"},
        {"kind": "continuous", "dtype": "float64"},
        {"colour": "red"},
    ],
)
def test_hostile_json(everything, changes):
    good = infer_schema(open_table(everything, missing="keep")).to_json()
    place = [column["name"] for column in good["columns"]].index("text")
    good["columns"][place] |= changes
    with pytest.raises(UserError, match=r"schema: expected .*, got"):
        Schema.from_json(good)


def test_notes(everything):
    notes = infer_schema(open_table(everything, missing="keep")).notes()
    assert len(notes) == 6
    text = " | ".join(notes)
    for gist in (
        "samples carry it back: 'fixed text', 'fixed day'",
        "categories (else --drop): 'text' (4), 'text gaps' (4), 'coded' (4), 'ordered' (3), 'one or none' (1)",
        "dates and times (else --categorical): 'day' (date32[day])",
        "some cells are missing, which is modelled (else --drop-missing): 'real gaps', 'count'",
    ):
        assert gist in text


def test_a_run_of_numbers_carries_identifiers_and_refuses_the_rest(tmp_path, generator, capsys):
    rows = [f"u{i},{2**60 + i},{generator.normal():.4f},{generator.normal():.4f}" for i in range(60)]
    path = written(tmp_path / "a.csv", "id,big,x,y\n" + "\n".join(rows))
    options = ["--epochs", "1", "--folds", "1", "--hidden", "8", "--transforms", "1", "--no-figures"]
    assert main(["fit", str(path), "--out", str(tmp_path / "run"), *options]) == 0
    assert "set aside as identifiers (else --categorical): 'id', 'big'" in capsys.readouterr().err
    out = tmp_path / "scores.csv"
    assert main(["score", str(tmp_path / "run"), str(path), "--out", str(out), "--keep", "id,big,x"]) == 0
    scored = lines(out)
    assert scored[0] == ["row", "id", "big", "x", "log_likelihood"]
    assert [row[1:3] for row in scored[1:]] == [row.split(",")[:2] for row in rows]
    capsys.readouterr()
    path = written(
        tmp_path / "b.csv", "id,t,d,x\n" + "\n".join(f"u{i},{'ab'[i % 2]},{i % 9 + 1}.5.24,{i}" for i in range(60))
    )
    assert main(["fit", str(path), "--out", str(tmp_path / "none"), "--model", "maf", *options]) == 2
    said = capsys.readouterr().err
    assert "column 't' holds text (row 1 (line 2): 'a')" in said
    assert "column 'd' holds dates or times (row 1 (line 2): '1.5.24')" in said
    assert not (tmp_path / "none").exists()


def test_a_dataset_of_a_model_that_takes_everything(everything, tmp_path):
    """It is trained on codes, days, seconds and NaN for gaps; what is not asked for is refused."""
    dataset = TableDataset(everything, {"model": "mixed", "folds": 1}, 0)
    schema = dataset.schema
    assert dataset.x.shape == (360, schema.features)
    gaps = {name: int(dataset.x[:, place].isnan().all(1).sum()) for name, place in schema.places.items()}
    assert {name for name, count in gaps.items() if count} == {c.name for c in schema.columns if c.missing}
    assert list(schema.places.values())[-1].stop == schema.features == len(schema.feature_names)
    assert "seconds (time of day)" in schema.feature_names
    with pytest.raises(UserError, match=r"'text' holds text .* 'day' holds dates .* missing"):
        TableDataset(everything, {"model": "maf"}, 0)

"""Tables: numbers that no float holds, headers that are rows, bytes that are no text, damaged files of every format."""

import gzip
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

from hostile.judge import OUT, Case
from hostile.models import SMALL, TINY, Models

ESCAPES = "\x1b[31m\x07\u202e"
CELLS = {
    "1e308": "1e308", "-1e308": "-1e308", "beyond every float": "1e309", "a denormal": "1e-320", "1e29": "1e29", "1e25": "1e25",
    "1e38": "3.3e38", "2^53 + 1": str(2**53 + 1), "2^63": str(2**63), "2^64": str(2**64), "10^30": "1" + "0" * 30,
    "400 digits": "9" * 400, "5000 digits": "9" * 5000, "inf": "inf", "-Infinity": "-Infinity", "hexadecimal": "0x1f", "underscores": "1_000",
    "wide digits": "１２", "Arabic digits": "٣", "an exponent of 5000": "1e5000", "a formula": "=cmd|'/c calc'!A1", "escapes": ESCAPES,
    "a long text": "x" * 50_000, "a zero byte": "a\0b", "a currency": "$1,000", "a date": "2024-02-30", "a quote": '"', "a lone quote": '1"2',
}  # fmt: skip
PLAIN = [(f"{i / 7 - 2:.3f}", f"{(i * 37 % 11) / 3:.3f}", str(i % 9)) for i in range(40)]


def cases(models: Models) -> list[Case]:
    """All of them."""
    return [
        *_cells(models),
        *_headers(models),
        *_texts(models),
        *_spreads(),
        *_binary(models),
        *_typed(models),
        *_paths(models),
    ]


def _csv(header: str, rows: list[tuple[str, ...]]) -> bytes:
    return "\n".join([header, *map(",".join, rows)]).encode("utf-8", "surrogateescape") + b"\n"


def _file(name: str, data: bytes, words: Callable[[Path], list[Any]]) -> Callable[[Path], list[Any]]:
    def write(folder: Path) -> list[Any]:
        path = folder / name
        path.write_bytes(data)
        return words(path)

    return write


def _fit(path: Path, *more: str) -> list[Any]:
    return ["fit", path, "--out", f"{OUT}/run", *TINY, *more]


def _learn(path: Path) -> list[Any]:
    """A fit of whatever a table is, by its own default."""
    return ["fit", path, "--out", f"{OUT}/run", "--folds", "1", *SMALL]


def _score(models: Models, kind: str = "numbers") -> Callable[[Path], list[Any]]:
    return lambda path: ["score", models.run(kind), path, "--out", f"{OUT}/s.csv"]


def _cells(models: Models) -> Iterator[Case]:
    for k, (name, cell) in enumerate(CELLS.items()):
        one = [*PLAIN[:20], (cell, *PLAIN[20][1:]), *PLAIN[21:]]
        column = [(cell, *row[1:]) for row in PLAIN]
        half = [(cell if i % 2 else row[0], *row[1:]) for i, row in enumerate(PLAIN)]
        yield Case(f"{name}, once, scored", _file("data.csv", _csv("a,b,k", one), _score(models)), named="data.csv")
        if k % 3 == 0:
            yield Case(f"{name}, once", _file("data.csv", _csv("a,b,k", one), _fit), named="data.csv")
        elif k % 3 == 1:
            yield Case(f"{name}, in every row", _file("data.csv", _csv("a,b,k", column), _learn), named="data.csv")
        else:
            yield Case(f"{name}, in every other row", _file("data.csv", _csv("a,b,k", half), _learn), named="data.csv")


def _headers(models: Models) -> Iterator[Case]:
    headers = {
        "escapes": f"{ESCAPES},b,k", "a bell": "\x07,b,k", "a carriage return": '"a\rb",b,k', "a line": '"a\nb",b,k', "CSI of 8 bits": "\x9b31m,b,k",
        "a long name": "x" * 100_000 + ",b,k", "names twice": "a,a,k", "a long name twice": "x" * 99_999 + "," + "x" * 99_999 + ",k",
        "no names": ",,", "spaces": " , ,k", "too few": "a,b", "too many": "a,b,k,l,m", "a surrogate": "\udcff,b,k", "a joiner": "a\u200d,b\ufeff,k",
        "separators": "\u2028,\u2029,k", "row": "row,b,k", "log_likelihood": "log_likelihood,b,k", "a formula": "=1+1,b,k", "an option": "--drop,b,k",
        "a quote": 'a"b,b,k', "a mark of order": "\ufeffa,b,k", "tags": "<script>alert(1)</script>,b,k", "dollars": "$x_i^{2,b,k",
    }  # fmt: skip
    for k, (name, header) in enumerate(headers.items()):
        data = _csv(header, PLAIN)
        if k < 7 or k % 2:
            yield Case(f"header: {name}", _file("data.csv", data, _fit), named="data.csv")
        else:
            yield Case(f"header: {name}, scored", _file("data.csv", data, _score(models)), named="data.csv")
    years = [(f"{i + 0.5}", f"{i * 37 % 11}.25", f"{i * 5 % 7}.75") for i in range(30)]
    for name, header, rows, said in (
        ("years over fractions", "2019,2020,2021", years, "names"),
        ("years that do not follow each other", "2019,2021,2020", years, "names"),
        (
            "years over whole numbers",
            "2019,2020,2021",
            [(str(i * 3), str(i * 37 % 101), str(i * 5 % 77)) for i in range(30)],
            "line",
        ),
        (
            "years over years",
            "2019,2020,2021",
            [(str(1990 + i), str(1990 + i * 7 % 30), str(1990 + i * 11 % 30)) for i in range(30)],
            "line",
        ),
        ("one year", "2019", [(row[0],) for row in years], "line"),
        ("two years and a name", "2019,2020,b", years, ""),
        ("1, 2, 3 over fractions", "1,2,3", years, "names"),
        ("fractions", "0.5,0.7,1.5", years, ""),
    ):
        yield Case(f"header: {name}", _file("data.csv", _csv(header, rows), _fit), said=said, named="data.csv")


def _texts(models: Models) -> Iterator[Case]:
    plain = _csv("a,b,k", PLAIN)
    contents: dict[str, bytes] = {
        "nothing": b"", "a line end": b"\n", "line ends": b"\n\n\r\n\r\n", "a header": b"a,b,k\n", "a row": b"a,b,k\n1,2,3\n", "two rows": b"a,b,k\n1,2,3\n4,5,6\n",
        "a cell": b"1", "commas": b",,,\n" * 40, "spaces": b"   \n" * 40, "zeros": bytes(5000), "a byte of 255": b"\xff" * 500, "a mark of order": b"\xef\xbb\xbf",
        "UTF-16": plain.decode().encode("utf-16"), "UTF-16 without a mark": plain.decode().encode("utf-16-le"), "UTF-32": plain.decode().encode("utf-32"),
        "UTF-16 cut short": plain.decode().encode("utf-16")[:-1], "UTF-7": "+AGE,b\n1,2".encode("utf-7"), "Latin-1": "größe,b,k\n".encode("latin-1") + plain[6:],
        "EBCDIC": plain.decode().encode("cp500"), "carriage returns": plain.replace(b"\n", b"\r"), "mixed line ends": plain.replace(b"\n", b"\r\n", 20),
        "no last line end": plain[:-1], "cut within a row": plain[:-3], "an open quote": plain + b'"1,2,3\n' * 40, "a quote of megabytes": plain + b'"' + b"x" * 3_000_000,
        "a cell of a megabyte": plain + b"1," + b"2" * 1_000_000 + b",3\n", "a ragged row": plain + b"1,2\n", "a row too long": plain + b"1,2,3,4\n",
        "5000 cells in a row": plain + b"1," * 5000 + b"\n", "a sum": plain + b"total,,\n", "a comment": b"# made by me\n" + plain, "sep=": b"sep=;\n" + plain,
        "html": b"<!DOCTYPE html><html><body>404</body></html>", "json": b'[{"a": 1}]\n', "a PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a zip": b"PK\x03\x04" + bytes(500),
        "a pickle": b"\x80\x04\x95" + bytes(300), "an ELF": b"\x7fELF" + bytes(range(256)), "escapes": ESCAPES.encode() * 99, "surrogates": b"\xed\xa0\x80,b\n1,2\n" * 40,
        "overlong": b"\xc0\xaf,b\n1,2\n" * 40, "a character cut at the end": plain + "1,2,ä".encode()[:-1], "decimal commas": b"1,5,2,5\n" * 40,
        "semicolons": plain.replace(b",", b";").replace(b".", b","), "tabs": plain.replace(b",", b"\t"), "one column": b"\n".join(row[0].encode() for row in PLAIN),
        "a text in every cell": b"a,b\n" + b"\n".join(b"t%d,u%d" % (i, i) for i in range(40)),
        "one value": b"a,b\n" + b"1,1\n" * 40, "one value and gaps": b"a,b\n" + b"1,\n,1\n" * 40, "gaps alone": b"a,b\n" + b"NA,NA\n" * 40,
        "dates out of range": b"d,x\n" + b"".join(b"9999-12-%02d,%d.5\n" % (i % 31 + 1, i) for i in range(40)),
        "year 0": b"d,x\n" + b"".join(b"0000-01-%02d,%d.5\n" % (i % 28 + 1, i) for i in range(40)),
        "30 February": b"d,x\n" + b"".join(b"2024-02-%02d,%d.5\n" % (i % 30 + 1, i) for i in range(40)),
        "zones": b"d,x\n" + b"".join(b"2024-02-%02dT10:00:00%+03d:00,%d.5\n" % (i % 28 + 1, i % 28 - 14, i) for i in range(40)),
        "categories of escapes": b"t,x\n" + b"".join(f"{ESCAPES}{i % 3},{i}.5\n".encode() for i in range(40)),
        "long categories": b"t,x\n" + b"".join(b"%s,%d.5\n" % (b"xyz"[i % 3 : i % 3 + 1] * 20_000, i) for i in range(40)),
        "formulas": b"t,x\n" + b"".join(b"=cmd%d,%d.5\n" % (i % 3, i) for i in range(40)),
        "spreadsheet errors": b"t,x\n" + b"#REF!,1.5\n#DIV/0!,2.5\n" * 20,
        "codes": b"zip,x\n" + b"".join(b"%05d,%d.5\n" % (i % 4, i) for i in range(40)),
        "identifiers beyond 2^53": b"id,x\n" + b"".join(b"%d,%d.5\n" % (2**60 + i, i) for i in range(40)),
    }  # fmt: skip
    for name, data in contents.items():
        yield Case(f"text: {name}", _file("data.csv", data, _learn), named="data.csv")
    for name in ("UTF-16", "a cell of a megabyte", "5000 cells in a row", "surrogates", "categories of escapes"):
        yield Case(f"text: {name}, scored", _file("data.csv", contents[name], _score(models)), named="data.csv")
        yield Case(
            f"text: {name}, scored by a mixed density",
            _file("data.csv", contents[name], _score(models, "mixed")),
            named="data.csv",
        )
    packed = gzip.compress(plain)
    for name, data in {
        "not compressed": plain, "cut short": packed[:-9], "cut in the header": packed[:5], "a wrong checksum": packed[:-8] + b"\1\2\3\4" + packed[-4:],
        "more behind it": packed + b"more", "zeros behind it": packed + bytes(99), "twice": packed + packed, "of nothing": gzip.compress(b""),
        "of a gzip": gzip.compress(packed), "with a flipped bit": packed[:60] + bytes([packed[60] ^ 4]) + packed[61:],
    }.items():  # fmt: skip
        yield Case(f"gzip: {name}", _file("data.csv.gz", data, _score(models)), named="data.csv.gz")
    for sep in (["--sep", "\x1b"], ["--sep", "\n"], ["--sep", '"'], ["--sep", "ab"], ["--sep", ""], ["--sep", "é"], ["--sep", "\0"],
                ["--decimal", "\x1b"], ["--na", "\x1b[31m"], ["--na", "\udcff"], ["--drop", "\x1b[31m"], ["--drop", "x" * 9999], ["--context", "\udcff"],
                ["--model", "\x1b[31m"], ["--set", "\x1b=3"], ["--set", "hidden=[" * 2000], ["--set", f"hidden={'[' * 50_000}"], ["--bounds", f"a={'9' * 5000}:1"],
                ["--set", "x" * 99_999], ["--weights", "\x1b"], ["--date", "a"], ["--categorical", "\u202e"]):  # fmt: skip
        yield Case(
            f"options: {' '.join(sep)[:30]!r}",
            _file("data.csv", plain, lambda path, sep=sep: _fit(path, *sep)),
            named=None,
        )


def _spreads() -> Iterator[Case]:
    """What no density can be learned of, with a run directory that must not stay behind."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 2))
    tables: dict[str, np.ndarray] = {
        "a spread of 1e29": x * 1e29, "a spread of 1e300": x * 1e300, "a spread of 1e-300": x * 1e-300, "a spread of 1e-40": x * 1e-40, "1e16 and a little": 1e16 + x,
        "one outlier of 1e25": np.vstack([x, [[1e25, 0]]]), "one outlier of 1e38": np.vstack([x, [[1e38, 0]]]), "one outlier of 1e308": np.vstack([x, [[1e308, -1e308]]]),
        "two outliers": np.vstack([x, [[1e30, 0]], [[-1e30, 0]]]), "a step of 1e300": np.column_stack([x[:, 0], np.rint(x[:, 1] * 5) * 1e300]),
        "a step of 1e-300": np.column_stack([x[:, 0], np.rint(x[:, 1] * 5) * 1e-300]), "every power of ten": np.column_stack([x[:, 0], 10.0 ** np.linspace(-300, 300, 60)]),
        "whole numbers to 2^62": np.column_stack([x[:, 0], np.rint(2.0**62 * generator.random(60))]), "the extremes": np.tile([[1.79e308, -1.79e308], [-1.79e308, 1.79e308]], (30, 1)),
        "a constant of 1e308": np.column_stack([x[:, 0], np.full(60, 1e308)]), "constants alone": np.full((60, 2), 3.0), "one row": x[:1], "three rows": x[:3],
        "zeros and a 1": np.column_stack([x[:, 0], np.arange(60) == 30]),
    }  # fmt: skip
    for name, table in tables.items():
        data = "\n".join(["a,b", *(f"{a!r},{b!r}" for a, b in table.tolist())]).encode()
        yield Case(f"spread: {name}", _file("data.csv", data, _fit if len(name) % 2 else _learn), named="data.csv")


def _whole(kind: str) -> bytes:
    table = pa.table(
        {
            "a": [float(row[0]) for row in PLAIN],
            "b": [float(row[1]) for row in PLAIN],
            "k": [int(row[2]) for row in PLAIN],
        }
    )
    file = io.BytesIO()
    if kind == "parquet":
        pa.parquet.write_table(table, file)
    elif kind == "feather":
        pa.feather.write_feather(table, file)
    elif kind == "arrow":
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    elif kind == "npy":
        np.save(file, np.array(PLAIN, dtype=np.float64))
    else:
        np.savez(file, X=np.array(PLAIN, dtype=np.float64), names=np.array(["a", "b", "k"]))
    return file.getvalue()


def _binary(models: Models) -> Iterator[Case]:
    """Files of numbers: cut short, with flipped bits, with headers that lie."""
    for kind in ("parquet", "feather", "arrow", "npy", "npz"):
        whole = _whole(kind)
        for k in range(2):
            cut = len(whole) * (3 * k + 1) // 5
            yield Case(
                f"{kind}: cut at {cut}",
                _file(f"data.{kind}", whole[:cut], _score(models)),
                refused=True,
                named=f"data.{kind}",
            )
            for at in (len(whole) * k // 2 + 3, len(whole) * (2 * k + 1) // 4):
                data = whole[:at] + bytes([whole[at] ^ (1 << k)]) + whole[at + 1 :]
                yield Case(f"{kind}: byte {at}", _file(f"data.{kind}", data, _score(models)), named=f"data.{kind}")
        yield Case(
            f"{kind}: text", _file(f"data.{kind}", _csv("a,b,k", PLAIN), _fit), refused=True, named=f"data.{kind}"
        )
    body = np.zeros((4, 3)).tobytes()
    headers = {
        "nested lists": "[" * 9000, "nested tuples": "{'descr': '<f8', 'fortran_order': False, 'shape': " + "(" * 3000, "nested types": "{'descr': " + "[('a', " * 2000,
        "minus signs": "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "-" * 5000 + "1,)}", "a shape of 2^62": "{'descr': '<f8', 'fortran_order': False, 'shape': (2**62, 3)}",
        "a large shape": "{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904, 3)}", "a shape of 10^12": "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3)}",
        "a negative shape": "{'descr': '<f8', 'fortran_order': False, 'shape': (-4, -3)}", "a shape of True": "{'descr': '<f8', 'fortran_order': False, 'shape': (True, 12)}",
        "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (4, 3)}", "complex numbers": "{'descr': '<c16', 'fortran_order': False, 'shape': (2, 3)}",
        "texts": "{'descr': '<U2', 'fortran_order': False, 'shape': (4, 3)}", "dates": "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (4, 3)}", "void": "{'descr': '|V8', 'fortran_order': False, 'shape': (4, 3)}",
        "a type of 2^31": "{'descr': '|V2147483648', 'fortran_order': False, 'shape': (4, 3)}", "a type of escapes": "{'descr': '\x1b[31m', 'fortran_order': False, 'shape': (4, 3)}",
        "fields of escapes": "{'descr': [('\x1b[31m', '<f8'), ('b', '<f8'), ('k', '<f8')], 'fortran_order': False, 'shape': (4,)}", "code": "__import__('os').abort()",
        "no shape": "{'descr': '<f8'}", "a scalar": "{'descr': '<f8', 'fortran_order': False, 'shape': ()}", "no rows": "{'descr': '<f8', 'fortran_order': False, 'shape': (0, 3)}",
        "no columns": "{'descr': '<f8', 'fortran_order': False, 'shape': (4, 0)}", "five dimensions": "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1, 1, 4, 3)}", "a long number": "{'shape': " + "9" * 9000 + "}",
        "bytes": "{'descr': '|S8', 'fortran_order': False, 'shape': (4, 3)}", "numbers of 2 bytes": "{'descr': '>f2', 'fortran_order': True, 'shape': (16, 3)}",
    }  # fmt: skip
    for name, header in headers.items():
        text = header.encode("latin-1")
        for version, size in ((b"\1\0", 2), (b"\2\0", 4)):
            data = b"\x93NUMPY" + version + len(text).to_bytes(size, "little") + text + body
            if size == 2 or name in ("nested lists", "nested types", "a large shape"):
                yield Case(
                    f"npy: {name}, version {version[0]}", _file("data.npy", data, _score(models)), named="data.npy"
                )
    yield Case(
        "npy: version 9", _file("data.npy", b"\x93NUMPY\x09\x00\x10\x00" + bytes(99), _score(models)), named="data.npy"
    )
    yield Case(
        "npy: a header of 4 GB",
        _file("data.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(99), _score(models)),
        named="data.npy",
    )
    arrays: dict[str, dict[str, Any]] = {
        "no arrays": {}, "two tables": {"p": np.zeros((4, 3)), "q": np.zeros((4, 3))}, "names of escapes": {"X": np.zeros((4, 3)), "names": np.array([ESCAPES, "b", "k"])},
        "names twice": {"X": np.zeros((4, 3)), "names": np.array(["a", "a", "k"])}, "long names": {"X": np.zeros((4, 3)), "names": np.array(["a" * 99_999, "b", "k"])},
        "an array of escapes": {ESCAPES: np.zeros((4, 3)), "q": np.zeros((4, 3))}, "long array names": {f"{i}" + "x" * 9000: np.zeros((4, 3)) for i in range(3)},
        "infinities": {"X": np.full((4, 3), np.inf)}, "names of numbers": {"X": np.zeros((4, 3)), "names": np.zeros(3)},
    }  # fmt: skip
    for name, content in arrays.items():
        file = io.BytesIO()
        np.savez(file, **content)
        yield Case(f"npz: {name}", _file("data.npz", file.getvalue(), _score(models)), named="data.npz")
    for name, entries in {
        "a path that leads out": {"../../x.npy": _whole("npy")}, "no array": {"X.npy": b"text"}, "a deep header": {"X.npy": b"\x93NUMPY\1\0\x28\x23" + b"[" * 9000},
        "names with a deep header": {"X.npy": _whole("npy"), "names.npy": b"\x93NUMPY\1\0\x28\x23" + b"[" * 9000},
    }.items():  # fmt: skip
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for entry, data in entries.items():
                archive.writestr(entry, data)
        yield Case(f"npz: {name}", _file("data.npz", file.getvalue(), _score(models)), named="data.npz")


def _typed(models: Models) -> Iterator[Case]:
    """Arrow types that are no numbers, texts that are none, names that steer."""
    x = [i / 7 for i in range(40)]
    big = [2**62 + i for i in range(40)]
    columns: dict[str, pa.Array] = {
        "lists": pa.array([[1.0, 2.0]] * 40), "structs": pa.array([{"p": {"q": 1}}] * 40), "maps": pa.array([[("k", 1)]] * 40, pa.map_(pa.string(), pa.int64())),
        "nested lists": pa.array([[[[[1.0]]]]] * 40), "durations": pa.array(range(40), pa.duration("s")), "decimals": pa.array([str(i) for i in big]).cast(pa.decimal128(38, 10)),
        "decimals of 76 digits": pa.array([str(10**60 + i) for i in range(40)]).cast(pa.decimal256(76, 2)), "whole numbers of 62 bits": pa.array(big),
        "unsigned numbers of 64 bits": pa.array([2**64 - 1 - i for i in range(40)], pa.uint64()), "nulls": pa.nulls(40), "bytes": pa.array([b"\xff\xfe"] * 20 + [b"ab"] * 20),
        "fixed bytes": pa.array([b"ab"] * 40, pa.binary(2)), "escapes": pa.array([f"{ESCAPES}{i % 3}" for i in range(40)]), "long texts": pa.array([f"{'x' * 99_999}{i % 2}" for i in range(40)]),
        "a dictionary of escapes": pa.array([f"{ESCAPES}{i % 3}" for i in range(40)]).dictionary_encode(), "dates of year 200000": pa.array([70_000_000 + i for i in range(40)], pa.date32()),
        "points in time of 2^62": pa.array(big, pa.timestamp("s")), "nanoseconds": pa.array(big, pa.timestamp("ns")), "zones": pa.array(range(40), pa.timestamp("us", "Asia/Kathmandu")),
        "an unknown zone": pa.array(range(40), pa.timestamp("us", "Mars/Olympus\x1b[31m")), "times": pa.array(range(40), pa.time64("ns")), "half floats": pa.array(np.array(x, np.float16)),
        "NaN": pa.array([float("nan")] * 40), "infinities": pa.array([float("inf"), 1.0] * 20), "1e308": pa.array([1e308, 1.0] * 20), "denormals": pa.array([5e-324 * i for i in range(40)]),
        "intervals": pa.array([pa.MonthDayNano([1, 2, 3])] * 40), "one bit": pa.array([i == 7 for i in range(40)]),
    }  # fmt: skip
    for k, (name, column) in enumerate(columns.items()):
        for kind in ("parquet", "feather")[k % 4 == 0 :][:1]:
            file = io.BytesIO()
            try:
                table = pa.table({"a": x, "t": column})
                pa.parquet.write_table(table, file) if kind == "parquet" else pa.feather.write_feather(table, file)
            except (pa.ArrowException, ValueError):  # which this format does not hold
                continue
            yield Case(f"{kind}: {name}", _file(f"data.{kind}", file.getvalue(), _learn), named=f"data.{kind}")
    names = {
        "escapes": [ESCAPES, "b"],
        "twice": ["a", "a"],
        "empty": ["", "b"],
        "long": ["x" * 99_999, "b"],
        "lines": ["a\nb\rc", "\u2028"],
        "a zero": ["a\0b", "c"],
    }
    for name, each in names.items():
        for kind, words in (("feather", _fit), ("parquet", _score(models))):
            file = io.BytesIO()
            table = pa.table([x, x[::-1]], names=each)
            pa.parquet.write_table(table, file) if kind == "parquet" else pa.feather.write_feather(table, file)
            yield Case(f"{kind}: names: {name}", _file(f"data.{kind}", file.getvalue(), words), named=f"data.{kind}")


def _paths(models: Models) -> Iterator[Case]:
    """File names, and what is no file."""
    plain = _csv("a,b,k", PLAIN)
    for k, name in enumerate(
        (
            os.fsdecode(b"da\xff\xfeta"),
            "da\x1b[31mta",
            "da\nta",
            "d" * 240,
            "da\u202eta",
            "-data",
            "da ta",
            "da\tta",
            "da%sta",
            "da\x07ta",
            "data.csv",
        )
    ):
        strange = k < 3
        for suffix in (".csv", ".parquet", ".npy")[: 3 if strange else 1]:
            data = {".csv": plain, ".parquet": _whole("parquet"), ".npy": _whole("npy")}[suffix]
            yield Case(
                f"a file called {name[:12]!r}{suffix}", _file(name + suffix, data, _score(models)), refused=False
            )
            if suffix == ".csv" and strange:
                yield Case(
                    f"a file to learn called {name[:12]!r}{suffix}", _file(name + suffix, data, _fit), refused=False
                )
            if suffix == ".csv":
                yield Case(
                    f"a damaged file called {name[:12]!r}{suffix}",
                    _file(name + suffix, data + b"1,2\n", _fit),
                    refused=True,
                )
            else:
                yield Case(
                    f"a damaged file called {name[:12]!r}{suffix}", _file(name + suffix, data[:50], _fit), refused=True
                )
        if not strange:
            continue
        yield Case(f"no known extension: {name[:12]!r}", _file(name + ".x\x1b", plain, _fit), refused=True)
        yield Case(
            f"results called {name[:12]!r}",
            _file(
                "data.csv",
                plain,
                lambda path, name=name: ["score", models.run("numbers"), path, "--out", f"{OUT}/{name}.csv"],
            ),
            refused=False,
        )
        yield Case(
            f"results of an unknown kind called {name[:12]!r}",
            _file(
                "data.csv",
                plain,
                lambda path, name=name: ["score", models.run("numbers"), path, "--out", f"{OUT}/{name}.doc"],
            ),
            refused=True,
        )
        yield Case(
            f"a run called {name[:12]!r}",
            _file("data.csv", plain, lambda path, name=name: ["fit", path, "--out", f"{OUT}/{name}", *TINY]),
            refused=False,
        )

    def special(make: Callable[[Path], object]) -> Callable[[Path], list[Any]]:
        def write(folder: Path) -> list[Any]:
            make(folder / "data.csv")
            return _fit(folder / "data.csv")

        return write

    for name, make in {
        "a folder": Path.mkdir, "a pipe": os.mkfifo, "a link to itself": lambda path: path.symlink_to(path), "a link to nothing": lambda path: path.symlink_to("nowhere"),
        "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"), "a link to /dev/stdin": lambda path: path.symlink_to("/dev/stdin"),
        "a link to /proc/self/mem": lambda path: path.symlink_to("/proc/self/mem"), "nothing": lambda path: None,
    }.items():  # fmt: skip
        yield Case(f"path: {name}", special(make), refused=True, named="data.csv", seconds=5)
    yield Case("path: with a zero", lambda folder: _fit(folder / "a\0b.csv"), refused=True, named=None)
    yield Case("path: too long", lambda folder: _fit(folder / ("a" * 5000 + ".csv")), refused=True, named=None)
    yield Case("path: nothing", lambda folder: ["fit", "", "--out", f"{OUT}/run"], refused=True, named=None)

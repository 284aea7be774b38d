"""Small files that ask for gigabytes or hours: each in little memory, or refused by a limit that its message names."""

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from hostile.judge import OUT, Case
from hostile.models import TINY, Models
from hostile.pictures import png
from hostile.recordings import _fit as _learn_sound
from hostile.recordings import wav

GIGABYTE = 1 << 30


def _deflated(data: bytes) -> bytes:
    """Bytes as a part of a stream, which can be repeated."""
    compressed = zlib.compressobj(wbits=-15)
    return compressed.compress(data) + compressed.flush(zlib.Z_FULL_FLUSH)


def wide(columns: int, rows: int = 30, constant: bool = False) -> bytes:
    """A csv of so many columns."""
    numbers = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float16)
    cells = ["1"] * columns if constant else None
    lines = [",".join(f"c{i}" for i in range(columns))]
    lines += [",".join(cells or map(str, row)) for row in numbers.tolist()]
    return "\n".join(lines).encode()


def cases(models: Models) -> list[Case]:
    """All of them."""

    def table(name: str, data: Callable[[], bytes], score: bool = False) -> Callable[[Path], list[Any]]:
        def write(folder: Path) -> list[Any]:
            (folder / name).write_bytes(data())
            if score:
                return ["score", models.run("numbers"), folder / name, "--out", f"{OUT}/s.csv"]
            words = ["--model", "realnvp", *TINY[2:]] if name.endswith(".npz") else TINY
            return ["fit", folder / name, "--out", f"{OUT}/run", *words]

        return write

    def picture(data: Callable[[], bytes]) -> Callable[[Path], list[Any]]:
        def write(folder: Path) -> list[Any]:
            (folder / "x.png").write_bytes(data())
            return ["fit", folder / "x.png", "--out", f"{OUT}/run", "--size", "4", *TINY[4:]]

        return write

    def sound(*rates: int) -> Callable[[Path], list[Any]]:
        def write(folder: Path) -> list[Any]:
            (folder / "data").mkdir()
            for k, rate in enumerate(rates):
                (folder / "data" / f"{k}.wav").write_bytes(wav(rate))
            return _learn_sound(folder / "data")

        return write

    def many(columns: int) -> bytes:
        file = io.BytesIO()
        column = pa.array(np.random.default_rng(0).normal(size=30))
        pa.parquet.write_table(pa.table([column] * columns, names=[f"c{i}" for i in range(columns)]), file)
        return file.getvalue()

    def archive(name: str, head: bytes, size: int) -> bytes:
        """A zip with one entry: some bytes, then zeros; its sum is wrong, which shows at the end alone."""
        parts = [_deflated(head), _deflated(bytes(1 << 24)) * (size >> 24), zlib.compressobj(wbits=-15).flush()]
        data, label = b"".join(parts), name.encode()
        fields = struct.pack(
            "<HHHHHIIIHH", 20, 0, 8, 0, 33, 1, len(data), len(head) + (size >> 24 << 24), len(label), 0
        )
        local = b"PK\3\4" + fields + label + data
        entry = b"PK\1\2" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + label
        return local + entry + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)

    def header(shape: str, kind: str = "<f8") -> bytes:
        text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}".encode()
        return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text

    def sparse(name: str, head: bytes, size: int, score: bool = True) -> Callable[[Path], list[Any]]:
        def write(folder: Path) -> list[Any]:
            with (folder / name).open("wb") as file:
                file.write(head)
                file.truncate(size)
            return (
                table(name, lambda: b"", score)(folder)
                if not head
                else ["score", models.run("numbers"), folder / name, "--out", f"{OUT}/s.csv"]
            )

        return write

    def packed(line: bytes, size: int) -> bytes:
        """A gzip of many members, all of them the same."""
        block = gzip.compress(line * ((1 << 20) // len(line) + 1))
        return block * (size >> 20)

    pixels = 13_350 * 13_350
    limits = {"seconds": 60.0, "megabytes": 900.0}
    return [
        Case("10,000 columns", table("data.csv", lambda: wide(10_000)), True, "--max-columns", "data.csv", **limits),
        Case(
            "10,000 columns of parquet",
            table("data.parquet", lambda: many(10_000)),
            True,
            "--max-columns",
            "data.parquet",
            **limits,
        ),
        Case(
            "200,000 constant columns",
            table("data.csv", lambda: wide(200_000, 10, True)),
            True,
            "--max-columns",
            "data.csv",
            **limits,
        ),
        Case(
            "200,000 columns to score",
            table("data.csv", lambda: wide(200_000, 3, True), True),
            True,
            "",
            "data.csv",
            **limits,
        ),
        Case(
            "a gzip of one line of 4 GB",
            table("data.csv.gz", lambda: packed(b"1", 4 * GIGABYTE), True),
            True,
            "",
            "data.csv.gz",
            **limits,
        ),
        Case(
            "a gzip of zeros",
            table("data.csv.gz", lambda: packed(b"\0", 2 * GIGABYTE), True),
            True,
            "",
            "data.csv.gz",
            **limits,
        ),
        Case(
            "a gzip of one quoted cell",
            table("data.csv.gz", lambda: gzip.compress(b'a,b,k\n1,2,3\n1,2,"') + packed(b"x", 2 * GIGABYTE), True),
            True,
            "",
            "data.csv.gz",
            **limits,
        ),
        Case(
            "a gzip of 10^9 rows",
            table("data.csv.gz", lambda: gzip.compress(b"a,b,k\n") + packed(b"1,2,3\n", 8 * GIGABYTE), True),
            True,
            "--max-bytes",
            "data.csv.gz",
            **limits,
        ),
        Case(
            "an npz of 3 GB",
            table("data.npz", lambda: archive("X.npy", header("(134217728, 3)"), 3 * GIGABYTE), True),
            True,
            "--max-bytes",
            "data.npz",
            **limits,
        ),
        Case(
            "an npz of a header of 2 GB",
            table("data.npz", lambda: archive("X.npy", b"\x93NUMPY\2\0\xff\xff\xff\x7f", GIGABYTE), True),
            True,
            "",
            "data.npz",
            **limits,
        ),
        Case(
            "an npz of pictures of 3 GB",
            table("data.npz", lambda: archive("x.npy", header("(3145728, 32, 32)", "|u1"), 3 * GIGABYTE)),
            True,
            "--max-bytes",
            "data.npz",
            **limits,
        ),
        Case(
            "an npy whose rows are not there",
            sparse("data.npy", header("(1000000000000, 3)"), 4096),
            True,
            "",
            "data.npy",
            **limits,
        ),
        Case(
            "an npy with a column of 10^9",
            sparse("data.npy", header("(1, 1000000000)", "|u1"), 1_000_000_200),
            True,
            "",
            "data.npy",
            **limits,
        ),
        Case(
            "a png of 178 megapixels",
            picture(lambda: png(13_350, 13_350, 1, data=zlib.compress(bytes(13_350 * 1_670)))),
            True,
            "--max-pixels",
            "x.png",
            **limits,
        ),
        Case(
            "a png of 178 megapixels of colour",
            picture(lambda: png(13_350, 13_350, 8, 6, data=zlib.compress(bytes(pixels)))),
            True,
            "--max-pixels",
            "x.png",
            **limits,
        ),
        Case(
            "a png of 40 megapixels",
            picture(lambda: png(6_324, 6_324, 1, data=zlib.compress(bytes(6_324 * 792)))),
            None,
            "",
            "x.png",
            **limits,
        ),
        Case("a wav of 1 Hz", sound(1), None, "", "data", **limits),
        Case("a wav of 1 Hz among others", sound(1, 4000, 4000, 4000), None, "", "data", **limits),
        Case("a wav of 99,999,989 Hz", sound(99_999_989), None, "", "data", **limits),
        Case("wavs of 99,999,989 Hz and 4000 Hz", sound(99_999_989, 4000, 99_999_989), None, "", "data", **limits),
        Case("wavs of 4000 Hz and 99,999,989 Hz", sound(4000, 4000, 99_999_989), None, "", "data", **limits),
    ]

"""Comma- and tab-separated text, read in a stream: fast through pyarrow, exact about what is wrong through Python."""

import csv
import gzip
import io
import re
import shlex
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.csv

from diffeo.errors import UserError

__all__ = ["NULLS", "DelimitedSource", "complaint", "drop"]

NULLS = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "-NaN", "NULL", "null", "None", "none", "?")
BLOCK = 1 << 22  # bytes of text parsed at a time
PEEK = 100  # rows looked at when the file is opened

_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity)", re.IGNORECASE)
_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}( .*)?|\d{1,2}:\d{2}(:\d{2}.*)?"
)
_BOOLEANS = {"true": 1.0, "false": 0.0}


def complaint(column: str, where: str, value: str) -> str:
    """Say what is wrong with a cell that is no number, and the remedy."""
    shown = repr(value if len(value) <= 40 else value[:37] + "...")
    if _DATE.fullmatch(value.strip()):
        return f"column {column!r} holds dates or times ({where}: {shown}); convert them to numbers or {drop(column)}"
    return f"column {column!r} holds text ({where}: {shown}); encode it as numbers or {drop(column)}"


def drop(column: str) -> str:
    """Return the advice to leave a column out, as one would type it."""
    return f"use --drop {shlex.quote(column)}" if column.isprintable() else "leave it out"


def _number(cell: str) -> float | None:
    """Return the number in a cell, NaN where it is missing, None where it is neither."""
    cell = cell.strip()
    if cell in NULLS:
        return np.nan
    if _NUMBER.fullmatch(cell):
        return float(cell)
    return _BOOLEANS.get(cell.lower())


class DelimitedSource:
    """The columns of a .csv or .tsv file, compressed by gzip or not, with a header or without.

    The header is absent when no cell of the first line is text; the columns are then called ``c0``, ``c1``, ...
    """

    num_rows: int | None = None

    def __init__(self, path: Path, delimiter: str, header: bool | None = None) -> None:
        self.name = str(path)
        self._path = path
        with path.open("rb") as file:
            start = file.read(4)
        self._gzip = start[:2] == b"\x1f\x8b"
        if path.suffix.lower() == ".gz" and not self._gzip:
            raise UserError(f"{self.name}: is not compressed by gzip; name it {path.stem}, or compress it")
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{self.name}: is UTF-16 text; save it as UTF-8")
        with self._text() as text:
            line = text.readline()
            while line and not line.strip():
                line = text.readline()
        if delimiter == "," and "," not in line:  # a .csv as some spreadsheets write it
            delimiter = next((mark for mark in ";\t" if mark in line), ",")
        self._delimiter = delimiter

        with self._text() as text:
            rows = self._cells(text)
            number, first = next(rows, (0, []))
            if not first:
                raise UserError(f"{self.name}: is empty; give a file with columns of numbers")
            peek = [row for _, row in islice(rows, PEEK)]
        self.has_names = header if header is not None else any(_number(cell) is None for cell in first)
        self._skip = number if self.has_names else 0  # lines before the data
        if self.has_names and not peek:
            raise UserError(f"{self.name}: has a header but no rows; give a file with data")
        names = [cell.strip() for cell in first] if self.has_names else [""] * len(first)
        self.names = tuple(name or f"c{i}" for i, name in enumerate(names))
        if not self.has_names:
            peek.append(first)
        self.types = tuple(
            "bool" if _all_boolean([row[i] for row in peek if i < len(row)]) else "number" for i in range(len(first))
        )
        self._block = max(BLOCK, 64 * (len(line) + 1))  # a row must fit into a block

    def read(self, columns: Sequence[int], rows: int) -> Iterator[np.ndarray]:
        """Yield float64 arrays (n, len(columns)), n of any size; missing cells are NaN.

        Every type is fixed beforehand: pyarrow would otherwise infer it from the first block, and stumble over a later
        one. What pyarrow cannot read goes through Python, which reads a little more and says what it cannot.
        """
        done = 0
        try:
            for block in self._read_fast(columns):
                yield block
                done += len(block)
        except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError):
            yield from self._read_slow(columns, rows, skip=done)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    def where(self, row: int) -> str:
        """Return "row 3 (line 4)" for the data row, counted from 1."""
        with self._text() as text:
            line, _ = next(islice(self._data(text), row - 1, None), (0, []))
        return f"row {row} (line {line})"

    def _read_fast(self, columns: Sequence[int]) -> Iterator[np.ndarray]:
        labels = [str(i) for i in range(len(self.names))]  # the true names may hold anything
        wanted = [labels[i] for i in columns]
        types = {labels[i]: pa.bool_() if self.types[i] == "bool" else pa.float64() for i in columns}
        with pa.input_stream(self._path, compression="gzip" if self._gzip else None) as stream:
            try:
                reader = pa.csv.open_csv(
                    stream,
                    read_options=pa.csv.ReadOptions(
                        column_names=labels, skip_rows=self._skip, block_size=self._block, use_threads=True
                    ),
                    parse_options=pa.csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
                    convert_options=pa.csv.ConvertOptions(
                        column_types=types, include_columns=wanted, null_values=list(NULLS), strings_can_be_null=True
                    ),
                )
            except pa.ArrowInvalid as error:
                if "Empty CSV file" in str(error):
                    return
                raise
            for batch in reader:
                block = np.empty((batch.num_rows, len(wanted)))
                for i, label in enumerate(wanted):
                    block[:, i] = batch.column(label).cast(pa.float64()).to_numpy(zero_copy_only=False)
                yield block

    def _read_slow(self, columns: Sequence[int], rows: int, skip: int) -> Iterator[np.ndarray]:
        block: list[list[float]] = []
        with self._text() as text:
            for row, (line, cells) in enumerate(self._data(text), start=1):
                where = f"row {row} (line {line})"
                if len(cells) != len(self.names):
                    raise UserError(
                        f"{self.name}: {where} has {_count(len(cells), 'cell')} where the others have"
                        f" {len(self.names)}; fix that line"
                    )
                if row <= skip:
                    continue
                values = []
                for i in columns:
                    value = _number(cells[i])
                    if value is None:
                        raise UserError(f"{self.name}: {complaint(self.names[i], where, cells[i])}")
                    values.append(value)
                block.append(values)
                if len(block) == rows:
                    yield np.array(block).reshape(-1, len(columns))
                    block = []
        if block:
            yield np.array(block).reshape(-1, len(columns))

    def _data(self, text: TextIO) -> Iterator[tuple[int, list[str]]]:
        return islice(self._cells(text), 1 if self.has_names else 0, None)

    def _cells(self, text: TextIO) -> Iterator[tuple[int, list[str]]]:
        """Yield (number of the line, cells) of all rows that are not blank."""
        reader = csv.reader(text, delimiter=self._delimiter)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise UserError(f"{self.name}: line {reader.line_num} is no valid text of a table ({error})") from error

    @contextmanager
    def _text(self) -> Iterator[TextIO]:
        try:
            with gzip.open(self._path, "rb") if self._gzip else self._path.open("rb") as raw:
                # Bytes that are not UTF-8 can only stand in text; they must not hide the message about it.
                yield io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline="")
        except (OSError, EOFError, zlib.error) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UserError:
        kind = "gzip file" if self._gzip else "file"
        return UserError(f"{self.name}: cannot be read, the {kind} is damaged or incomplete ({error}); get it anew")


def _all_boolean(cells: list[str]) -> bool:
    values = {cell.strip().lower() for cell in cells if cell.strip() not in NULLS}
    return bool(values) and values <= set(_BOOLEANS)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

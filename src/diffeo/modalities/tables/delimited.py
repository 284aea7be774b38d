"""Comma- and tab-separated text, read in a stream: fast through pyarrow, exact about what is wrong through Python."""

import csv
import gzip
import io
import re
import shlex
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.csv

from diffeo.errors import UserError
from diffeo.limits import EXPANDED, check_expansion
from diffeo.modalities.tables.dictionary import Dictionary
from diffeo.paths import openable

__all__ = [
    "NULLS",
    "RARE",
    "REMEDIES",
    "DelimitedSource",
    "Retyped",
    "complaint",
    "drop",
    "floats",
    "is_decorated",
    "is_number",
    "leave_out",
    "mixed_types",
]

NULLS = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "-NaN", "NULL", "null", "None", "none", "?")
SEPARATORS = ",;\t|"
BLOCK = 1 << 22  # bytes of text parsed at a time
SEARCHED = 1 << 18  # bytes searched at a time: they stay in the processor's cache
PEEK = 100  # rows looked at when the file is opened
LONGEST = 1 << 22  # characters of a line
CELLS = 1_000_000  # looked at when the file is opened
ENOUGH = 10_000  # cells that are enough to see what separates them
RARE = 0.01  # share of texts in a column of numbers up to which they are taken for mistakes
EXACT = 2**53  # whole numbers beyond it are none in float64
REMEDIES = ("drop", "categorical", "na", "decimal", "missing")  # arguments of a training that messages recommend

_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity)", re.IGNORECASE)
_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}( .*)?|\d{1,2}:\d{2}(:\d{2}.*)?"
)
_DECORATED = re.compile(
    r"[+-]?[$€£¥]? ?[+-]?(\d{1,3}(,\d{3})+(\.\d+)?|\d{1,3}(\.\d{3})+(,\d+)?|\d+([.,]\d+)?) ?[$€£¥%]?"
)
_CODE = re.compile("0[0-9]+")  # zip codes, keys: digits whose zeros count
_BOOLEANS = {"true": 1.0, "false": 0.0}


class Retyped(UserError):
    """A column turned out to hold text after some of it was read as numbers; read again, it is text throughout."""


def complaint(column: str, where: str, value: str, remedies: Collection[str] = REMEDIES, decimal: str = ".") -> str:
    """Say what is wrong with a cell that is no number where this is the decimal mark, and the remedy.

    Of the options, only those are recommended that are among ``remedies``.
    """
    value = value.strip()
    what, remedy = "text", "encode it as numbers"
    other, other_name, mark_name = (".", "points", "commas") if decimal == "," else (",", "commas", "points")
    if _DATE.fullmatch(value):
        what, remedy = "dates or times", "convert them to numbers"
    elif ("," not in value and _NUMBER.fullmatch(value)) if decimal == "," else _with_comma(value):
        what = f"decimal {other_name}"
        remedy = f"read it with --decimal {other}" if "decimal" in remedies else f"write them with {mark_name}"
    elif _DECORATED.fullmatch(value):
        what, remedy = "numbers with currency signs, percent signs or thousands separators", "write plain numbers"
    return f"column {column!r} holds {what} ({where}: {_shown(value)}); {remedy} or {leave_out(column, remedies)}"


def is_number(text: str, decimal: str = ".") -> bool:
    """Tell whether a text is a number with this decimal mark."""
    if decimal == ",":
        text = text.replace(",", ".") if "." not in text else "."
    return _NUMBER.fullmatch(text) is not None


def is_decorated(text: str) -> bool:
    """Tell whether a text is a number, with a currency or percent sign, or thousands separators."""
    return _DECORATED.fullmatch(text) is not None


def mixed_types(
    column: str, texts: Sequence[tuple[str, str]], wrong: int, count: int, remedies: Collection[str] = REMEDIES
) -> str:
    """Say that of so many cells of a column some are no numbers, the first of which and where they are is given."""
    shown = ", ".join(f"{where}: {_shown(cell)}" for where, cell in texts[:3])
    options = []
    if "na" in remedies and len({cell for _, cell in texts}) == 1:
        options.append(f"--na {shlex.quote(texts[0][1])} if that stands for a missing cell")
    if "categorical" in remedies:
        options.append(f"--categorical {shlex.quote(column)} or --drop {shlex.quote(column)}")
    return (
        f"column {column!r} has mixed types, {wrong} of its {count} cells hold text and the others numbers"
        f" ({shown}{', ...' if wrong > len(texts[:3]) else ''});"
        f" {'use ' + ', '.join(options) if options else 'correct or leave out such rows'}"
    )


def leave_out(column: str, remedies: Collection[str]) -> str:
    """Return the advice to leave a column out, where the command at hand can, else its wrong rows."""
    return drop(column) if "drop" in remedies else "leave out such rows"


def drop(column: str) -> str:
    """Return the advice to leave a column out, as one would type it."""
    return f"use --drop {shlex.quote(column)}" if column.isprintable() else "leave it out"


class DelimitedSource:
    """The columns of a .csv or .tsv file, compressed by gzip or not, with a header or without.

    The first rows decide: the separator (of ``SEPARATORS``, the one that cuts them into equally many cells), the
    decimal mark, the types, and whether there is a header: none if no cell of the first line is text, nor where only
    columns of texts have text in it. Columns without a header are called ``c0``, ``c1``, ... Later rows decide, too,
    whether a column of digits is one of numbers, or of codes with leading zeros.

    Args:
        path: the file.
        usual: the separator to expect.
        header: whether the first line names the columns; by default found.
        sep: the separator; by default found.
        decimal: the decimal mark, a point or a comma; by default found.
        na: texts that stand for a missing cell, beside ``NULLS``.
    """

    num_rows: int | None = None

    def __init__(
        self,
        path: Path,
        usual: str,
        header: bool | None = None,
        sep: str | None = None,
        decimal: str | None = None,
        na: Sequence[str] = (),
    ) -> None:
        self.name = str(path)
        self._path = path
        self.notes: list[str] = []
        self.remedies: Collection[str] = REMEDIES
        if sep is not None and (len(sep) != 1 or sep in '\r\n\0"' or not 0 < ord(sep) < 0xD800):
            raise UserError(f"{self.name}: expected one character that separates columns (--sep), got {sep!r}")
        self._nulls = (*NULLS, *na)
        with path.open("rb") as file:
            self._gzip = file.read(2) == b"\x1f\x8b"
        if path.suffix.lower() == ".gz" and not self._gzip:
            raise UserError(f"{self.name}: is not compressed by gzip; name it {path.stem}, or compress it")
        if self._gzip:
            self._check_expansion()
        with self._bytes() as file:
            self._encoding = _encoding(file.read(4))
        try:
            lines = self._head()
        except UnicodeDecodeError:
            self._take_latin()
            lines = self._head()
        zeros = next((i for i, line in enumerate(lines, start=1) if "\0" in line), 0)
        if zeros:
            raise UserError(f"{self.name}: is no text, line {zeros} holds bytes of 0; export it as csv anew")
        if lines and re.fullmatch("sep=.?", lines[0].strip()):
            raise UserError(f"{self.name}: line 1, {lines[0].strip()!r}, is no header; remove it and use --sep")
        self._delimiter = sep or _separator(lines, usual)
        self._decimal = decimal or "."
        if decimal is None and self._delimiter != ",":
            cells = [cell.strip() for row in _split(lines, self._delimiter) for cell in row]
            if any(_with_comma(cell) for cell in cells) and not any("." in c and _NUMBER.fullmatch(c) for c in cells):
                self._decimal = ","
        usually = sep is not None or self._delimiter == usual
        said = [] if usually else [f"columns are separated by {self._delimiter!r} (--sep)"]
        self.notes += said + ([] if decimal or self._decimal == "." else ["the decimal mark is a comma (--decimal)"])

        with self._text() as text:
            rows = self._cells(text)
            number, first = next(rows, (0, []))
            if not first:
                raise UserError(f"{self.name}: is empty; give a file with columns of numbers")
            peek = [row for _, row in islice(rows, max(2, min(PEEK, CELLS // len(first))))]
        self.has_names = self._has_header(first, peek) if header is None else header
        self._skip = number if self.has_names else 0  # lines before the data
        if self.has_names and not peek:
            raise UserError(f"{self.name}: has a header but no rows; give a file with data")
        names = [cell.strip() for cell in first] if self.has_names else [""] * len(first)
        self.names = tuple(name or f"c{i}" for i, name in enumerate(names))
        if not self.has_names:
            peek.append(first)
        columns = [[row[i] for row in peek if i < len(row)] for i in range(len(first))]
        self._types = list(map(self._type, columns))
        self.declared = self.narrow = ("",) * len(self._types)
        self.dictionaries = {i: Dictionary(self._nulls) for i, type_ in enumerate(self._types) if type_ == "text"}
        self._fixed: set[int] = set()
        self._digits = {i for i, cells in enumerate(columns) if self._types[i] == "number" and self._all_digits(cells)}
        self._widths = {len(row) for row in peek}  # of rows, which may all be unlike the header
        self.better_separator = ""  # what would make more of a single column
        if len(first) == 1:
            cut = _cuts(lines, SEPARATORS) or {mark: cut for mark, cut in _cuts(lines, " ").items() if cut[0]}
            self.better_separator = max(cut, key=lambda mark: cut[mark], default="")
        if not self.has_names and self._delimiter == "," and _halved(columns):
            raise UserError(
                f"{self.name}: looks like numbers with decimal commas, cut in two ({','.join(first[:4])!r} in line"
                f" {number}); separate columns by ; instead, or name them in a header"
            )
        longest = max(map(len, lines)) + 1
        self._block = max(BLOCK, min(64 * longest, 1 << 26), 4 * longest)  # bytes; a row must fit into a block

    @property
    def types(self) -> tuple[str, ...]:
        """What the columns are read as: "bool", "number" or "text"."""
        # Codes are looked for in the whole file, but only if somebody has not said what the columns are.
        loose = sorted(self._digits - self._fixed)
        self._digits.clear()
        if loose and self._has_codes():
            left = set(loose)
            for _, _, cells in self._rows():
                for i in [i for i in left if _CODE.fullmatch(cells[i].strip())]:
                    self._retype(i, "text")
                    left.discard(i)
                if not left:
                    break
        return tuple(self._types)

    @property
    def decimal(self) -> str:
        """The decimal mark."""
        return self._decimal

    def declare(self, column: int, kind: str) -> None:
        """Fix what a column is read as, "number" or, for anything else, text, whatever its first rows look like.

        Raises:
            UserError: if a column of texts shall be numbers, and holds what is none.
        """
        if kind == "number" and self._types[column] == "text":
            for _, where, cells in self._rows():
                if self._number(cells[column]) is None:
                    raise UserError(f"{self.name}: {self._complaint(column, where, cells[column])}")
        if (kind == "number") == (self._types[column] == "text"):
            self._retype(column, "number" if kind == "number" else "text")
        self._fixed.add(column)

    def read(self, columns: Sequence[int], rows: int) -> Iterator[np.ndarray]:
        """Yield float64 arrays (n, len(columns)), n of any size; texts are numbered, missing cells are NaN.

        Every type is fixed beforehand: pyarrow would otherwise infer it from the first block, and stumble over a later
        one. What pyarrow cannot read goes through Python, which reads a little more and says what it cannot. Where it
        finds text among numbers, the column is text from its first row.

        Raises:
            Retyped: if a part was read as numbers already.
        """
        done = 0
        try:
            for block in self._read_fast(columns):
                yield block
                done += len(block)
        except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError) as error:
            latin = "invalid UTF8" in str(error) or isinstance(error, UnicodeDecodeError)
            if latin and self._encoding == "utf-8-sig":
                self._take_latin()
                again = "it is no UTF-8 text"
            else:
                again = self._settle(columns)
            if again and done:
                raise Retyped(f"{self.name}: {again}, which its first rows do not show; read it again") from error
            yield from self.read(columns, rows) if again else self._read_slow(columns, rows, skip=done)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    def where(self, row: int) -> str:
        """Return "row 3 (line 4)" for the data row, counted from 1."""
        with self._text() as text:
            line, _ = next(islice(self._data(text), row - 1, None), (0, []))
        return f"row {row} (line {line})"

    def _complaint(self, column: int, where: str, cell: str) -> str:
        return complaint(self.names[column], where, cell, self.remedies, self._decimal)

    def _read_fast(self, columns: Sequence[int]) -> Iterator[np.ndarray]:
        types = self.types
        labels = [str(i) for i in range(len(self.names))]  # the true names may hold anything
        wanted = [labels[i] for i in columns]
        arrow = {"bool": pa.bool_(), "text": pa.string(), "number": pa.float64()}
        arrow_types = {labels[i]: arrow[types[i]] for i in columns}
        nulls = [*self._nulls, *(" " + null for null in self._nulls)]
        size, cells = self._path.stat().st_size, 0
        with (
            openable(self._path) as name,
            pa.input_stream(name, compression="gzip" if self._gzip else None) as stream,
        ):
            try:
                reader = pa.csv.open_csv(
                    stream,
                    read_options=pa.csv.ReadOptions(
                        column_names=labels,
                        skip_rows=self._skip,
                        block_size=self._block,
                        use_threads=True,
                        encoding=self._encoding.removesuffix("-sig"),
                    ),
                    parse_options=pa.csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
                    convert_options=pa.csv.ConvertOptions(
                        column_types=arrow_types,
                        include_columns=wanted,
                        null_values=nulls,
                        strings_can_be_null=True,
                        decimal_point=self._decimal,
                    ),
                )
            except pa.ArrowInvalid as error:
                if "Empty CSV file" in str(error):
                    return
                raise
            for batch in reader:
                if self._gzip:
                    cells += batch.num_rows * len(self.names)  # each at least a byte of text
                    check_expansion(self.name, cells, size)
                block = np.empty((batch.num_rows, len(wanted)))
                for k, i in enumerate(columns):
                    column = batch.column(labels[i])
                    text = types[i] == "text"
                    block[:, k] = self.dictionaries[i].encode(column) if text else floats(column)
                yield block

    def _read_slow(self, columns: Sequence[int], rows: int, skip: int) -> Iterator[np.ndarray]:
        block: list[list[float]] = []
        for row, where, cells in self._rows():
            if row <= skip:
                continue
            values = []
            for i in columns:
                value = self.dictionaries[i].code(cells[i]) if self._types[i] == "text" else self._number(cells[i])
                if value is None:
                    raise UserError(f"{self.name}: {self._complaint(i, where, cells[i])}")
                values.append(value)
            block.append(values)
            if len(block) == rows:
                yield np.array(block).reshape(-1, len(columns))
                block = []
        if block:
            yield np.array(block).reshape(-1, len(columns))

    def _settle(self, columns: Sequence[int]) -> str:
        """Find the columns of numbers that hold text, and read them as text from now on; say so, if there are any.

        Raises:
            UserError: if a column of numbers holds a few texts only: these are mistakes, or marks of missing cells.
        """
        seen = dict.fromkeys((i for i in columns if self._types[i] != "text" and i not in self._fixed), 0)
        texts: dict[int, list[tuple[str, str]]] = {i: [] for i in seen}
        for _, where, cells in self._rows():
            for i in seen:
                number = self._number(cells[i])
                if number is None:
                    texts[i].append((where, cells[i].strip()))
                seen[i] += number is None or number == number
        wrong = [i for i in seen if texts[i]]
        rare = [i for i in wrong if self._types[i] == "number" and len(texts[i]) <= RARE * seen[i]]
        if rare:
            raise UserError(f"{self.name}: " + "; ".join(self._rare(i, texts[i], seen[i]) for i in rare))
        for i in wrong:
            self._retype(i, "text")
        return " and ".join(f"column {self.names[i]!r} holds text ({texts[i][0][0]})" for i in wrong)

    def _rare(self, i: int, texts: list[tuple[str, str]], count: int) -> str:
        if any(map(_DATE.fullmatch, (cell for _, cell in texts))) or any(_with_comma(cell) for _, cell in texts):
            return self._complaint(i, *texts[0])
        return mixed_types(self.names[i], texts, len(texts), count, self.remedies)

    def _retype(self, column: int, kind: str) -> None:
        self._types[column] = kind
        if kind == "text":
            self.dictionaries[column] = Dictionary(self._nulls)
        else:
            del self.dictionaries[column]

    def _type(self, cells: list[str]) -> str:
        """Return "bool", "number" or "text" for a column by some of its cells."""
        known = [cell.strip() for cell in cells if cell.strip() not in self._nulls]
        if known and {cell.lower() for cell in known} <= set(_BOOLEANS):
            return "bool"
        # Digits that float64 would change are names.
        if known and all(re.fullmatch(r"[+-]?\d+", cell) and _beyond(cell) for cell in known):
            return "text"
        if self._all_digits(known) and any(map(_CODE.fullmatch, known)):
            return "text"
        return "number" if all(self._number(cell) is not None for cell in known) else "text"

    def has_digits(self, column: int) -> bool:
        """Tell whether all cells of a column are whole numbers, written as digits."""
        return all(self._all_digits([cells[column].strip().lstrip("+-")]) for _, _, cells in self._rows())

    def _all_digits(self, cells: list[str]) -> bool:
        """Tell whether all cells but missing ones are digits alone."""
        return all(cell.strip().isdecimal() or cell.strip() in self._nulls for cell in cells)

    def _has_codes(self) -> bool:
        """Tell whether any cell of the file is 0 and more digits; a vectorized search in its bytes."""
        if self._encoding.startswith("utf-16"):
            return True  # not worth a search of its own
        cell = re.compile(b'0[0-9]+["\\s]*(,|[\r\n]|$)')
        before = np.zeros(256, dtype=bool)  # what a cell may follow
        before[[*b', "\r\n']] = True
        with self._bytes() as file:
            while chunk := file.read(SEARCHED):
                data = b"".join((b"\n", chunk, file.readline(LONGEST)))
                if self._delimiter != ",":
                    data = data.replace(self._delimiter.encode(), b",")
                codes = np.frombuffer(data, dtype=np.uint8)
                zeros = codes[1:-1] == ord("0")
                zeros &= codes[:-2] < ord("0")  # separators, quotes, ends of lines
                zeros &= codes[2:] >= ord("0")
                places = np.flatnonzero(zeros)
                if any(cell.match(data, place + 1) for place in places[before[codes[places]]].tolist()):
                    return True
        return False

    def _number(self, cell: str) -> float | None:
        """Return the number in a cell, NaN where it is missing, None where it is neither."""
        cell = cell.strip()
        if cell in self._nulls:
            return np.nan
        if is_number(cell, self._decimal):
            return float(cell.replace(",", "."))
        return _BOOLEANS.get(cell.lower())

    def _has_header(self, first: list[str], peek: list[list[str]]) -> bool:
        """Tell whether the first line names the columns."""
        numbers = [self._number(cell) for cell in first]
        columns = [[row[i] for row in peek if i < len(row)] for i in range(len(first))]
        textual = [self._type(cells) == "text" for cells in columns]
        known = [i for i, number in enumerate(numbers) if number is not None and not np.isnan(number)]
        if any(number is None and not textual[i] for i, number in enumerate(numbers)) or not known:
            return any(number is None for number in numbers)
        named = [numbers[i] or 0.0 for i in known]
        consecutive = len(named) > 2 and named[0] % 1 == 0 and bool((np.diff(named) == 1).all())
        several = len(named) + any(textual) > 1 and len(set(named)) == len(named)
        dated = all(1800 <= year <= 2200 and year % 1 == 0 for year in named)
        years = several and dated
        if (consecutive or years) and peek and all(map(self._differs, named, (columns[i] for i in known))):
            self.notes.append(f"the first line, {self._delimiter.join(first)[:40]!r}, was taken for the columns' names")
            return True
        if any(textual):
            self.notes.append("the first line was taken for data, columns are called c0, c1, ...")
        elif consecutive or dated:
            self.notes.append(
                f"the first line, {self._delimiter.join(first)[:40]!r}, was taken for data, columns are called c0, c1,"
                " ...; if these are names, write them as text, y2019 say"
            )
        return False

    def _differs(self, number: float, cells: list[str]) -> bool:
        """Tell whether a whole number is unlike the numbers of a column."""
        column = np.array([n for n in map(self._number, cells) if n is not None and np.isfinite(n)])
        return not len(column) or bool((column % 1).any() or not column.min() <= number <= column.max())

    def _rows(self) -> Iterator[tuple[int, str, list[str]]]:
        """Yield (row, where it is, cells) of the data, all of one length."""
        with self._text() as text:
            for row, (line, cells) in enumerate(self._data(text), start=1):
                where = f"row {row} (line {line})"
                if len(cells) != len(self.names):
                    others, remedy = "others have", "fix that line"
                    if len(cells) == 2 * len(self.names) and self._delimiter == ",":
                        remedy = "if these are decimal commas, separate columns by ;"
                    elif self.has_names and self._widths == {len(cells)}:
                        others, remedy = "header has", "let it name every column, or take off separators at line ends"
                    raise UserError(
                        f"{self.name}: {where} has {_count(len(cells), 'cell')} where the {others}"
                        f" {len(self.names)}; {remedy}"
                    )
                yield row, where, cells

    def _data(self, text: TextIO) -> Iterator[tuple[int, list[str]]]:
        return islice(self._cells(text), 1 if self.has_names else 0, None)

    def _cells(self, text: TextIO) -> Iterator[tuple[int, list[str]]]:
        """Yield (number of the line, cells) of all rows that are not blank."""
        reader = csv.reader(self._lines(text), delimiter=self._delimiter)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise UserError(
                f"{self.name}: line {reader.line_num} is no valid text of a table ({error}); check the quotes there, or"
                " export it anew"
            ) from error

    def _lines(self, text: TextIO) -> Iterator[str]:
        """Yield lines; one that is endless would fill the memory."""
        for number, line in enumerate(iter(partial(text.readline, LONGEST), ""), start=1):
            if len(line) == LONGEST:
                raise UserError(
                    f"{self.name}: line {number} has more than {LONGEST:,} characters: it is no table, or its line ends"
                    " are missing; export it anew"
                )
            yield line

    def _head(self) -> list[str]:
        """Return the first lines."""
        with self._text(errors="strict") as text:
            lines: list[str] = []
            for line in islice(self._lines(text), PEEK + 1):
                lines.append(line)
                if len(lines) > 2 and sum(map(len, lines)) > LONGEST:
                    break
            return lines

    def _take_latin(self) -> None:
        self._encoding = "latin-1"
        self.notes.append("the file is no UTF-8 text and was read as Latin-1")

    def _check_expansion(self) -> None:
        """Refuse a compressed file that begins as one that expands without end, and does."""
        size = 0
        with suppress(OSError, EOFError, zlib.error), self._path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as file:
            while chunk := file.read(BLOCK):  # whose error comes with its remedy when the table is read
                size += len(chunk)
                if size <= EXPANDED * raw.tell():
                    return
                check_expansion(self.name, size, raw.tell())

    @contextmanager
    def _text(self, errors: str = "replace") -> Iterator[TextIO]:
        with self._bytes() as raw:
            yield io.TextIOWrapper(raw, encoding=self._encoding, errors=errors, newline="")

    @contextmanager
    def _bytes(self) -> Iterator[gzip.GzipFile | io.BufferedReader]:
        try:
            with gzip.open(self._path, "rb") if self._gzip else self._path.open("rb") as raw:
                yield raw
        except (OSError, EOFError, zlib.error) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UserError:
        kind = "gzip file" if self._gzip else "file"
        return UserError(f"{self.name}: cannot be read, the {kind} is damaged or incomplete ({error}); get it anew")


def _separator(lines: list[str], usual: str) -> str:
    """Return the separator that cuts lines into equally many cells, more than one, and most of them into numbers."""
    cut = _cuts(lines, usual + SEPARATORS)
    if cut:
        return max(cut, key=lambda mark: cut[mark])
    line = next((line for line in lines if line.strip()), "")
    return usual if usual in line else next((mark for mark in ";\t" if mark in line), usual)


def _cuts(lines: list[str], marks: str) -> dict[str, tuple[float, int]]:
    """Return marks that cut lines into equally many cells, more than one, with the share of numbers and the count."""
    cut: dict[str, tuple[float, int]] = {}
    for mark in dict.fromkeys(marks):
        rows = _split(lines, mark)
        width = len(rows[0]) if rows else 0
        if width > 1 and all(len(row) == width for row in rows):
            cells = [cell.strip() for row in rows[: 1 + ENOUGH // width] for cell in row]
            numbers = sum(bool(_NUMBER.fullmatch(c)) or (mark != "," and _with_comma(c)) for c in cells)
            cut[mark] = numbers / len(cells), width
    return cut


def _encoding(start: bytes) -> str:
    """Return UTF-16, of the order of bytes that a mark or the zeros of Latin letters show, or UTF-8."""
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    zeros = [i for i, byte in enumerate(start) if byte == 0]
    return "utf-16-le" if zeros == [1, 3] else "utf-16-be" if zeros == [0, 2] else "utf-8-sig"


def _split(lines: list[str], separator: str) -> list[list[str]]:
    try:
        return [row for row in csv.reader(lines, delimiter=separator) if row]
    except csv.Error:  # whose message comes with its line when the table is read
        return []


def _halved(columns: list[list[str]]) -> bool:
    """Tell whether columns come in pairs of whole numbers of which the second are decimals, 0,05 say."""
    second = [cell.strip() for column in columns[1::2] for cell in column]
    whole = all(re.fullmatch(r"\s*[+-]?\d+\s*", cell) for column in columns for cell in column)
    return (
        len(columns) % 2 == 0
        and whole
        and all(map(str.isdigit, second))
        and any(len(c) > 1 and c[0] == "0" for c in second)
    )


def _with_comma(cell: str) -> bool:
    return cell.count(",") == 1 and "." not in cell and bool(_NUMBER.fullmatch(cell.replace(",", ".")))


def floats(column: pa.Array) -> np.ndarray:
    """Return numbers or booleans as float64, NaN where they are null."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.string())  # to the nearest float, as arrow's product with a power of 10 is not
    # Not safe: an int64 beyond 2**53 may lose its last digits.
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _beyond(digits: str) -> bool:
    """Tell whether digits are those of a whole number that is none in float64."""
    bare = digits.lstrip("+-0")
    return len(bare) > 16 or int(bare or 0) > EXACT


def _shown(value: str) -> str:
    return repr(value if len(value) <= 40 else value[:37] + "...")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

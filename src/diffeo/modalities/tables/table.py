"""Tables of numbers from files, data frames and arrays, read in batches of constant memory."""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diffeo.errors import UserError
from diffeo.modalities.arrays import ArraySource, read_npy, read_npz
from diffeo.modalities.builtin import BUILTIN, load_builtin
from diffeo.modalities.tables.columnar import ArrowSource, FeatherSource, ParquetSource
from diffeo.modalities.tables.delimited import DelimitedSource

__all__ = ["EXTENSIONS", "ROWS", "Table", "extension", "open_table"]

ROWS = 65536  # rows of a batch
EXTENSIONS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".feather", ".arrow", ".npy", ".npz")
_MISSING = ("error", "drop", "keep")
_SHOWN = 8  # names listed in a message


class Source(Protocol):
    """What a table needs to know of the place that its numbers come from."""

    name: str
    names: tuple[str, ...]
    has_names: bool
    num_rows: int | None
    types: tuple[str, ...]  # "number" (text), "float", "integer", "bool", or a word for what cannot be read

    def read(self, columns: Sequence[int], rows: int) -> Iterator[np.ndarray]:
        """Yield float64 arrays (n, len(columns)) with NaN for what is missing, n of any size."""

    def where(self, row: int) -> str:
        """Say where the data row, counted from 1, is to be found."""


class Table:
    """Columns of numbers, read as often as one likes, in batches.

    Attributes:
        name: the file's path or the object's type, for messages.
        names: the selected columns, in order.
        all_names: all columns of the source, in order.
        has_names: whether the source names its columns; else they are matched by position.
        num_rows: rows in the source, None where only reading would tell (csv).
        extra: columns of the source that were not selected.
        missing: what happens to rows with NaN, infinity or an empty cell: "error", "drop" or "keep".
        dropped: rows left out by the last full reading with ``missing="drop"``.
    """

    def __init__(self, source: Source, missing: str = "error") -> None:
        if missing not in _MISSING:
            raise ValueError(f"expected missing to be one of {', '.join(_MISSING)}, got {missing!r}")
        twice = sorted({name for name in source.names if source.names.count(name) > 1}, key=source.names.index)
        if twice:
            places = [i + 1 for i, name in enumerate(source.names) if name == twice[0]]
            raise UserError(
                f"{source.name}: {_columns(twice)} named more than once ({twice[0]!r} in positions"
                f" {', '.join(map(str, places[:_SHOWN]))}); give every column its own name"
            )
        self._source = source
        self.name = source.name
        self.all_names = source.names
        self.has_names = source.has_names
        self.num_rows = source.num_rows
        self.missing = missing
        self.dropped = 0
        self._hold = 0  # bytes of the next reading that may be kept for the one after it
        self._held: tuple[Any, deque[np.ndarray]] = None, deque()
        self._select(source.names, range(len(source.names)))
        if not source.names:
            raise UserError(f"{self.name}: has no columns; give a table of numbers")
        if source.num_rows == 0:
            raise UserError(f"{self.name}: has columns but no rows; give a table with data")

    def __repr__(self) -> str:
        """Return name, size and columns."""
        rows = "?" if self.num_rows is None else self.num_rows
        return f"Table({self.name!r}, {rows} rows, columns {_listed(self.names)})"

    @property
    def types(self) -> dict[str, str]:
        """Column name -> "number" (as text), "float", "integer", "bool", or a word for what cannot be read."""
        return {name: self._source.types[i] for name, i in self._index.items()}

    def select(self, columns: Sequence[str], positions: Sequence[str] | None = None) -> "Table":
        """Return the table of these columns, in this order, wherever they stand here; others become ``extra``.

        A source without names is matched by position: it must hold either exactly ``columns``, or exactly
        ``positions``, all columns of the table that ``columns`` were taken from.

        Raises:
            UserError: if columns are missing, or their number differs where there are no names.
        """
        absent = [name for name in columns if name not in self.all_names]
        if self.has_names or (positions is None and not absent):
            if absent:
                raise UserError(f"{self.name}: lacks {_columns(absent)}; it has {_listed(self.all_names)}")
            places = [self.all_names.index(name) for name in columns]
        else:
            places = self._by_position(columns, positions or columns)
        table = copy.copy(self)
        table._select(columns, places)
        table.dropped = 0
        return table

    def _by_position(self, columns: Sequence[str], positions: Sequence[str]) -> list[int]:
        count = len(self.all_names)
        if count == len(positions):
            order = {name: i for i, name in enumerate(positions)}
            return [order[name] for name in columns]
        if count == len(columns):
            return list(range(count))
        expected = " or ".join(str(n) for n in sorted({len(columns), len(positions)}))
        raise UserError(
            f"{self.name}: has {count} columns without names, expected {expected}:"
            f" {_listed(positions)}; give these columns, or name them in a header"
        )

    def _select(self, columns: Sequence[str], places: Sequence[int]) -> None:
        self.names = tuple(columns)
        self._index = dict(zip(columns, places, strict=True))
        taken = set(places)
        self.extra = tuple(name for i, name in enumerate(self.all_names) if i not in taken)

    def batches(self, names: Sequence[str] | None = None, rows: int = ROWS) -> Iterator[np.ndarray]:
        """Yield float64 arrays of shape (rows, len(names)), the last one perhaps shorter.

        Args:
            names: a choice of the table's columns, in any order; all by default.
            rows: rows of a batch.

        Raises:
            UserError: if a column holds no numbers, the source is damaged, or values are missing or infinite and
                ``missing`` is "error"; these are counted to the end before it is raised.
        """
        names = self.names if names is None else tuple(names)
        places = [self._index[name] for name in names]
        if rows < 1:
            raise ValueError(f"expected rows >= 1, got {rows}")
        if not names:
            raise ValueError("expected at least one column, got none")
        seen = dropped = 0
        report: _Missing | None = None
        pending: list[np.ndarray] = []
        held = 0
        for block in self._blocks(places, rows):
            start, seen = seen, seen + len(block)
            finite = None if self.missing == "keep" or _all_finite(block) else np.isfinite(block).all(axis=1)
            if finite is not None and self.missing == "drop":
                block = block[finite]
                dropped += len(finite) - len(block)
            elif finite is not None:
                report = report or _Missing(names)
                report.add(block, start)
            if report is not None:
                continue
            pending.append(block)
            held += len(block)
            if held < rows:
                continue
            block = np.concatenate(pending) if len(pending) > 1 else block
            whole = held - held % rows
            for at in range(0, whole, rows):
                yield block[at : at + rows]
            pending, held = [block[whole:]], held - whole
        if report is not None:
            raise UserError(f"{self.name}: {report.message(self._source.where(report.row))}")
        if not seen:
            raise UserError(f"{self.name}: has columns but no rows; give a table with data")
        if dropped == seen:
            raise UserError(
                f"{self.name}: every row has a missing or infinite value; use --drop on the columns at fault"
            )
        self.dropped = dropped
        if held:
            yield np.concatenate(pending)

    def hold(self, most: int) -> None:
        """Keep what the next full reading parses, if it is at most so many bytes; the one after it takes that.

        A file is then parsed once where two readings follow each other. Nothing is kept of what is in memory anyway.
        """
        if not isinstance(self._source, ArraySource | ArrowSource):
            self._hold = most

    def _blocks(self, places: Sequence[int], rows: int) -> Iterator[np.ndarray]:
        """Yield the source's blocks, those that were kept if it is the same columns that are wanted."""
        wanted = [(i, self._source.types[i]) for i in places]
        (columns, held), self._held = self._held, (None, deque())
        if columns == wanted:
            while held:  # let go of each, now that it is used for the last time
                yield held.popleft()
            return
        left, self._hold = self._hold, 0
        held = deque()
        for block in self._source.read(places, rows):
            left -= block.nbytes
            if left >= 0:
                held.append(block)
            else:
                held.clear()
            yield block
        if held:
            self._held = wanted, held


class _Missing:
    """The count of what is missing or infinite, column by column."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._nan = np.zeros(len(names), dtype=np.int64)
        self._inf = np.zeros(len(names), dtype=np.int64)
        self.row = 0
        self._column = ""

    def add(self, block: np.ndarray, start: int) -> None:
        nan, inf = np.isnan(block), np.isinf(block)
        self._nan += nan.sum(axis=0)
        self._inf += inf.sum(axis=0)
        if not self.row:
            row, column = np.argwhere(nan | inf)[0]
            self.row, self._column = start + int(row) + 1, self._names[column]

    def message(self, where: str) -> str:
        total = self._nan + self._inf
        kinds = [
            f"{n} {word}"
            for n, word in ((self._nan.sum(), "missing (NaN or empty)"), (self._inf.sum(), "infinite"))
            if n
        ]
        at = [f"{name!r} ({n})" for name, n in zip(self._names, total, strict=True) if n]
        listed = ", ".join(at[:_SHOWN]) + (f" and {len(at) - _SHOWN} more" if len(at) > _SHOWN else "")
        values = "value" if total.sum() == 1 else "values"
        return (
            f"{' and '.join(kinds)} {values} in {'column' if len(at) == 1 else 'columns'} {listed},"
            f" the first in {where}, column {self._column!r}; fill them or leave such rows out with --drop-missing"
        )


def open_table(
    source: Any,
    *,
    columns: Sequence[str] | None = None,
    key: str | None = None,
    missing: str | None = None,
    header: bool | None = None,
) -> Table:
    """Open a table: a path, a built-in set's name, an array, or an object with the Arrow PyCapsule interface.

    Args:
        source: a path that ends in .csv .csv.gz .tsv .tsv.gz .parquet .feather .arrow .npy or .npz; the name of a
            built-in set, which comes before a file or folder of that name (give these as ./moons, or as a ``Path``); a
            numpy array; a data frame of pandas, polars, duckdb or pyarrow.
        columns: the columns wanted, in order; all by default.
        key: which array of a .npz file; else X, x or the only table in it.
        missing: rows with NaN, infinity or an empty cell: "error" (by default), "drop" (counted in ``Table.dropped``)
            or "keep".
        header: whether the first line of a csv names the columns; by default it does unless all its cells are numbers.

    Raises:
        UserError: if the source cannot be opened as a table.
    """
    if isinstance(source, Table):
        table = Table(source._source, missing or source.missing).select(source.names)
    elif isinstance(source, str | Path):
        table = Table(_open_path(source, key, header), missing or "error")
    elif hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__"):
        table = Table(ArrowSource(source), missing or "error")
    elif isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        table = Table(ArraySource(np.asarray(source), "array"), missing or "error")
    else:
        raise TypeError(f"expected a path, an array or a data frame, got {type(source).__name__}")
    return table if columns is None else table.select(columns)


def extension(path: str | Path) -> str | None:
    """Return the known extension that a path ends in, in lower case, else None."""
    name = Path(path).name.lower()
    return next((known for known in sorted(EXTENSIONS, key=len, reverse=True) if name.endswith(known)), None)


def _open_path(source: str | Path, key: str | None, header: bool | None) -> Source:
    if isinstance(source, str) and source in BUILTIN:
        x, names, _ = load_builtin(source)
        return ArraySource(x, source, names)
    path = Path(source)
    if path.name == source and not path.suffix and not path.exists():
        raise UserError(f"{source}: no such file, and no built-in set of this name ({', '.join(BUILTIN)})")
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder, expected a file with a table ({' '.join(EXTENSIONS)})")
        if not path.exists():
            raise UserError(f"{path}: no such file; check the path")
        kind = extension(path)
        if kind is None:
            raise UserError(f"{path}: unknown extension {path.suffix!r}; diffeo reads {' '.join(EXTENSIONS)}")
        if not path.is_file():
            raise UserError(f"{path}: is no regular file; save the table to a file first, it is read more than once")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: is empty; give a file with columns of numbers")
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror or error})") from error
    if kind == ".parquet":
        return ParquetSource(path)
    if kind in (".feather", ".arrow"):
        return FeatherSource(path)
    if kind == ".npy":
        return read_npy(path)
    if kind == ".npz":
        return read_npz(path, key)
    return DelimitedSource(path, "\t" if kind.startswith(".tsv") else ",", header)


def _all_finite(block: np.ndarray) -> bool:
    with np.errstate(all="ignore"):  # a sum that overflows only sends us to the slower test
        return bool(np.isfinite(block.sum()))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _columns(names: Sequence[str]) -> str:
    return f"{'column' if len(names) == 1 else 'columns'} {_listed(names)}"

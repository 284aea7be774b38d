"""Tables from files, data frames and arrays, read as numbers in batches of constant memory."""

import copy
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diffeo.errors import UserError
from diffeo.modalities.arrays import ArraySource, read_npy, read_npz
from diffeo.modalities.builtin import BUILTIN, load_builtin
from diffeo.modalities.tables.columnar import ArrowSource, FeatherSource
from diffeo.modalities.tables.dates import to_temporal
from diffeo.modalities.tables.delimited import DelimitedSource
from diffeo.modalities.tables.dictionary import Dictionary
from diffeo.modalities.tables.parquet import ParquetSource, find_files
from diffeo.paths import encodable

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
    declared: tuple[str, ...]  # what else is known: "category", "ordered", an Arrow type of dates; or nothing
    narrow: tuple[str, ...]  # Arrow types of numbers that are neither int64 nor float64, or nothing
    dictionaries: dict[int, Dictionary]  # the texts of each column of texts, as they are met
    notes: list[str]  # how the source was read, where it is not obvious
    remedies: Collection[str]  # arguments of the command at hand that messages may recommend

    @property
    def types(self) -> tuple[str, ...]:
        """What columns are read as: "number" (in csv), "float", "integer", "bool", "text", "date", or "other"."""

    def declare(self, column: int, kind: str) -> None:
        """Say that a column is one of "number", "text" and "date"; raise ``UserError`` if it cannot be."""

    def read(self, columns: Sequence[int], rows: int) -> Iterator[np.ndarray]:
        """Yield float64 arrays (n, len(columns)) with NaN for what is missing, n of any size."""

    def where(self, row: int) -> str:
        """Say where the data row, counted from 1, is to be found."""


class Table:
    """Columns as numbers, read as often as one likes, in batches.

    Texts are numbered 0, 1, 2, ... in the order in which they are met (``dictionaries``); dates and times are seconds
    since 1970 or midnight; false and true are 0 and 1.

    Attributes:
        name: the file's path or the object's type, for messages.
        names: the selected columns, in order.
        all_names: all columns of the source, in order.
        has_names: whether the source names its columns; else they are matched by position.
        num_rows: rows in the source, None where only reading would tell (csv).
        extra: columns of the source that were not selected.
        missing: what happens to rows with NaN, infinity or an empty cell: "error", "drop" or "keep".
        dropped: rows left out by the last full reading with ``missing="drop"``.
        gaps: what was missing or infinite in the last full reading with ``missing="keep"``, None if nothing was.
        files: of a table of several files, their paths within the folder that holds them all; else empty.
    """

    def __init__(self, source: Source, missing: str = "error", na: Sequence[str] = ()) -> None:
        if missing not in _MISSING:
            raise ValueError(f"expected missing to be one of {', '.join(_MISSING)}, got {missing!r}")
        twice = [name for name, count in Counter(source.names).items() if count > 1]
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
        self._memory = _Memory()
        self.gaps: Gaps | None = None
        self.na = tuple(na)
        self._whole = True  # a part of a table may be without rows that are of use
        self.files: tuple[Path, ...] = ()
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
        """Column name -> "number" (in csv), "float", "integer", "bool", "text", "date", or "other": cannot be read."""
        types = self._source.types
        return {name: types[i] for name, i in self._index.items()}

    @property
    def declared(self) -> dict[str, str]:
        """Column name -> "category" or "ordered" (a dictionary of texts), an Arrow type of dates, or nothing."""
        return {name: self._source.declared[i] for name, i in self._index.items()}

    @property
    def narrow(self) -> dict[str, str]:
        """Column name -> an Arrow type of numbers that is neither int64 nor float64, or nothing."""
        return {name: self._source.narrow[i] for name, i in self._index.items()}

    @property
    def dictionaries(self) -> dict[str, list[str]]:
        """Name of a column of texts -> its texts, by number; they grow as the table is read."""
        known = self._source.dictionaries
        return {name: known[i].texts for name, i in self._index.items() if i in known}

    @property
    def has_texts(self) -> bool:
        """Whether columns can be texts; those of an array cannot."""
        return not isinstance(self._source, ArraySource)

    @property
    def decimal(self) -> str:
        """The decimal mark of numbers in text."""
        return self._source.decimal if isinstance(self._source, DelimitedSource) else "."

    def has_digits(self, name: str) -> bool:
        """Tell whether all cells of a csv's column are whole numbers, written as digits."""
        return isinstance(self._source, DelimitedSource) and self._source.has_digits(self._index[name])

    @property
    def better_separator(self) -> str:
        """Of a csv with one column, a separator that makes more of it, if there is one."""
        return self._source.better_separator if isinstance(self._source, DelimitedSource) else ""

    @property
    def notes(self) -> list[str]:
        """Lines that tell a user how the table was read, where it is not obvious."""
        return list(self._source.notes)

    def note(self, line: str) -> None:
        """Add to the notes."""
        if line not in self._source.notes:
            self._source.notes.append(line)

    def declare(self, kinds: Mapping[str, str]) -> None:
        """Say which columns are "number", "text" or "date", whatever they look like, or what a model was trained on.

        Raises:
            UserError: if one cannot be that.
        """
        for name, kind in kinds.items():
            self._source.declare(self._index[name], kind)

    def recommend(self, remedies: Collection[str]) -> None:
        """Say which arguments, by name, the command at hand has, so that messages recommend no others."""
        self._source.remedies = remedies

    def where(self, row: int) -> str:
        """Say where the row of the source, counted from 1, is to be found."""
        return self._source.where(row)

    def find(
        self, name: str, wanted: Sequence[float] | Callable[[np.ndarray], np.ndarray], most: int = 1
    ) -> list[tuple[str, float]]:
        """Return where a column holds what is wanted, the first few times, and which: ("row 3 (line 4)", 7.0).

        Wanted are any of some values, or those (n,) of which a function says so (n,). The table is read again for it,
        rows that are left out included.
        """
        places: list[tuple[str, float]] = []
        row = 0
        everything = copy.copy(self)
        everything.missing, everything._memory = "keep", _Memory()
        for batch in everything.batches([name]):
            hits = wanted(batch[:, 0]) if callable(wanted) else np.isin(batch[:, 0], wanted)
            for i in np.flatnonzero(hits)[: most - len(places)].tolist():
                places.append((self.where(row + i + 1), float(batch[i, 0])))
            if len(places) == most:
                break
            row += len(batch)
        return places

    def cells(self, values: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Return numbers (n, len(names)) as ``batches`` yields them, with texts and dates in their place.

        Where there are none, these are the numbers themselves; else an array of objects, None for what is missing.
        """
        texts = self.dictionaries
        types = self.types
        if not any(types[name] in ("text", "date") for name in names):
            return values
        cells = values.astype(object)
        for i, name in enumerate(names):
            if name in texts:
                known = np.array([*texts[name], None], dtype=object)
                cells[:, i] = known[np.nan_to_num(values[:, i], nan=-1).astype(int)]
            elif types[name] == "date":
                cells[:, i] = to_temporal(values[:, i], self.declared[name]).to_pylist()
        return cells

    def select(self, columns: Sequence[str], positions: Sequence[str] | None = None) -> "Table":
        """Return the table of these columns, in this order, wherever they stand here; others become ``extra``.

        A source without names is matched by position: it must hold either exactly ``columns``, or exactly
        ``positions``, all columns of the table that ``columns`` were taken from.

        Raises:
            UserError: if columns are missing, or their number differs where there are no names.
        """
        order = {name: i for i, name in enumerate(self.all_names)}
        absent = [name for name in columns if name not in order]
        if self.has_names or (positions is None and not absent):
            if absent:
                raise UserError(
                    f"{self.name}: lacks {_columns(absent)}; it has {_listed(self.all_names)}: check the names"
                )
            places = [order[name] for name in columns]
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
        """Yield float64 arrays of shape (rows, len(names)), the last one perhaps shorter; as ``numbered`` does."""
        return (values for _, values in self.numbered(names, rows))

    def numbered(self, names: Sequence[str] | None = None, rows: int = ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield which rows of the source these are, counted from 1, (rows,), and their values (rows, len(names)).

        Args:
            names: a choice of the table's columns, in any order; all by default.
            rows: rows of a batch, the last one perhaps shorter.

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
        markers = [float(mark) for mark in self.na if _is_number(mark)]
        types = self._source.types
        numbers = [types[i] not in ("text", "date") for i in places]
        seen = dropped = 0
        report: Gaps | None = None
        pending: list[tuple[np.ndarray, np.ndarray]] = []
        held = 0
        for block in self._blocks(places, rows):
            start, seen = seen, seen + len(block)
            which = np.arange(start + 1, seen + 1)
            if markers:
                block[np.isin(block, markers) & numbers] = np.nan
            finite = None if _all_finite(block) else np.isfinite(block).all(axis=1)
            if finite is not None and self.missing == "drop":
                which, block = which[finite], block[finite]
                dropped += len(finite) - len(block)
            elif finite is not None:
                report = report or Gaps(names)
                report.add(block, start)
            if report is not None and self.missing == "error":
                continue
            pending.append((which, block))
            held += len(block)
            if held < rows:
                continue
            which, block = _joined(pending)
            whole = held - held % rows
            for at in range(0, whole, rows):
                yield which[at : at + rows], block[at : at + rows]
            pending, held = [(which[whole:], block[whole:])], held - whole
        if report is not None and self.missing == "error":
            raise UserError(f"{self.name}: {self.complaint(report)}")
        if not seen and self._whole:
            raise UserError(f"{self.name}: has columns but no rows; give a table with data")
        if dropped == seen and self._whole:
            remedy = "use --drop on the columns at fault" if "drop" in self._source.remedies else "fill them"
            raise UserError(f"{self.name}: every row has a missing or infinite value; {remedy}")
        self.dropped, self.gaps = dropped, report
        if held:
            yield _joined(pending)

    def by_file(self) -> Iterator["Table"]:
        """Yield the rows of each file, in order, as a table; of what is no table of several files all of them."""
        if not self.files or not isinstance(self._source, ParquetSource):
            yield self
            return
        for _, source in self._source.files():
            yield self._part(source)

    @property
    def row_groups(self) -> list[int]:
        """The number of rows in each of the parts that can be read alone: row groups of Parquet, or else none."""
        return [group.rows for group in self._source.groups] if isinstance(self._source, ParquetSource) else []

    def row_group(self, *numbers: int) -> "Table":
        """Return the rows of some row groups as a table; it may be without any.

        Args:
            *numbers: their places in ``row_groups``.
        """
        assert isinstance(self._source, ParquetSource)
        return self._part(self._source.part([self._source.groups[number] for number in numbers]))

    def as_part(self) -> "Table":
        """Return the same table as a part of one: it may be without rows that are of use."""
        part = copy.copy(self)
        part._whole = False
        return part

    @property
    def identity(self) -> str:
        """What tells this table from others without reading its rows, a SHA-256; of what is not Parquet empty."""
        return self._source.identity if isinstance(self._source, ParquetSource) else ""

    def _part(self, source: ParquetSource) -> "Table":
        part = copy.copy(self)
        part._source, part.num_rows, part._memory, part._whole, part.files = (
            source,
            source.num_rows,
            _Memory(),
            False,
            (),
        )
        return part

    def complaint(self, gaps: "Gaps") -> str:
        """Say what is missing, where the first of it is, and the remedy."""
        return f"{gaps.message(self.where(gaps.row))}; fill them{self.remedy}"

    @property
    def remedy(self) -> str:
        """What else than filling gaps the command at hand can do about them."""
        return " or leave such rows out with --drop-missing" if "missing" in self._source.remedies else ""

    def hold(self, most: int) -> None:
        """Keep what the next full reading parses, if it is at most so many bytes; the one after it takes that.

        A file is then parsed once where two readings follow each other. Nothing is kept of what is in memory anyway.
        """
        known = (self.num_rows or 0) * len(self.names) * 8
        if not isinstance(self._source, ArraySource | ArrowSource) and known <= most:
            self._memory.limit = most

    def _blocks(self, places: Sequence[int], rows: int) -> Iterator[np.ndarray]:
        """Yield the source's blocks, those that were kept if it is the same columns that are wanted."""
        types = self._source.types
        wanted = [(i, types[i]) for i in places]
        memory = self._memory
        if memory.columns == wanted:
            memory.columns = []
            while memory.blocks:  # let go of each, now that it is used for the last time
                yield memory.blocks.popleft()
            return
        memory.forget()
        limit = memory.limit
        kept: deque[np.ndarray] = deque()
        for block in self._source.read(places, rows):
            limit -= block.nbytes
            if limit >= 0:
                kept.append(block)
            else:
                kept.clear()
            yield block
        if kept:
            memory.limit, memory.columns, memory.blocks = 0, wanted, kept


@dataclass
class _Memory:
    """Blocks of a reading that are kept for the next one, by whichever table of the same source.

    Attributes:
        limit: how many bytes of the next reading may be kept.
        columns: which columns were kept, as what.
        blocks: all of their rows, or none.
    """

    limit: int = 0
    columns: list[tuple[int, str]] = field(default_factory=list)
    blocks: deque[np.ndarray] = field(default_factory=deque)

    def forget(self) -> None:
        """Let go of what is kept."""
        self.columns, self.blocks = [], deque()


class Gaps:
    """The count of what is missing or infinite, column by column."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.nan = np.zeros(len(names), dtype=np.int64)
        self.inf = np.zeros(len(names), dtype=np.int64)
        self.row = 0
        self._column = ""

    def add(self, block: np.ndarray, start: int) -> None:
        nan, inf = np.isnan(block), np.isinf(block)
        self.nan += nan.sum(axis=0)
        self.inf += inf.sum(axis=0)
        if not self.row:
            row, column = np.argwhere(nan | inf)[0]
            self.row, self._column = start + int(row) + 1, self._names[column]

    @property
    def columns(self) -> list[str]:
        """Names of the columns that have any."""
        return [name for name, n in zip(self._names, self.nan + self.inf, strict=True) if n]

    def message(self, where: str) -> str:
        """Say what is missing, the first of it in ``where``."""
        total = self.nan + self.inf
        kinds = [
            f"{n} {word}" for n, word in ((self.nan.sum(), "missing (NaN or empty)"), (self.inf.sum(), "infinite")) if n
        ]
        at = [f"{name!r} ({n})" for name, n in zip(self._names, total, strict=True) if n]
        listed = ", ".join(at[:_SHOWN]) + (f" and {len(at) - _SHOWN} more" if len(at) > _SHOWN else "")
        values = "value" if total.sum() == 1 else "values"
        return (
            f"{' and '.join(kinds)} {values} in {'column' if len(at) == 1 else 'columns'} {listed},"
            f" the first in {where}, column {self._column!r}"
        )


def open_table(
    source: Any,
    *,
    columns: Sequence[str] | None = None,
    key: str | None = None,
    missing: str | None = None,
    header: bool | None = None,
    sep: str | None = None,
    decimal: str | None = None,
    na: Sequence[str] = (),
) -> Table:
    """Open a table: a path, a built-in set's name, an array, or an object with the Arrow PyCapsule interface.

    A folder of .parquet files, a pattern such as ``data/*.parquet``, or a list of such files is one table: its rows are
    those of the files, one after the other, in the order of their names (of a list, in its order).

    Args:
        source: a path that ends in .csv .csv.gz .tsv .tsv.gz .parquet .feather .arrow .npy or .npz; the name of a
            built-in set, which comes before a file or folder of that name (give these as ./moons, or as a ``Path``); a
            numpy array; a data frame of pandas, polars, duckdb or pyarrow; several Parquet files, as above.
        columns: the columns wanted, in order; all by default.
        key: which array of a .npz file; else X, x or the only table in it.
        missing: rows with NaN, infinity or an empty cell: "error" (by default), "drop" (counted in ``Table.dropped``)
            or "keep".
        header: whether the first line of a csv names the columns; by default found: it does unless all its cells are
            numbers, or texts in columns of texts beside numbers.
        sep: what separates the columns of a csv; by default found among , ; | and tabs.
        decimal: the decimal mark of a csv, a point or a comma; by default found.
        na: texts and numbers that stand for a missing cell; in a csv beside NA, NaN, null and the like.

    Raises:
        UserError: if the source cannot be opened as a table.
    """
    na = [mark for mark in na if encodable(mark) == mark]  # no cell is what cannot be text
    if isinstance(source, Table):
        table = copy.copy(source).select(source.names)
        table.missing, table.gaps = missing or source.missing, None
        if table.missing not in _MISSING:
            raise ValueError(f"expected missing to be one of {', '.join(_MISSING)}, got {missing!r}")
    elif (several := _find_files(source)) is not None:
        name, folder, paths = several
        table = Table(ParquetSource(paths, na, name), missing or "error", na)
        table.files = tuple(path.absolute().relative_to(folder.absolute()) for path in paths)
    elif isinstance(source, list | tuple) and len(source) == 1:
        return open_table(
            source[0], columns=columns, key=key, missing=missing, header=header, sep=sep, decimal=decimal, na=na
        )
    elif isinstance(source, str | Path):
        table = Table(_open_path(source, key, header, sep, decimal, na), missing or "error", na)
    elif hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__"):
        table = Table(ArrowSource(source, na), missing or "error", na)
    elif isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        table = Table(ArraySource(np.asarray(source), "array"), missing or "error", na)
    else:
        raise TypeError(f"expected a path, an array or a data frame, got {type(source).__name__}")
    return table if columns is None else table.select(columns)


def extension(path: str | Path) -> str | None:
    """Return the known extension that a path ends in, in lower case, else None."""
    name = Path(path).name.lower()
    return next((known for known in sorted(EXTENSIONS, key=len, reverse=True) if name.endswith(known)), None)


def _open_path(
    source: str | Path,
    key: str | None,
    header: bool | None,
    sep: str | None,
    decimal: str | None,
    na: Sequence[str],
) -> Source:
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
        return ParquetSource([path], na)
    if kind in (".feather", ".arrow"):
        return FeatherSource(path, na)
    if kind == ".npy":
        return read_npy(path)
    if kind == ".npz":
        return read_npz(path, key)
    return DelimitedSource(path, "\t" if kind.startswith(".tsv") else ",", header, sep, decimal, na)


def _find_files(source: Any) -> tuple[str, Path, list[Path]] | None:
    """Return the Parquet files that a source stands for, unless it is a built-in set, or a single file."""
    return None if isinstance(source, str) and source in BUILTIN else find_files(source)


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    which, values = zip(*parts, strict=True)
    return parts[0] if len(parts) == 1 else (np.concatenate(which), np.concatenate(values))


def _is_number(mark: str) -> bool:
    try:
        return bool(np.isfinite(float(mark)))
    except ValueError:
        return False


def _all_finite(block: np.ndarray) -> bool:
    with np.errstate(all="ignore"):  # a sum that overflows only sends us to the slower test
        return bool(np.isfinite(block.sum()) or np.isfinite(block).all())


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _columns(names: Sequence[str]) -> str:
    return f"{'column' if len(names) == 1 else 'columns'} {_listed(names)}"

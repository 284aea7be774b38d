"""Feather and every object that speaks the Arrow PyCapsule interface, read batch by batch, and what all such share."""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diffeo.errors import UserError
from diffeo.modalities.tables.delimited import REMEDIES, complaint, floats, leave_out
from diffeo.modalities.tables.dictionary import Dictionary
from diffeo.paths import openable

__all__ = ["ArrowSource", "Columnar", "FeatherSource", "kind_of", "unreadable"]


_NUMBERS = ("float", "integer", "bool")


def kind_of(type_: pa.DataType) -> str:
    """Return one of ``_NUMBERS`` for what is read as float64, "date", "text", or "other" for what cannot be read."""
    if pa.types.is_dictionary(type_):
        return kind_of(type_.value_type)
    if pa.types.is_boolean(type_):
        return "bool"
    if pa.types.is_integer(type_) or (pa.types.is_decimal(type_) and type_.scale == 0):
        return "integer"
    if pa.types.is_floating(type_) or pa.types.is_decimal(type_) or pa.types.is_null(type_):
        return "float"
    if pa.types.is_date(type_) or pa.types.is_time(type_) or pa.types.is_timestamp(type_):
        return "date"
    if type_ in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()):
        return "text"
    return "other"


def _declared(type_: pa.DataType) -> str:
    """Return the type that samples are to have where "text" or "date" does not say it."""
    if pa.types.is_dictionary(type_) and kind_of(type_) == "text":
        return "ordered" if type_.ordered else "category"
    if pa.types.is_dictionary(type_):
        return _declared(type_.value_type)
    return str(type_) if kind_of(type_) == "date" else ""


def _narrow(type_: pa.DataType) -> str:
    """Return the type of numbers that are narrower than 64 bits, or decimal."""
    if pa.types.is_dictionary(type_):
        return _narrow(type_.value_type)
    wide = type_ in (pa.int64(), pa.float64(), pa.null()) or kind_of(type_) not in ("integer", "float")
    return "" if wide else str(type_)


def _seconds(column: pa.Array) -> np.ndarray:
    """Return dates, times or points in time as seconds since 1970 or midnight, to the microsecond, NaN where null."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    type_ = column.type
    if pa.types.is_date32(type_):
        column, size = column.cast(pa.int32()), 86400.0
    elif pa.types.is_date64(type_):
        column, size = column.cast(pa.timestamp("ms")).cast(pa.int64()), 1e-3
    else:
        micro = pa.time64("us") if pa.types.is_time(type_) else pa.timestamp("us", type_.tz)
        column, size = column.cast(micro, safe=False).cast(pa.int64()), 1e-6
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values * size if size >= 1 else values / round(1 / size)  # the nearest float to the decimal number


class Columnar:
    """What these sources have in common: a schema that is known beforehand, and record batches."""

    kind = "table"
    has_names = True
    num_rows: int | None = None

    def __init__(self, name: str, schema: pa.Schema, na: Sequence[str] = ()) -> None:
        self.name = name
        self._schema = schema
        # Written by pandas for an index without a name: no data.
        names = schema.names
        self._position = [i for i, column in enumerate(names) if not _is_index(column)]
        self.names = tuple(names[i] or f"c{i}" for i in self._position)
        types = [schema.field(i).type for i in self._position]
        self.types = tuple(map(kind_of, types))
        self.declared = tuple(map(_declared, types))
        self.narrow = tuple(map(_narrow, types))
        self.notes: list[str] = []
        self.remedies: Collection[str] = REMEDIES
        self.dictionaries = {i: Dictionary(na) for i, type_ in enumerate(self.types) if type_ == "text"}
        self._na = na

    def declare(self, column: int, kind: str) -> None:
        """Check that a column is "number", "text" or "date", or can be read as such; whole numbers can be texts."""
        type_ = "number" if self.types[column] in _NUMBERS else self.types[column]
        if type_ == "other" or (kind == "number" and type_ != kind):
            raise UserError(f"{self.name}: {self._complaint(column)}")
        if kind == "text" and self.types[column] == "integer":
            self.types = tuple("text" if i == column else known for i, known in enumerate(self.types))
            self.dictionaries[column] = Dictionary(self._na)
        elif kind == "text" and type_ == "number":
            raise UserError(f"{self.name}: column {self.names[column]!r} holds numbers, expected text; convert it")

    def read(self, columns: Sequence[int], rows: int) -> Iterator[np.ndarray]:
        """Yield float64 arrays (n, len(columns)) of at most ``rows`` rows; texts are numbered, nulls are NaN."""
        try:
            for i in columns:
                if self.types[i] == "other":
                    raise UserError(f"{self.name}: {self._complaint(i)}")
            done = 0
            for batch in self._batches([self._position[i] for i in columns], rows):
                for start in range(0, batch.num_rows, rows):
                    part = batch.slice(start, rows)
                    block = np.empty((part.num_rows, len(columns)))
                    for k, i in enumerate(columns):
                        column = part.column(k)
                        if i in self.dictionaries:
                            block[:, k] = self._encoded(i, column, done + start)
                        else:
                            block[:, k] = _seconds(column) if self.types[i] == "date" else floats(column)
                    yield block
                done += batch.num_rows
        except UserError:
            raise
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            raise self._unreadable(error) from error

    def _encoded(self, i: int, column: pa.Array, done: int) -> np.ndarray:
        try:
            return self.dictionaries[i].encode(column)
        except pa.ArrowInvalid as error:  # bytes
            for row, value in enumerate(column.to_pylist(), start=done + 1):
                if isinstance(value, bytes) and value.decode(errors="ignore").encode() != value:
                    raise UserError(
                        f"{self.name}: column {self.names[i]!r} holds bytes that are no UTF-8 text (row {row}:"
                        f" {value[:20]!r}); convert it to text or {leave_out(self.names[i], self.remedies)}"
                    ) from error
            raise

    def where(self, row: int) -> str:
        """Return "row 3" for the row, counted from 1."""
        return f"row {row}"

    def _complaint(self, column: int) -> str:
        """Say what a column holds instead of numbers, with its first value."""
        name, type_ = self.names[column], self._schema.field(self._position[column]).type
        otherwise = leave_out(name, self.remedies)
        row = 0
        for batch in self._batches([self._position[column]], 4096):
            for value in batch.column(0).to_pylist():
                row += 1
                if value is None:
                    continue
                if self.types[column] == "text":
                    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
                    return complaint(name, f"row {row}", text, self.remedies)
                if self.types[column] == "date":
                    return (
                        f"column {name!r} holds dates or times (row {row}: {str(value)!r});"
                        f" convert them to numbers or {otherwise}"
                    )
                break
        return f"column {name!r} holds no numbers but {str(type_)[:60]}; convert it to numbers or {otherwise}"

    def _batches(self, positions: list[int], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield record batches of exactly these columns, in this order."""
        raise NotImplementedError

    def _unreadable(self, error: Exception) -> UserError:
        return unreadable(self.name, self.kind, error)


def _is_index(column: str) -> bool:
    return column.startswith("__index_level_") and column.endswith("__")


def unreadable(name: str, kind: str, error: Exception) -> UserError:
    """Return the error of a source of this name that is not what it should be, with the reason that pyarrow gives."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UserError(
        f"{name}: cannot be read as {kind}, it is damaged, incomplete or something else ({reason}); get it anew"
    )


class FeatherSource(Columnar):
    """A .feather or .arrow file, mapped into memory: uncompressed columns are not even copied."""

    kind = "Feather"

    def __init__(self, path: Path, na: Sequence[str] = ()) -> None:
        self._path = path
        try:
            with openable(path) as name, pa.memory_map(name) as file:
                self._stream = file.read(6) != b"ARROW1"  # the file format, or a stream saved as it came
                file.seek(0)
                if self._stream:
                    super().__init__(str(path), pa.ipc.open_stream(file).schema, na)
                else:
                    reader = pa.ipc.open_file(file)
                    super().__init__(str(path), reader.schema, na)
                    if hasattr(reader, "count_rows"):
                        self.num_rows = reader.count_rows()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise unreadable(str(path), self.kind, error) from error

    def _batches(self, positions: list[int], rows: int) -> Iterator[pa.RecordBatch]:
        known = self._schema.names
        names = [known[i] for i in positions]
        options = pa.ipc.IpcReadOptions(included_fields=sorted(positions))
        with openable(self._path) as name, pa.memory_map(name) as file:
            if self._stream:
                for batch in pa.ipc.open_stream(file, options=options):
                    yield batch.select(names)
                return
            reader = pa.ipc.open_file(file, options=options)
            for i in range(reader.num_record_batches):
                batch = reader.get_batch(i)
                batch.validate()  # lengths and offsets, so that damaged ones lead to no stray memory
                yield batch.select(names)


def _of_several_types(data: Any, error: Exception) -> UserError:
    """Say which column of a pandas data frame holds objects of several types, and where they change."""
    kind = type(data).__name__
    named = re.search(r"Conversion failed for column (.*) with type object", str(error))
    if named is None:
        return unreadable(kind, f"a table ({kind})", error)
    values = next(data[column] for column in data.columns if str(column) == named[1])
    known = [(row, value) for row, value in enumerate(values, start=1) if value is not None and value == value]
    first = type(known[0][1]).__name__
    row, value = next(((row, value) for row, value in known if type(value).__name__ != first), known[0])
    return UserError(
        f"{kind}: column {named[1]!r} has mixed types, {first} in row {known[0][0]} and {type(value).__name__} in row"
        f" {row}; convert it to one type, such as text by astype(str), or leave it out"
    )


class ArrowSource(Columnar):
    """A data frame of pandas or polars, a relation of duckdb, a table of pyarrow: whatever exports Arrow data.

    What can be exported once only (a ``RecordBatchReader``) is read into memory, because a table is read several times.
    """

    kind = "a table through the Arrow PyCapsule interface"

    def __init__(self, data: Any, na: Sequence[str] = ()) -> None:
        self.kind = f"a table ({type(data).__name__})"
        try:
            if isinstance(data, pa.RecordBatchReader):
                data = data.read_all()
            elif not hasattr(data, "__arrow_c_stream__"):
                data = pa.Table.from_batches([pa.record_batch(data)])
            self._data = data
            super().__init__(type(data).__name__, pa.RecordBatchReader.from_stream(data).schema, na)
            self.num_rows = len(data) if hasattr(data, "__len__") else None
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise _of_several_types(data, error) from error
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            raise unreadable(type(data).__name__, self.kind, error) from error

    def _batches(self, positions: list[int], rows: int) -> Iterator[pa.RecordBatch]:
        for batch in pa.RecordBatchReader.from_stream(self._data):
            yield batch.select(positions)

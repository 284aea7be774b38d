"""Tables written batch by batch: the whole file or none of it."""

import csv
import gzip
import io
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from diffeo.atomic import atomic_write, unwritable
from diffeo.errors import UserError
from diffeo.modalities.tables.dates import arrow_type, is_number_type
from diffeo.modalities.tables.table import EXTENSIONS, extension

__all__ = ["TableWriter"]

_ARROW = {
    "float64": pa.float64(),
    "float32": pa.float32(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "category": pa.dictionary(pa.int32(), pa.string()),
    "ordered": pa.dictionary(pa.int32(), pa.string(), ordered=True),
}
_NPY_HEADER = 128  # bytes, with room for any number of rows


def _arrow(dtype: str) -> pa.DataType:
    return _ARROW.get(dtype) or arrow_type(dtype)


def _is_number(dtype: str) -> bool:
    return dtype in ("float64", "float32", "int64", "bool") or is_number_type(dtype)


def _in_text(type_: pa.DataType) -> pa.DataType:
    """Return the type whose text can be read back: no dictionaries, UTC alone, digits to the microsecond."""
    if pa.types.is_dictionary(type_):
        return pa.string()
    if pa.types.is_float16(type_):
        return pa.float32()
    if pa.types.is_timestamp(type_):
        return pa.timestamp("us" if type_.unit == "ns" else type_.unit, type_.tz and "UTC")
    return pa.time64("us") if type_ == pa.time64("ns") else type_


def _is_known(dtype: str) -> bool:
    try:
        return _arrow(dtype) is not None
    except ValueError:
        return False


class _Format(Protocol):
    """A file under way."""

    def write(self, values: np.ndarray) -> None:
        """Append rows."""

    def close(self) -> None:
        """Write what ends the file, and flush; whoever opened the file closes it."""


class TableWriter:
    """A context manager that streams rows into a file, whose name decides the format.

    The file appears under its name when the block ends well; on an error nothing is left. ``-`` or None is csv on
    standard output.

    Args:
        path: ends in .csv .csv.gz .tsv .tsv.gz .parquet .feather .arrow .npy or .npz.
        names: of the columns.
        dtypes: float64 (by default), float32, int64, bool, string, category, ordered (texts of a dictionary type) or
            the name of an Arrow type of numbers, dates or times for each column. Integers are rounded, and written as
            such; .npy and .npz hold a single type, float64 unless all columns share another one, and numbers alone.
        categories: name of a column of dictionary type -> its texts; all that are written must be among them.
        force: whether to replace a file that exists.

    Raises:
        UserError: at once if the file exists, the extension is unknown or nothing can be written there; later if the
            disk is full.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        names: Sequence[str],
        dtypes: Sequence[str] | None = None,
        force: bool = False,
        categories: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.names = tuple(names)
        self.dtypes = tuple(dtypes) if dtypes is not None else ("float64",) * len(self.names)
        if len(self.dtypes) != len(self.names) or not all(map(_is_known, self.dtypes)):
            raise ValueError(
                f"expected one of {', '.join(_ARROW)} or an Arrow type for each of {self.names}, got {self.dtypes}"
            )
        self._categories = {name: pa.array(texts, pa.string()) for name, texts in (categories or {}).items()}
        self.path = "standard output" if path is None or str(path) == "-" else os.fspath(path)
        self.rows = 0
        self._stack = ExitStack()
        if self.path == "standard output":
            self._format: _Format = _Delimited(sys.stdout.buffer, self)
            return
        target = Path(self.path)
        kind = extension(target)
        if kind is None and (target.is_file() or not target.exists()):
            raise UserError(f"{self.path}: unknown extension {target.suffix!r}; diffeo writes {' '.join(EXTENSIONS)}")
        texts = [name for name, dtype in zip(self.names, self.dtypes, strict=True) if not _is_number(dtype)]
        if texts and kind in (".npy", ".npz"):
            text = texts[0]
            raise UserError(f"{self.path}: {kind} holds numbers alone, and {text!r} is text; choose .csv")
        if target.is_file() and not force:
            raise UserError(f"{self.path}: exists already; choose another name or replace it with --force")
        try:
            temporary = self._stack.enter_context(atomic_write(target))
            file = self._stack.enter_context(temporary.open("wb", buffering=1 << 20))
            self._format = _FORMATS[kind or ".csv"](file, self)
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            if isinstance(error, OSError):
                raise unwritable(self.path, error) from error
            raise

    def __enter__(self) -> "TableWriter":
        """Return itself."""
        return self

    def write(self, values: np.ndarray) -> None:
        """Append rows (n, columns), of objects where some are strings."""
        values = np.asarray(values)
        if values.ndim != 2 or values.shape[1] != len(self.names):
            raise ValueError(f"expected values of shape (n, {len(self.names)}), got {values.shape}")
        with self._guarded():
            self._format.write(values)
        self.rows += len(values)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file and give it its name, or remove what there is of it if an error is under way."""
        if error is None:
            with self._stack, self._guarded():
                self._format.close()
        else:
            with suppress(Exception):  # pyarrow's writers want to be closed; what they still write is discarded
                self._format.close()
            self._stack.__exit__(kind, error, trace)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # the reader of a pipe has seen enough; no mistake of anyone's
            raise
        except OSError as error:
            raise unwritable(self.path, error) from error

    def arrays(self, values: np.ndarray) -> list[pa.Array]:
        """Return the columns as arrow arrays of their types; what is not finite among integers is null."""
        arrays = []
        for i, (name, dtype) in enumerate(zip(self.names, self.dtypes, strict=True)):
            column, target = values[:, i], _arrow(dtype)
            if dtype in ("category", "ordered"):
                texts = pa.array(column.tolist(), pa.string())
                codes = pc.index_in(texts, self._categories[name])
                if codes.null_count > texts.null_count:
                    raise ValueError(f"expected the categories of {name!r} alone, got others")
                arrays.append(pa.DictionaryArray.from_arrays(codes, self._categories[name], ordered=dtype == "ordered"))
            elif not _is_number(dtype):
                arrays.append(pa.array(column.tolist(), type=target))
            elif column.dtype == object and any(isinstance(cell, str) for cell in column):
                arrays.append(pa.array(column.tolist(), pa.string()).cast(target))  # digits that no float holds
            elif dtype == "bool" or pa.types.is_integer(target):
                column = column.astype(np.float64)
                finite = np.isfinite(column)
                column = np.rint(np.where(finite, column, 0)).astype(bool if dtype == "bool" else np.int64)
                arrays.append(pa.array(column, mask=~finite).cast(target))
            elif column.dtype == object or pa.types.is_decimal(target):
                arrays.append(pa.array(column.tolist(), pa.float64(), from_pandas=True).cast(target, safe=False))
            else:
                arrays.append(pa.array(column.astype(target.to_pandas_dtype())))
        return arrays

    @property
    def schema(self) -> pa.Schema:
        """Names and types as arrow wants them."""
        return pa.schema([(name, _arrow(dtype)) for name, dtype in zip(self.names, self.dtypes, strict=True)])


class _Delimited:
    """Text, one row a line; floats in the fewest digits that read back as the same number."""

    def __init__(self, file: BinaryIO, table: TableWriter, delimiter: str = ",", compress: bool = False) -> None:
        self._file, self._table = file, table
        # No name and no time in the header: the same rows make the same bytes.
        self._gzip = gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) if compress else None
        sink = self._gzip or file
        header = io.StringIO()
        csv.writer(header, delimiter=delimiter, lineterminator="\n").writerow(table.names)
        sink.write(header.getvalue().encode())
        options = pa.csv.WriteOptions(include_header=False, delimiter=delimiter)
        self._schema = pa.schema([(field.name, _in_text(field.type)) for field in table.schema])
        self._writer = pa.csv.CSVWriter(pa.PythonFile(sink, "w"), self._schema, write_options=options)

    def write(self, values: np.ndarray) -> None:
        arrays = [array.cast(field.type) for array, field in zip(self._table.arrays(values), self._schema, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))

    def close(self) -> None:
        self._writer.close()
        if self._gzip is not None:
            self._gzip.close()
        self._file.flush()


class _Arrow:
    """Parquet, or Feather version 2 (Arrow IPC)."""

    def __init__(self, file: BinaryIO, table: TableWriter, parquet: bool = False) -> None:
        self._table = table
        sink = pa.PythonFile(file, "w")
        if parquet:
            import pyarrow.parquet as pq

            self._writer: Any = pq.ParquetWriter(sink, table.schema)
        else:
            codec = "lz4" if pa.Codec.is_available("lz4") else None
            self._writer = pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec))

    def write(self, values: np.ndarray) -> None:
        self._writer.write_batch(pa.record_batch(self._table.arrays(values), schema=self._table.schema))

    def close(self) -> None:
        self._writer.close()


class _Npy:
    """A single array, behind a header that is written again once the number of rows is known."""

    def __init__(self, file: BinaryIO, table: TableWriter) -> None:
        self._file, self._table = file, table
        common = set(map(_arrow, table.dtypes))
        kept = len(common) == 1 and not any(map(pa.types.is_decimal, common))
        self._dtype = np.dtype(common.pop().to_pandas_dtype() if kept else "float64").newbyteorder("<")
        file.write(self._header(0))

    def write(self, values: np.ndarray) -> None:
        if self._dtype.kind in "iub":
            if not np.isfinite(values).all():
                raise ValueError(f"expected finite values for an array of {self._dtype}, got NaN or infinity")
            values = np.rint(values)
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).tobytes())

    def close(self) -> None:
        self._file.seek(0)
        self._file.write(self._header(self._table.rows))
        self._file.seek(0, os.SEEK_END)

    def _header(self, rows: int) -> bytes:
        shape = (rows, len(self._table.names))
        text = str({"descr": self._dtype.str, "fortran_order": False, "shape": shape}).encode()
        length = _NPY_HEADER - 10  # after magic, version and this length
        return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n"


class _Npz:
    """An archive of the rows, ``X``, and the columns' ``names``; the rows wait in an unnamed file beside it."""

    def __init__(self, file: BinaryIO, table: TableWriter) -> None:
        self._file, self._table = file, table
        rows = tempfile.TemporaryFile(dir=Path(table.path).parent)  # noqa: SIM115 (the writer's stack closes it)
        self._rows = table._stack.enter_context(rows)
        self._npy = _Npy(self._rows, table)
        self.write = self._npy.write

    def close(self) -> None:
        self._npy.close()
        self._rows.seek(0)
        with zipfile.ZipFile(self._file, "w") as archive:
            with archive.open("X.npy", "w", force_zip64=True) as entry:
                shutil.copyfileobj(self._rows, entry, 1 << 20)
            with archive.open("names.npy", "w") as entry:
                np.lib.format.write_array(entry, np.array(self._table.names, dtype=np.str_), allow_pickle=False)


_FORMATS: dict[str, Callable[[BinaryIO, TableWriter], _Format]] = {
    ".csv": _Delimited,
    ".csv.gz": partial(_Delimited, compress=True),
    ".tsv": partial(_Delimited, delimiter="\t"),
    ".tsv.gz": partial(_Delimited, delimiter="\t", compress=True),
    ".parquet": partial(_Arrow, parquet=True),
    ".feather": _Arrow,
    ".arrow": _Arrow,
    ".npy": _Npy,
    ".npz": _Npz,
}

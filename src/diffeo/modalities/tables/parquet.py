"""Parquet files, one or many of them as one table, read row group by row group."""

import copy
import glob
import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa

from diffeo.errors import UserError
from diffeo.modalities.tables.columnar import Columnar, kind_of, unreadable
from diffeo.modalities.tables.delimited import drop
from diffeo.paths import openable

__all__ = ["PARQUET", "ParquetSource", "find_files"]

PARQUET = ".parquet"
BUFFER = 2**16  # bytes of a column that are read at a time: without it all of a row group's are


class RowGroup(NamedTuple):
    """Where a row group is: in which file, which of its row groups, after how many of its rows, and its rows."""

    file: int
    number: int
    start: int
    rows: int


def find_files(source: Any) -> tuple[str, Path, list[Path]] | None:
    """Return what a folder, a pattern or several paths are called, the folder they are in, and their Parquet files.

    None for what is a single file, or no path at all. In a folder all are taken, those of its sub-folders too, but for
    what is hidden or begins with an underscore (as the ``_SUCCESS`` of Spark does); in the order of their names.

    Args:
        source: a path, a pattern such as ``data/*.parquet``, or a list of these.

    Raises:
        UserError: if there are no such files, or one of them is no Parquet file or comes twice.
    """
    if isinstance(source, list | tuple) and all(isinstance(each, str | Path) for each in source):
        if len(source) == 1:
            return find_files(source[0])
        files = [file for each in source for file in (find_files(each) or ("", None, [Path(each)]))[2]]
        name = f"{source[0]} and {len(source) - 1} more" if source else "an empty list"
    elif not isinstance(source, str | Path):
        return None
    elif Path(source).is_dir():
        name, folder = str(source), Path(source)
        files = sorted(path for path in folder.rglob(f"*{PARQUET}") if _counts(path.relative_to(folder)))
        if not files:
            raise UserError(f"{name}: is a folder without {PARQUET} files; name a table's file or a folder of these")
        return name, folder, files
    elif glob.has_magic(str(source)) and not Path(source).exists():
        name = str(source)
        files = [Path(path) for path in sorted(glob.glob(name, recursive=True)) if not os.path.isdir(path)]
    else:
        return None
    if not files:
        raise UserError(f"{name}: no such file; check the pattern")
    for path in files:
        if path.suffix.lower() != PARQUET:
            raise UserError(f"{path}: is no {PARQUET} file; a table of several files is made of these, convert it")
        if not path.is_file():
            raise UserError(f"{path}: no such file; check the path")
    if len(set(files)) < len(files):
        twice = next(path for path in files if files.count(path) > 1)
        raise UserError(f"{twice}: is named twice; name each file once")
    return name, Path(os.path.commonpath([path.absolute().parent for path in files])), files


def _counts(path: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in path.parts)


class ParquetSource(Columnar):
    """Parquet files with the same columns: only the columns asked for are read and decoded.

    Types need not be the same to the bit: whole numbers in one file and fractions in another are fractions, and a
    column without any value has any type. A column that differs otherwise, or that a file lacks, can be left out.

    Args:
        paths: the files, whose rows follow each other.
        na: texts that stand for a missing cell.
        name: of the table; by default the first path.

    Attributes:
        paths: the files.
        groups: the row groups to read, in order.

    Raises:
        UserError: for a file that is damaged or no Parquet file.
    """

    kind = "Parquet"

    def __init__(self, paths: Sequence[Path], na: Sequence[str] = (), name: str | None = None) -> None:
        import pyarrow.parquet as pq

        self.paths = tuple(paths)
        self.groups: list[RowGroup] = []
        self._conflicts: dict[str, str] = {}
        fields: dict[str, tuple[pa.Field, Path]] = {}
        schema: pa.Schema | None = None
        for place, path in enumerate(paths):
            try:
                with openable(path) as opened, pq.ParquetFile(opened) as file:
                    metadata, held = file.metadata, file.schema_arrow
            except (pa.ArrowException, OSError, ValueError) as error:
                raise unreadable(str(path), self.kind, error) from error
            start = 0
            for number in range(metadata.num_row_groups):
                self.groups.append(RowGroup(place, number, start, metadata.row_group(number).num_rows))
                start += self.groups[-1].rows
            if schema is None:
                schema = held
            if len(paths) > 1:
                self._compare(held, path, fields, first=place == 0)
        assert schema is not None
        if len(paths) > 1:
            schema = pa.schema([field for field, _ in fields.values()])
        super().__init__(name or str(paths[0]), schema, na)
        if self._conflicts:
            named = zip(self.names, self.types, strict=True)
            self.types = tuple("other" if name in self._conflicts else type_ for name, type_ in named)
        self.num_rows = sum(group.rows for group in self.groups)

    def _compare(self, schema: pa.Schema, path: Path, fields: dict[str, tuple[pa.Field, Path]], first: bool) -> None:
        """Add what a file says of its columns to what is known of each: what it holds, and which file says so."""
        for field in schema:
            if schema.names.count(field.name) > 1:
                self._conflicts.setdefault(field.name, f"column {field.name!r} is named more than once in {path}")
            if field.name not in fields:
                if not first:
                    self._conflicts.setdefault(
                        field.name, f"column {field.name!r} is missing in {self.paths[0]}, and {path} has it"
                    )
                fields[field.name] = field, path
                continue
            known, where = fields[field.name]
            common = _common(known.type, field.type)
            if common is None:
                types = f"{_shown(known.type)} in {where} and {_shown(field.type)} in {path}"
                self._conflicts.setdefault(field.name, f"column {field.name!r} is {types}")
            elif common != known.type:
                fields[field.name] = known.with_type(common), path
        for name in [name for name in fields if name not in schema.names]:
            self._conflicts.setdefault(name, f"column {name!r} is missing in {path}, and {fields[name][1]} has it")

    @cached_property
    def identity(self) -> str:
        """A SHA-256 of what the files say of themselves: numbers of rows, sizes, and the columns' ranges."""
        import pyarrow.parquet as pq

        sha = hashlib.sha256()
        for path in self.paths:
            try:
                with openable(path) as opened, pq.ParquetFile(opened) as file:
                    for number in range(file.metadata.num_row_groups):
                        sha.update(_described(file.metadata.row_group(number)))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise unreadable(str(path), self.kind, error) from error
        return sha.hexdigest()

    def part(self, groups: Sequence[RowGroup]) -> Self:
        """Return the source of these row groups alone; its texts are numbered as those of this one.

        Args:
            groups: some of ``groups``.
        """
        part = copy.copy(self)
        part.groups = list(groups)
        part.num_rows = sum(group.rows for group in groups)
        return part

    def files(self) -> Iterator[tuple[Path, Self]]:
        """Yield each file and the source of its rows alone."""
        of = {place: list(groups) for place, groups in groupby(self.groups, key=lambda group: group.file)}
        for place, path in enumerate(self.paths):
            yield path, self.part(of.get(place, []))

    def where(self, row: int) -> str:
        """Return "row 3" for the row, counted from 1; of several files also which of them it is in."""
        ends = [0, *accumulate(group.rows for group in self.groups)]
        place = min(bisect_right(ends, row - 1) - 1, len(self.groups) - 1)
        group = self.groups[place]
        inside = f"row {group.start + row - ends[place]}"
        return f"{self.paths[group.file]}, {inside}" if len(self.paths) > 1 else inside

    def _complaint(self, column: int) -> str:
        conflict = self._conflicts.get(self.names[column])
        if conflict is None:
            return super()._complaint(column)
        otherwise = f", or {drop(self.names[column])}" if "drop" in self.remedies else ""
        return f"{conflict}; give all files the same columns{otherwise}"

    def _alike(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Give columns that hold nothing in this file the type that they have in others."""
        fields = [
            self._schema.field(name) if pa.types.is_null(type_) else pa.field(name, type_)
            for name, type_ in zip(batch.schema.names, batch.schema.types, strict=True)
        ]
        return batch.cast(pa.schema(fields)) if any(pa.types.is_null(type_) for type_ in batch.schema.types) else batch

    def _batches(self, positions: list[int], rows: int) -> Iterator[pa.RecordBatch]:
        import pyarrow.parquet as pq

        known = self._schema.names
        names = [known[i] for i in positions]
        for place, groups in groupby(self.groups, key=lambda group: group.file):
            numbers = [group.number for group in groups]
            try:
                with (
                    openable(self.paths[place]) as opened,
                    pq.ParquetFile(opened, pre_buffer=False, buffer_size=BUFFER) as file,
                ):
                    for batch in file.iter_batches(batch_size=rows, row_groups=numbers, columns=names):
                        yield self._alike(batch.select(names))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise unreadable(str(self.paths[place]), self.kind, error) from error


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type of a column that has these in two files, or None if nothing holds both."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    kinds = {kind_of(one), kind_of(other)}
    if kinds == {"integer", "float"}:
        return pa.float64()
    if len(kinds) > 1 or kinds <= {"date", "other"}:
        return None
    if kinds == {"text"}:
        return pa.string() if pa.types.is_dictionary(one) != pa.types.is_dictionary(other) else one
    return {"integer": pa.int64(), "float": pa.float64()}.get(kinds.pop(), one)


def _shown(type_: pa.DataType) -> str:
    return str(type_)[:60]


def _described(group: Any) -> bytes:
    """Return what the footer of a file says of a row group."""
    said = [group.num_rows, group.total_byte_size]
    for number in range(group.num_columns):
        column = group.column(number)
        statistics = column.statistics if column.is_stats_set else None
        said += [column.path_in_schema, column.total_compressed_size]
        if statistics is not None:
            said += [statistics.null_count, *((statistics.min, statistics.max) if statistics.has_min_max else ())]
    return repr(said).encode()

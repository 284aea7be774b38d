"""numpy arrays, in memory or in .npy and .npz files; never a pickle."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from diffeo.errors import UserError
from diffeo.limits import check_expansion
from diffeo.modalities.tables.delimited import REMEDIES
from diffeo.modalities.tables.dictionary import Dictionary

__all__ = ["ArraySource", "check_numbers", "map_npy", "open_npz", "read_npy", "read_npz"]


MOST = 1 << 20  # columns whose names are made
HEADER = 1 << 16  # bytes of the description of an array; numpy reads 10,000
_ARROW = {"float16": "halffloat", "float32": "float", "float128": "", "longdouble": ""}  # other names are the same


class ArraySource:
    """The columns of an array (rows, columns), or the fields of a structured array (rows,)."""

    def __init__(self, array: np.ndarray, name: str, names: Sequence[str] | None = None) -> None:
        self.name = name
        fields = array.dtype.names
        if array.ndim != (1 if fields else 2):
            remedy = "; use reshape(-1, 1) for a single column" if array.ndim == 1 else ""
            raise UserError(f"{name}: expected an array of shape (rows, columns), got shape {array.shape}{remedy}")
        if not fields:
            check_numbers(array.dtype, name)
        self._array = array
        self.num_rows: int | None = len(array)
        count = len(fields) if fields else array.shape[1]
        if count > MOST:
            raise UserError(f"{name}: has {count:,} columns, more than any table; transpose it, or make several tables")
        if names is not None and len(names) != count:
            raise ValueError(f"expected {count} names, got {len(names)}")
        names = names or fields
        self.has_names = names is not None
        self.names = tuple(names) if names is not None else tuple(f"c{i}" for i in range(count))
        types = [array.dtype[field] for field in fields] if fields else [array.dtype] * count
        self.types = tuple({"b": "bool", "i": "integer", "u": "integer"}.get(t.kind, "float") for t in types)
        self.declared = ("",) * count
        self.narrow = tuple("" if t.itemsize == 8 or t.kind == "b" else _ARROW.get(t.name, t.name) for t in types)
        self.notes: list[str] = []
        self.dictionaries: dict[int, Dictionary] = {}
        self.remedies: Collection[str] = REMEDIES

    def declare(self, column: int, kind: str) -> None:
        """Check that a column is of numbers: an array holds nothing else."""
        if kind != "number":
            raise UserError(f"{self.name}: column {self.names[column]!r} holds numbers, expected {kind}; give a table")

    def read(self, columns: Sequence[int], rows: int) -> Iterator[np.ndarray]:
        """Yield float64 arrays of at most ``rows`` rows."""
        fields = self._array.dtype.names
        if fields:
            for i in columns:
                check_numbers(self._array.dtype[fields[i]], f"{self.name}: column {self.names[i]!r}")
        for start in range(0, len(self._array), rows):
            part = self._array[start : start + rows]
            if fields:
                yield np.stack([part[fields[i]].astype(np.float64) for i in columns], axis=1)
            else:
                yield part[:, list(columns)].astype(np.float64)

    def where(self, row: int) -> str:
        """Return "row 3" for the row, counted from 1."""
        return f"row {row}"


def check_numbers(dtype: np.dtype, name: str) -> None:
    """Raise ``UserError``, with ``name`` in front, unless an array of this type holds real numbers."""
    if dtype.kind not in "biuf":
        word = {"M": "dates", "m": "durations", "U": "text", "S": "text", "c": "complex numbers", "O": "Python objects"}
        what = word.get(dtype.kind, f"values of type {dtype}")
        raise UserError(f"{name}: expected numbers, got {what}; convert them to an array of floats")


def map_npy(path: Path) -> np.ndarray:
    """Return the array in a .npy file, mapped into memory, read-only.

    Raises:
        UserError: if it is damaged or a pickle.
    """
    try:
        with path.open("rb") as file:
            _check_header(file)
        with np.errstate(over="ignore"):  # of a shape beyond all memory, which is an error of its own
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # damaged bytes raise whatever zip, zlib, ast and numpy stumble over
        raise _damaged(path, error) from error
    if not isinstance(array, np.ndarray):  # an archive under a wrong name
        array.close()
        raise UserError(f"{path}: is an archive of arrays; name it {path.stem}.npz")
    return array


@contextmanager
def open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Yield the archive in a .npz file.

    Raises:
        UserError: if it is damaged or holds pickles, also when that shows while the block reads it.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if isinstance(archive, np.ndarray):
                raise UserError(f"{path}: is a single array; name it {path.stem}.npy")
            for entry in archive.zip.infolist():
                check_expansion(f"{path}: {entry.filename}", entry.file_size, entry.compress_size)
                if entry.filename.endswith(".npy"):
                    with archive.zip.open(entry) as part:
                        _check_header(part)
            yield archive
    except UserError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error


def _check_header(file: IO[bytes]) -> None:
    """Refuse an array whose description is so long that reading it would fill the memory."""
    start = file.read(12)
    size = int.from_bytes(start[8:10] if start[6:7] == b"\1" else start[8:12], "little")
    if start[:6] == b"\x93NUMPY" and size > HEADER:
        raise ValueError(f"its header has {size:,} bytes")


def read_npy(path: Path) -> ArraySource:
    """Open a .npy file, mapped into memory.

    Raises:
        UserError: if it is damaged, is a pickle, or holds no two-dimensional array of numbers.
    """
    return ArraySource(map_npy(path), str(path))


def read_npz(path: Path, key: str | None = None) -> ArraySource:
    """Open one array of a .npz file: ``key``, else X or x, else the only one of two dimensions.

    An array of text called ``names`` with one entry per column, as diffeo writes it, names the columns.

    Raises:
        UserError: if the file is damaged, or it is not clear which array is meant.
    """
    with open_npz(path) as archive:
        chosen = _choose(archive, path, key)
        array = _array(archive, chosen)
        names = None
        if "names" in archive.files and chosen != "names" and array.ndim == 2:
            label = _array(archive, "names")
            if label.dtype.kind == "U" and label.shape == array.shape[1:]:
                names = [str(name) for name in label]
        others = [name for name in archive.files if name != chosen and (name != "names" or names is None)]
    source = ArraySource(array, str(path), names)
    if others:
        source.notes.append(
            f"{', '.join(others[:10])} {'is' if len(others) == 1 else 'are'} left out, {chosen} is read"
        )
    return source


def _array(archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """Return an array of an archive, which may hold other files, too."""
    array = archive[name]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} is no array")
    return array


def _choose(archive: np.lib.npyio.NpzFile, path: Path, key: str | None) -> str:
    names = archive.files
    listed = ", ".join(names[:10]) or "none"
    if key is not None:
        if key not in names:
            raise UserError(f"{path}: has no array {key!r}; its arrays: {listed}")
        return key
    for usual in ("X", "x"):
        if usual in names:
            return usual
    tables = names if len(names) == 1 else [name for name in names if _array(archive, name).ndim == 2]
    if len(tables) != 1:
        what = "several tables" if tables else "no two-dimensional array"
        raise UserError(f"{path}: holds {what}, expected one, or one called X; its arrays: {listed}")
    return tables[0]


def _damaged(path: Path, error: BaseException) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    if "allow_pickle" in reason or "Python objects" in reason:
        reason = "not an array of numbers, or pickled objects, which are never loaded"
    return UserError(
        f"{path}: cannot be read as {path.suffix}, it is damaged, incomplete or something else ({reason}); get it anew"
    )

"""Results for a table of several files: one file for each of them, the whole folder or none of it."""

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from diffeo.atomic import atomic_folder
from diffeo.errors import UserError
from diffeo.modalities.tables.parquet import find_files
from diffeo.modalities.tables.table import extension
from diffeo.modalities.tables.write import TableWriter

__all__ = ["FolderWriter", "writer_for"]


def writer_for(
    out: str | os.PathLike[str] | None,
    source: Any,
    files: Sequence[tuple[Path, int]],
    names: Sequence[str],
    dtypes: Sequence[str],
    *,
    force: bool = False,
) -> "TableWriter | FolderWriter":
    """Return the writer of a table's results: of several files into a folder, unless the name is that of a table.

    Args:
        out: where to; None or ``-`` is standard output.
        source: the data, as the command was given them.
        files: of a table of several files, the name and the number of rows of each; else empty.
        names: of the columns, the first one the number of the row from 1.
        dtypes: of the columns, as ``TableWriter`` takes them.
        force: replace what is there.

    Raises:
        UserError: if nothing can be written there.
    """
    if not files or out is None or str(out) == "-" or (extension(os.fspath(out)) and not Path(out).is_dir()):
        return TableWriter(out, names, dtypes, force=force)
    several = find_files(source)
    target = Path(out).resolve()
    if several is not None and any(target in path.resolve().parents for path in several[2]):
        raise UserError(f"{out}: holds the data themselves; choose another folder")
    return FolderWriter(out, files, names, dtypes, force=force)


class FolderWriter:
    """A context manager that streams rows into files of the names that the data have, in order.

    The folder appears under its name when the block ends well; on an error nothing is left, and an earlier one stays.

    Args:
        path: of the folder.
        files: the name of each file, and how many rows the file of this name has that the results are of.
        names: of the columns, the first one the number of the row, from 1 over all files; written from 1 in each.
        dtypes: of the columns, as ``TableWriter`` takes them.
        force: whether to replace a folder of files of these names.

    Raises:
        UserError: if the folder holds anything, or (with ``force``) anything else, or cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        files: Sequence[tuple[Path, int]],
        names: Sequence[str],
        dtypes: Sequence[str],
        force: bool = False,
    ) -> None:
        self.path = os.fspath(path)
        self._files, self._names, self._dtypes = [file for file, _ in files], names, dtypes
        self._ends = np.cumsum([0, *(rows for _, rows in files)])
        self._stack = ExitStack()
        expected = "|".join(re.escape(file.as_posix()) for file in self._files)
        self._folder = self._stack.enter_context(atomic_folder(path, expected, force))
        self._next = 0  # file to begin
        self._writer: TableWriter | None = None

    def __enter__(self) -> "FolderWriter":
        """Return itself."""
        return self

    def write(self, values: np.ndarray) -> None:
        """Append rows (n, columns), which may be those of several files."""
        place = np.searchsorted(self._ends, values[:, 0].astype(np.int64), side="left") - 1
        for file in np.unique(place).tolist():
            self._turn_to(file)
            rows = values[place == file]
            rows[:, 0] -= self._ends[file]
            assert self._writer is not None
            self._writer.write(rows)

    def _turn_to(self, file: int) -> None:
        """Finish the files before this one, those without results too, and begin it."""
        while self._next <= file:
            self._finish()
            target = self._folder / self._files[self._next]
            target.parent.mkdir(parents=True, exist_ok=True)
            self._writer = TableWriter(target, self._names, self._dtypes)
            self._next += 1

    def _finish(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with writer:
                pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the folder and give it its name, or remove what there is of it if an error is under way."""
        if error is not None:
            if self._writer is not None:
                self._writer.__exit__(kind, error, trace)
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._turn_to(len(self._files) - 1)
            self._finish()

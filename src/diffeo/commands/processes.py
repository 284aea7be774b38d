"""What a process that shares in the work keeps: runs, opened once, whatever their path or URI."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from diffeo.errors import UserError
from diffeo.modalities import open_run
from diffeo.modalities.tables.held_out import HeldOut
from diffeo.modalities.tables.run import TableRun
from diffeo.report.anomalies import ColumnShares
from diffeo.training.place import MODEL, WEIGHTS
from diffeo.training.seeding import derive, seeded
from diffeo.workers import granted

__all__ = ["Kept", "digest_of", "kept", "place_of"]

FILES = (MODEL, WEIGHTS, "rows.safetensors")  # what a run says is decided by these
MOST = 4  # runs that are kept

_kept: dict[tuple[Any, ...], Kept] = {}
_fetched: dict[str, str] = {}
_lock = threading.RLock()


@dataclass
class Kept:
    """A run of a table, opened, and what is made of it once.

    Attributes:
        run: which one thread at a time may use: a density has state while it dequantises.
        digest: of its files.
    """

    run: TableRun
    digest: str
    _turn: threading.RLock = field(default_factory=threading.RLock)
    _shares: dict[int, ColumnShares] = field(default_factory=dict)

    @cached_property
    def held_out(self) -> HeldOut:
        """What it knows of held-out rows."""
        return HeldOut.of(self.run)

    def shares(self, seed: int) -> ColumnShares:
        """The shares of the columns, without a context, measured by samples of a seed."""
        if seed not in self._shares:
            with seeded(self.run.device, derive(seed, "anomalies")):
                self._shares[seed] = ColumnShares(self.run.flow)
        return self._shares[seed]

    @contextmanager
    def in_use(self, threads: int | None) -> Iterator[TableRun]:
        """A block in which the caller alone uses the run, without gradients.

        Args:
            threads: to compute with; by default as many as are granted to this process.
        """
        count = threads or granted()
        with self._turn, torch.no_grad():
            before = torch.get_num_threads()
            if count is not None:
                torch.set_num_threads(count)
            try:
                yield self.run
            finally:
                torch.set_num_threads(before)


def place_of(run: str | os.PathLike[str]) -> str:
    """A run's URI, or its path from the root of the file system: other processes may work elsewhere."""
    return str(run) if "://" in str(run) else os.path.abspath(run)


def kept(run: str, digest: str | None = None, device: str | None = None) -> Kept:
    """A run of a table, opened the first time that this process asks for it, and when its files change.

    Args:
        run: a path or a URI, as ``place_of`` gives it.
        digest: that its files must have.
        device: where to compute; a GPU if there is one.

    Raises:
        UserError: for a bad run directory, one that is not of a table, or another one than was asked for.
    """
    with _lock:
        folder = _local(run)
        key = (folder, device, *_stamps(folder))
        if key not in _kept:
            opened = open_run(folder, device)
            if not isinstance(opened, TableRun):
                raise UserError(f"{run}: was not trained on a table, but on {opened.words.data}")
            _kept[key] = Kept(opened, digest_of(run))
            for old in list(_kept)[:-MOST]:
                del _kept[old]
        if digest not in (None, _kept[key].digest):
            _fetched.pop(run, None)
            raise UserError(f"{run}: is not the run that this began with; start again")
        return _kept[key]


def digest_of(run: str) -> str:
    """Sixteen digits that identify the files of a run.

    Args:
        run: a path or a URI.

    Raises:
        UserError: if there are none.
    """
    sha = hashlib.sha256()
    for name in FILES:
        path = Path(_local(run)) / name
        try:
            sha.update(b"%d" % path.stat().st_size)
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    sha.update(block)
        except FileNotFoundError as error:
            if name == MODEL:
                raise UserError(f"{run}: is no run directory; give one that diffeo fit made") from error
            sha.update(b"none")
    return sha.hexdigest()[:16]


def _stamps(folder: str) -> list[Any]:
    """What tells that a file has changed without reading it."""
    stamps: list[Any] = []
    for name in FILES:
        try:
            status = os.stat(os.path.join(folder, name))
            stamps.append((status.st_size, status.st_mtime_ns, status.st_ino))
        except OSError:
            stamps.append(None)
    return stamps


def _local(run: str) -> str:
    """A folder with the run's files: itself, or of a URI a copy that this process made."""
    if "://" not in run:
        return run
    if run not in _fetched:
        import pyarrow as pa
        from pyarrow import fs

        folder = mkdtemp(prefix="diffeo-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        try:
            system, path = fs.FileSystem.from_uri(run)
            for name in FILES:
                if system.get_file_info(f"{path}/{name}").type != fs.FileType.NotFound:
                    fs.copy_files(f"{path}/{name}", f"{folder}/{name}", source_filesystem=system)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{run}: cannot be fetched ({str(error).splitlines()[0][:200]})") from error
        _fetched[run] = folder
    return _fetched[run]

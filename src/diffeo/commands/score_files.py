"""Tables of many files, scored by the workers of an engine: a result for each file, in order, every row once."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffeo.atomic import atomic_write, check_writable, locked
from diffeo.commands.processes import digest_of, kept, place_of
from diffeo.commands.scoring import Tally, scores
from diffeo.errors import UserError
from diffeo.modalities.base import OpenRun, chunks_of
from diffeo.modalities.tables.parquet import find_files
from diffeo.modalities.tables.run import TableRun
from diffeo.modalities.tables.table import ROWS, Table, open_table
from diffeo.modalities.tables.write import TableWriter
from diffeo.workers import expect_engine, in_order

__all__ = ["score_files"]

RECORD = "scores.json"  # of what is finished, in the folder of the results
PART = 2**18  # rows that are scored together at least, as far as the file has them: row groups are joined


@dataclass(frozen=True)
class Part:
    """Rows that a worker scores.

    Attributes:
        run, digest, device: by what; see ``kept``.
        options: as ``TableRun.scoring`` takes them.
        file: the name of the results.
        source: a table of these rows, or the path of one.
        before: how many rows of the file come before them.
        last: whether none come after them.
    """

    run: str
    digest: str
    device: str | None
    options: Mapping[str, Any]
    file: str
    source: Table | str
    before: int = 0
    last: bool = True

    def __str__(self) -> str:
        rows = "" if isinstance(self.source, str) else f", from row {self.before + 1:,}"
        return f"{self.file}{rows}"


@dataclass(frozen=True)
class Scored:
    """What a worker says of its part: lines of the result (n, columns), and what else the summary says."""

    file: str
    last: bool
    lines: np.ndarray
    facts: dict[str, Any]


def score_files(
    opened: OpenRun,
    source: Any,
    out: str | os.PathLike[str] | None,
    options: Mapping[str, Any],
    *,
    engine: str,
    workers: int | None,
    device: str | None,
    resume: bool,
    force: bool,
    progress: Callable[[int, int | None], None],
) -> dict[str, Any]:
    """Score every file of a table into a folder, as ``score`` does, by the workers of an engine.

    A file of results appears when it is whole. What is finished is written down in ``scores.json``; ``resume`` keeps it
    where the run, the options and the data are the same.

    Args:
        opened: the run.
        source: a table, or files that are one.
        out: the folder.
        options: as ``open_for`` returns them.
        engine: see ``workers.in_order``.
        workers: how many parts are scored at once.
        device: where to compute.
        resume: go on with what is finished.
        force: replace it.
        progress: called with the number of rows done and the number of all, if known.

    Returns:
        What ``score`` does, and how many ``files`` there are and how many of them were ``finished`` before.

    Raises:
        UserError: as ``score``; for a run that is of no table, or a folder that holds something else.
    """
    if not isinstance(opened, TableRun):
        raise UserError(f"{opened.path}: was trained on {opened.words.data}; --engine is for tables, leave it out")
    if out is None or str(out) == "-":
        raise UserError("--engine writes a file for each file of the data; give a folder for them (--out FOLDER)")
    expect_engine(engine, workers)
    started = time.monotonic()
    run, folder = place_of(opened.path), Path(out)
    files = _files(source)
    table = open_table([*files.values()] if len(files) > 1 else next(iter(files.values())), **opened.reading(options))
    table.name = os.fspath(source) if isinstance(source, str | os.PathLike) else table.name  # not all of their paths
    scoring = opened.scoring(table, options)  # whose columns and types are those of all files
    if any(folder.resolve() in path.resolve().parents for path in files.values()):
        raise UserError(f"{folder}: holds the data themselves; choose another folder")
    digest = digest_of(run)
    check_writable(folder)
    with locked(folder):
        record = Record.begun(folder, {"run": digest, "options": dict(options)}, resume, force)
        finished = {name for name, path in files.items() if record.knows(name, path)}

        def parts() -> Iterator[Part]:
            tables = table.by_file() if table.row_groups else iter(())
            for name, path in files.items():
                of_file = next(tables, None)
                if name in finished:
                    continue
                shared = (run, digest, device, dict(options), name)
                if of_file is None:
                    yield Part(*shared, str(path))
                else:
                    joined = [*_joined(of_file.row_groups)]
                    for place, (numbers, before) in enumerate(joined, start=1):
                        yield Part(*shared, of_file.row_group(*numbers), before, place == len(joined))

        done = sum(record.files[name]["tally"]["rows"] for name in finished)
        progress(done, table.num_rows)
        columns, types = [*scoring.columns, "log_likelihood"], [*scoring.types, "float64"]
        with closing(in_order(score_part, parts(), engine, workers)) as results:
            for first in results:
                tally, facts, name = Tally(), dict[str, Any](), first.file
                target = folder / name
                check_writable(target.parent)
                stamp = _stamp(files[name])
                with TableWriter(target, columns, types, force=True) as writer:
                    for lines, more in _in_blocks(_of_file(first, results)):
                        facts = _merged(facts, more)
                        tally.add(lines[:, -1].astype(np.float64))
                        if len(lines):
                            writer.write(lines)
                        progress(done + tally.rows, table.num_rows)
                done += tally.rows
                record.add(name, {"stamp": stamp, "tally": tally.to_json(), "facts": facts})
    whole, facts = Tally(), scoring.facts() | {"dropped": 0}
    for name in files:
        whole.join(Tally.of_json(record.files[name]["tally"]))
        facts = _merged(facts, record.files[name]["facts"])
    seconds = time.monotonic() - started
    new = whole.rows - sum(record.files[name]["tally"]["rows"] for name in finished)
    return {
        **whole.summary(opened.words),
        **facts,
        "files": len(files),
        "finished": len(finished),
        "seconds": seconds,
        "rows_per_second": new / seconds if seconds else math.inf,
    }


def score_part(part: Part) -> Scored:
    """Score rows, in a worker, by one thread.

    Args:
        part: which, by what.

    Raises:
        UserError: as ``score``.
    """
    with kept(part.run, part.digest, part.device).in_use(1) as run:
        scoring = run.scoring(part.source, part.options, part=_part)
        lines = [np.empty((0, len(scoring.columns) + 1))]
        for chunk in chunks_of(run, scoring, 0, lambda done, total: None):
            cells = chunk.cells
            cells[:, 0] += part.before
            lines.append(np.column_stack([cells, scores(run, chunk, scoring.draws)]))
        return Scored(part.file, part.last, np.concatenate(lines), scoring.facts())


def _part(table: Table) -> Table:
    """The same table; of Parquet it may be without rows that are of use, as others of the file have some."""
    return table.as_part() if table.row_groups else table


def _files(source: Any) -> dict[str, Path]:
    """The files of the data, by the names that their results have."""
    several = find_files(source)
    if several is None:
        if not isinstance(source, str | os.PathLike) or not Path(source).is_file():
            raise UserError(f"{source}: no such file; --engine scores files, folders of .parquet or patterns of these")
        return {Path(source).name: Path(source).absolute()}
    _, folder, paths = several
    return {path.absolute().relative_to(folder.absolute()).as_posix(): path.absolute() for path in paths}


def _joined(row_groups: list[int]) -> Iterator[tuple[list[int], int]]:
    """Yield numbers of row groups of so many rows, some thousand rows in each part, and how many rows precede them."""
    numbers: list[int] = []
    before = held = 0
    for number, rows in enumerate(row_groups):
        numbers.append(number)
        held += rows
        if held >= PART:
            yield numbers, before
            numbers, before, held = [], before + held, 0
    if numbers or not row_groups:
        yield numbers, before


def _of_file(first: Scored, results: Iterator[Scored]) -> Iterator[Scored]:
    """Yield the parts of the file of the first, and ask for no more."""
    part = first
    yield part
    while not part.last:
        part = next(results)
        yield part


def _in_blocks(parts: Iterable[Scored]) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Yield lines in blocks that do not depend on how the file was divided: a file's bytes follow from its blocks."""
    waiting: list[np.ndarray] = []
    held = 0
    for part in parts:
        waiting.append(part.lines)
        held += len(part.lines)
        facts = part.facts
        if held >= ROWS:
            lines = np.concatenate(waiting)
            whole = held - held % ROWS
            for start in range(0, whole, ROWS):
                yield lines[start : start + ROWS], facts
                facts = {}
            waiting, held = [lines[whole:]], held - whole
        elif facts:
            yield part.lines[:0], facts
    if held:
        yield np.concatenate(waiting), {}


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What two parts say together: numbers are added, also those by column, and lines are each said once."""
    merged = dict(one)
    for name, value in other.items():
        if name not in merged:
            merged[name] = value
        elif isinstance(value, Mapping):
            merged[name] = _merged(merged[name], value)
        elif isinstance(value, list):
            merged[name] = list(dict.fromkeys([*merged[name], *value]))
        else:
            merged[name] += value
    return merged


def _stamp(path: Path) -> list[int]:
    """What tells that a file has changed without reading it."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror or error})") from error
    return [status.st_size, status.st_mtime_ns]


@dataclass
class Record:
    """What is finished in a folder of results.

    Attributes:
        folder: which.
        settings: the run and the options that the results are of.
        files: of each file that is whole, its name and the stamp of its data, the tally and the facts.
    """

    folder: Path
    settings: dict[str, Any]
    files: dict[str, Any]

    @classmethod
    def begun(cls, folder: Path, settings: dict[str, Any], resume: bool, force: bool) -> Record:
        """Claim a folder, before any work.

        Raises:
            UserError: if it holds something and is neither resumed nor replaced, or cannot be resumed, or written.
        """
        check_writable(folder)
        path = folder / RECORD
        held = next((entry.name for entry in folder.iterdir() if entry.suffix != ".tmp"), None)
        record = cls(folder, settings, {})
        if held is not None and not force:
            if not resume:
                remedy = "go on with --resume or replace them with --force" if path.exists() else "replace with --force"
                raise UserError(f"{folder}: holds files already; choose another folder, or {remedy}")
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
                same, record.files = known["settings"] == settings, dict(known["files"])
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise UserError(f"{folder}: has no sound {RECORD} to go on with; start again with --force") from error
            if not same:
                raise UserError(
                    f"{folder}: holds results of another run or of other options; choose another folder or start again"
                    " with --force"
                )
        record._save()
        return record

    def knows(self, name: str, path: Path) -> bool:
        """Whether the results of a file are finished, and of what the file holds now."""
        known = self.files.get(name)
        return known is not None and known["stamp"] == _stamp(path) and (self.folder / name).is_file()

    def add(self, name: str, what: dict[str, Any]) -> None:
        """Write down that a file is finished."""
        self.files[name] = what
        self._save()

    def _save(self) -> None:
        with atomic_write(self.folder / RECORD) as temporary:
            temporary.write_text(json.dumps({"settings": self.settings, "files": self.files}, indent=1) + "\n")

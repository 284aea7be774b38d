"""Where a run is made: in a folder of its own, and beside an earlier run until there is a new one."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffeo.atomic import SUFFIX, check_writable, exchange, locked, remove_leftovers
from diffeo.errors import UserError
from diffeo.training.checkpoint import steps_taken

__all__ = ["MODEL", "WEIGHTS", "claim", "claimed", "is_run", "place"]

MODEL = "model.json"
WEIGHTS = "model.safetensors"

# What diffeo writes into a run directory. All else is the user's, and stays when the run is replaced.
PARTS = {
    MODEL, WEIGHTS, "rows.safetensors", "simulations.safetensors", "train", "figures", "sounds",
    "report.html", "report.md",
}  # fmt: skip

StrPath = str | os.PathLike[str]


def place(out: StrPath, resume: bool = False, force: bool = False) -> Path:
    """The folder in which a run that ends up in ``out`` is made.

    That is ``out``, unless an earlier run is replaced: the new one is then made in a folder beside it, ``OUT.new.tmp``,
    and takes its place when it is complete. A kill before that leaves the earlier run as it was, and ``resume`` goes on
    with the new one.

    Args:
        out: the run directory to make.
        resume: go on with what was begun.
        force: replace an earlier run.
    """
    target = Path(os.path.realpath(out))
    beside = target.with_name(f"{target.name}.new{SUFFIX}")
    return beside if is_run(beside if resume else target) and (resume or force) else Path(out)


@contextmanager
def claimed(out: StrPath, resume: bool = False, force: bool = False) -> Iterator[Path]:
    """Claim the place of a run before any work, yield the folder to make it in, and put that in place at the end.

    Another process that claims the same place meanwhile is refused. A folder that was made here is removed again if
    the block fails before anything was learned that could be resumed.

    Args:
        out: the run directory to make: a folder that does not exist or is empty, or a run to resume or replace.
        resume: go on with what was begun.
        force: replace an earlier run. A folder that holds something else is never touched.

    Raises:
        UserError: if the folder holds something else, or another process makes a run in it, or it cannot be written.
    """
    target = Path(out)
    new = not target.exists()
    claim(target, resume or force)
    with locked(target):
        folder = place(out, resume, force)
        if folder != target and not resume:
            if folder.exists():  # of a replacement that was killed
                claim(folder, may_exist=True)
                _keep_foreign(folder, target)
                _remove(folder)
            check_writable(folder)
        elif not resume:
            remove_leftovers(folder)
        try:
            yield folder
        except Exception:
            checkpoints = folder.rglob("checkpoint.safetensors")
            if (new or folder != target) and not resume and not any(map(steps_taken, checkpoints)):
                with suppress(UserError, OSError):
                    _remove(folder)
            raise
        if folder != target:
            _keep_foreign(target, folder)
            exchange(folder, os.path.realpath(target))
            with suppress(UserError, OSError):  # the new run is in place, whatever becomes of the old one
                _remove(folder)


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run directory, finished or not, sound or damaged.

    Args:
        folder: which may not exist.
    """
    if not (folder / MODEL).is_file():
        return False
    if (folder / WEIGHTS).exists() or (folder / "train").is_dir():
        return True
    try:
        model = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError):
        return False
    return isinstance(model, dict) and isinstance(model.get("format"), int) and "recipe" in model  # else another's


def _keep_foreign(source: Path, into: Path) -> None:
    """Move what is not of a run, and is not there yet, from one folder into another."""
    for entry in source.iterdir():
        if entry.name not in PARTS and entry.suffix != SUFFIX and not (into / entry.name).exists():
            os.replace(entry, into / entry.name)


def _remove(folder: Path) -> None:
    """Remove a run directory.

    Raises:
        UserError: if it holds something else, which stays.
    """
    for entry in folder.iterdir():
        if entry.name in PARTS or entry.suffix == SUFFIX:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    if foreign := next(folder.iterdir(), None):
        raise UserError(f"{folder} holds {foreign.name!r}, which is of no run: move it away, or choose another folder")
    folder.rmdir()


def claim(folder: Path, may_exist: bool = False) -> None:
    """Create the folder of a run if need be, and prove that a run may be written there.

    Args:
        folder: where.
        may_exist: whether a run may be there.

    Raises:
        UserError: if it holds something that is no run, or a run that may not be there, or cannot be written.
    """
    check_writable(folder)
    if all(entry.suffix == SUFFIX for entry in folder.iterdir()):  # nothing, or what a killed process left
        return
    if not is_run(folder):
        raise UserError(f"{folder} is not empty and not a run directory: choose another folder")
    if not may_exist:
        raise UserError(f"{folder} holds a run: choose another folder, resume it (--resume) or replace it (--force)")

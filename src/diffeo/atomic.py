"""Files that are either the old one or the new one, never half of one."""

import ctypes
import errno
import glob
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffeo.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "SUFFIX",
    "atomic_folder",
    "atomic_write",
    "check_writable",
    "exchange",
    "locked",
    "remove_leftovers",
    "unwritable",
]

SUFFIX = ".tmp"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space and try again (files written earlier are intact)",
    errno.EDQUOT: "the disk quota is used up; free some space and try again (files written earlier are intact)",
    errno.EFBIG: "the file is larger than the system allows; files written earlier are intact",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOENT: "its folder does not exist; create it first",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
    errno.EISDIR: "it is a folder; give the name of a file",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def unwritable(path: str | os.PathLike[str], error: OSError) -> UserError:
    """Return the one-line error, with a remedy, for an ``OSError`` met while writing ``path``."""
    reason = _REMEDIES.get(error.errno or 0) or error.strerror or str(error)
    return UserError(f"cannot write {os.fspath(path)}: {reason}")


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, fsync it and rename it to ``path``, else remove it.

    A reader, a crash or a kill at any moment sees the old file or the whole new one. The temporary file lies in the
    same folder, exists already (empty) and is called ``NAME.PID.tmp``, so a writer that goes by the extension must be
    given the format or an open file. What is no regular file (``/dev/stdout``, a pipe) is yielded as it is.

    Raises:
        UserError: if the file cannot be written (full disk, permission, missing folder).
    """
    # A symbolic link stays one: the file it points to is replaced.
    target = Path(os.path.realpath(path))
    device = os.path.dirname(os.path.abspath(path)) in ("/dev", "/dev/fd")  # stdout may be redirected into a file
    if device or (target.exists() and not target.is_file() and not target.is_dir()):
        try:
            yield target
        except OSError as error:
            raise unwritable(path, error) from error
        return
    temporary = target.with_name(f"{target.name}.{os.getpid()}{SUFFIX}")
    try:
        _remove_orphans(target)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary.open("wb").close()
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        # An error that has another file's name on it (reading an input, say) is not about writing this one.
        if isinstance(error, OSError) and error.filename in (None, str(temporary), str(target), temporary):
            raise unwritable(path, error) from error
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str], names: str, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; when the block ends well, rename it to ``path``, else remove it.

    Args:
        path: a folder that does not exist, or is empty.
        names: a regular expression; with ``force`` a folder is replaced that holds nothing but files with such names,
            those in sub-folders with / between.
        force: replace it.

    Raises:
        UserError: if the folder holds anything, or (with ``force``) anything else, or cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f"{target.name}.{os.getpid()}{SUFFIX}")
    try:
        _remove_orphans(target)
        held = [entry.relative_to(target).as_posix() for entry in target.rglob("*")] if target.exists() else []
        if held and not force:
            raise UserError(f"{os.fspath(path)}: holds files already; choose another folder or replace it with --force")
        files = [name for name in held if not (target / name).is_dir()]
        if strange := next((name for name in files if not re.fullmatch(names, name)), None):
            raise UserError(f"{os.fspath(path)}: holds {strange!r}, so it is not replaced; choose another folder")
        temporary.mkdir(parents=True)
        yield temporary
        if held:
            exchange(temporary, target)
        else:
            os.replace(temporary, target)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def exchange(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> None:
    """Let two files or folders of one file system change places: where the system can, in one indivisible step.

    Raises:
        UserError: if it cannot be done.
    """
    one, other = os.fspath(one), os.fspath(other)
    try:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            done = libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
        except (AttributeError, OSError, TypeError):  # not Linux, or an old C library
            done = -1
        if done:  # moved away first: a kill while it is being deleted must not leave half of it under its name
            aside = f"{other}.{os.getpid()}{SUFFIX}"
            os.replace(other, aside)
            os.replace(one, other)
            os.replace(aside, one)
    except OSError as error:
        raise unwritable(other, error) from error


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete the temporary files that a killed process left in ``folder``."""
    for leftover in Path(folder).glob(f"*{SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _remove_orphans(target: Path) -> None:
    """Delete the temporary files and folders of ``target`` whose writers were killed."""
    for leftover in target.parent.glob(f"{glob.escape(target.name)}.*{SUFFIX}"):
        number = leftover.name[len(target.name) + 1 : -len(SUFFIX)]
        if number.isdecimal() and not _alive(int(number)):
            with suppress(OSError):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _alive(process: int) -> bool:
    if os.name == "nt":  # there signal 0 ends a process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Create ``folder`` if need be and prove that a file can be written there, before any long work is done.

    Raises:
        UserError: if it cannot.
    """
    probe = Path(folder) / f"probe.{os.getpid()}{SUFFIX}"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"diffeo")
        probe.unlink()
    except FileExistsError as error:
        raise UserError(f"cannot write {os.fspath(folder)}: it is a file; give the name of a folder") from error
    except OSError as error:
        raise unwritable(folder, error) from error


def _sync(path: Path) -> None:
    """Force a file's contents, or a folder's entries, onto the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders, and renames there need no such help
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock that the system takes back when the process ends, however it ends; where there are none, go on.

    Args:
        folder: what one process at a time may write into.

    Raises:
        UserError: if another process does.
    """
    descriptor = None if fcntl is None else os.open(folder, os.O_RDONLY)
    try:
        if descriptor is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{folder}: another process writes here; choose another folder") from error
            except OSError:  # a file system without locks
                pass
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

"""The user's folder of built kernels. What is read from it is code that will run, so nobody else may have written it.

The folder is the user's, of mode 0700 and no link, and no other user can put another one in its place. A file in it
counts only if it is a regular one (no link) that belongs to the user and that nobody else may write.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
    import grp
    import pwd
except ImportError:  # Windows, where no kernels are built
    pass

__all__ = ["PREFIX", "lock", "open_folder", "read", "remove_leftovers", "write"]

PREFIX = "build-"  # of temporary names

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def open_folder() -> Path:
    """Return ``diffeo/kernels`` below ``XDG_CACHE_HOME`` (or ``~/.cache``), made if need be, all links resolved.

    Raises:
        OSError: with one line, if it cannot be made, or if another user could change what it holds.
    """
    above = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(above):  # relative ones are to be ignored, says the standard
        above = os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(above):
        raise OSError(f"{above} is not an absolute path")
    parent = Path(os.path.realpath(os.path.join(above, "diffeo")))
    # From the top down: once an entry is known to be safe, nobody else can exchange the one below it.
    for ancestor in (*reversed(parent.parents), parent):
        _check_ancestor(ancestor)
    folder = parent / "kernels"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise OSError(f"{folder} is a link or a file, not a folder") from error
        raise OSError(f"{folder}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise OSError(f"{folder} belongs to another user")
        if stat.S_IMODE(status.st_mode) != 0o700:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(f"{folder} cannot be written")
    return folder


def _check_ancestor(folder: Path) -> None:
    """Refuse a folder in which another user could exchange an entry for one of theirs; make it if it is not there."""
    try:
        status = os.lstat(folder)
    except FileNotFoundError:
        folder.mkdir(mode=0o700, exist_ok=True)  # another process may be as far as this
        status = os.lstat(folder)
    if status.st_uid not in (0, os.geteuid()):
        raise OSError(f"{folder} belongs to another user")
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(f"{folder} is not a folder")
    if status.st_mode & stat.S_ISVTX:  # as in /tmp: an entry can be renamed only by whom it belongs to
        return
    if status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and not _is_private(folder, status.st_gid)):
        raise OSError(f"other users may write to {folder}")


def _is_private(folder: Path, group: int) -> bool:
    """Whether a group that may write is root's, or the user's alone (many systems give each user such a group)."""
    if hasattr(os, "listxattr"):
        with suppress(OSError):
            if "system.posix_acl_access" in os.listxattr(folder):  # then these bits may stand for anybody
                return False
    if group == 0:
        return True
    try:
        entry, user = grp.getgrgid(group), pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False
    return entry.gr_name == user and set(entry.gr_mem) <= {user}


def read(path: Path) -> tuple[int, bytes]:
    """Return an open descriptor of a file, which is the caller's to close, and all bytes that it holds.

    Raises:
        OSError: if it is not there, or is not a regular file that only the user may write.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & _OTHERS:
            raise OSError(f"{path} is not a file that only its user may write")
        with open(descriptor, "rb", closefd=False) as file:
            return descriptor, file.read()
    except BaseException:
        os.close(descriptor)
        raise


def write(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 as a whole or not at all; a link of this name is replaced, not followed.

    Raises:
        OSError: if it cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=PREFIX, dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete what processes that were killed while they built left an hour ago or more."""
    for leftover in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if leftover.lstat().st_mtime < time.time() - 3600:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


@contextmanager
def lock(folder: Path, seconds: float, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Yield whether this process got the folder for itself within so many seconds; call ``waiting`` before it waits.

    Where the file system knows no locks it does, and processes may work twice; files are written as a whole anyway.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + seconds

    def held_by_another() -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        return False

    try:
        if held_by_another():
            if waiting is not None:
                waiting()
            while held_by_another():
                if time.monotonic() > end:
                    yield False
                    return
                time.sleep(0.05)
        try:
            yield True
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # not only by closing: a forked child may hold it, too
    finally:
        os.close(descriptor)

"""File names that are no text: what they are called in results, and how libraries open them that take UTF-8 alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["encodable", "openable"]


def encodable(name: str) -> str:
    """Return a name as one that any file can hold: bytes in it that are no UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@contextmanager
def openable(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a file's name, which is UTF-8: its own, or that of a link that goes with the block."""
    name = os.fspath(path)
    if encodable(name) == name:
        yield name
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"link{encodable(Path(name).suffix)}"
        link.symlink_to(os.path.abspath(name))
        yield str(link)

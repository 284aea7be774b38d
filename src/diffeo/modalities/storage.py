"""Where pixels and sound live: in memory, or in a file that is mapped into it; and the user's cache folder."""

import math
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from diffeo.atomic import unwritable

__all__ = ["MEMORY", "allocate", "cache_folder"]

MEMORY = 1 << 30  # bytes that are held in memory; more go to a file


def cache_folder() -> Path:
    """Return the folder for what can be made or fetched again; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffeo"


def allocate(shape: tuple[int, ...], folder: Path | None = None, dtype: DTypeLike = np.uint8) -> np.ndarray:
    """Return a writable array; one of more than ``MEMORY`` bytes is mapped from a nameless file in ``folder``.

    The file goes with the process, however that ends, and the system writes its pages out when memory is short.

    Args:
        shape: of the array.
        folder: by default the user's cache, not the temporary folder, which on many systems is memory itself.
        dtype: of its values.

    Raises:
        UserError: if the folder cannot be written, or has no room.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= MEMORY:
        return np.empty(shape, dtype=dtype)
    folder = folder or cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            # Claimed at once: a full disk met later, while the pages are written out, would be a bus error.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype=dtype, mode="r+", shape=shape)
    except OSError as error:
        raise unwritable(folder, error) from error

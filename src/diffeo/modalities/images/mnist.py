"""MNIST: 60,000 and 10,000 handwritten digits of 28 x 28 pixels, from a file or its official mirror, always verified.

Reference: LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, 1998.
"""

import gzip
import hashlib
import http.client
import os
import struct
import urllib.request
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from diffeo.atomic import atomic_write
from diffeo.errors import UserError
from diffeo.modalities.arrays import open_npz
from diffeo.modalities.storage import cache_folder

__all__ = ["VALIDATION", "load_mnist"]

VALIDATION = 10_000  # the last pictures for training, which everyone holds out for validation

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
# The SHA-256 is that of the idx file without its gzip, that is of a header, which follows from the shape, and the bytes
# of the array: so it verifies an array from anywhere.
FILES = {
    "x_train": ("train-images-idx3-ubyte", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "y_train": ("train-labels-idx1-ubyte", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "x_test": ("t10k-images-idx3-ubyte", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "y_test": ("t10k-labels-idx1-ubyte", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}
_LIMIT = 1 << 26  # bytes; no file is longer, and what is longer fails its checksum
_TIMEOUT = 30  # seconds of silence


def load_mnist(cache: Path | None = None) -> dict[str, np.ndarray]:
    """Return x_train (60000, 28, 28), y_train (60000,), x_test (10000, 28, 28) and y_test (10000,), all uint8.

    They come from ``mnist/mnist.npz`` below the folder that ``DIFFEO_DATA`` names, else from ``cache`` (by default the
    user's), else from the mirror, and then stay in the cache. Their SHA-256 is checked each time.

    Raises:
        UserError: if the file below ``DIFFEO_DATA`` is not MNIST, or there is none and the mirror cannot be reached.
    """
    if folder := os.environ.get("DIFFEO_DATA"):
        archive = Path(folder) / "mnist" / "mnist.npz"
        if archive.is_file():
            return _read(archive)
    cached = (cache or cache_folder()) / "mnist.npz"
    if cached.is_file():
        with suppress(UserError):  # damaged: fetch it again
            return _read(cached)
    arrays: dict[str, Any] = {name: _download(file, digest) for name, (file, digest) in FILES.items()}
    with suppress(UserError, OSError):  # a cache that cannot be written only costs the next download
        cached.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(cached) as temporary, temporary.open("wb") as out:
            np.savez_compressed(out, **arrays)
    return arrays


def _read(path: Path) -> dict[str, np.ndarray]:
    with open_npz(path) as archive:
        arrays = {name: archive[name] for name in FILES if name in archive.files}
    for name, (_, digest) in FILES.items():
        if name not in arrays or hashlib.sha256(_idx(arrays[name])).hexdigest() != digest:
            raise UserError(f"{path}: its {name} is not MNIST's (by SHA-256); remove the file, to download MNIST anew")
    return arrays


def _idx(array: np.ndarray) -> bytes:
    """Return the array as an idx file: two zeros, 8 for uint8, the number of dimensions, the shape, the bytes."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def _download(file: str, digest: str) -> np.ndarray:
    problems = []
    for mirror in MIRRORS:
        try:
            with (
                urllib.request.urlopen(f"{mirror}{file}.gz", timeout=_TIMEOUT) as response,
                gzip.GzipFile(fileobj=response) as unzipped,
            ):
                content = unzipped.read(_LIMIT)
        except (OSError, EOFError, zlib.error, http.client.HTTPException) as error:
            problems.append(f"{mirror}: {getattr(error, 'reason', None) or error}")
            continue
        if hashlib.sha256(content).hexdigest() != digest:
            problems.append(f"{mirror}: {file}.gz has another SHA-256")
            continue
        shape = struct.unpack_from(f">{content[3]}I", content, 4)
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    raise UserError(
        f"mnist: cannot be downloaded ({'; '.join(problems)}); put mnist/mnist.npz into a folder and name that folder"
        " in DIFFEO_DATA, or use digits, which needs no download"
    )

"""Tensors in a safetensors file that knows its own SHA-256."""

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffeo.atomic import atomic_write
from diffeo.errors import UserError
from diffeo.paths import openable

__all__ = ["digest", "hash_tensor", "load_tensors", "read_shapes", "save_tensors"]


DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def hash_tensor(sha: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    """Feed a tensor's name, dtype, shape and bytes to a hash."""
    sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
    sha.update(_bytes(tensor))


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Return the SHA-256 over the names, dtypes, shapes and bytes of all tensors, and over the metadata."""
    sha = hashlib.sha256(json.dumps(dict(metadata or {}), sort_keys=True).encode())
    for name in sorted(tensors):
        hash_tensor(sha, name, tensors[name])
    return sha.hexdigest()


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write tensors and metadata atomically to a safetensors file, and return their SHA-256, which the file holds too.

    The format is an 8-byte length, a JSON header and the bytes. The library's own writer makes a second temporary file,
    readable by its owner only, and refuses tied tensors; hence these lines.

    Raises:
        UserError: if the file cannot be written; an older file of that name is then intact.
    """
    sha256 = digest(tensors, metadata)
    header: dict[str, Any] = {"__metadata__": {**metadata, "sha256": sha256}}
    # Larger types first, as the library does, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        dtype, shape = DTYPES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(_bytes(tensors[name]))
    return sha256


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def load_tensors(path: str | os.PathLike[str], remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what ``save_tensors`` wrote: the tensors (on the CPU) and the metadata, ``sha256`` among them.

    Raises:
        UserError: ending in ``remedy``, if the file is missing, cut short, or differs by a single bit.
    """
    with _opened(path, remedy) as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("sha256") != digest(tensors, {name: text for name, text in metadata.items() if name != "sha256"}):
        raise UserError(f"{os.fspath(path)} is corrupted: its contents do not match its SHA-256; {remedy}")
    return tensors, metadata


def read_shapes(path: str | os.PathLike[str], remedy: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a safetensors file from its header, without reading the tensors.

    Raises:
        UserError: ending in ``remedy``, if the file is missing or its header does not match its size.
    """
    with _opened(path, remedy) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: str | os.PathLike[str], remedy: str) -> Iterator[Any]:
    """A safetensors file open for reading; what cannot be read is a ``UserError`` that ends in ``remedy``."""
    try:
        with openable(path) as name, safe_open(name, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        name = os.fspath(path)
        if not Path(path).is_file():
            raise UserError(f"{name} is missing; {remedy}") from error
        if isinstance(error, PermissionError):
            raise UserError(f"{name} cannot be read: permission denied; change its permissions") from error
        raise UserError(f"{name} is corrupted or cut short ({str(error).splitlines()[0]}); {remedy}") from error

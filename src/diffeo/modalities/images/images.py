"""Images: folders of pictures, arrays and built-in sets, as one array of bytes (N, C, H, W) with labels."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffeo.errors import UserError
from diffeo.modalities.arrays import map_npy, open_npz
from diffeo.modalities.builtin import load_builtin
from diffeo.modalities.folders import Progress, name_within
from diffeo.modalities.images.decoding import PICTURES, Decoded, is_picture, read_pictures, resize
from diffeo.modalities.images.mnist import VALIDATION, load_mnist
from diffeo.modalities.images.pixels import chunks, complete, gather, to_classes, to_pixels
from diffeo.paths import encodable

__all__ = ["IMAGE_SETS", "Images", "open_images"]

IMAGE_SETS = ("digits", "mnist")
_KINDS = (*PICTURES, ".npy", ".npz")
_PIXELS = ("x", "X", "x_train")  # what an archive may call its pictures, and their labels
_LABELS = ("y", "y_train", "labels")


@dataclass(frozen=True, eq=False)
class Images:
    """Pictures, in memory or mapped into it.

    Attributes:
        pixels: (N, C, H, W) uint8, whole numbers 0 to ``levels`` - 1; perhaps read-only.
        labels: (N,) int64, positions in ``classes``, or None.
        classes: their names.
        levels: how many values a pixel can take: 256, 17 of the digits.
        name: the file's path or the set's name, for messages.
        skipped: bad files and what is wrong with each.
        notes: what else the user should know of how the pictures were read, a sentence each.
        validation: so many of the last pictures are held out for validation by custom: 10,000 of mnist, else 0.
        test: the set's own test pictures, or None.
        files: the name of each one's file within the folder; () where they come from no files.
    """

    pixels: np.ndarray
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    levels: int = 256
    name: str = "array"
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    validation: int = 0
    test: "Images | None" = None
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.pixels)

    def __repr__(self) -> str:
        """Return name, number, shape and classes."""
        known = f", {len(self.classes)} classes" if self.labels is not None else ""
        return f"Images({self.name!r}, {len(self)} x {self.shape}{known})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of shape, levels, pixels and labels, wherever they came from."""
        sha = hashlib.sha256(f"{self.pixels.shape} {self.levels}".encode())
        for part in chunks(self.pixels):
            sha.update(part.tobytes())
        if self.labels is not None:
            sha.update(f"{self.classes}".encode())
            sha.update(self.labels.tobytes())
        return sha.hexdigest()

    def part(self, rows: slice | np.ndarray) -> "Images":
        """Return the pictures of these rows, with their labels; of a slice no pixel is copied."""
        labels = None if self.labels is None else self.labels[rows]
        pixels = self.pixels[rows] if isinstance(rows, slice) else gather(self.pixels, rows)
        files = tuple(np.array(self.files, dtype=object)[rows]) if self.files else ()
        return replace(self, pixels=pixels, labels=labels, validation=0, test=None, files=files)

    def split(self) -> tuple["Images", "Images | None", "Images | None"]:
        """Return the pictures to train on, those for validation and those for the test, as custom has it."""
        if not self.validation:
            return self, None, self.test
        cut = len(self) - self.validation
        return self.part(slice(cut)), self.part(slice(cut, None)), self.test


def open_images(
    source: Any,
    size: int | Sequence[int] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Images:
    """Open images.

    Args:
        source: a folder of png or jpg files, whose sub-folders are the classes if they hold pictures; one such file; a
            .npy or .npz file; "digits" (scikit-learn's, 8 x 8, 17 levels) or "mnist", which come before a folder of
            that name (give it as ./digits, or as a ``Path``); an array, or a pair (array, labels).
            Arrays are (N, H, W), (N, C, H, W) or (N, H, W, C), C = 1 or 3, of numbers in [0, 255], or of floats in
            [0, 1]; floats are rounded to 256 levels. A .npz holds its pictures in ``x`` or ``x_train`` or a single
            array, the labels in ``y``, ``y_train`` or ``labels``, and may have ``x_test`` and ``y_test``.
        size: S or (H, W): pictures are cropped about their centre to this ratio, then resized with antialiasing.
        cache: the folder for downloads, and for pixels that are too many for memory; by default the user's cache.
        progress: called with the number of files done and of all while a folder is decoded.

    Raises:
        UserError: if the source cannot be opened as images, more than 1 % of a folder's pictures are bad, or labels
            are missing for some.
    """
    pair = None if size is None else _pair(size)
    folder = None if cache is None else Path(cache)
    images = _open(source, pair, folder, progress)
    if pair is None or images.shape[1:] == pair:
        return images
    return _resized(images, pair, folder)


def _open(source: Any, size: tuple[int, int] | None, cache: Path | None, progress: Progress | None) -> Images:
    if isinstance(source, Images):
        return source
    if isinstance(source, str) and source == "digits":
        return _digits()
    if isinstance(source, str) and source == "mnist":
        return replace(_from_arrays(load_mnist(cache), source, cache), validation=VALIDATION)
    if isinstance(source, str | Path):
        return _open_path(source, size, cache, progress)
    labels = None
    if isinstance(source, tuple) and len(source) == 2:
        source, labels = source
    if not hasattr(source, "__array__"):
        raise TypeError(f"expected a path, an array or a pair (array, labels), got {type(source).__name__}")
    arrays = {"x": np.asarray(source)} | ({} if labels is None else {"y": np.asarray(labels)})
    return _from_arrays(arrays, "array", cache)


def _open_path(
    source: str | Path, size: tuple[int, int] | None, cache: Path | None, progress: Progress | None
) -> Images:
    path = Path(source)
    kind = path.suffix.lower()
    if path.name == source and not kind and not path.exists():
        raise UserError(f"{source}: no such folder, and no built-in set of this name ({', '.join(IMAGE_SETS)})")
    try:
        if path.is_dir():
            return _open_folder(path, size, cache, progress)
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; check the path")
        if kind not in _KINDS:
            raise UserError(
                f"{path}: unknown extension {path.suffix!r}; diffeo reads images from {' '.join(_KINDS)} and from"
                f" folders of {' '.join(PICTURES)}"
            )
        if path.stat().st_size == 0:
            raise UserError(f"{path}: is empty; give a file with pictures")
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror or error})") from error
    if kind in PICTURES:
        return _from_decoded(read_pictures([path], path, size, cache), path)
    if kind == ".npy":
        return _from_arrays({"x": map_npy(path)}, str(path), cache)
    with open_npz(path) as archive:
        arrays = {name: array for name in archive.files if isinstance(array := archive[name], np.ndarray)}
    return _from_arrays(arrays, str(path), cache)


def _open_folder(folder: Path, size: tuple[int, int] | None, cache: Path | None, progress: Progress | None) -> Images:
    pictures = sorted(path for path in folder.rglob("*") if is_picture(path.relative_to(folder)) and path.is_file())
    outside = [path for path in pictures if path.parent == folder]
    files = [path for path in pictures if path.parent != folder]
    if not files and not outside:
        raise UserError(
            f"{folder}: holds no pictures ({' '.join(PICTURES)}), nor do its sub-folders; name the folder that does,"
            " or one of .parquet files"
        )
    if files and outside:
        raise UserError(
            f"{folder}: labels are missing for {len(outside)} of {len(files) + len(outside)} pictures, which lie beside"
            f" the sub-folders of the classes (first {outside[0].name}); move each into the sub-folder of its class"
        )
    decoded = read_pictures(files or outside, folder, size, cache, progress)
    images = _from_decoded(decoded, folder)
    if not files:
        return images
    labels, classes = to_classes(
        np.array([encodable(path.relative_to(folder).parts[0]) for path in decoded.files]), images.name
    )
    return replace(images, labels=labels, classes=classes)


def _from_decoded(decoded: Decoded, path: Path) -> Images:
    files = tuple(name_within(file, path) for file in decoded.files)
    return Images(
        decoded.pixels, name=str(path), skipped=tuple(decoded.skipped), notes=tuple(decoded.notes), files=files
    )


def _from_arrays(arrays: Mapping[str, np.ndarray], name: str, cache: Path | None) -> Images:
    """Return the pictures among arrays of these names, with the labels and the test pictures if there are any."""
    others = [key for key in arrays if key not in (*_LABELS, "x_test", "y_test", "classes", "levels")]
    key = next((key for key in _PIXELS if key in arrays), others[0] if len(others) == 1 else None)
    if key is None:
        listed = ", ".join(list(arrays)[:10]) or "none"
        raise UserError(f"{name}: expected pictures in an array x or x_train, or in the only one; its arrays: {listed}")
    levels = _levels(arrays.get("levels"), name)
    pixels, notes = to_pixels(arrays[key], name, levels, cache)
    images = Images(pixels, levels=levels, name=name, notes=notes)
    if "x_test" in arrays:
        pixels, notes = to_pixels(arrays["x_test"], f"{name}: x_test", levels, cache)
        test = Images(pixels, levels=levels, name=f"{name} (test)", notes=notes)
        if test.shape != images.shape:
            raise UserError(f"{name}: expected x_test of the shape {images.shape} of the others, got {test.shape}")
        images = replace(images, test=test)
    labels = next((arrays[key] for key in _LABELS if key in arrays), None)
    if labels is None:
        return images
    labels = complete(labels, len(images), name)
    if images.test is None or "y_test" not in arrays:
        labels, classes = to_classes(labels, name, arrays.get("classes"))
        return replace(images, labels=labels, classes=classes)
    unseen = complete(arrays["y_test"], len(images.test), images.test.name)
    both, classes = to_classes(np.concatenate([labels, unseen]), name)
    test = replace(images.test, labels=both[len(labels) :], classes=classes)
    return replace(images, labels=both[: len(labels)], classes=classes, test=test)


def _levels(value: np.ndarray | None, name: str) -> int:
    """How many values a pixel can take, as an archive says, or 256."""
    if value is None or value.ndim:
        return 256
    if value.dtype.kind not in "iuf" or not 2 <= value <= 256 or value % 1:
        raise UserError(f"{name}: expected levels to be a whole number from 2 to 256, got {value!r}; correct it")
    return int(value)


def _digits() -> Images:
    x, _, labels = load_builtin("digits")
    classes = tuple(str(digit) for digit in range(10))
    return Images(x.reshape(-1, 1, 8, 8).astype(np.uint8), np.asarray(labels, dtype=np.int64), classes, 17, "digits")


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if not (height >= 1 and width >= 1):
        raise ValueError(f"expected a size S or (H, W) of at least 1, got {size}")
    return int(height), int(width)


def _resized(images: Images, size: tuple[int, int], cache: Path | None) -> Images:
    test = None if images.test is None else _resized(images.test, size, cache)
    note = f"resized from {images.shape[1]}x{images.shape[2]} to {size[0]}x{size[1]}"
    pixels = resize(images.pixels, size, images.levels, cache)
    return replace(images, pixels=pixels, notes=(*images.notes, note), test=test)

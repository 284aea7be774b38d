"""Arrays of any usual layout and type -> pixels (N, C, H, W) uint8 and labels."""

from pathlib import Path

import numpy as np

from diffeo.errors import UserError
from diffeo.modalities.arrays import check_numbers
from diffeo.modalities.storage import allocate

__all__ = ["chunks", "complete", "gather", "to_classes", "to_pixels"]

_CHUNK = 1 << 22  # values converted at a time


def to_pixels(array: np.ndarray, name: str, levels: int, cache: Path | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the pictures as (N, C, H, W) uint8, and notes on how they became so."""
    check_numbers(array.dtype, name)
    array = _channels_first(array, name)
    if not array.size:
        raise UserError(f"{name}: holds no pictures, its shape is {array.shape}; give an array with some")
    if array.dtype == np.uint8 and levels == 256:
        return array, ()
    low, high = array.min(), array.max()
    if array.dtype == np.uint8 and high < levels:
        return array, ()
    if not (np.isfinite(low) and np.isfinite(high)):
        first = next(i for i, picture in enumerate(array) if not np.isfinite(picture).all())
        raise UserError(f"{name}: NaN or infinity, first in picture {first + 1}; fix or leave out what holds them")
    if not (low >= 0 and high < levels):
        raise UserError(
            f"{name}: values from {low:g} to {high:g}, expected uint8, or numbers in [0, 1] or in [0, {levels - 1}];"
            " rescale them"
        )
    scale = levels - 1 if high <= 1 and array.dtype.kind in "fb" else 1
    pixels = allocate(array.shape, cache)
    worst = 0.0
    for part, out in zip(chunks(array), chunks(pixels), strict=True):
        values = part.astype(np.float64) * scale
        out[...] = np.rint(values)
        worst = max(worst, float(abs(values - out).max()))
    notes = [f"values in [0, 1] are multiplied by {scale}"] if scale > 1 else []
    if worst > 0.1:  # more than the rounding of half precision
        notes.append(f"values are rounded to {levels} levels, by up to {worst:.2g} of a level")
    return pixels, tuple(notes)


def _channels_first(array: np.ndarray, name: str) -> np.ndarray:
    """(N, H, W), (N, C, H, W) or (N, H, W, C) -> (N, C, H, W), a view."""
    if array.ndim == 3:
        return array[:, None]
    if array.ndim != 4:
        remedy = "; a table of flattened pictures needs reshape(-1, H, W)" if array.ndim == 2 else ""
        raise UserError(f"{name}: expected (N, H, W), (N, C, H, W) or (N, H, W, C), got shape {array.shape}{remedy}")
    if array.shape[1] in (1, 3):
        return array
    if array.shape[3] in (1, 3):
        return array.transpose(0, 3, 1, 2)
    raise UserError(f"{name}: expected 1 (grey) or 3 (RGB) channels in (N, C, H, W) or (N, H, W, C), got {array.shape}")


def complete(labels: np.ndarray, count: int, name: str) -> np.ndarray:
    """Return labels (count,) of whole numbers or text, or complain."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        remedy = "; of one-hot rows take argmax(1)" if labels.ndim == 2 else ""
        raise UserError(f"{name}: expected one label a picture, got labels of shape {labels.shape}{remedy}")
    if len(labels) != count:
        what = "labels are missing for some" if len(labels) < count else "labels without pictures"
        raise UserError(f"{name}: {what}: {count} pictures and {len(labels)} labels; give one to each")
    if labels.dtype.kind not in "biufUO":
        raise UserError(f"{name}: expected labels that are whole numbers or text, got values of type {labels.dtype}")
    missing = [i for i, label in enumerate(labels.tolist()) if label is None or label != label or label == ""]
    if missing:
        raise UserError(
            f"{name}: labels are missing for {len(missing)} of {count} pictures, the first for picture"
            f" {missing[0] + 1}; complete them, or leave them all out"
        )
    if labels.dtype.kind == "f" and ((labels != np.rint(labels)) | (np.abs(labels) > 2.0**53)).any():
        raise UserError(f"{name}: expected labels that are whole numbers or text, got fractions; round them")
    return labels.astype(np.str_ if labels.dtype.kind in "UO" else np.int64)


def to_classes(labels: np.ndarray, name: str, classes: np.ndarray | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return positions in the classes, and the names of these: as given, else the labels that occur, sorted."""
    if classes is not None and classes.dtype.kind == "U" and classes.ndim == 1 and labels.dtype.kind == "i":
        if labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(f"{name}: expected labels from 0 to {len(classes) - 1}, one for each name in classes")
        return labels, tuple(str(c) for c in classes)
    present, numbers = np.unique(labels, return_inverse=True)
    return numbers.astype(np.int64), tuple(str(label) for label in present)


def gather(pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the pictures of these rows; if they are too many for memory, mapped into it as the others are."""
    gathered = allocate((len(rows), *pixels.shape[1:]))
    start = 0
    for part in chunks(gathered):
        part[...] = pixels[rows[start : start + len(part)]]
        start += len(part)
    return gathered


def chunks(array: np.ndarray) -> list[np.ndarray]:
    """Return views of a few pictures each, so that what is computed from them stays small."""
    rows = max(1, _CHUNK * len(array) // max(1, array.size))
    return [array[start : start + rows] for start in range(0, len(array), rows)]

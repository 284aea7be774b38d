"""Pictures written: a grid of them as one png, one png each, or an archive that ``open_images`` reads."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffeo.atomic import atomic_folder, atomic_write
from diffeo.errors import UserError
from diffeo.modalities.folders import in_order
from diffeo.modalities.images.decoding import as_picture

__all__ = ["save_grid", "save_npz", "save_pngs", "tiled"]

_GAP = 2  # pixels between the pictures of a grid
_VISIBLE = 56  # pixels: smaller pictures are enlarged in a grid


def save_grid(path: str | os.PathLike[str], pixels: np.ndarray, columns: int | None = None, levels: int = 256) -> None:
    """Write pictures (N, C, H, W), whole numbers 0 to ``levels`` - 1, row by row into one png.

    Small ones are enlarged by a whole factor. By default the grid is about as wide as high.

    Raises:
        UserError: if the name does not end in .png, or the file cannot be written.
    """
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{os.fspath(path)}: expected a name that ends in .png")
    shown = _displayed(pixels, levels)
    if not len(shown):
        raise ValueError("expected at least one picture, got none")
    zoom = max(1, _VISIBLE // max(shown.shape[2:]))
    shown = shown.repeat(zoom, axis=2).repeat(zoom, axis=3)
    columns = min(columns or math.isqrt(len(shown) - 1) + 1, len(shown))
    with atomic_write(path) as temporary:
        # Mid-grey, so that the edges of black and of white pictures show.
        as_picture(tiled(shown, columns, _GAP, fill=128)).save(temporary, format="PNG")


def tiled(pictures: np.ndarray, columns: int, gap: int, fill: float) -> np.ndarray:
    """Return pictures (N, C, H, W) row by row as one, (C, height, width), with so wide gaps between and around them."""
    count, channels, height, width = pictures.shape
    rows = -(-count // columns)
    board = np.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), fill, dtype=pictures.dtype)
    for i, picture in enumerate(pictures):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        board[:, top : top + height, left : left + width] = picture
    return board


def save_pngs(folder: str | os.PathLike[str], pixels: np.ndarray, levels: int = 256, force: bool = False) -> None:
    """Write pictures (N, C, H, W), whole numbers 0 to ``levels`` - 1, to 0000.png, 0001.png, ... in a new folder.

    The folder appears when all are written. With ``force`` it replaces one that holds nothing but such files.

    Raises:
        UserError: if the folder holds anything, or (with ``force``) anything else, or cannot be written.
    """
    shown = _displayed(pixels, levels)
    digits = max(4, len(str(len(shown) - 1)))
    with atomic_folder(folder, r"\d{4,}\.png", force) as temporary:

        def write(i: int) -> None:
            as_picture(shown[i]).save(temporary / f"{i:0{digits}d}.png")

        for _ in in_order(write, range(len(shown))):
            pass


def save_npz(
    path: str | os.PathLike[str],
    pixels: np.ndarray,
    labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
    levels: int = 256,
) -> None:
    """Write pictures to a .npz file, as ``open_images`` reads it: ``x``, ``levels``, ``labels`` and ``classes``.

    Raises:
        UserError: if the name does not end in .npz, or the file cannot be written.
    """
    if Path(path).suffix.lower() != ".npz":
        raise UserError(f"{os.fspath(path)}: expected a name that ends in .npz")
    arrays: dict[str, Any] = {"x": pixels, "levels": np.array(levels)}
    if labels is not None:
        arrays |= {"labels": labels, "classes": np.array(classes, dtype=np.str_)}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _displayed(pixels: np.ndarray, levels: int) -> np.ndarray:
    """Return whole numbers 0 to levels - 1 stretched to 0 to 255."""
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"expected uint8 pixels (N, 1 or 3, H, W), got {pixels.dtype} {pixels.shape}")
    stretched = np.rint(np.minimum(np.arange(256) * (255 / (levels - 1)), 255)).astype(np.uint8)
    return pixels if levels == 256 else stretched[pixels]

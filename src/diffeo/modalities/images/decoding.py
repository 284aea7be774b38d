"""Pictures in png and jpg files: decoded by a pool of threads into one array, and resized."""

import math
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffeo.errors import UserError
from diffeo.limits import limits
from diffeo.modalities.folders import Progress, Reader, Unusable, in_order, is_among, name_within
from diffeo.modalities.storage import allocate

__all__ = ["PICTURES", "Decoded", "as_picture", "is_picture", "read_pictures", "resize"]

PICTURES = (".png", ".jpg", ".jpeg")
_OTHERS = (".bmp", ".gif", ".heic", ".tif", ".tiff", ".webp")  # pictures too: counted as bad, not overlooked
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "P": 3, "PA": 3, "RGB": 3, "RGBA": 3}  # of Pillow's modes with 8 bits or fewer
_LARGE = 1 << 23  # pixels of pictures that are decoded one after the other
_ONE_AT_A_TIME = Lock()
_SHOWN = 3  # sizes named in a message


class Decoded(NamedTuple):
    """Pixels (N, C, H, W) uint8, the N files they came from, the bad files with their reasons, and notes."""

    pixels: np.ndarray
    files: list[Path]
    skipped: list[tuple[str, str]]
    notes: list[str]


class _Header(NamedTuple):
    height: int
    width: int
    channels: int


class _Picture(NamedTuple):
    pixels: np.ndarray  # (C, H, W)
    transparent: bool


def is_picture(path: Path) -> bool:
    """Return whether a path within a folder names a picture, readable or not, and nothing in it is hidden."""
    return is_among(path, (*PICTURES, *_OTHERS))


def read_pictures(
    files: Sequence[Path],
    root: Path,
    size: tuple[int, int] | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Decoded:
    """Decode the files, in their order, leaving out bad ones: truncated, animated, of 16 bits, CMYK, ...

    Where any picture is RGB all are; what is transparent is laid on white; photographs are turned upright. For
    ``size`` (H, W) a picture is cropped about its centre to that ratio, then resized with antialiasing.

    Args:
        files: paths.
        root: the folder that names in messages are relative to.
        size: (H, W); None if all have the same.
        cache: the folder for pixels that are too many for memory.
        progress: called with the number of files done and of all.

    Raises:
        UserError: if more than 1 % of the files are bad, or sizes differ and ``size`` is None.
    """
    reader = Reader(files, root, "pictures", UnidentifiedImageError, "damaged, empty, or no png or jpg")
    headers = dict(reader.read(_header, files))
    height, width = size or _common_size(headers, root)
    channels = max(header.channels for header in headers.values())
    pixels = allocate((len(headers), channels, height, width), cache)
    good: list[Path] = []
    transparent = 0
    for path, picture in reader.read(partial(_decode, channels, (height, width)), list(headers), progress):
        pixels[len(good)] = picture.pixels
        transparent += picture.transparent
        good.append(path)
    grey = sum(headers[path].channels == 1 for path in good)
    notes = reader.notes(
        (grey if channels == 3 else 0, "are grey, the others RGB: all are read as RGB"),
        (transparent, "have transparent pixels: these are laid on white"),
        (
            sum(headers[path].height < height or headers[path].width < width for path in good),
            f"are smaller than {height}x{width} and were enlarged",
        ),
    )
    return Decoded(pixels[: len(good)], good, reader.skipped, notes)


def resize(pixels: np.ndarray, size: tuple[int, int], levels: int = 256, cache: Path | None = None) -> np.ndarray:
    """Return pictures (N, C, H, W) cropped about their centres to the ratio of ``size`` (H, W) and resized to it."""
    resized = allocate((*pixels.shape[:2], *size), cache)
    for i, picture in enumerate(in_order(lambda p: _array(_fit(as_picture(p), size)), pixels)):
        resized[i] = picture
    return np.minimum(resized, levels - 1, out=resized)  # the antialiasing overshoots at edges


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Yield the picture, of which only the header is read yet, if it is one that diffeo can use."""
    with _identified(path) as picture:
        width, height = picture.size
        if width * height > limits().pixels:
            raise Unusable(
                f"{width} x {height} pixels, more than {limits().pixels:,}; make it smaller, or raise the limit with"
                f" --max-pixels {width * height}"
            )
        frames = getattr(picture, "n_frames", 1)
        if frames > 1 and picture.format != "MPO":  # a jpg whose camera put a preview behind it
            raise Unusable(f"an animated {picture.format} of {frames} frames; save one of them as png")
        if picture.format == "GIF":
            raise Unusable("a GIF; convert it to png")
        # Pillow would cut 16-bit colours to 8 bits without a word.
        if "16" in picture.mode or picture.mode in ("I", "F") or (picture.tile and "16" in str(picture.tile[0][3])):
            raise Unusable("more than 8 bits a channel; convert it to 8 bits")
        if picture.mode not in _CHANNELS:
            raise Unusable(f"{picture.mode} colours; convert it to RGB")
        yield picture


def _identified(path: Path) -> Any:
    """Return a picture of which the header is read, as ``Image.open`` does, which has a limit of its own to pixels."""
    Image.preinit()
    with path.open("rb") as file:
        start = file.read(16)
    for kind in ("PNG", "JPEG", "GIF"):
        make, accepts = Image.OPEN[kind]
        if accepts is None or accepts(start) is True:
            try:
                return make(str(path), "")  # type: ignore[arg-type]  # a name, which it opens
            except (SyntaxError, IndexError, TypeError, KeyError, struct.error) as error:
                raise UnidentifiedImageError(f"cannot identify {path}") from error
    raise UnidentifiedImageError(f"cannot identify {path}")


def _header(path: Path) -> _Header:
    with _opened(path) as picture:
        width, height = picture.size
        if _turned(picture) and picture.getexif().get(0x0112, 1) > 4:  # orientations 5 to 8 lie on their side
            width, height = height, width
        channels = _CHANNELS[picture.mode]
        if picture.mode == "P":
            palette = np.reshape(picture.getpalette("RGB") or (), (-1, 3))
            channels = 1 if (palette == palette[:, :1]).all() else 3
        return _Header(height, width, channels)


def _decode(channels: int, size: tuple[int, int], path: Path) -> _Picture:
    with _opened(path) as opened, _ONE_AT_A_TIME if math.prod(opened.size) > _LARGE else nullcontext():
        picture: Image.Image = opened
        # A jpg decodes several times faster at 1/2, 1/4 or 1/8 of its size; what is left still has to shrink by 2.
        picture.draft(None, (2 * max(size), 2 * max(size)))
        picture.load()
        if _turned(picture):
            picture = ImageOps.exif_transpose(picture)
        transparent = False
        if picture.has_transparency_data:
            layer = picture.convert("RGBA")
            transparent = bool(np.asarray(layer.getchannel("A")).min() < 255)
            picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        picture = _fit(picture.convert("RGB" if channels == 3 else "L"), size)
        return _Picture(_array(picture), transparent)


def _turned(picture: Image.Image) -> bool:
    """Return whether the camera may have noted which side is up; only in a jpg does that come before the pixels."""
    return picture.format in ("JPEG", "MPO")


def _fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    if picture.size == (width, height):
        return picture
    return ImageOps.fit(picture, (width, height), method=Image.Resampling.LANCZOS)


def _array(picture: Image.Image) -> np.ndarray:
    """(H, W) or (H, W, C) -> (C, H, W)."""
    array = np.asarray(picture)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def as_picture(pixels: np.ndarray) -> Image.Image:
    """Return pixels (C, H, W) as a grey or RGB picture."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _common_size(headers: dict[Path, _Header], root: Path) -> tuple[int, int]:
    sizes = Counter((header.height, header.width) for header in headers.values())
    if len(sizes) > 1:
        first = {(header.height, header.width): path for path, header in reversed(headers.items())}
        listed = ", ".join(
            f"{h}x{w} ({count}, as {name_within(first[h, w], root)})" for (h, w), count in sizes.most_common(_SHOWN)
        )
        raise UserError(
            f"{root}: pictures of {len(sizes)} sizes, {listed}{', ...' if len(sizes) > _SHOWN else ''};"
            " give one size for all with --size, to which they are cropped and resized"
        )
    return next(iter(sizes))

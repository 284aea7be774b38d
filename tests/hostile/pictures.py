"""Pictures and arrays of them: cut short, of wrong sizes and types, with labels that are none."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from hostile.judge import OUT, Case
from hostile.models import SMALL, Models

ESCAPES = "\x1b[31m\x07\u202e"


def _fit(data: Path) -> list[Any]:
    return ["fit", data, "--out", f"{OUT}/run", "--model", "realnvp", "--hidden", "4", "--transforms", "1", *SMALL]


def cases(models: Models) -> list[Case]:
    """All of them."""
    return [*_damaged(models), *_headers(models), *_arrays(models), *_folders(models)]


def png(
    width: int, height: int, depth: int = 8, colours: int = 0, data: bytes | None = None, chunks: bytes = b""
) -> bytes:
    """A png whose header says so, whatever its data are."""
    head = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, colours, 0, 0, 0)
    data = zlib.compress(bytes((width + 1) * height)) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunks + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a png."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _encoded(kind: str, mode: str = "L", size: tuple[int, int] = (4, 4), **options: Any) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 4), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _one(name: str, data: bytes, models: Models) -> Callable[[Path], list[Any]]:
    """One picture among others, in a folder, scored."""

    def write(folder: Path) -> list[Any]:
        (folder / name).write_bytes(data)
        return ["score", models.run("images"), folder / name, "--out", f"{OUT}/s.csv"]

    return write


def _damaged(models: Models) -> Iterator[Case]:
    for kind, suffix in (("PNG", ".png"), ("JPEG", ".jpg")):
        whole = _encoded(kind)
        for k in range(6):
            cut = len(whole) * k // 6
            yield Case(f"{kind} cut at {cut}", _one(f"x{suffix}", whole[:cut], models), named=f"x{suffix}")
            at = len(whole) * (2 * k + 1) // 12
            data = whole[:at] + bytes([whole[at] ^ (1 << k % 8)]) + whole[at + 1 :]
            yield Case(f"{kind} byte {at}", _one(f"x{suffix}", data, models), named=f"x{suffix}")


def _headers(models: Models) -> Iterator[Case]:
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", ESCAPES, zip=True)
    zipped = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))
    contents: dict[str, bytes] = {
        "no width": png(0, 4), "no height": png(4, 0), "a width of 2^31": png(2**31, 4, data=b""), "a size of 2^31": png(2**31 - 1, 2**31 - 1, data=b""),
        "a negative width": png(-4, 4, data=b""), "a depth of 3": png(4, 4, 3), "a depth of 16": png(4, 4, 16), "colours 7": png(4, 4, 8, 7), "a palette without one": png(4, 4, 8, 3),
        "no data": png(4, 4, data=b""), "data that are none": png(4, 4, data=b"text"), "too few data": png(4, 4, data=zlib.compress(b"\0")),
        "too many data": png(4, 4, data=zlib.compress(bytes(10_000_000))), "a filter of 9": png(4, 4, data=zlib.compress(b"\x09" * 20)), "a text of 100 MB": png(4, 4, chunks=zipped),
        "a profile that is none": png(4, 4, chunks=chunk(b"iCCP", b"x")), "transparency without a palette": png(4, 4, chunks=chunk(b"tRNS", b"\0")),
        "a large transparency": png(4, 4, chunks=chunk(b"tRNS", bytes(9000))), "gamma 0": png(4, 4, chunks=chunk(b"gAMA", bytes(4))), "two headers": png(4, 4, chunks=png(4, 4)[8:33]),
        "an unknown critical part": png(4, 4, chunks=chunk(b"ABCD", b"x")), "1 bit": png(4, 4, 1, data=zlib.compress(bytes(8))), "escapes in a text": _encoded("PNG", pnginfo=text),
        "RGBA": _encoded("PNG", "RGBA"), "LA": _encoded("PNG", "LA"), "P": _encoded("PNG", "P"), "interlaced": _encoded("PNG", "RGB"), "16 bits": png(4, 4, 16, data=zlib.compress(bytes(36))),
        "CMYK": _encoded("JPEG", "CMYK"), "YCbCr": _encoded("JPEG", "YCbCr"), "on its side": _encoded("JPEG", "RGB", (4, 8), exif=exif), "exif that is none": _encoded("JPEG", exif=b"Exif\0\0MM"),
        "a GIF": _encoded("GIF"), "a BMP": _encoded("BMP"), "a TIFF": _encoded("TIFF"), "a WEBP": _encoded("WEBP") if _has_webp() else b"RIFF", "text": b"text", "nothing": b"",
        "html": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "zeros": bytes(500), "an ICO": _encoded("ICO"), "a PPM": b"P6 4 4 255\n" + bytes(48), "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n", "larger": _encoded("PNG", "L", (9, 9)),
        "smaller": _encoded("PNG", "L", (1, 1)),
    }  # fmt: skip
    for name, data in contents.items():
        yield Case(f"png: {name}", _one("x.png", data, models), named="x.png")


def _has_webp() -> bool:
    from PIL import features

    return bool(features.check("webp"))


def _arrays(models: Models) -> Iterator[Case]:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    labels = np.arange(20) % 2
    content: dict[str, dict[str, Any]] = {
        "levels NaN": {"x": pixels, "levels": np.array(np.nan)}, "levels of text": {"x": pixels, "levels": np.array("many")}, "levels 1e30": {"x": pixels, "levels": np.array(1e30)},
        "levels inf": {"x": pixels, "levels": np.array(np.inf)}, "levels 0": {"x": pixels, "levels": np.array(0)}, "levels -1": {"x": pixels, "levels": np.array(-1)}, "levels 1": {"x": pixels * 0, "levels": np.array(1)},
        "levels 2.5": {"x": pixels % 3, "levels": np.array(2.5)}, "levels of a date": {"x": pixels, "levels": np.array("2024-01-01", "M8[D]")}, "levels true": {"x": pixels % 2, "levels": np.array(True)},
        "levels 300": {"x": pixels, "levels": np.array(300)}, "levels of lists": {"x": pixels, "levels": np.array([256])}, "levels complex": {"x": pixels, "levels": np.array(3j)}, "levels 2^70": {"x": pixels, "levels": np.array("9" * 30)},
        "NaN": {"x": pixels / np.where(pixels > 3, 255, np.nan)}, "infinity": {"x": np.full((20, 4, 4), np.inf)}, "1e308": {"x": pixels * 1e300}, "negative": {"x": -pixels.astype(int)}, "256": {"x": pixels.astype(int) + 200},
        "whole numbers of 64 bits": {"x": np.full((20, 4, 4), 2**62)}, "unsigned": {"x": np.full((20, 4, 4), 2**64 - 1, np.uint64)}, "complex": {"x": pixels * 1j}, "text": {"x": np.full((20, 4, 4), "a")}, "dates": {"x": pixels.astype("M8[D]")},
        "one dimension": {"x": pixels[0, 0]}, "two dimensions": {"x": pixels[0]}, "five dimensions": {"x": pixels[None, None]}, "no pictures": {"x": pixels[:0]}, "no pixels": {"x": pixels[:, :0]}, "two channels": {"x": np.zeros((20, 2, 4, 4), np.uint8)},
        "a picture of a scalar": {"x": np.array(3)}, "several arrays": {"p": pixels, "q": pixels}, "names of escapes": {ESCAPES: pixels, "q" * 9999: pixels}, "none": {},
        "labels too few": {"x": pixels, "y": labels[:3]}, "labels NaN": {"x": pixels, "y": np.full(20, np.nan)}, "labels 1e308": {"x": pixels, "y": np.where(labels, 1e308, 0)}, "labels of escapes": {"x": pixels, "y": np.where(labels, ESCAPES, "b")},
        "labels 0.5": {"x": pixels, "y": labels / 2}, "labels of two dimensions": {"x": pixels, "y": np.eye(20)}, "labels beyond the classes": {"x": pixels, "y": labels + 5, "classes": np.array(["a", "b"])},
        "labels below 0": {"x": pixels, "y": labels - 5, "classes": np.array(["a", "b"])}, "classes of escapes": {"x": pixels, "y": labels, "classes": np.array([ESCAPES, "b" * 9999])}, "classes of numbers": {"x": pixels, "y": labels, "classes": np.array([1.5, np.nan])},
        "a long label": {"x": pixels, "y": np.where(labels, "x" * 99_999, "b")}, "a test of another shape": {"x": pixels, "x_test": pixels[:, :2]}, "a test of NaN": {"x": pixels, "x_test": np.full((2, 4, 4), np.nan)},
        "labels complex": {"x": pixels, "y": labels * 1j}, "labels 2^64": {"x": pixels, "y": labels.astype(np.uint64) + np.uint64(2**64 - 2)}, "empty labels": {"x": pixels, "y": np.where(labels, "", "b")},
    }  # fmt: skip
    for name, arrays in content.items():
        file = io.BytesIO()
        np.savez(file, **arrays)

        def write(folder: Path, data: bytes = file.getvalue()) -> list[Any]:
            (folder / "x.npz").write_bytes(data)
            return _fit(folder / "x.npz")

        yield Case(f"npz: {name}", write, named="x.npz")


def _folders(models: Models) -> Iterator[Case]:
    good = _encoded("PNG")

    def of(files: dict[str, bytes], fits: bool = False) -> Callable[[Path], list[Any]]:
        def write(folder: Path) -> list[Any]:
            for name, data in files.items():
                path = folder / "data" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            if fits:
                return _fit(folder / "data")
            return ["score", models.run("images"), folder / "data", "--out", f"{OUT}/s.csv"]

        return write

    strange = os.fsdecode(b"a\xff\xfe")
    folders: dict[str, dict[str, bytes]] = {
        "bad ones with escapes": {f"{ESCAPES}{i}.png": b"text" for i in range(9)}, "good ones with escapes": {f"{ESCAPES}{i}.png": good for i in range(9)},
        "names that are no UTF-8": {f"{strange}{i}.png": good for i in range(9)}, "bad ones that are no UTF-8": {f"{strange}{i}.png": b"text" for i in range(9)}, "long names": {f"{i}{'x' * 240}.png": b"text" for i in range(9)},
        "classes of escapes": {f"{ESCAPES}{c}/{i}.png": good for i in range(6) for c in "ab"}, "classes that are no UTF-8": {f"{strange}{c}/{i}.png": good for i in range(6) for c in "ab"}, "classes and others": {"a/1.png": good, "2.png": good},
        "lines": {f"a\nb{i}.png": b"text" for i in range(3)}, "two sizes": {"a.png": good, f"{ESCAPES}.png": _encoded("PNG", "L", (5, 5))}, "GIFs": {f"{i}.gif": good for i in range(4)}, "nothing": {"x.txt": b""}, "hidden ones": {".a.png": good},
        "grey and RGB": {"a.png": good, "b.png": _encoded("PNG", "RGB")}, "deep folders": {"/".join(["d" * 50] * 20) + "/a.png": good}, "a folder with a suffix": {"a.png/b.png": good},
    }  # fmt: skip
    for k, (name, files) in enumerate(folders.items()):
        for fits in (False, True)[k % 2 :]:
            yield Case(f"folder: {name}{', learned' * fits}", of(files, fits), named="data")

    def piped(folder: Path) -> list[Any]:
        (folder / "data").mkdir()
        os.mkfifo(folder / "data" / "a.png")
        (folder / "data" / "b.png").symlink_to("/dev/zero")
        (folder / "data" / "c.png").symlink_to("c.png")
        (folder / "data" / "d").symlink_to("..")
        return ["score", models.run("images"), folder / "data", "--out", f"{OUT}/s.csv"]

    yield Case("folder: pipes, devices and loops", piped, refused=True, named="data", seconds=5)

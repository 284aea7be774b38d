"""Recordings: headers that lie, samples that are no sound, files cut short."""

import io
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from hostile.judge import OUT, Case
from hostile.models import SMALL, Models

ESCAPES = "\x1b[31m\x07\u202e"
SOUND = 0.1 * np.random.default_rng(0).normal(size=400)


def cases(models: Models) -> list[Case]:
    """All of them."""
    return [*_headers(models), *_damaged(models), *_samples(models), *_folders(models)]


def wav(
    rate: int = 4000,
    channels: int = 1,
    bits: int = 16,
    form: int = 1,
    size: int | None = None,
    data: bytes | None = None,
) -> bytes:
    """A wav whose header says so."""
    data = (SOUND * 2**15).astype("<i2").tobytes() if data is None else data
    size = len(data) if size is None else size
    block = channels * bits // 8
    head = struct.pack(
        "<HHIIHH", form, channels & 0xFFFF, rate & 0xFFFFFFFF, rate * block & 0xFFFFFFFF, block & 0xFFFF, bits
    )
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", len(body) & 0xFFFFFFFF) + body


def _encoded(kind: str, sound: np.ndarray = SOUND, rate: int = 4000, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=kind, subtype=subtype)
    return file.getvalue()


def _one(name: str, data: bytes, models: Models) -> Callable[[Path], list[Any]]:
    def write(folder: Path) -> list[Any]:
        (folder / name).write_bytes(data)
        return ["score", models.run("audio"), folder / name, "--out", f"{OUT}/s.csv"]

    return write


def _fit(path: Path) -> list[Any]:
    words = ["--crop", "0.02", "--set", "layers=1", "--set", "channels=4", "--set", "skip=4", *SMALL]
    return ["fit", path, "--out", f"{OUT}/run", "--model", "wavenet", *words]


def _headers(models: Models) -> Iterator[Case]:
    contents: dict[str, bytes] = {
        **{f"a rate of {rate}": wav(rate) for rate in (0, 2, 7, 3999, 2**31 - 1, 2**32 - 1)}, **{f"{channels} channels": wav(channels=channels) for channels in (0, 2, 3, 255, 1000, 65535)},
        **{f"{bits} bits": wav(bits=bits) for bits in (0, 1, 7, 24, 32, 64, 65535)}, **{f"the format {form}": wav(form=form) for form in (0, 2, 3, 6, 17, 85, 65534, 65535)},
        **{f"{size} bytes of data": wav(size=size) for size in (0, 1, 3, 2**31, 2**32 - 1)}, "no data": wav(data=b""), "one sample": wav(data=b"\1\2"), "half a sample": wav(data=b"\1"), "two samples": wav(data=b"\1\2\3\4"),
    }  # fmt: skip
    for name, data in contents.items():
        yield Case(f"wav: {name}", _one("x.wav", data, models), named="x.wav")


def _damaged(models: Models) -> Iterator[Case]:
    for kind, suffix in (("WAV", ".wav"), ("FLAC", ".flac"), ("OGG", ".ogg")):
        whole = _encoded(kind)
        for k in range(4):
            cut = len(whole) * k // 4
            yield Case(f"{kind} cut at {cut}", _one(f"x{suffix}", whole[:cut], models), named=f"x{suffix}")
            at = len(whole) * (2 * k + 1) // 8 if kind != "WAV" else 6 * k + 4
            data = whole[:at] + bytes([whole[at] ^ (1 << k)]) + whole[at + 1 :]
            yield Case(f"{kind} byte {at}", _one(f"x{suffix}", data, models), named=f"x{suffix}")


def _samples(models: Models) -> Iterator[Case]:
    contents: dict[str, bytes] = {
        "NaN": _encoded("WAV", SOUND * np.nan, subtype="FLOAT"), "infinity": _encoded("WAV", SOUND * np.inf, subtype="FLOAT"), "1e30": _encoded("WAV", SOUND * 1e30, subtype="FLOAT"),
        "1e300": _encoded("WAV", SOUND * 1e300, subtype="DOUBLE"), "a denormal": _encoded("WAV", SOUND * 1e-310, subtype="DOUBLE"), "silence": _encoded("WAV", SOUND * 0), "a constant": _encoded("WAV", SOUND * 0 + 0.5),
        "too loud": _encoded("WAV", SOUND * 30, subtype="FLOAT"), "24 bits": _encoded("WAV", SOUND, subtype="PCM_24"), "mu-law": _encoded("WAV", SOUND, subtype="ULAW"), "8 bits": _encoded("WAV", SOUND, subtype="PCM_U8"),
        "an MP3 by name": b"ID3\x03" + bytes(400), "text": b"text", "nothing": b"", "zeros": bytes(400), "html": b"<html>", "an AIFF": _encoded("AIFF"), "a RIFF of AVI": b"RIFF\x10\0\0\0AVI LIST" + bytes(99), "escapes": ESCAPES.encode() * 50,
    }  # fmt: skip
    for name, data in contents.items():
        yield Case(f"sound: {name}", _one("x.wav", data, models), named="x.wav")


def _folders(models: Models) -> Iterator[Case]:
    good, strange = wav(), os.fsdecode(b"a\xff\xfe")
    folders: dict[str, dict[str, bytes]] = {
        "bad ones with escapes": {f"{ESCAPES}{i}.wav": b"text" for i in range(4)}, "good ones with escapes": {f"{ESCAPES}{i}.wav": good for i in range(4)}, "names that are no UTF-8": {f"{strange}{i}.wav": good for i in range(4)},
        "bad ones that are no UTF-8": {f"{strange}{i}.wav": b"text" for i in range(4)}, "long names": {f"{i}{'x' * 240}.wav": b"text" for i in range(4)}, "nothing": {"x.txt": b""}, "MP3s": {f"{i}.mp3": good for i in range(4)},
        "several rates": {f"{rate}.wav": wav(rate) for rate in (3000, 4000, 8000)}, "lines": {f"a\nb{i}.wav": b"text" for i in range(3)},
    }  # fmt: skip
    for k, (name, files) in enumerate(folders.items()):
        for fits in (False, True)[k % 2 :]:

            def write(folder: Path, files: dict[str, bytes] = files, fits: bool = fits) -> list[Any]:
                (folder / "data").mkdir()
                for file, data in files.items():
                    (folder / "data" / file).write_bytes(data)
                if fits:
                    return _fit(folder / "data")
                return ["score", models.run("audio"), folder / "data", "--out", f"{OUT}/s.csv"]

            yield Case(f"folder: {name}{', learned' * fits}", write, named="data")

    def piped(folder: Path) -> list[Any]:
        (folder / "data").mkdir()
        os.mkfifo(folder / "data" / "a.wav")
        (folder / "data" / "b.wav").symlink_to("/dev/zero")
        return ["score", models.run("audio"), folder / "data", "--out", f"{OUT}/s.csv"]

    yield Case("folder: pipes and devices", piped, refused=True, named="data", seconds=5)
    for pattern in ("[", "(" * 5000, "(a+)+$", "\x1b[31m(", "(?P<a>", "x" * 99_999, "\udcff"):
        yield Case(
            f"a pattern of {pattern[:8]!r}",
            lambda folder, pattern=pattern: [
                *_fit(models.data("audio")),
                "--context",
                "label",
                "--label-pattern",
                pattern,
            ],
            named=None,
        )

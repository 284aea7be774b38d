"""Recordings in sound files: decoded by a pool of threads into one array of 16-bit values, and written."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffeo.atomic import atomic_folder
from diffeo.modalities.folders import Progress, Reader, Unusable, is_among
from diffeo.modalities.storage import allocate

__all__ = ["FULL_SCALE", "SOUNDS", "Recordings", "is_sound", "read_recordings", "save_wavs"]

SOUNDS = (".wav", ".flac", ".ogg")
FULL_SCALE = 2**15  # 16-bit values are those of [-1, 1) times this
_OTHERS = (".aac", ".aif", ".aiff", ".m4a", ".mp3", ".opus", ".wma")  # sound too: counted as bad, not overlooked
RATES = (100, 1_000_000)  # samples per second of a recording
_RESAMPLED = 64  # by such a factor at most
_LOUD = 0.01  # the share of samples beyond full scale above which they are no accident
_SHOWN = 3  # sampling rates named in a note


class Recordings(NamedTuple):
    """Samples (total,) int16, file after file, with the N + 1 ``starts`` that divide them, and what became of files."""

    samples: np.ndarray
    starts: np.ndarray
    rate: int
    files: list[Path]
    skipped: list[tuple[str, str]]
    notes: list[str]


class _Header(NamedTuple):
    frames: int
    rate: int
    channels: int
    wide: bool  # more than 16 bits


class _Sound(NamedTuple):
    samples: np.ndarray  # (n,) int16
    cut: int  # samples beyond full scale


def is_sound(path: Path) -> bool:
    """Return whether a path within a folder names a recording, readable or not, and nothing in it is hidden."""
    return is_among(path, (*SOUNDS, *_OTHERS))


def read_recordings(
    files: Sequence[Path],
    root: Path,
    rate: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Recordings:
    """Decode the files, in their order, leaving out bad ones: no sound, NaN, silent throughout, far beyond full scale.

    Channels are averaged; other rates are resampled (polyphase, scipy's ``resample_poly``); everything becomes 16-bit.

    Args:
        files: paths.
        root: the folder that names in messages are relative to.
        rate: samples per second of the result; by default what most files have.
        cache: the folder for samples that are too many for memory.
        progress: called with the number of files done and of all.

    Raises:
        UserError: if more than 1 % of the files are bad.
    """
    import soundfile  # loads a library of its own, so only when asked for

    reader = Reader(files, root, "recordings", soundfile.LibsndfileError, "damaged, empty, or no sound")
    headers = dict(reader.read(_header, files))
    rates = Counter(header.rate for header in headers.values())
    rate = rate or rates.most_common(1)[0][0]
    samples = allocate((sum(_length(header, rate) for header in headers.values()),), cache, np.int16)
    good: list[Path] = []
    starts = [0]
    cut = 0
    for path, sound in reader.read(partial(_decode, rate), list(headers), progress):
        starts.append(starts[-1] + len(sound.samples))
        samples[starts[-2] : starts[-1]] = sound.samples
        cut += sound.cut
        good.append(path)
    others = [f"{other} Hz" for other, _ in rates.most_common() if other != rate]
    listed = ", ".join(others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
    notes = reader.notes(
        (sum(headers[path].rate != rate for path in good), f"were resampled to {rate} Hz, from {listed}"),
        (sum(headers[path].channels > 1 for path in good), "have several channels: their average is used"),
        (sum(headers[path].wide for path in good), "have more than 16 bits: they are rounded to 16"),
    )
    if cut:
        notes.append(f"{cut} samples beyond full scale were cut off")
    return Recordings(samples[: starts[-1]], np.array(starts, dtype=np.int64), rate, good, reader.skipped, notes)


def save_wavs(
    folder: str | os.PathLike[str], clips: Iterable[np.ndarray], rate: int, force: bool = False
) -> dict[str, int]:
    """Write sounds (n,), floats in [-1, 1), to 0000.wav, 0001.wav, ... (16-bit, one channel) in a new folder.

    The folder is claimed before the first sound is asked for, and appears when all are written. With ``force`` it
    replaces one that holds nothing but such files. Peaks beyond full scale are cut off there (a 16-bit value would wrap
    around to the other side), NaN becomes 0.

    Returns:
        How many samples were cut off, and how many were not finite.

    Raises:
        UserError: if the folder holds anything, or (with ``force``) anything else, or cannot be written.
    """
    import soundfile

    cut = bad = 0
    with atomic_folder(folder, r"\d{4,}\.wav", force) as temporary:
        for i, clip in enumerate(clips):
            finite = np.isfinite(clip)
            bad += int((~finite).sum())
            values, beyond = _to_16_bits(np.where(finite, clip, 0))
            cut += beyond
            soundfile.write(temporary / f"{i:04d}.wav", values, rate, subtype="PCM_16")
    return {"cut": cut, "non_finite": bad}


def _length(header: _Header, rate: int) -> int:
    """Return how many samples a file has once it is resampled."""
    return -(-header.frames * rate // header.rate)


def _header(path: Path) -> _Header:
    import soundfile

    if path.suffix.lower() in _OTHERS:
        raise Unusable(f"a {path.suffix}; convert it to wav or flac")
    with path.open("rb"):
        pass  # the system's own words for what cannot be opened are better than libsndfile's
    info = soundfile.info(path)
    if not info.frames:
        raise Unusable("holds no samples; remove it")
    if not RATES[0] <= info.samplerate <= RATES[1]:
        raise Unusable(f"a rate of {info.samplerate:,} Hz, expected {RATES[0]} to {RATES[1]:,}; correct its header")
    wide = info.subtype not in ("PCM_S8", "PCM_U8", "PCM_16", "ULAW", "ALAW", "VORBIS")
    return _Header(info.frames, info.samplerate, info.channels, wide)


def _decode(rate: int, path: Path) -> _Sound:
    import soundfile
    from scipy.signal import resample_poly

    with path.open("rb") as file:
        channels, own_rate = soundfile.read(file, dtype="float32", always_2d=True)  # (n, channels)
    if not rate / _RESAMPLED <= own_rate <= rate * _RESAMPLED:
        raise Unusable(f"a rate of {own_rate:,} Hz beside {rate:,} Hz; leave it out, or give another --rate")
    sound = channels.mean(1)
    if not np.isfinite(sound).all():
        raise Unusable("holds NaN or infinity; fix or remove it")
    if own_rate != rate:
        common = math.gcd(rate, own_rate)
        sound = resample_poly(sound, rate // common, own_rate // common)
    values, beyond = _to_16_bits(sound)
    if beyond > _LOUD * len(sound):
        raise Unusable(f"values up to {np.abs(sound).max():g}, expected [-1, 1]; rescale it")
    if (values == values[:1]).all():
        raise Unusable("silent throughout; remove it")
    return _Sound(values, beyond)


def _to_16_bits(sound: np.ndarray) -> tuple[np.ndarray, int]:
    """Return floats of [-1, 1) as int16, and how many of them lay outside (1 itself, as floats have it, does not)."""
    values = np.rint(np.asarray(sound, dtype=np.float64) * FULL_SCALE)
    beyond = int((np.abs(values) > FULL_SCALE).sum())
    return values.clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16), beyond

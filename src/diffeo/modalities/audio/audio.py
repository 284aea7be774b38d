"""Audio: folders of recordings and built-in sets, as one array of 16-bit values with the clips' lengths and labels."""

import glob
import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffeo.errors import UserError
from diffeo.legible import legible
from diffeo.modalities.audio.fsdd import SPEAKERS, TEST_TAKES, find_fsdd
from diffeo.modalities.audio.recordings import FULL_SCALE, SOUNDS, is_sound, read_recordings
from diffeo.modalities.folders import Progress, name_within
from diffeo.modalities.images.pixels import to_classes

__all__ = ["AUDIO_SETS", "Audio", "open_audio"]

AUDIO_SETS = ("fsdd", *(f"fsdd-{speaker}" for speaker in SPEAKERS))
FOLDER_PATTERN, NAME_PATTERN = r"^([^/]+)/", r"([^/_]+)_[^/]*$"
_LISTED = 10  # classes named in a message


@dataclass(frozen=True, eq=False)
class Audio:
    """Recordings of one channel at one rate, in memory or mapped into it.

    Attributes:
        samples: (total,) int16, clip after clip; perhaps read-only.
        starts: (N + 1,) int64: clip i is ``samples[starts[i] : starts[i + 1]]``.
        rate: samples per second.
        files: the clips' names, with / between folders.
        labels: (N,) int64, positions in ``classes``, or None.
        classes: their names.
        pattern: the regular expression that found the labels in ``files``, or "".
        name: the folder's path or the set's name, for messages.
        skipped: bad files and what is wrong with each.
        notes: what else the user should know of how the recordings were read, a sentence each.
        test: the set's own test clips, or None.
    """

    samples: np.ndarray
    starts: np.ndarray
    rate: int
    files: tuple[str, ...]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    pattern: str = ""
    name: str = "audio"
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    test: "Audio | None" = None

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.starts) - 1

    def __repr__(self) -> str:
        """Return name, number, duration, rate and classes."""
        known = f", {len(self.classes)} classes" if self.labels is not None else ""
        return f"Audio({self.name!r}, {len(self)} clips of {self.seconds:.1f} s in all at {self.rate} Hz{known})"

    @property
    def lengths(self) -> np.ndarray:
        """Samples of each clip, (N,)."""
        return np.diff(self.starts)

    @property
    def seconds(self) -> float:
        """How long all clips are together."""
        return len(self.samples) / self.rate

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of rate, lengths, samples and labels, wherever they came from."""
        sha = hashlib.sha256(f"{self.rate} {self.classes}".encode())
        for part in (self.starts, self.samples, self.labels):
            if part is not None:
                sha.update(np.ascontiguousarray(part).data)
        return sha.hexdigest()

    def clip(self, index: int) -> np.ndarray:
        """Return one clip (n,), int16."""
        return self.samples[self.starts[index] : self.starts[index + 1]]

    def scaled(self, index: int) -> np.ndarray:
        """Return one clip (n,) as float32 in [-1, 1)."""
        return self.clip(index).astype(np.float32) / FULL_SCALE

    def labelled(self, pattern: str | None = None, classes: tuple[str, ...] = ()) -> "Audio":
        """Return the same clips with the labels that a regular expression finds in their names.

        The label is the expression's first group, or all that matched. By default it is the sub-folder where all files
        lie in some, else what comes before the first _ in the name.

        Args:
            pattern: the expression, searched in the names without their extension.
            classes: the labels that there may be; by default those that are found.

        Raises:
            UserError: if it is no regular expression, some names do not match, labels are not among ``classes``, or
                (without ``classes``) there are as many labels as clips, or only one.
        """
        nested = all("/" in file for file in self.files)
        chosen = pattern or (FOLDER_PATTERN if nested else NAME_PATTERN)
        try:
            matches = [re.search(chosen, file.rsplit(".", 1)[0]) for file in self.files]
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(
                f"--label-pattern {legible(chosen, 80)!r} is no regular expression ({error}); correct it"
            ) from error
        unmatched = [file for file, match in zip(self.files, matches, strict=True) if match is None]
        if unmatched:
            raise UserError(
                f"{self.name}: no label in the name of {len(unmatched)} of {len(self)} recordings (first"
                f" {unmatched[0]}); the pattern is {chosen!r}: give another with --label-pattern, such as '_([a-z]+)_'"
            )
        words = np.array([match[1] if match.re.groups else match[0] for match in matches if match is not None])
        if classes:
            strange = next((i for i, word in enumerate(words) if word not in classes), None)
            if strange is not None:
                raise UserError(
                    f"{self.name}: {self.files[strange]} has the label {str(words[strange])!r}, expected one of"
                    f" {_listed(classes)}"
                )
            numbers = np.array([classes.index(word) for word in words], dtype=np.int64)
        else:
            numbers, classes = to_classes(words, self.name)
            if len(classes) in (1, len(self)):
                many = "a single label" if len(classes) == 1 else "a different label for each recording"
                raise UserError(
                    f"{self.name}: {many} (such as {classes[0]!r}) by the pattern {chosen!r}; give another with"
                    " --label-pattern"
                )
        test = None if self.test is None else self.test.labelled(chosen, classes)
        return replace(self, labels=numbers, classes=classes, pattern=chosen, test=test)

    def part(self, clips: np.ndarray) -> "Audio":
        """Return these clips alone, copied."""
        samples = np.concatenate([self.clip(i) for i in clips]) if len(clips) else self.samples[:0]
        starts = np.concatenate([[0], np.cumsum(self.lengths[clips])]).astype(np.int64)
        return replace(
            self, samples=samples, starts=starts, files=tuple(self.files[i] for i in clips),
            labels=None if self.labels is None else self.labels[clips], test=None,
        )  # fmt: skip


def open_audio(
    source: Any,
    rate: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Audio:
    """Open recordings.

    Args:
        source: a folder of wav, flac or ogg files, in sub-folders or not; one such file; a pattern of paths such as
            ``speech/*_jackson_*.wav``; "fsdd" (spoken digits of three speakers) or one of its speakers, "fsdd-jackson";
            or an ``Audio``.
        rate: samples per second that all are brought to; by default what most files have.
        cache: the folder for downloads, and for samples that are too many for memory; by default the user's cache.
        progress: called with the number of files done and of all.

    Raises:
        UserError: if the source cannot be opened as audio, or more than 1 % of its recordings are bad.
    """
    if isinstance(source, Audio):
        if rate not in (None, source.rate):
            raise UserError(f"{source.name}: has {source.rate} Hz, expected {rate} Hz; open it with that rate")
        return source
    if rate is not None and rate < 1:
        raise UserError(f"expected a rate of at least 1 Hz, got {rate}")
    if isinstance(source, str) and source in AUDIO_SETS:
        return _fsdd(source, rate, cache, progress)
    if not isinstance(source, str | Path):
        raise TypeError(f"expected a path or the name of a set, got {type(source).__name__}")
    files, root = _find(Path(source))
    return _read(files, root, str(source), rate, cache, progress)


def _find(path: Path) -> tuple[list[Path], Path]:
    """Return the sound files that a path means, and the folder that their names are relative to."""
    try:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if is_sound(file.relative_to(path)) and file.is_file())
            if not files:
                raise UserError(f"{path}: holds no recordings ({' '.join(SOUNDS)}); name the folder that does")
            return files, path
        if path.is_file():
            if path.suffix.lower() not in SOUNDS:
                raise UserError(
                    f"{path}: unknown extension {path.suffix!r}; diffeo reads sound from {' '.join(SOUNDS)}"
                )
            return [path], path
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror or error})") from error
    matched = sorted(Path(name) for name in glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else []
    files = [file for file in matched if is_sound(Path(file.name)) and file.is_file()]
    if not files:
        raise UserError(f"{path}: no such file, folder or built-in set ({', '.join(AUDIO_SETS)}); check the path")
    while glob.has_magic(str(path)):
        path = path.parent
    return files, path


def _read(
    files: list[Path], root: Path, name: str, rate: int | None, cache: Path | None, progress: Progress | None
) -> Audio:
    recordings = read_recordings(files, root, rate, cache, progress)
    names = tuple(name_within(file, root) for file in recordings.files)
    return Audio(
        recordings.samples, recordings.starts, recordings.rate, names, name=name, skipped=tuple(recordings.skipped),
        notes=tuple(recordings.notes),
    )  # fmt: skip


def _fsdd(name: str, rate: int | None, cache: Path | None, progress: Progress | None) -> Audio:
    speakers = tuple(SPEAKERS) if name == "fsdd" else (name.removeprefix("fsdd-"),)
    files = find_fsdd(speakers, cache)
    root = files[0].parent
    takes = [int(file.stem.rsplit("_", 1)[1]) for file in files]
    train, test = (
        [file for file, take in zip(files, takes, strict=True) if (take in TEST_TAKES) is wanted]
        for wanted in (False, True)
    )
    held_out = _read(test, root, f"{name} (test)", rate, cache, None)
    return replace(_read(train, root, name, rate, cache, progress), test=held_out)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")

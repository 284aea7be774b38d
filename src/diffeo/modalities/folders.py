"""Many files of a folder: read by a pool of threads, in order, and the bad ones named."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from diffeo.errors import UserError
from diffeo.legible import legible
from diffeo.paths import encodable

__all__ = ["Progress", "Reader", "Unusable", "holds", "in_order", "is_among", "name_within"]

TOLERATED = 0.01  # the share of bad files above which something is wrong with all of them
_AHEAD = 256  # files under way at a time, so that memory stays bounded
_SHOWN = 3  # bad files named in a message

Progress = Callable[[int, int | None], None]
T = TypeVar("T")
P = TypeVar("P")


class Unusable(Exception):
    """Why a file cannot be used."""


def is_among(path: Path, suffixes: Sequence[str]) -> bool:
    """Return whether a path within a folder has one of these suffixes, and nothing in it is hidden."""
    return path.suffix.lower() in suffixes and not any(part.startswith(".") for part in path.parts)


def holds(folder: Path, suffixes: Sequence[str]) -> bool:
    """Return whether a folder, or one of its sub-folders, has a file with one of these suffixes."""
    return any(is_among(path.relative_to(folder), suffixes) for path in folder.rglob("*"))


def in_order(function: Callable[[P], T], items: Sequence[P] | np.ndarray) -> Iterator[T]:
    """Yield function(item) in the order of the items; only a few hundred results wait at a time.

    There is a thread for each processor: decoders work outside the interpreter's lock.
    """
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(items), _AHEAD):
            yield from pool.map(function, items[start : start + _AHEAD])


def name_within(path: Path, root: Path) -> str:
    """Return how messages call a file: relative to the folder, with / between folders, or its name."""
    return encodable(path.relative_to(root).as_posix() if path != root and path.is_relative_to(root) else path.name)


class Reader:
    """Reads files one after the other and notes the bad ones; too many of these, or only a bad one, are an error.

    Args:
        files: paths.
        root: the folder, or the file.
        noun: what the files are called: pictures, recordings.
        foreign: what the decoder raises for a file that is none of its own, which is then called ``what``.
        what: for instance "damaged, empty, or no png or jpg".

    Attributes:
        skipped: the names of bad files and their reasons, so far.
    """

    def __init__(self, files: Sequence[Path], root: Path, noun: str, foreign: type[Exception], what: str) -> None:
        self.files, self.root, self.noun, self.foreign, self.what = files, root, noun, foreign, what
        self.skipped: list[tuple[str, str]] = []

    def read(
        self, function: Callable[[Path], T], files: Sequence[Path], progress: Progress | None = None
    ) -> Iterator[tuple[Path, T]]:
        """Yield each of these files that can be used, in order, with function(file).

        Args:
            function: raises ``Unusable`` where a file must not be used.
            files: all files, or those of them that were good so far.
            progress: called with the number of files done and of all.

        Raises:
            UserError: at the end, if by now more than 1 % of all files are bad.
        """

        def attempt(path: Path) -> tuple[T | None, str]:
            try:
                if not path.stat().st_size:  # of what has no size, such as /proc/kmsg, reading may never end
                    return None, self.what
                return function(path), ""
            except self.foreign:
                return None, self.what
            except Unusable as error:
                return None, str(error)
            except OSError as error:
                return None, (
                    f"cannot be opened ({error.strerror})" if error.errno else f"truncated or damaged ({error})"
                )
            except MemoryError:
                raise
            except Exception as error:  # damaged bytes raise whatever the decoders stumble over
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                return None, f"cannot be decoded ({reason})"

        for i, (path, (result, reason)) in enumerate(zip(files, in_order(attempt, files), strict=True)):
            if result is None:
                self.skipped.append((name_within(path, self.root), reason))
            else:
                yield path, result
            if progress is not None:
                progress(i + 1, len(files))
        self._check_share()

    def notes(self, *facts: tuple[int, str]) -> list[str]:
        """Return a sentence for each number of good files of which something is to be said, where there are any."""
        good = len(self.files) - len(self.skipped)
        return [f"{count} of {good} {self.noun} {what}" for count, what in facts if count]

    def _check_share(self) -> None:
        skipped, total = self.skipped, len(self.files)
        if len(skipped) <= TOLERATED * total:
            return
        named = "; ".join(f"{legible(name, 60)}: {legible(reason, 80)}" for name, reason in skipped[:_SHOWN])
        if self.root.is_file():
            reason = skipped[0][1]
            raise UserError(f"{self.root}: {reason}{'' if ';' in reason else '; replace or remove it'}")
        more = f"; and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
        raise UserError(
            f"{self.root}: {len(skipped)} of {total} {self.noun} cannot be used, more than {TOLERATED:.0%}; fix or"
            f" remove them ({named}{more})"
        )

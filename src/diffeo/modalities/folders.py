"""Many files of a folder: read by a pool of threads, in order, and the bad ones named."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from diffeo.errors import UserError

__all__ = ["Progress", "Unusable", "check_share", "in_order", "is_among", "name_within", "read_each", "threads"]

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


def threads() -> ThreadPoolExecutor:
    """Return a pool with a thread for each processor: decoders work outside the interpreter's lock."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1))


def in_order(pool: ThreadPoolExecutor, function: Callable[[P], T], items: Sequence[P] | np.ndarray) -> Iterator[T]:
    """Yield function(item) in the order of the items; only a few hundred results wait at a time."""
    for start in range(0, len(items), _AHEAD):
        yield from pool.map(function, items[start : start + _AHEAD])


def read_each(
    pool: ThreadPoolExecutor,
    function: Callable[[Path], T],
    files: Sequence[Path],
    foreign: type[Exception],
    what: str,
) -> Iterator[T | str]:
    """Yield function(file) in order, or the reason why there is none.

    Args:
        pool: of threads.
        function: reads a file; raises ``Unusable`` where it must not be used.
        files: paths.
        foreign: what the decoder raises for a file that is none of its own, which is then called ``what``.
        what: for instance "damaged, empty, or no png or jpg".
    """

    def attempt(path: Path) -> T | str:
        try:
            return function(path)
        except foreign:
            return what
        except Unusable as error:
            return str(error)
        except OSError as error:
            return f"cannot be opened ({error.strerror})" if error.errno else f"truncated or damaged ({error})"
        except MemoryError:
            raise
        except Exception as error:  # damaged bytes raise whatever the decoders stumble over
            return f"cannot be decoded ({str(error).splitlines()[0] if str(error) else type(error).__name__})"

    return in_order(pool, attempt, files)


def name_within(path: Path, root: Path) -> str:
    """Return how messages call a file: relative to the folder, or its name."""
    return str(path.relative_to(root)) if path != root and path.is_relative_to(root) else path.name


def check_share(skipped: Sequence[tuple[str, str]], total: int, root: Path, noun: str) -> None:
    """Raise ``UserError`` if more than 1 % of the files are bad, or the only one is.

    Args:
        skipped: the bad files and their reasons.
        total: how many files there are.
        root: the folder, or the file.
        noun: what the files are called: pictures, recordings.
    """
    if len(skipped) <= TOLERATED * total:
        return
    named = "; ".join(f"{name}: {reason}" for name, reason in skipped[:_SHOWN])
    if root.is_file():
        raise UserError(f"{root}: {skipped[0][1]}")
    more = f"; and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    raise UserError(
        f"{root}: {len(skipped)} of {total} {noun} cannot be used, more than {TOLERATED:.0%}; fix or remove them"
        f" ({named}{more})"
    )

"""How much a single file may ask for: limits that messages name, and that can be raised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from diffeo.errors import UserError

__all__ = ["EXPANDED", "Limits", "check_expansion", "limits", "raised"]

EXPANDED = 100  # times its size: so much no compressed data of use expand


@dataclass(frozen=True)
class Limits:
    """What is refused unless it is raised, each by the option ``--max-NAME`` of the command line.

    Attributes:
        columns: of a table that are modelled at once; weights grow with their square.
        pixels: of a picture, before it is resized.
        bytes: that a compressed file may expand to, where these are more than a hundred times its size.
    """

    columns: int = 4096
    pixels: int = 50_000_000
    bytes: int = 2**31


_current = Limits()


def limits() -> Limits:
    """Return the limits that hold now."""
    return _current


@contextmanager
def raised(**changes: int) -> Iterator[None]:
    """Change limits, by name, for all threads, within a block.

    Example:
        >>> from diffeo.limits import limits, raised
        >>> with raised(columns=10_000):
        ...     limits().columns
        10000
    """
    global _current
    before = _current
    _current = replace(before, **changes)
    try:
        yield
    finally:
        _current = before


def check_expansion(name: str, size: int, compressed: int) -> None:
    """Refuse what expands to more bytes than any data would.

    Args:
        name: of the file, for the message.
        size: bytes so far, or in all.
        compressed: those in the file.

    Raises:
        UserError: beyond the limit.
    """
    if size > _current.bytes and size > EXPANDED * compressed:
        raise UserError(
            f"{name}: expands from {compressed:,} to more than {_current.bytes:,} bytes; if it is what you think it is,"
            f" raise the limit with --max-bytes {max(size, 2 * _current.bytes)}"
        )

"""Text from elsewhere, made fit to be shown: names of files and columns, what a run says, other programs' messages."""

from __future__ import annotations

import unicodedata

__all__ = ["LINE", "legible"]

LINE = 900  # characters of a line in a terminal
_STEERING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # controls, directions of writing, surrogates, no characters


def legible(text: object, longest: int | None = LINE) -> str:
    r"""Return a text on one line in which nothing steers a terminal, turns the direction of writing, or is endless.

    Control and escape characters, line ends, marks of direction and what is no character are shown escaped, as Python
    does; so are the bytes of a file's name that are no UTF-8. What is too long is cut in the middle, and its length
    named.

    Args:
        text: from a file, say.
        longest: characters that are kept; None for all.

    Example:
        >>> from diffeo.legible import legible
        >>> print(legible("a\x1b[31m"))
        a\x1b[31m
    """
    text = str(text)
    if longest is None:
        return _escaped(text)
    shown = _escaped(text) if len(text) <= longest else ""
    if (shown and len(shown) <= longest) or not text:
        return shown
    note = f"...[{len(text):,} characters]..." if longest >= 80 else "..."
    tail = (longest - len(note)) // 3
    head = longest - len(note) - tail
    return _escaped(text[:head])[:head] + note + _escaped(text[-tail:])[-tail:]


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if unicodedata.category(c) not in _STEERING else _named(c) for c in text)


def _named(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a name that is no text
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")

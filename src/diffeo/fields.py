"""What plain data from elsewhere may be: said as a table of types and ranges, and checked once, when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Anything", "Either", "Fields", "Kind", "ListOf", "MapOf", "Nothing", "Number", "PairOf", "Text", "problem"]


class Kind(Protocol):
    """What a value may be."""

    def __str__(self) -> str:
        """Say it, as it stands after "expected"."""

    def fault(self, value: Any) -> tuple[str, Any, str] | None:
        """Return where in a value something else is, what is there and what was expected; None if all is well."""


@dataclass(frozen=True)
class Number:
    """A number in a range, whole or not; true and false are none, nor is what no float holds."""

    low: float = -1e300
    high: float = 1e300
    whole: bool = False

    def __str__(self) -> str:
        ends = (
            "" if self.low == -1e300 else f" from {self.low:,g}" + (f" to {self.high:,g}" if self.high < 1e9 else " on")
        )
        return f"{'a whole number' if self.whole else 'a number'}{ends}"

    def fault(self, value: Any) -> tuple[str, Any, str] | None:
        """A value of another type, NaN, or out of range."""
        kinds = int if self.whole else int | float
        fits = isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high
        return None if fits else ("", value, str(self))


@dataclass(frozen=True)
class Text:
    """A text, one of some if these are named, of so many characters at most."""

    among: tuple[str, ...] = ()
    longest: int = 10**8

    def __str__(self) -> str:
        return f"one of {', '.join(self.among)}" if self.among else "a text"

    def fault(self, value: Any) -> tuple[str, Any, str] | None:
        """A value of another type, half of a surrogate pair, or none of those that are named."""
        fits = isinstance(value, str) and (not self.among or value in self.among) and len(value) <= self.longest
        if fits and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                fits = False
        return None if fits else ("", value, str(self))


@dataclass(frozen=True)
class Nothing:
    """None, or false or true where a flag is meant."""

    flag: bool = False

    def __str__(self) -> str:
        return "true or false" if self.flag else "null"

    def fault(self, value: Any) -> tuple[str, Any, str] | None:
        """Anything else."""
        fits = isinstance(value, bool) if self.flag else value is None
        return None if fits else ("", value, str(self))


@dataclass(frozen=True)
class Anything:
    """What nobody computes with: it is shown, or kept."""

    def __str__(self) -> str:
        return "anything"

    def fault(self, value: Any) -> tuple[str, Any, str] | None:
        """Nothing is at fault."""
        return None


class Either:
    """One kind or another."""

    def __init__(self, *kinds: Kind) -> None:
        self.kinds = kinds

    def __str__(self) -> str:
        return " or ".join(map(str, self.kinds))

    def fault(self, value: Any) -> tuple[str, Any, str] | None:
        """What is none of them; where it could only be one, what is wrong within."""
        faults = [kind.fault(value) for kind in self.kinds]
        if None in faults:
            return None
        deep = [fault for fault in faults if fault is not None and fault[0]]
        return deep[0] if deep else ("", value, str(self))


@dataclass(frozen=True)
class ListOf:
    """A list of one kind, of some length."""

    each: Kind
    least: int = 0
    most: int = 10**6

    def __str__(self) -> str:
        if (self.least, self.most) == (0, 10**6):
            return "a list"
        return f"a list of {self.least}" + (f" to {self.most:,}" if self.most != self.least else "")

    def fault(self, value: Any) -> tuple[str, Any, str] | None:
        """No list, one of another length, or the first of its entries that is at fault."""
        if not isinstance(value, list | tuple) or not self.least <= len(value) <= self.most:
            return "", value, str(self)
        return next(filter(None, (_within(f"[{i}]", self.each.fault(entry)) for i, entry in enumerate(value))), None)


class PairOf:
    """A list of two, each of its own kind."""

    def __init__(self, first: Kind, second: Kind) -> None:
        self.kinds = first, second

    def __str__(self) -> str:
        return "a pair"

    def fault(self, value: Any) -> tuple[str, Any, str] | None:
        """No list of two, or the first of them that is at fault."""
        if not isinstance(value, list | tuple) or len(value) != 2:
            return "", value, str(self)
        faults = (
            _within(f"[{i}]", kind.fault(entry)) for i, (kind, entry) in enumerate(zip(self.kinds, value, strict=True))
        )
        return next(filter(None, faults), None)


@dataclass(frozen=True)
class MapOf:
    """Values of one kind by name."""

    each: Kind = field(default_factory=Anything)

    def __str__(self) -> str:
        return "an object"

    def fault(self, value: Any) -> tuple[str, Any, str] | None:
        """No object, a name that is no text, or the first of its values that is at fault."""
        if not isinstance(value, dict):
            return "", value, str(self)
        name = next((name for name in value if Text().fault(name)), None)
        if name is not None:
            return "", name, "names of text"
        return next(filter(None, (_within(f".{name}", self.each.fault(entry)) for name, entry in value.items())), None)


@dataclass(frozen=True)
class Fields:
    """Values by name, each of its own kind.

    Attributes:
        required: those that must be there.
        optional: those that may be.
        others: the kind of all others; None if there may be none.
    """

    required: Mapping[str, Kind] = field(default_factory=dict)
    optional: Mapping[str, Kind] = field(default_factory=dict)
    others: Kind | None = None

    def __str__(self) -> str:
        return "an object"

    def fault(self, value: Any) -> tuple[str, Any, str] | None:
        """No object, a name that is missing or unknown, or the first value that is at fault."""
        fault = MapOf().fault(value)
        if fault:
            return fault
        missing = next((name for name in self.required if name not in value), None)
        if missing is not None:
            return f".{missing}", None, str(self.required[missing])
        kinds = {**self.required, **self.optional}
        for name, entry in value.items():
            kind = kinds.get(name, self.others)
            if kind is None:
                return "", name, f"no more than {', '.join(kinds)}"
            if fault := kind.fault(entry):
                return _within(f".{name}", fault)
        return None


def problem(value: Any, kind: Kind) -> str:
    """Say where plain data are not of a kind: what was expected, and what is there; nothing if all is well.

    Args:
        value: plain data, as ``json.loads`` returns them.
        kind: what they may be.

    Example:
        >>> from diffeo.fields import Fields, Number, problem
        >>> problem({"seconds": "long"}, Fields({"seconds": Number(0, 60)}))
        "expected a number from 0 to 60 as seconds, got 'long'"
    """
    fault = kind.fault(value)
    if fault is None:
        return ""
    where, got, expected = fault
    place = f" as {where.lstrip('.')}" if where else ""
    return f"expected {expected}{place}, got {'none' if got is None else _shown(got)}"


def _within(name: str, fault: tuple[str, Any, str] | None) -> tuple[str, Any, str] | None:
    return None if fault is None else (name[:60] + fault[0], *fault[1:])


def _shown(value: Any) -> str:
    """A value in a few characters, without making a text of all of it."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return "a huge number"
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."

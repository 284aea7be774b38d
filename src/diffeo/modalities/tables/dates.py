"""Dates and times written as text: the format they share, and the way to seconds and back.

Formats are those of ``strftime``, with three more: ``%-d`` and the like have no leading zero, ``%L`` are milliseconds,
and ``.%_f`` is a fraction of six digits that is left out where it is 0. Points in time are seconds since 1970, times of
day seconds since midnight.
"""

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["DAY", "arrow_type", "find_formats", "is_number_type", "is_time", "parse_dates", "show_dates", "to_temporal"]

DAY = 86400.0
_YEAR_1000 = -30610224000.0
_YEARS = -5364662400.0, 7289654400.0  # 1800 to 2200: of numbers without marks only these are likely to be dates
PEEK = 200  # texts that each format is tried on first

_DAYS = (
    *("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d.%m.%y", "%m/%d/%Y", "%d/%m/%Y", "%m/%d/%y", "%d/%m/%y"),
    *("%d-%m-%Y", "%m-%d-%Y", "%d-%m-%y", "%m-%d-%y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y"),
    *("%B %d, %Y", "%d. %B %Y"),
)
_TIMES = ("%H:%M:%S", "%H:%M", "%H:%M:%S.%f", "%H:%M:%S.%L", "%H:%M:%S.%_f", "%I:%M %p", "%I:%M:%S %p")
_COMPACT = ("%Y%m%d", "%d%m%Y", "%Y-%m", "%Y/%m", "%m/%Y", "%Y%m", "%Y")
_DIGITS = ("%Y%m%d", "%d%m%Y", "%Y%m", "%Y")
_PARTS = re.compile(r"(?P<day>.*?)(?P<mark>[ T]?)(?:(?P<time>\d{1,2}:\d\d.*?)(?P<zone>Z| ?UTC|[+-]\d\d:?\d\d)?)?")
_NUMBER = re.compile("u?int(8|16|32|64)|halffloat|float|double")
_DECIMAL = re.compile(r"(decimal(?:32|64|128|256))\((\d+), (-?\d+)\)")
_FRACTION = (".%f", ".%L", ".%_f")


def find_formats(texts: Sequence[str], compact: bool = False) -> list[str]:
    """Return the formats in which all texts are dates or times and come back as they are, the likeliest first.

    Of formats that read all texts alike there is one; two are left where days and months cannot be distinguished.

    Args:
        texts: the distinct texts of a column.
        compact: whether to try formats that numbers have too, 20240531 say.
    """
    parts = _PARTS.fullmatch(texts[0]) if texts and len(texts[0]) <= 40 else None
    if parts is None:
        return []
    days = [""]
    if parts["day"]:
        usual = (*_DAYS, *_COMPACT) if compact else _DAYS
        days = [day for day in _both(usual) if _parsed([parts["day"]], day) is not None]
    times = [time for time in _both(_TIMES) if _parsed([parts["time"]], time) is not None] if parts["time"] else [""]
    formats: dict[str, np.ndarray] = {}
    for day, time in product(days, times):
        format_ = f"{day}{parts['mark']}{time}{parts['zone'] or ''}"
        if format_ and _parsed(texts[:PEEK], format_) is not None:
            seconds = _parsed(texts, format_)
            if seconds is not None and format_ in _DIGITS and not _likely(seconds):
                continue
            if seconds is not None and not any(np.array_equal(seconds, known) for known in formats.values()):
                formats[format_] = seconds
    return list(formats)


def _both(formats: Sequence[str]) -> list[str]:
    """Return formats with and without leading zeros of days, months and hours."""
    return list(dict.fromkeys(form for usual in formats for form in (usual, re.sub("%([dmHI])", r"%-\1", usual))))


def _parsed(texts: Sequence[str], format_: str) -> np.ndarray | None:
    seconds = parse_dates(texts, format_, strict=True)
    return None if np.isnan(seconds).any() else seconds


def _likely(seconds: np.ndarray) -> bool:
    return bool(seconds.min() >= _YEARS[0] and seconds.max() < _YEARS[1])


def is_time(format_: str) -> bool:
    """Tell whether a format, or the name of an Arrow type, has a time of day and no date."""
    return format_.startswith(("time32", "time64")) or ("%" in format_ and not re.search("%[Yy]", format_))


def parse_dates(texts: Sequence[str | None], format_: str, strict: bool = False) -> np.ndarray:
    """Return the seconds (n,) that texts stand for, NaN where one is no date of this format.

    Args:
        texts: dates or times.
        format_: their format.
        strict: whether zeros must lead where the format has them, and only there.
    """
    column = bare = pa.array(texts, pa.string())
    fraction = np.zeros(len(column))
    plain = format_
    for mark in _FRACTION:
        if mark in format_:
            parts = pc.extract_regex(column, r"\d:\d\d(?P<fraction>\.\d+)").field(0)
            bare = pc.replace_substring_regex(column, r"(\d:\d\d)\.\d+", r"\1")
            fraction = pc.if_else(pc.equal(parts, ""), None, parts).fill_null("0").cast(pa.float64()).to_numpy()
            plain = format_.replace(mark, "")
    if is_time(format_):
        bare, plain = pc.binary_join_element_wise("1970-01-01", bare, " "), f"%Y-%m-%d {plain}"
    stamps = pc.strptime(bare, format=plain.replace("%-", "%"), unit="s", error_is_null=True)
    seconds = stamps.cast(pa.int64()).to_numpy(zero_copy_only=False) + fraction
    if "%Y" in format_:
        seconds = np.where(seconds >= _YEAR_1000, seconds, np.nan)  # 20 is not 2020
    # strptime takes 30.2. for 1.3.: only what comes back is a date.
    shown = _shown(np.nan_to_num(seconds), format_)
    wrong = ~pc.equal(shown, column).fill_null(False).to_numpy(zero_copy_only=False)
    for i in () if strict else np.flatnonzero(wrong & ~np.isnan(seconds)).tolist():
        wrong[i] = _unpadded(shown[i].as_py()) != _unpadded(str(texts[i]))
    return np.where(wrong, np.nan, seconds)


def show_dates(seconds: np.ndarray, format_: str) -> list[str]:
    """Return the texts of points in time or times of day, as ``parse_dates`` reads them."""
    return _shown(np.asarray(seconds, dtype=np.float64), format_).to_pylist()


def _shown(seconds: np.ndarray, format_: str) -> pa.Array:
    second, micro = np.divmod(np.rint(seconds * 1e6).astype(np.int64), 1_000_000)
    stamps = pa.array(second).cast(pa.timestamp("s"))
    mark = next((mark for mark in _FRACTION if mark in format_), "")
    parts = [_bare(pc.strftime(stamps, format=_marked(part))) for part in (format_.split(mark) if mark else [format_])]
    if not mark:
        return parts[0]
    digits = pc.utf8_lpad(
        pa.array(micro // 1000 if mark == ".%L" else micro).cast(pa.string()), 3 + 3 * (mark != ".%L"), "0"
    )
    digits = pc.binary_join_element_wise("", digits, ".")
    if mark == ".%_f":
        digits = pc.if_else(pa.array(micro > 0), digits, "")
    return pc.binary_join_element_wise(*parts[:1], digits, *parts[1:], "")


def _marked(format_: str) -> str:
    return format_.replace("%-", "\x01%")


def _bare(texts: pa.Array) -> pa.Array:
    """Return the texts without the zeros behind marks."""
    return pc.replace_substring_regex(texts, "\x010?", "")


def to_temporal(seconds: np.ndarray, type_: str) -> pa.Array:
    """Return points in time, days or times of day as an array of the Arrow type of this name; NaN is null."""
    known = np.isfinite(seconds)
    micro = pa.array(np.rint(np.where(known, seconds, 0) * 1e6).astype(np.int64), mask=~known)
    target = arrow_type(type_)
    if pa.types.is_time(target):
        return micro.cast(pa.time64("us")).cast(target, safe=False)
    if pa.types.is_date(target):
        return micro.cast(pa.timestamp("us")).cast(target, safe=False)
    return micro.cast(pa.timestamp("us", target.tz)).cast(target, safe=False)


def arrow_type(name: str) -> pa.DataType:
    """Return the Arrow type of numbers, dates or times that has this name.

    Raises:
        ValueError: if there is none.
    """
    if is_number_type(name):
        decimal = _DECIMAL.fullmatch(name)
        return getattr(pa, decimal[1])(int(decimal[2]), int(decimal[3])) if decimal else pa.type_for_alias(name)
    kind, _, rest = name.removesuffix("]").partition("[")
    unit, _, zone = rest.partition(", tz=")
    kinds = {"timestamp": lambda: pa.timestamp(unit, zone or None), "date32": pa.date32, "date64": pa.date64}
    kinds |= {"time32": lambda: pa.time32(unit), "time64": lambda: pa.time64(unit)}
    if kind not in kinds:
        raise ValueError(f"expected an Arrow type of dates or times, got {name!r}")
    return kinds[kind]()


def is_number_type(name: Any) -> bool:
    """Tell whether this is the name of an Arrow type of numbers."""
    return isinstance(name, str) and bool(_NUMBER.fullmatch(name) or _DECIMAL.fullmatch(name))


def _unpadded(text: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", text).casefold()

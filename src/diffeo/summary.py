"""What an object says of itself: a title and a few facts, as text and, for notebooks, as HTML with a learning curve.

HTML takes the colour of the text around it (``currentColor``), so that it is legible on light and on dark pages, whose
themes a notebook's output cannot know. Everything that is not markup is escaped.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

__all__ = ["Curve", "Summarised", "Summary", "bar", "curves", "pair", "quantity"]

BLUE, VERMILION = "#2b8cc4", "#d9661f"  # of which both stand out from white as from black
FAINT = "rgba(128,128,128,.25)"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 130, 52, 8, 16, 18  # of a learning curve, and its margins
MOST_POINTS = 200  # of a line


@dataclass
class Curve:
    """A learning curve: for each epoch the loss of the training and that of the validation, NaN where there is none."""

    epochs: list[int] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, history: Iterable[Mapping[str, Any]]) -> Curve:
        """Make the curve of the entries of a training's history."""
        curve = cls()
        for entry in history:
            curve.append(entry)
        return curve

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an epoch."""
        self.epochs.append(entry["epoch"])
        for values, name in ((self.training, "loss"), (self.validation, "val_loss")):
            value = entry.get(name)
            values.append(math.nan if value is None else float(value))

    @property
    def validated(self) -> bool:
        """Whether there was validation data."""
        return any(map(math.isfinite, self.validation))


@dataclass(frozen=True)
class Summary:
    """What is to be known of an object.

    Attributes:
        title: one line.
        facts: a few more, by name.
        notes: doubts, in words.
        curves: learning curves.
    """

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    curves: Sequence[Curve] = ()

    def text(self) -> str:
        """The title, and a line for each fact and note."""
        width = max(map(len, self.facts), default=0)
        lines = [f"  {name:{width}}  {value}" for name, value in self.facts.items()]
        return "\n".join([self.title, *lines, *(f"  note: {note}" for note in self.notes)])

    def html(self) -> str:
        """The same as a table, and the learning curves."""
        plain = "border:none;background:none;text-align:left;vertical-align:top;padding:1px 14px 1px 0"
        rows = "".join(
            f'<tr style="border:none;background:none"><th scope="row" style="{plain};font-weight:normal;opacity:.7">'
            f'{escape(name)}</th><td style="{plain};white-space:normal">{escape(value)}</td></tr>'
            for name, value in self.facts.items()
        )
        outer = "font:inherit;color:inherit;border:none;border-collapse:collapse;margin:2px 0"
        table = f'<table style="{outer}">{rows}</table>' if rows else ""
        notes = "".join(f"<div>note: {escape(note)}</div>" for note in self.notes)
        return (
            f'<div style="max-width:100%"><div style="font-weight:600">{escape(self.title)}</div>{table}{notes}'
            f"{curves(self.curves)}</div>"
        )


class Summarised(ABC):
    """A base class of what is shown by its summary."""

    @abstractmethod
    def _summary(self) -> Summary:
        """Say what is to be known of it."""

    def __repr__(self) -> str:
        return self._summary().text()

    def _repr_html_(self) -> str:
        return self._summary().html()


def quantity(number: int, one: str, many: str | None = None) -> str:
    """A number of things, such as ``1 epoch`` or ``2,000 epochs``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def pair(value: float, error: float) -> str:
    """A value and its standard error, where that is known, to the digits that the error leaves."""
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def bar(fraction: float) -> str:
    """A bar, filled up to a fraction, as HTML."""
    share = f"{100 * min(1.0, max(0.0, fraction)):.1f}"
    return (
        f'<div role="progressbar" aria-valuenow="{share}" style="height:6px;max-width:{WIDTH}px;border-radius:3px;'
        f'background:{FAINT}"><div style="width:{share}%;height:100%;border-radius:3px;background:{BLUE}"></div></div>'
    )


def curves(each: Sequence[Curve]) -> str:
    """Learning curves as SVG: of one training both losses, of several the ones that they are stopped by.

    Empty where there are not two epochs.
    """
    each = [curve for curve in each if len(curve.epochs) > 1]
    if not each:
        return ""
    lines = [line for curve in each for line in _lines(curve, alone=len(each) == 1)]
    low, high = _span([values for _, values, _ in lines])
    if low is None or high is None:
        return ""
    first, last = min(curve.epochs[0] for curve in each), max(curve.epochs[-1] for curve in each)
    inner = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)

    def place(epoch: float, value: float) -> tuple[str, str]:
        x, y = (epoch - first) / (last - first), (high - value) / (high - low)
        return f"{x * inner[0]:.1f}", f"{2 + y * (inner[1] - 4):.1f}"

    drawn = "".join(
        f'<polyline fill="none" stroke-width="1.5" {stroke} points="{" ".join(",".join(place(*p)) for p in piece)}"/>'
        for epochs, values, stroke in lines
        for piece in _pieces(epochs, values)
    )
    if len(each) == 1 and each[0].validated:
        epoch, value = min(zip(each[0].epochs, each[0].validation, strict=True), key=_by_value)
        x, y = place(epoch, value)
        drawn += f'<circle cx="{x}" cy="{y}" r="3" fill="{VERMILION}"/>'
    validated = any(curve.validated for curve in each)
    said = "validation" if validated else "training"
    if validated and len(each) == 1:
        said = f"training, {said}"
    text = 'fill="currentColor" font-size="10" fill-opacity=".75"'
    return (
        f'<svg role="img" aria-label="learning curve" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'style="max-width:100%;height:auto;display:block;font-family:inherit">'
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}" stroke="currentColor" '
        f'opacity=".3"/>'
        f'<text x="{LEFT}" y="10" {text}>loss of {_legend(said)}</text>'
        f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end" {text}>{high:.4g}</text>'
        f'<text x="{LEFT - 6}" y="{HEIGHT - BOTTOM}" text-anchor="end" {text}>{low:.4g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 4}" {text}>{first}</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end" {text}>epoch {last}</text>'
        # an inner viewport, which cuts off the first epochs of a steep curve
        f'<svg x="{LEFT}" y="{TOP}" width="{inner[0]}" height="{inner[1]}">{drawn}</svg></svg>'
    )


def _legend(said: str) -> str:
    return said.replace("validation", f'<tspan fill="{BLUE}" fill-opacity="1" font-weight="600">validation</tspan>')


def _lines(curve: Curve, *, alone: bool) -> list[tuple[list[int], list[float], str]]:
    """The lines that one curve is plotted by: epochs, values, and the attributes of the stroke."""
    training = (curve.epochs, curve.training, 'stroke="currentColor" opacity=".5"')
    validation = (curve.epochs, curve.validation, f'stroke="{BLUE}" opacity="{1 if alone else 0.8}"')
    if not curve.validated:
        return [training]
    return [training, validation] if alone else [validation]


def _span(lines: Iterable[Sequence[float]]) -> tuple[float | None, float | None]:
    """The lowest value, and the highest after the first tenth, where a curve falls steeply."""
    lines = list(lines)
    finite = [value for values in lines for value in values if math.isfinite(value)]
    late = [value for values in lines for value in values[len(values) // 10 :] if math.isfinite(value)]
    if not finite:
        return None, None
    low, high = min(finite), max(late or finite)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _pieces(epochs: Sequence[int], values: Sequence[float]) -> list[list[tuple[int, float]]]:
    """The points of a line of few enough of them, cut where a value is not finite."""
    step = math.ceil(len(epochs) / MOST_POINTS)
    pieces: list[list[tuple[int, float]]] = [[]]
    for point in [*zip(epochs, values, strict=True)][::-1][::step][::-1]:  # the last one is always among them
        if math.isfinite(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _by_value(point: tuple[int, float]) -> float:
    return point[1] if math.isfinite(point[1]) else math.inf

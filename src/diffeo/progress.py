"""How far work has come, and the one place that decides what that looks like.

On a terminal it is a bar, in a notebook a bar with a learning curve, updated in place, elsewhere a line now and then;
but for the notebook's all on stderr. Whoever works reports to a ``Training`` or to ``Rows`` and knows nothing of this.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from diffeo.legible import legible
from diffeo.summary import Curve, bar, curves

__all__ = ["ENDED", "Display", "Relay", "Rows", "Training", "reported"]

PATIENCE = 1.0  # seconds before anything is shown of rows
SECONDS_BETWEEN_LINES = 10.0
ENDED = {"budget": "the budget is used up", "patience": "early stopping", "interrupted": "interrupted"}


@dataclass
class View:
    """What is to be seen at one moment: a label before the bar, how far it is filled, words behind it, curves."""

    label: str
    fraction: float | None
    words: list[str]
    curves: Sequence[Curve] = ()

    def __repr__(self) -> str:
        return legible("  ".join([self.label, *self.words]))

    def _repr_html_(self) -> str:
        words = f'<div style="white-space:pre-wrap">{escape(repr(self))}</div>'
        filled = "" if self.fraction is None else bar(self.fraction)
        return f'<div style="max-width:100%">{words}{filled}{curves(self.curves)}</div>'


class Screen(Protocol):
    """Where it is shown.

    Attributes:
        interval: seconds between views.
        live: whether a view takes the place of the one before.
    """

    interval: float
    live: bool

    def show(self, view: View) -> None:
        """Show a view."""

    def close(self, view: View | None) -> None:
        """Show the last one; or remove what there is."""


class Lines:
    """A line for each view: a log."""

    live = False

    def __init__(self) -> None:
        self.interval = SECONDS_BETWEEN_LINES

    def show(self, view: View) -> None:
        """Print it."""
        print(repr(view), file=sys.stderr, flush=True)

    def close(self, view: View | None) -> None:
        """Leave what is printed."""


class Terminal:
    """A bar, which is gone in the end."""

    interval = 0.2
    live = True

    def __init__(self) -> None:
        self.bar: Any = None

    def show(self, view: View) -> None:
        """Move the bar."""
        if self.bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = TextColumn("{task.fields[label]}"), BarColumn(bar_width=None), TextColumn("{task.description}")
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task("", label=view.label, total=None)
        total = None if view.fraction is None else 1.0
        self.bar.update(
            self.task,
            total=total,
            completed=view.fraction or 0.0,
            label=view.label,
            description=legible("  ".join(view.words)),
        )

    def close(self, view: View | None) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()


class Notebook:
    """One output of the cell, updated in place; the last view stays."""

    interval = 0.5
    live = True

    def __init__(self) -> None:
        self.output: Any = None

    def show(self, view: View) -> None:
        """Put it in the place of the one before."""
        if self.output is None:
            from IPython.display import display

            self.output = display(view, display_id=True)
        else:
            self.output.update(view)

    def close(self, view: View | None) -> None:
        """Let the last one stay."""
        if view is not None:
            self.show(view)


def screen() -> Screen:
    """Where a person looks: a notebook, a terminal or a log."""
    if _in_notebook():
        return Notebook()
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return Terminal()
    return Lines()


def _in_notebook() -> bool:
    """Whether this is the kernel of a notebook: IPython runs already, and its shell speaks to one over ZMQ."""
    if "IPython" not in sys.modules:
        return False
    get = getattr(sys.modules["IPython"], "get_ipython", None)
    shell = None if get is None else get()
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)


def _never(training: Training, at_once: bool) -> None:
    """Take no notice of a change."""


@dataclass
class Training:
    """How far one training is: what ``fit`` reports to.

    Attributes:
        name: of what is trained, where there are several.
        changed: called after every change; with true, if it is the last one.
        fraction: of the budget that is used up.
        stopped: why it ended, as in ``FitResult``; empty until then.
        curve: the losses so far.
    """

    name: str = ""
    changed: Callable[[Training, bool], None] = _never
    fraction: float = 0.0
    began: bool = False
    number: int = 0
    loss: float = math.nan
    rows_per_second: float = 0.0
    skipped: int = 0
    stopped: str = ""
    curve: Curve = field(default_factory=Curve)

    def step(self, fraction: float, epoch: int, loss: float, rows_per_second: float, skipped: int) -> None:
        """Report that a fraction of the budget is used up, in the middle of an epoch, from 0."""
        self.began, self.fraction, self.number, self.loss = True, fraction, epoch + 1, loss
        self.rows_per_second, self.skipped = rows_per_second, skipped
        self.changed(self, False)

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Report an epoch, as its entry in the history."""
        self.curve.append(entry)

    def end(self, stopped: str) -> None:
        """Report the end."""
        self.stopped = stopped
        if stopped != "interrupted":
            self.fraction = 1.0
        self.changed(self, True)

    def words(self) -> list[str]:
        """Where it stands, in words."""
        if not self.number:
            return []
        said = [f"epoch {self.number}", f"loss {self.loss:.4f}"]
        if self.curve.validation and not math.isnan(self.curve.validation[-1]):
            said.append(f"val {self.curve.validation[-1]:.4f}")
        said.append(f"{self.rows_per_second:,.0f} rows/s")
        return [*said, f"{self.skipped} skipped"] if self.skipped else said


class Display:
    """One display of one training or of several, after each other or side by side.

    Args:
        names: of the trainings.
        enabled: whether anything is shown.
        phase: what happens before the first of them.
    """

    def __init__(self, names: Sequence[str] = ("",), enabled: bool = True, phase: str = "") -> None:
        self.trainings = [Training(name, self._changed) for name in names] if enabled else [*map(Training, names)]
        self.screen = screen() if enabled else None
        self.phase = phase
        self.started: float | None = None  # when the first training had done its first step, and how far all were
        self.first = 0.0
        self.last = time.monotonic()

    def __enter__(self) -> Display:
        if self.screen is not None and self.screen.live:
            self.screen.show(self.view())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.screen is not None:
            self.screen.close(self.view())

    @property
    def fraction(self) -> float:
        """How much of all trainings is done."""
        return sum(training.fraction for training in self.trainings) / len(self.trainings)

    def update(self) -> None:
        """Show where all of it stands, if it is time to."""
        if self.screen is None:
            return
        now = time.monotonic()
        if self.started is None and any(training.began for training in self.trainings):
            self.started, self.first = now, self.fraction  # a resumed run does not start at 0
        if now - self.last >= self.screen.interval:
            self.last = now
            self.screen.show(self.view())

    def _changed(self, training: Training, at_once: bool) -> None:
        self.update()

    def view(self) -> View:
        """What there is to be seen now."""
        running = [training for training in self.trainings if training.began and not training.stopped]
        over = sum(bool(training.stopped) for training in self.trainings)
        alone = self.trainings[0] if len(self.trainings) == 1 else running[0] if len(running) == 1 else None
        words = [self.phase] if self.phase and not (running or over) else []
        if len(self.trainings) > 1 and running and alone is not None:
            words.append(f"{self.trainings.index(alone) + 1} of {len(self.trainings)}: {alone.name}")
        elif len(self.trainings) > 1 and (running or over):
            words.append(f"{over} of {len(self.trainings)} trained")
        if alone is not None:
            words += alone.words()
        fraction, now = self.fraction, time.monotonic()
        if over == len(self.trainings):
            if alone is not None:
                words.append(ENDED.get(alone.stopped, alone.stopped))
        elif self.started is not None and fraction > self.first:
            left = (now - self.started) * (1 - fraction) / (fraction - self.first)
            words.append(f"{_duration(left)} left")
        newest = next((each for each in reversed(self.trainings) if each.curve.epochs), None)
        shown = [each.curve for each in self.trainings if newest is not None and each.name == newest.name]
        return View(f"{100 * fraction:3.0f}%", fraction, words, shown)


@contextmanager
def reported(progress: bool | Training, leads: bool = True) -> Iterator[Training]:
    """Yield what a training reports to: the part of a display that there is, one of its own, or one that shows nothing.

    Args:
        progress: whether to show a display; or a part of one.
        leads: whether this process is the one that reports.
    """
    if isinstance(progress, Training) and leads:
        yield progress
        return
    with Display(enabled=bool(progress) and leads) as display:
        yield display.trainings[0]


class Relay:
    """Takes a training's reports to another process, by a small file: a ``changed`` of a ``Training``.

    Args:
        path: of the file.
    """

    interval = 0.3

    def __init__(self, path: Path) -> None:
        self.path, self.last = path, 0.0

    def __call__(self, training: Training, at_once: bool) -> None:
        """Write where it stands, if it is time to."""
        now = time.monotonic()
        if not at_once and now - self.last < self.interval:
            return
        self.last = now
        state = {**vars(training), "curve": vars(training.curve)}
        del state["changed"]
        temporary = self.path.with_suffix(".new")
        with suppress(OSError):  # a full disk is no reason to end a training
            temporary.write_text(json.dumps(state))
            temporary.replace(self.path)

    def into(self, training: Training) -> None:
        """Take what was last written over to a training of this process."""
        try:
            state = json.loads(self.path.read_text())
        except FileNotFoundError:  # nothing yet
            return
        for name, value in {**state, "curve": Curve(**state["curve"])}.items():
            setattr(training, name, value)


class Rows:
    """A callable for ``progress=`` of commands that count rows: how many are done, how fast, what is left.

    What is over within a second shows nothing.

    Args:
        verb: what is done to the rows.
    """

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.started: float | None = None
        self.last = -math.inf
        self.screen: Screen | None = None
        self.view: View | None = None

    def __enter__(self) -> Rows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.screen is not None:
            self.screen.close(self.view)

    def __call__(self, done: int, total: int | None) -> None:
        """Tell that so many rows are done, of so many if that is known."""
        now = time.monotonic()
        if self.started is None:  # not before: loading the model is no part of the rate
            self.started = now
        if now - self.started < PATIENCE:
            return
        rate = done / (now - self.started)
        words = [f"{done:,} rows", f"{rate:,.0f} rows/s"]
        if total and rate:
            words.append(f"{_duration((total - done) / rate)} left")
        self.view = View(self.verb, done / total if total else None, words)
        self.screen = screen() if self.screen is None else self.screen
        since = self.last if self.screen.live else max(self.last, self.started)  # a log is for work that takes long
        if now - since >= self.screen.interval:
            self.last = now
            self.screen.show(self.view)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

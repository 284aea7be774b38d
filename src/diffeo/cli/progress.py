"""How far a stream of rows has come, on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

__all__ = ["RowsBar"]

PATIENCE = 1.0  # seconds before anything is shown
INTERVAL = 10.0  # seconds between lines where stderr is no terminal


class RowsBar:
    """A callable for ``progress=``: a bar with rate and ETA on a terminal, else a line now and then.

    What is over within a second shows nothing.
    """

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.started: float | None = None
        self.shown = -INTERVAL
        self.bar: Any = None

    def __enter__(self) -> RowsBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, done: int, total: int | None) -> None:
        """Tell that so many rows are done, of so many if that is known."""
        now = time.monotonic()
        if self.started is None:  # not before: loading the model is no part of the rate
            self.started = now
        if now - self.started < PATIENCE:
            return
        rate = done / (now - self.started)
        if sys.stderr.isatty():
            if self.bar is None:
                self.bar, self.task = _bar(self.verb, total)
            self.bar.update(self.task, completed=done, rate=rate)
        elif now - self.shown >= INTERVAL:
            self.shown = now
            left = f", {_clock((total - done) / rate)} left" if total else ""
            print(f"{self.verb} {done:,} rows, {rate:,.0f} rows/s{left}", file=sys.stderr, flush=True)


def _bar(verb: str, total: int | None) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn(verb),
        BarColumn(),
        TextColumn("{task.completed:,.0f} rows  {task.fields[rate]:,.0f} rows/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.start()
    return bar, bar.add_task(verb, total=total, rate=0.0)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"

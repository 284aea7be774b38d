"""The progress of a training: a bar or lines on stderr, and a journal in a file."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from diffeo.atomic import atomic_write, unwritable

__all__ = ["Journal", "Reporter"]

SECONDS_BETWEEN_LINES = 10.0


class Journal:
    """``metrics.jsonl`` in a folder (or nowhere), a JSON line per epoch; non-finite numbers become null.

    Opening it writes ``history`` and nothing else, so what a killed run wrote after its last checkpoint is gone.
    """

    def __init__(self, folder: Path | None, history: Iterable[Mapping[str, Any]]) -> None:
        if folder is None:
            self.path = None
            return
        self.path = folder / "metrics.jsonl"
        with atomic_write(self.path) as temporary, temporary.open("w") as file:
            file.writelines(self._line(entry) for entry in history)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line."""
        if self.path is None:
            return
        try:
            with self.path.open("a") as file:
                file.write(self._line(entry))
        except OSError as error:
            raise unwritable(self.path, error) from error

    @staticmethod
    def _line(entry: Mapping[str, Any]) -> str:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
        return json.dumps(finite) + "\n"


class Reporter:
    """Report how far training is: a bar if stderr is a terminal, else a line every ten seconds, or nothing."""

    def __init__(self, enabled: bool) -> None:
        self.bar: Any = None
        self.enabled = enabled
        self.interval = SECONDS_BETWEEN_LINES
        self.last = self.started = time.monotonic()
        self.first_fraction: float | None = None
        self.validation = math.nan

    def __enter__(self) -> "Reporter":
        if self.enabled and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self.bar = Progress(
                TextColumn("{task.percentage:3.0f}%"),
                BarColumn(bar_width=None),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=1.0)
            self.interval = 0.2
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, fraction: float, epoch: int, loss: float, rows_per_second: float, skipped: int) -> None:
        """Report, if it is time to, that a fraction of the budget is used up."""
        if not self.enabled:
            return
        now = time.monotonic()
        if self.first_fraction is None:  # a resumed run does not start at 0
            self.first_fraction, self.started = fraction, now
        if now - self.last < self.interval:
            return
        self.last = now
        parts = [f"epoch {epoch + 1}", f"loss {loss:.4f}"]
        if not math.isnan(self.validation):
            parts.append(f"val {self.validation:.4f}")
        parts.append(f"{rows_per_second:,.0f} rows/s")
        if skipped:
            parts.append(f"{skipped} skipped")
        if fraction > self.first_fraction:
            left = (now - self.started) * (1 - fraction) / (fraction - self.first_fraction)
            parts.append(f"{_duration(left)} left")
        text = "  ".join(parts)
        if self.bar is not None:
            self.bar.update(self.task, completed=fraction, description=text)
        else:
            print(f"{100 * fraction:3.0f}%  {text}", file=sys.stderr, flush=True)

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Take note of an epoch's validation loss."""
        self.validation = entry["val_loss"]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

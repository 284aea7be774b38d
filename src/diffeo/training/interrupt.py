"""Ctrl-C, and a request to end, that let a step end."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupt"]


SAME_PRESS = 0.5  # seconds: torchrun passes on the signal that the terminal has sent to all processes already


class Interrupt:
    """Inside its block the first SIGINT sets ``pressed``; a later one does what the first would have done before.

    The same holds of SIGTERM where it is handled, as by the command line.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._when = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.getsignal(number)
                if callable(previous):  # a process started in the background ignores SIGINT, and goes on to
                    self._previous[number] = previous
                    signal.signal(number, self._press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self.pressed and time.monotonic() - self._when > SAME_PRESS:
            self._previous[number](number, frame)
        elif not self.pressed:
            self.pressed, self._when = True, time.monotonic()

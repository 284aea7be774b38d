"""Ctrl-C that lets a step end."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupt"]


SAME_PRESS = 0.5  # seconds: torchrun passes on the signal that the terminal has sent to all processes already


class Interrupt:
    """Inside its block the first SIGINT sets ``pressed``; a later one does what the first would have done before."""

    def __init__(self) -> None:
        self.pressed = False
        self._when = 0.0
        self._previous: Any = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):  # a process started in the background ignores SIGINT, and goes on to
                self._previous = previous
                signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self.pressed and time.monotonic() - self._when > SAME_PRESS:
            self._previous(number, frame)
        elif not self.pressed:
            self.pressed, self._when = True, time.monotonic()

"""The entry point: every mistake of a user ends in one line on stderr."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from diffeo.errors import UserError
from diffeo.legible import legible

__all__ = ["main"]

BROKEN_PIPE, MISTAKE = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: it did what was asked. 2: the input is at fault, and one line on stderr says what and where. 130: interrupted.
    """
    from typer import Abort, BadParameter, Exit

    from diffeo.cli.app import COMMANDS, INTERRUPTED, app

    # Newer versions of typer carry click inside them, older ones import it: this finds its base class in both.
    usage: Any = next(kind for kind in BadParameter.__mro__ if kind.__name__ == "ClickException")
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        warnings.showwarning = _show_warning
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing half-written stays behind
    try:
        code = app(args=words or ["--help"], prog_name="diffeo", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, Abort):
        return _complain("interrupted", INTERRUPTED)
    except usage as error:
        known = words and words[0] in {command.__name__ for command in COMMANDS}
        text = " ".join(error.format_message().split()).rstrip(".")
        return _complain(f"{text}; see diffeo {words[0] + ' ' if known else ''}--help")
    except UserError as error:
        return _complain(str(error))
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}")
    except (ValueError, MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, ValueError) and text.startswith("expected "):  # how the library words its refusals
            return _complain(text)
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return _complain("out of memory; take a smaller model or batch, or fewer rows")
        raise


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """One line, without the line of code that gave the warning."""
    _complain(f"warning: {' '.join(str(message).split())}")


def _complain(text: str, code: int = MISTAKE) -> int:
    print(f"diffeo: {legible(text)}", file=sys.stderr)
    return code

"""One judge for every call: what a command may do with a file that is broken, or means harm."""

import contextlib
import hashlib
import io
import re
import resource
import shutil
import signal
import sys
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffeo.cli import main

LINE = 1000  # characters of a line on a terminal
SECONDS, MEGABYTES = 20.0, 400.0  # of an ordinary case
REMEDIES = re.compile(
    r"\b(give|use|take|restore|train|resume|upgrade|check|correct|fix|choose|convert|name|leave|rescale|rename|read|write"
    r"|encode|save|export|remove|replace|get it anew|raise|drop|fill|compress|diffeo reads|diffeo writes|close|let|separate|make|expected"
    r"|needs|copy|move|start again|see diffeo|complete|crop|lower|create|shorten|normalise|reshape)\b|--[a-z]"
)


@dataclass(frozen=True)
class Case:
    """A file, or a folder of files, and the command that meets it.

    Attributes:
        name: of the case.
        write: makes it in a folder, and returns the words of the command; ``OUT`` among them is a place for results.
        refused: whether the command must refuse it; None where either is right.
        said: what the one line of a refusal must have in it, beside the file's name.
        named: the file that it must name; None where there is none.
        seconds, megabytes: what it may take.
    """

    name: str
    write: Callable[[Path], Sequence[str | Path]]
    refused: bool | None = None
    said: str = ""
    named: str | None = ""
    seconds: float = SECONDS
    megabytes: float = MEGABYTES


@dataclass
class Outcome:
    """What a command did."""

    code: int | None = None
    error: BaseException | None = None
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0
    warned: list[str] = field(default_factory=list)


class TooLong(BaseException):
    """A command took longer than it may."""


OUT = "<out>"


def judged(case: Case, folder: Path) -> list[str]:
    """Run a case in a new folder, and say what is wrong with the outcome, nothing if all is right."""
    source, out = folder / "in", folder / "out"
    source.mkdir(parents=True)
    out.mkdir()
    words = [str(word).replace(OUT, str(out)) for word in case.write(source)]
    before = fingerprint(source)
    outcome = call(words, case.seconds)
    faults = list(_faults(case, outcome, words))
    if fingerprint(source) != before:
        faults.append("the input was changed")
    if outcome.code != 0 and any(out.iterdir()):
        faults.append(f"left behind: {sorted(path.name for path in out.iterdir())}")
    shutil.rmtree(folder, ignore_errors=True)
    return faults


def call(words: Sequence[str], seconds: float) -> Outcome:
    """Run a command in this process, within a time."""

    def stop(*_: object) -> None:
        raise TooLong

    outcome, began = Outcome(), time.monotonic()
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict") for _ in range(2))
    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    held = _reset_peak()
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(record=True) as met,
        ):
            warnings.simplefilter("always")
            outcome.code = main(words)
            signal.setitimer(signal.ITIMER_REAL, 0)
            out.flush()
    except BaseException as error:
        outcome.error = error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    outcome.megabytes = (_peak() - held) / 1024
    outcome.seconds = time.monotonic() - began
    outcome.warned = [f"{each.category.__name__}: {each.message}" for each in met]
    err.flush()
    outcome.stdout, outcome.stderr = (each.buffer.getvalue().decode() for each in (out, err))
    return outcome


def _faults(case: Case, outcome: Outcome, words: Sequence[str]) -> Iterator[str]:
    if isinstance(outcome.error, TooLong):
        yield f"not over after {case.seconds:g} s"
        return
    if outcome.error is not None:
        trace = outcome.error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
        yield f"traceback: {type(outcome.error).__name__}: {str(outcome.error)[:150]!r} ({where})"
        return
    if outcome.code not in (0, 2):
        yield f"exit code {outcome.code}"
    said = outcome.stderr.split("\n")
    errors = [line for line in said if line.startswith("diffeo: ") and not line.startswith("diffeo: warning: ")]
    if outcome.code == 2:
        if len(errors) != 1 or said[-1] or not said[-2].startswith("diffeo: "):
            yield f"expected one line of error, got {outcome.stderr[-300:]!r}"
        elif "out of memory" in errors[0]:
            yield "memory ran out"
        else:
            yield from _faults_of_error(case, errors[0].removeprefix("diffeo: "))
    if outcome.code == 0 and errors:
        yield f"an error, and exit code 0: {errors[0][:200]!r}"
    if case.refused is not None and case.refused != (outcome.code == 2):
        yield f"expected {'a refusal' if case.refused else 'no refusal'}, got {(errors or ['none'])[0][:300]!r}"
    if case.said and outcome.code == 0 and case.said not in outcome.stdout + outcome.stderr:
        yield f"expected {case.said!r}, got {(outcome.stdout + outcome.stderr)[:300]!r}"
    for name, text in (("stdout", outcome.stdout), ("stderr", outcome.stderr)):
        steering = sorted({c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")})
        if steering:
            yield f"{name} has {steering[:5]!r}"
        longest = max(map(len, text.split("\n")))
        if longest > LINE and "--json" not in words:
            yield f"{name} has a line of {longest:,} characters"
    for warned in outcome.warned:
        yield f"warning: {warned[:150]!r}"
    if outcome.megabytes > case.megabytes:
        yield f"took {outcome.megabytes:,.0f} MB"


def _faults_of_error(case: Case, line: str) -> Iterator[str]:
    if case.named and case.named not in line:
        yield f"does not name {case.named!r}: {line[:300]!r}"
    if not REMEDIES.search(line):
        yield f"has no remedy: {line[:300]!r}"
    if case.said not in line:
        yield f"expected {case.said!r} in {line[:300]!r}"


def fingerprint(folder: Path) -> dict[str, str]:
    """What a folder holds, by name: what links lead to, and what is no regular file, is not read."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink() or not path.is_file():
            found[name] = "?"
        else:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _reset_peak() -> int:
    """Forget the largest memory that there has been, where the system can, and return what there is now in KiB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        if found:
            return int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)

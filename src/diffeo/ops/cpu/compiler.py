"""The machine's C compiler: which it is, what it can do, and how the kernels are built by it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch

__all__ = [
    "FLAGS",
    "FUSED",
    "BuildError",
    "Compiler",
    "Features",
    "compile_library",
    "ended",
    "features",
    "find",
    "fusing",
    "instruction_set",
    "one_line",
    "run",
    "sources",
    "torch_openmp",
]

# -ffp-contract=fast fuses multiply and add; nothing here depends on errno or on traps.
FLAGS = ("-O3", "-fPIC", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
# Some compilers know only the second, cross compilers neither.
_NATIVE: tuple[list[str], ...] = (["-march=native"], ["-mcpu=native"], [])
# Tuned for some processors (AMD's Zen, newer versions others, too), GCC leaves some products and sums apart, in one
# copy of a loop and not in the other: a row's last bits would depend on the rows beside it.
FUSED = "--param=avoid-fma-max-bits=0"
_PROBE_SECONDS = 30.0
_OUTPUT = 1 << 16  # bytes of its output that are read

# What tells an instruction set among the compiler's macros, the widest first.
_INSTRUCTION_SETS = {
    "__AVX512F__": "AVX-512",
    "__AVX2__": "AVX2",
    "__AVX__": "AVX",
    "__x86_64__": "x86-64",
    "__ARM_FEATURE_SVE": "SVE",
    "__ARM_NEON": "NEON",
}


class BuildError(RuntimeError):
    """Why there are no kernels, in one line."""


class Compiler(NamedTuple):
    """A compiler as ``CC`` names it.

    Attributes:
        command: a program, perhaps with another one before it (``ccache gcc``).
        arguments: the user's, which come after diffeo's, so that they win.
    """

    command: tuple[str, ...]
    arguments: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        """What it does, in words."""
        return "building kernels"

    def __str__(self) -> str:
        return shlex.join([*self.command, *self.arguments])

    def identity(self) -> str:
        """Changes when the compiler is exchanged for another version; no process is started for it."""
        parts = [*self.command, *self.arguments]
        for word in self.command:
            if path := shutil.which(word):
                status = os.stat(path)
                parts += [os.path.realpath(path), str(status.st_size), str(status.st_mtime_ns)]
        return "\0".join(parts)

    def version(self) -> str:
        """The first line of what it says of itself."""
        return one_line(run([*self.command, "--version"], _PROBE_SECONDS).output)

    def make(self, sources: Sequence[Path], folder: Path, seconds: float) -> tuple[Path, dict[str, Any]]:
        """Compile the sources for this machine into an empty folder: the library, and how it was made.

        Raises:
            BuildError: if the compiler fails, writes nothing or takes longer than so many seconds.
        """
        version, asked = self.version(), features(self, folder)
        library = compile_library(self, asked, sources, folder, seconds)
        flags = [*FLAGS, *asked.native, *asked.threads, *self.arguments]
        facts = {"version": version, "instructions": asked.instruction_set, "openmp": bool(asked.threads)}
        return library, {**facts, "flags": flags}


class Features(NamedTuple):
    """What a compiler is asked for.

    Attributes:
        native: the options for this processor.
        threads: what compiles with OpenMP; empty where it has none.
        link: what links with it.
        instruction_set: its name.
    """

    native: list[str]
    threads: list[str]
    link: list[str]
    instruction_set: str


class Done(NamedTuple):
    """A process that has ended, and what it printed."""

    code: int
    output: str


def find() -> Compiler | None:
    """Return the compiler that ``CC`` names, with its arguments, or else cc, gcc or clang; None if there is none.

    Raises:
        BuildError: if CC cannot be read, or names no program.
    """
    asked = os.environ.get("CC", "").strip()
    if not asked:
        path = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        return None if path is None else Compiler((path,))
    try:
        words = shlex.split(asked)
    except ValueError as error:
        raise BuildError(f"CC is {one_line(asked)!r}: {error}") from error
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    path = shutil.which(words[0]) if count else None
    if path is None:
        raise BuildError(f"CC is {one_line(asked)!r}, which names no program")
    return Compiler((path, *words[1:count]), tuple(words[count:]))


def features(compiler: Compiler, folder: Path) -> Features:
    """Ask a compiler what it can do, in an empty folder.

    Raises:
        BuildError: if it cannot compile at all, or does not answer.
    """
    named = any(word.startswith(("-march=", "-mcpu=")) for word in compiler.arguments)
    for native in [[]] if named else _NATIVE:
        macros = _macros(compiler, native, folder)
        if macros.code == 0:
            break
    known = _defined(macros)
    probe = folder / "probe.c"
    probe.write_text("int n;\nvoid f(void) {\n#pragma omp parallel\n    n++;\n}\n")
    threads, link = ["-fopenmp"], ["-fopenmp", *torch_openmp()]
    if "__clang__" in known and torch_openmp():  # see openmp.c: clang's own runtime is left out
        threads, link = ["-fopenmp", "-DDIFFEO_GOMP"], torch_openmp()
    for step in (["-fsyntax-only", "probe.c", *threads], ["-shared", "-o", "probe.so", "probe.c", *link]):
        if run([*compiler.command, *FLAGS, *compiler.arguments, *step], _PROBE_SECONDS, folder).code:
            threads, link = [], []  # clang may come without OpenMP
            break
    return Features([*native, *fusing(compiler, folder)], threads, link, _instructions(known))


def fusing(compiler: Compiler, folder: Path) -> list[str]:
    """The option by which GCC fuses every product and sum; none for clang, which warns of it, and for others."""
    macros = _macros(compiler, [FUSED], folder)
    return [] if macros.code or "__clang__" in _defined(macros) else [FUSED]


def instruction_set(compiler: Compiler, options: list[str], folder: Path) -> str:
    """The name of the instruction set that a compiler uses with these options.

    Raises:
        BuildError: if it does not know them.
    """
    return _instructions(_defined(_macros(compiler, options, folder)))


def _macros(compiler: Compiler, options: list[str], folder: Path) -> Done:
    return run(
        [*compiler.command, *FLAGS, *options, *compiler.arguments, "-dM", "-E", "-x", "c", os.devnull],
        _PROBE_SECONDS, folder,
    )  # fmt: skip


def _defined(macros: Done) -> set[str]:
    _must_succeed(macros)
    return set(re.findall(r"^#define (\w+)", macros.output, re.MULTILINE))


def _instructions(known: set[str]) -> str:
    return next((name for macro, name in _INSTRUCTION_SETS.items() if macro in known), "unknown")


def sources(folder: Path) -> list[Path]:
    """The C files of a folder and their headers."""
    return sorted(folder.glob("*.[ch]"))


def compile_library(compiler: Compiler, asked: Features, sources: Sequence[Path], folder: Path, seconds: float) -> Path:
    """Compile the C files among the sources side by side into an empty folder, link them, and return the library.

    Raises:
        BuildError: if the compiler fails, writes nothing or takes longer than so many seconds.
    """
    units = [source for source in sources if source.suffix == ".c"]
    if not units:
        raise BuildError("there are no sources")
    end = time.monotonic() + seconds
    options = [*FLAGS, *asked.native, *asked.threads, *compiler.arguments]
    objects = [f"{unit.stem}.o" for unit in units]
    with ExitStack() as stack:
        started = [
            stack.enter_context(_started([*compiler.command, *options, "-c", "-o", target, str(unit)], folder))
            for unit, target in zip(units, objects, strict=True)
        ]
        for finish in started:
            _must_succeed(finish(end - time.monotonic()))
    target = folder / "kernels.so"
    flags = [*FLAGS, *asked.native, *compiler.arguments]
    link = [*compiler.command, *flags, "-shared", "-o", target.name, *objects, *asked.link, "-lm"]
    _must_succeed(run(link, end - time.monotonic(), folder))
    if not target.is_file():
        raise BuildError("it ended well, but wrote no library")
    return target


def torch_openmp() -> list[str]:
    """PyTorch's copy of GCC's OpenMP, to link with: two runtimes would keep two pools of busily waiting threads."""
    libraries = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return ["-Wl,--as-needed", str(libraries[0])] if libraries else []


def run(command: Sequence[str], seconds: float, folder: Path | None = None) -> Done:
    """Run a command to its end; standard output and errors are read together, as far as anybody would read them.

    Raises:
        BuildError: if it cannot be started or does not end within so many seconds; all that it started is killed.
    """
    with _started(command, folder) as finish:
        return finish(seconds)


@contextmanager
def _started(command: Sequence[str], folder: Path | None) -> Iterator[Callable[[float], Done]]:
    """Start a process, and yield what waits for its end; it is killed, with all that it started, after the block."""
    environment = {**os.environ, "LC_ALL": "C"}
    if folder is not None:
        environment["TMPDIR"] = str(folder)
    name, output = Path(command[0]).name, bytearray()
    try:
        # A session of its own makes a group of all that it starts.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder,
            env=environment, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise BuildError(f"{name}: {error.strerror}") from error
    pipe: Any = process.stdout

    def read() -> None:
        while piece := os.read(pipe.fileno(), 1 << 14):
            output.extend(piece[: _OUTPUT - len(output)])  # the rest is dropped, however much it is

    def finish(seconds: float) -> Done:
        try:
            code = process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"{name} did not end within {seconds:.0f} s") from error
        reader.join(1)  # no longer: something left behind may hold the pipe open
        return Done(code, bytes(output).decode(errors="replace"))

    reader = Thread(target=read, daemon=True)
    reader.start()
    try:
        yield finish
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(1)
        if not reader.is_alive():
            pipe.close()


def _must_succeed(done: Done) -> None:
    if done.code < 0:
        raise BuildError(ended(done))
    if done.code:
        lines = [line for line in done.output.splitlines() if line.strip()]
        first_error = next((line for line in lines if "error" in line), lines[0] if lines else "")
        raise BuildError(one_line(first_error) or f"{ended(done)}, without a word")


def ended(done: Done) -> str:
    """How a process ended."""
    if done.code < 0:
        return f"killed by signal {-done.code} ({signal.strsignal(-done.code)})"
    return f"exit status {done.code}"


def one_line(text: str, most: int = 200) -> str:
    """The first line of a text that says anything, without control characters, and of so many characters at most."""
    cleaned = ("".join(c if c.isprintable() else " " for c in line).strip() for line in text.splitlines())
    line = next(filter(None, cleaned), "")
    return line if len(line) <= most else line[: most - 3] + "..."

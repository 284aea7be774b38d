"""Run the kernel tests for each compiler and instruction set at hand: ``make test-processors``.

    python tests/processors.py [--only NAME ... | --but NAME ...] [--jobs N]

Each build has a cache to itself, so nothing is taken from an earlier one. ``DIFFEO_NATIVE=force`` makes a build
that fails, or a test that would be skipped for lack of kernels, a failure. What cannot be run here is named as skipped.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

COMPILERS = {"gcc": ("gcc",), "clang": ("clang", *(f"clang-{version}" for version in range(21, 13, -1)))}
# Tuned for Zen, GCC would fuse fewer products and sums: there it shows if a row's bits depend on the rows beside it.
PROCESSORS = {"native": [], "x86-64-v3": ["-march=x86-64-v3", "-mtune=znver3"], "x86-64": ["-march=x86-64"]}
NEEDS = {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"}  # of the processor, for x86-64-v3
BUILT = "import sys; from diffeo.ops.cpu.build import kernels; sys.exit(kernels().reason or None)"
MARKS = "mark.kernels", "needs_compiler"  # in the files whose tests these are
SECONDS = 900.0


class Build(NamedTuple):
    """A build to test: the compiler and its options, or why it cannot be tested here."""

    name: str
    command: Sequence[str]
    skipped: str = ""


def installed(*programs: str) -> str | None:
    """The path of the first of these programs that there is."""
    return next(filter(None, map(shutil.which, programs)), None)


def builds() -> list[Build]:
    """Every compiler with every instruction set."""
    every = []
    for family, programs in COMPILERS.items():
        program = installed(*programs)
        for processor, options in PROCESSORS.items():
            reason = f"{family} is not installed" if program is None else _lacks(processor)
            every.append(Build(f"{family} {processor}", [program or family, *options], reason))
    return every


def _lacks(processor: str) -> str:
    """Why this machine does not run what is made for a processor; empty where it does."""
    if processor != "native" and platform.machine().lower() not in ("x86_64", "amd64"):
        return "this processor is not an x86-64"
    if processor == "x86-64-v3":
        try:
            flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
        except OSError:
            return "it is not known whether this processor has AVX2"
        if not set(flags) >= NEEDS:
            return "this processor has no AVX2"
    return ""


def run(build: Build) -> tuple[str, bool]:
    """Build the kernels and test them: a line on how it went, with the end of the output where it failed."""
    if build.skipped:
        return f"skipped: {build.skipped}", True
    start = time.monotonic()
    tests, root = Path(__file__).parent, Path(__file__).parent.parent
    # No other file need be read: that takes as long as some of the tests.
    files = [path for path in sorted(tests.glob("test_*.py")) if any(mark in path.read_text() for mark in MARKS)]
    with tempfile.TemporaryDirectory(prefix="diffeo-") as cache:  # of mode 0700
        environment = {
            "OMP_NUM_THREADS": "1", **os.environ, "CC": " ".join(build.command), "XDG_CACHE_HOME": cache,
            "DIFFEO_NATIVE": "force", "PYTHONPATH": str(root / "src"),
        }  # fmt: skip
        steps = {
            "built": ["-W", "ignore", "-c", BUILT],
            "tested": ["-m", "pytest", "-p", "no:cacheprovider", "-m", "kernels", *map(str, files)],
        }
        took = []
        for step, arguments in steps.items():
            began = time.monotonic()
            try:
                done = subprocess.run(
                    [sys.executable, *arguments], cwd=root, env=environment, stdin=subprocess.DEVNULL, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS,
                )  # fmt: skip
                output, failed = done.stdout, done.returncode != 0
            except subprocess.TimeoutExpired:
                output, failed = f"it did not end within {SECONDS:.0f} s", True
            if failed:
                return f"FAILED, not {step}\n" + "\n".join(output.splitlines()[-30:]), False
            took.append(f"{step} in {time.monotonic() - began:.0f} s")
    passed = output.strip().splitlines()[-1].partition(" in ")[0]
    return f"ok: {', '.join(took)}; {passed} ({time.monotonic() - start:.0f} s)", True


def main() -> None:
    """Test all builds, or some."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [build.name for build in builds()]
    parser.add_argument("--only", metavar="NAME", action="append", choices=names, help=f"one of: {', '.join(names)}")
    parser.add_argument("--but", metavar="NAME", action="append", choices=names, default=[], help="leave these out")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="builds side by side")
    chosen = parser.parse_args()
    good = True
    with ThreadPoolExecutor(chosen.jobs) as pool:
        wanted = [build for build in builds() if build.name in (chosen.only or names) and build.name not in chosen.but]
        for build, (line, passed) in zip(wanted, pool.map(run, wanted), strict=True):
            print(f"{build.name:16} {line}", flush=True)
            good &= passed
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()

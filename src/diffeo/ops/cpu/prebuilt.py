"""Kernels that a wheel carries: one build for each level of its processor family, for machines without a compiler.

They lie in ``builds/`` beside the sources, with a manifest of how they were made. Like what the machine's compiler
builds, the one that is taken is raced against the reference before it is used, once, and kept in the user's cache.

Their OpenMP functions are those of the process, which PyTorch has loaded: a second runtime would keep a second pool of
busily waiting threads, and the wheel of PyTorch may name its copy as it likes.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffeo.ops.cpu.compiler import (
    FLAGS,
    BuildError,
    Features,
    compile_library,
    find,
    fusing,
    instruction_set,
    sources,
)

__all__ = ["LEVELS", "Prebuilt", "build", "runs", "shipped"]

FOLDER = Path(__file__).parent / "builds"

_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
# Of each processor family the levels that compilers know, the best first, and what a processor must have for each.
LEVELS: dict[str, dict[str, frozenset[str]]] = {
    "x86_64": {"x86-64-v4": _V4, "x86-64-v3": _V3, "x86-64": frozenset()},
    "aarch64": {"armv8-a": frozenset()},
}
_SECONDS = 300.0  # for compiling one of them


def _family() -> dict[str, frozenset[str]]:
    return LEVELS.get(platform.machine().replace("AMD64", "x86_64"), {})


def runs(level: str) -> bool:
    """Whether this processor runs what is built for a level, so far as Linux says what it has."""
    needs = _family().get(level)
    if not needs:
        return needs is not None
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    return needs <= set(next((line for line in lines if line.startswith("flags")), "").split())


class Prebuilt(NamedTuple):
    """A library that the wheel carries.

    Attributes:
        level: of the processor that it is made for.
        path: where it is.
        facts: how it was made, and its digest.
    """

    level: str
    path: Path
    facts: dict[str, Any]

    @property
    def task(self) -> str:
        """What it does, in words."""
        return "trying the wheel's kernels"

    def __str__(self) -> str:
        return f"the wheel's build for {self.level}"

    def identity(self) -> str:
        """Changes with the library."""
        return f"prebuilt\0{self.facts['digest']}"

    def make(self, sources: Sequence[Path], folder: Path, seconds: float) -> tuple[Path, dict[str, Any]]:
        """Copy the library into a folder; the sources are those that it was made of.

        Raises:
            BuildError: if it is not the one that its manifest names.
        """
        target = folder / "kernels.so"
        shutil.copyfile(self.path, target)
        if hashlib.sha256(target.read_bytes()).hexdigest() != self.facts["digest"]:
            raise BuildError(f"{self.path} was changed after it was built")
        return target, {key: self.facts[key] for key in ("version", "instructions", "openmp", "flags")}


def shipped(files: Sequence[Path]) -> Prebuilt | None:
    """Return the best of the wheel's builds of these sources that this processor runs, or None."""
    try:
        manifest = json.loads((FOLDER / "manifest.json").read_text())
        builds = manifest["builds"] if manifest["sources"] == _digest(files) else {}
        level = next((level for level in _family() if level in builds and runs(level)), None)
        return None if level is None else Prebuilt(level, FOLDER / f"{level}.so", dict(builds[level]))
    except (OSError, ValueError, TypeError, KeyError):  # a checkout carries none
        return None


def build(folder: Path | str) -> dict[str, Any]:
    """Compile the kernels for each level of this machine's family into a folder, and return its manifest.

    Raises:
        BuildError: if there is no compiler, it fails, or no level of this family is known.
    """
    compiler, folder, files = find(), Path(folder), sources(FOLDER.parent)
    if compiler is None:
        raise BuildError("expected a C compiler, found none")
    if not _family():
        raise BuildError(f"expected one of the processor families {', '.join(LEVELS)}, got {platform.machine()}")
    folder.mkdir(parents=True, exist_ok=True)
    builds: dict[str, Any] = {}
    for level in _family():
        march = [f"-march={level}"]
        with tempfile.TemporaryDirectory(prefix="diffeo-") as work:
            # See openmp.c on clang. Nothing is linked: the functions of OpenMP are left to be found in the process.
            threads = ["-fopenmp", "-DDIFFEO_GOMP"]
            options = [*march, *fusing(compiler, Path(work))]
            asked = Features(options, threads, [], instruction_set(compiler, options, Path(work)))
            made = compile_library(compiler, asked, files, Path(work), _SECONDS)
            shutil.copyfile(made, folder / f"{level}.so")
        builds[level] = {
            "version": compiler.version(), "instructions": asked.instruction_set, "openmp": True,
            "flags": [*FLAGS, *options, *threads, *compiler.arguments],
            "digest": hashlib.sha256((folder / f"{level}.so").read_bytes()).hexdigest(),
        }  # fmt: skip
    manifest = {"sources": _digest(files), "builds": builds}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _digest(files: Sequence[Path]) -> str:
    """A digest of the sources."""
    key = hashlib.sha256()
    for source in sorted(files):
        key.update(f"{source.name}\0".encode() + source.read_bytes())
    return key.hexdigest()

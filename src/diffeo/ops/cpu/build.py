"""Builds, proves and loads the C kernels at first use, and keeps them in the user's cache.

They are those that the wheel carries for this processor, or else the machine's compiler builds them, as it does
where ``CC`` names it.

Nothing depends on it. Where there is neither, where building fails (said once), or with ``DIFFEO_NATIVE=0`` in the
environment, the reference computes, and gives the same results to rounding. What is built is raced against it once, in
another process; kinds of kernels that lose are not used, unless by ``DIFFEO_NATIVE=force``.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import multiprocessing.spawn
import os
import platform
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diffeo import __version__
from diffeo.ops.cpu import cache
from diffeo.ops.cpu.binding import TYPES
from diffeo.ops.cpu.compiler import (
    FLAGS,
    FUSED,
    BuildError,
    Compiler,
    ended,
    find,
    one_line,
    run,
    sources,
    torch_openmp,
)
from diffeo.ops.cpu.prebuilt import Prebuilt, shipped

__all__ = ["KINDS", "BuildError", "Kernels", "adopt", "kernels", "library", "usable"]

KINDS = ("network", "map", "inversion", "wavenet", "wavenet inversion", "ode", "matching", "update")

_SECONDS = 120.0  # for compiling
_RACE_SECONDS = 60.0
_RETRY_SECONDS = 86400.0  # a build that failed is tried again a day later
_FOLDER = Path(__file__).parent
_LOCK = threading.Lock()
_LOG = logging.getLogger("diffeo")

_SIGNATURES = {
    "map_f32": "llpippllii" + "ppi",
    "map_backward_f32": "llpippll" + "ppppll" + "i",
    "vector_lanes": "",
    "kept_floats": "ll",
    "network_f32": "lppp" + "llp" + "ppp" + "i",
    "network_backward_f32": "lp" + "pppp" + "pppp" + "i",
    "invert_f32": "lllpppi" + "ppp" + "li",
    "wavenet_kept": "lp",
    "wavenet_f32": "llppppp" + "i",
    "wavenet_backward_f32": "llpppp" + "ppp" + "i",
    "wavenet_invert_f32": "llpppi" + "ppp" + "i",
    "ode_adaptive_f32": "llppp" + "ppppp" + "i",
    "matching_f32": "lpppp" + "ppp" + "i",
    "gradient_norm_f32": "ppl" + "i",
    "update_f32": "pplp" + "ddd" + "i",
}


class Kernels(NamedTuple):
    """What there is to compute with.

    Attributes:
        library: the compiled kernels, or None.
        reason: why there are none.
        manifest: how they were built, and how each kind did in its race.
        lost: the kinds that are not to be used.
        path: where they are kept; None where they are of this process alone.
    """

    library: Any | None
    reason: str = ""
    manifest: Mapping[str, Any] = {}
    lost: frozenset[str] = frozenset()
    path: Path | None = None

    @property
    def lanes(self) -> int | None:
        """How many numbers a vector of the kernels holds, where that is known."""
        return None if self.library is None else self.library.vector_lanes()


_ADOPTED: list[Kernels] = []


@lru_cache(maxsize=1)
def kernels() -> Kernels:
    """Return the kernels, built at the first call where that was not done before; never fails."""
    if _ADOPTED:
        return _ADOPTED[-1]
    asked = os.environ.get("DIFFEO_NATIVE", "1")
    if asked == "0":
        return Kernels(None, "switched off by DIFFEO_NATIVE=0")
    if not hasattr(os, "geteuid"):
        return Kernels(None, "not built on this system")
    named = os.environ.get("CC", "").strip()
    try:
        carried = None if named else shipped(_sources())
        built = None if carried is None else _open_shipped(carried)
        if built is None:
            compiler = find()
            if compiler is None:
                return Kernels(None, "no C compiler found: neither cc, gcc nor clang")
            named = str(compiler)
            with _LOCK:
                built = _open(compiler)
    except (BuildError, OSError) as error:
        reason = one_line(str(error), 500) or type(error).__name__
        _warn(
            f"the kernels could not be built by {one_line(named)}: plain PyTorch gives the same results, several times "
            f"slower (DIFFEO_NATIVE=0 asks for that): {reason}"
        )
        return Kernels(None, reason)
    return built._replace(lost=frozenset()) if asked == "force" else built


def _open_shipped(carried: Prebuilt) -> Kernels | None:
    """Load what the wheel carries; None, and a line in the log, where this machine cannot: its compiler may do."""
    try:
        with _LOCK:
            return _open(carried)
    except (BuildError, OSError) as error:
        _LOG.warning("diffeo: %s is not used: %s", carried, one_line(str(error)))
        return None


def library() -> Any:
    """Return the compiled library, or None where there is none to be had."""
    return kernels().library


def usable(kind: str, *, forced: bool = False) -> bool:
    """Whether the kernels of this kind may be used; ``forced`` asks for those that lost their race, too."""
    built = kernels()
    return built.library is not None and (forced or kind not in built.lost)


def adopt(path: str) -> None:
    """Take this library for the kernels, all kinds of it: for the process that proves what was just built."""
    _ADOPTED.append(Kernels(_declared(ctypes.CDLL(path))))
    kernels.cache_clear()


def _open(maker: Compiler | Prebuilt) -> Kernels:
    """Load what the cache holds of this compiler or wheel, sources and processor, or build it."""
    try:
        folder = cache.open_folder()
    except OSError as error:
        _warn(f"the kernels are built for this process alone, for they cannot be kept: {one_line(str(error))}")
        return _build_privately(maker)
    path = folder / f"kernels-{_key(maker)}"
    loaded = _load(path)
    if loaded is not None:
        return loaded
    with cache.lock(folder, _SECONDS + _RACE_SECONDS, lambda: _show("another process builds the kernels ...")) as alone:
        if not alone:
            _warn(f"the kernels are built for this process alone: another one holds {folder / 'lock'}")
            return _build_privately(maker)
        loaded = _load(path)  # another process may have built it meanwhile
        if loaded is not None:
            return loaded
        cache.remove_leftovers(folder)
        return _build(path, maker)


def _build_privately(maker: Compiler | Prebuilt) -> Kernels:
    with tempfile.TemporaryDirectory(prefix="diffeo-") as folder:  # what is loaded stays, its file need not
        return _build(Path(folder) / "kernels", maker)._replace(path=None)


def _build(path: Path, maker: Compiler | Prebuilt) -> Kernels:
    """Make, prove and load; write the library and its manifest beside it, or in the manifest why there is none.

    Raises:
        BuildError: if there is none.
        OSError: if nothing can be written.
    """
    started = time.monotonic()
    _show(f"{maker.task} for this machine, once; some seconds ...")
    manifest: dict[str, Any] = {"compiler": str(maker), "time": time.time()}
    try:
        with tempfile.TemporaryDirectory(prefix=cache.PREFIX, dir=path.parent) as folder:
            built, facts = maker.make(_sources(), Path(folder), _SECONDS)
            manifest |= facts
            manifest["seconds"] = round(time.monotonic() - started, 2)
            content = built.read_bytes()
            proof = _prove(built)
            manifest["race"], manifest["race seconds"] = proof.get("kinds", {}), proof.get("seconds")
            manifest["threads"] = torch.get_num_threads()
    except BuildError as error:
        failed = {**manifest, "failed": str(error)}
        cache.write(path.with_suffix(".json"), json.dumps(failed, indent=2).encode())
        raise
    manifest["digest"] = hashlib.sha256(content).hexdigest()
    cache.write(path.with_suffix(".so"), content)
    cache.write(path.with_suffix(".json"), json.dumps(manifest, indent=2).encode())
    _say(manifest["race"])
    loaded = _load(path)
    if loaded is None:
        raise BuildError(f"{path}.so was changed while it was being loaded")
    return loaded


def _load(path: Path) -> Kernels | None:
    """Load a library whose bytes are those that its manifest notes; None where there is none, or another one.

    Raises:
        BuildError: if it was tried less than a day ago, and failed.
    """
    try:
        descriptor, text = cache.read(path.with_suffix(".json"))
        os.close(descriptor)
        manifest = json.loads(text)
        digest, failed, when = (manifest.get(key) for key in ("digest", "failed", "time"))
        if failed is not None and 0 <= time.time() - when < _RETRY_SECONDS:
            tried = time.strftime("%Y-%m-%d %H:%M", time.localtime(when))
            raise BuildError(f"{failed} (tried {tried}; tried again a day later, or without {path}.json)")
        lost = frozenset(kind for kind, each in manifest["race"].items() if not each["used"])
        descriptor, content = cache.read(path.with_suffix(".so"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none, not the user's, or damaged
        return None
    if hashlib.sha256(content).hexdigest() != digest:
        os.close(descriptor)
        return None
    # By its descriptor, so that it is the file just read. It stays open: the loader knows libraries by their names.
    opened = f"/proc/self/fd/{descriptor}"
    # Elsewhere by its path, which nobody but the user can change.
    library = ctypes.CDLL(opened if os.path.exists(opened) else str(path.with_suffix(".so")))
    return Kernels(_declared(library), "", manifest, lost, path.with_suffix(".so"))


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library, its functions with their types."""
    try:
        for name, arguments in _SIGNATURES.items():
            getattr(library, name).argtypes = [TYPES[letter] for letter in arguments]
    except AttributeError as error:
        raise BuildError(str(error)) from error
    for name in ("vector_lanes", "kept_floats", "wavenet_kept"):
        getattr(library, name).restype = ctypes.c_long
    library.gradient_norm_f32.restype = ctypes.c_double
    return library


def _prove(built: Path) -> dict[str, Any]:
    """Race what was built against the reference, in another process: a wrong one may end that, but not this one.

    What races are whole transforms, which are above this module: so it is started by name.

    Raises:
        BuildError: if that process crashes or does not end.
    """
    python = multiprocessing.spawn.get_executable()
    if not python:  # embedded somewhere: there is no other process to be had
        return {}
    result, call = built.with_name("race.json"), "from diffeo.race import main; main(*json.loads(sys.argv[2]))"
    code = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); {call}"
    arguments = [sys.path, [str(built), str(result), torch.get_num_threads()]]
    # -P: nothing is imported from the current folder, which may be anybody's.
    done = run([os.fsdecode(python), "-P", "-c", code, *map(json.dumps, arguments)], _RACE_SECONDS)
    if done.code < 0:
        raise BuildError(f"what was built crashed, {ended(done)}")
    try:
        report = json.loads(result.read_bytes())
    except (OSError, ValueError) as error:
        last = next(filter(None, map(one_line, reversed(done.output.splitlines()))), f"exit status {done.code}")
        raise BuildError(f"what was built could not be tried: {last}") from error
    if "error" in report:
        raise BuildError(report["error"])
    return report


def _say(race: Mapping[str, Mapping[str, Any]]) -> None:
    """Say once which kinds of kernels are not used."""
    wrong = [kind for kind, each in race.items() if not each["equal"]]
    if wrong:
        _warn(f"the kernels of these kinds gave wrong values and are not used: {', '.join(wrong)}")
    slow = [f"{kind} ({each['ratio']:.1f}x)" for kind, each in race.items() if each["equal"] and not each["used"]]
    if slow:
        _LOG.warning("diffeo: kernels that take longer here than plain PyTorch are not used: %s", ", ".join(slow))


def _key(maker: Compiler | Prebuilt) -> str:
    """A digest of all that the library and its race depend on."""
    key = hashlib.sha256()
    for source in _sources():
        key.update(f"{source.name}\0".encode() + source.read_bytes())
    made_by = maker.identity(), *FLAGS, FUSED, *torch_openmp()
    for part in (*made_by, platform.machine(), _processor(), torch.__version__, __version__, *KINDS):
        key.update(f"{part}\0".encode())
    return key.hexdigest()[:16]


def _sources() -> list[Path]:
    return sources(_FOLDER)


def _processor() -> str:
    """What -march=native depends on: a cache on a shared home folder may serve different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _show(text: str) -> None:
    """Say on a terminal what takes so long."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"diffeo: {text}", file=sys.stderr)


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=3)

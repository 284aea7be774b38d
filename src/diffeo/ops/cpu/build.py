"""Builds and loads the C files beside it: compiled by the machine's C compiler at first use, kept in the user's cache.

Nothing depends on it. Where there is no compiler, where building fails (said once), or with ``DIFFEO_NATIVE=0`` in the
environment, the plain PyTorch twins are used, and give the same results to rounding.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

__all__ = ["differentiable_gradients", "library", "pointer", "usable"]

_UNITS = sorted(Path(__file__).parent.glob("*.c"))  # compiled side by side
_SOURCES = [*_UNITS, *sorted(Path(__file__).parent.glob("*.h"))]
# -ffp-contract=fast fuses multiply and add; nothing here depends on errno or on traps.
_FLAGS = [
    "-O3",
    "-march=native",
    "-fPIC",
    "-std=gnu11",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
]

_TYPES = {"l": ctypes.c_long, "i": ctypes.c_int, "p": ctypes.c_void_p, "d": ctypes.c_double}
_SIGNATURES = {
    "map_f32": "llpippllii" + "ppi",
    "map_backward_f32": "llpippll" + "ppppll" + "i",
    "vector_lanes": "",
    "kept_floats": "ll",
    "network_f32": "lppp" + "llp" + "ppp" + "i",
    "network_backward_f32": "lp" + "ppppppppp" + "i",
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


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Return the compiled library, or None where there is none to be had."""
    if os.environ.get("DIFFEO_NATIVE", "1") == "0":
        return None
    wanted, *arguments = shlex.split(os.environ.get("CC", "")) or ["cc"]
    compiler = shutil.which(wanted)
    if compiler is None:
        compiler, arguments = shutil.which("gcc") or shutil.which("clang"), []
    if compiler is None:
        return None
    try:
        found = ctypes.CDLL(str(_build(compiler, arguments)))
        for name, letters in _SIGNATURES.items():
            getattr(found, name).argtypes = [_TYPES[letter] for letter in letters]
        for name in ("vector_lanes", "kept_floats", "wavenet_kept"):
            getattr(found, name).restype = ctypes.c_long
        found.gradient_norm_f32.restype = ctypes.c_double
        return found
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"the kernels could not be built by {compiler}: plain PyTorch gives the same results, several times slower "
            f"(DIFFEO_NATIVE=0 asks for that): {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _build(compiler: str, arguments: Sequence[str]) -> Path:
    """Compile into the cache, unless it holds this source for this machine and compiler already.

    The compiler's arguments follow those from here, so that they win.
    """
    key = hashlib.sha256(b"".join(source.read_bytes() for source in _SOURCES))
    key.update(" ".join([compiler, *_FLAGS, *arguments, *_openmp(), platform.machine(), _processor()]).encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffeo"
    target = folder / f"native-{key.hexdigest()[:16]}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:  # no place to keep it: build it for this process
        folder = Path(tempfile.mkdtemp(prefix="diffeo-"))
        target = folder / target.name
    for threads in (["-fopenmp", *_openmp()], []):  # clang on macOS comes without OpenMP
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            built = Path(temporary, "native.so")
            objects = [str(Path(temporary, unit.stem + ".o")) for unit in _UNITS]
            commands = [
                [compiler, *_FLAGS, *threads[:1], *arguments, "-c", "-o", each, str(unit)]
                for each, unit in zip(objects, _UNITS, strict=True)
            ]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                done = list(pool.map(_run, commands))
            if all(each.returncode == 0 for each in done):
                link = [compiler, *_FLAGS, *arguments, "-shared", "-o", str(built), *objects, *threads, "-lm"]
                done = [_run(link)]
            if all(each.returncode == 0 for each in done):
                os.replace(built, target)  # processes that build at the same time end with one whole file
                return target
    raise OSError(b"".join(each.stderr for each in done).decode(errors="replace"))


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, capture_output=True, timeout=120)


def _openmp() -> list[str]:
    """PyTorch's own copy of GCC's OpenMP, to link with: two runtimes would keep two pools of busily waiting threads."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return ["-Wl,--as-needed", *map(str, found[:1])]


def _processor() -> str:
    """What -march=native depends on: a cache on a shared home folder may serve different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def usable(*tensors: Tensor | None) -> bool:
    """Whether the library is there and takes these tensors: float32 on the CPU, and no wrappers of ``torch.func``."""
    return library() is not None and all(
        t is None or (t.dtype == torch.float32 and t.device.type == "cpu" and not is_functorch_wrapped_tensor(t))
        for t in tensors
    )


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a tensor's first element."""
    return None if tensor is None else tensor.data_ptr()


def differentiable_gradients(
    outputs: Sequence[Tensor], grads: Sequence[Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """A kernel's backward pass where a second derivative is asked for: through ``outputs`` of its plain twin."""
    wanted = [t for t, need in zip(inputs, needed, strict=True) if need and t is not None]
    pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [grad for _, grad in pairs], create_graph=True, materialize_grads=True
        )
    )
    return [next(found) if need else None for need in needed]

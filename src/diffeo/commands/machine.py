"""What computes on this machine, and how fast."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffeo import ops

__all__ = ["machine"]

ROWS, WIDTH = 1000, 512  # of the product that is timed
_SECONDS = 0.2  # for each timing


def machine() -> dict[str, Any]:
    """Return the processor, PyTorch and the kernels: how they were built, which are used or why not, and their speed.

    Kernels that are not there yet are built.
    """
    kernels = _kernels()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": {"version": torch.__version__, "instructions": torch.backends.cpu.get_cpu_capability()},
        "kernels": kernels,
        "gflops": _speed(kernels["reason"] is None),
    }


def _kernels() -> dict[str, Any]:
    try:
        from diffeo.ops.cpu import build
    except ModuleNotFoundError:
        return {"reason": "not installed"}
    kernels = build.kernels()
    manifest = dict(kernels.manifest)
    names = ("compiler", "version", "flags", "instructions", "openmp", "seconds")
    return {
        "reason": kernels.reason or None,
        **{name: manifest[name] for name in names if name in manifest},
        "lanes": kernels.lanes,
        "library": None if kernels.path is None else str(kernels.path),
        "kinds": {
            kind: {**manifest.get("race", {}).get(kind, {}), "used": build.usable(kind)}
            for kind in build.KINDS
            if kernels.library is not None
        },
    }


def _speed(kernels: bool) -> dict[str, float]:
    """GFLOP/s of a product of 512 x 512 with 1000 columns; of a masked layer only what the mask lets through counts."""
    weight, bias, x = torch.randn(WIDTH, WIDTH), torch.zeros(WIDTH), torch.randn(WIDTH, ROWS)
    speeds = {"torch": 2e-9 * ROWS * WIDTH**2 / _best(lambda: weight @ x)}
    if kernels:
        wirings = {"dense": ops.Wiring.dense(WIDTH, WIDTH), "masked": ops.Wiring(range(1, WIDTH + 1), WIDTH)}
        for name, wiring in wirings.items():
            spec = ops.NetworkSpec([wiring], None, None, [False], "relu", 10.0, interleaved=False)
            with ops.using("cpu"):
                seconds = _best(partial(ops.network, spec, x, None, [weight, bias]))
            speeds[name] = 2e-9 * ROWS * sum(wiring.seen) / seconds
    return {name: round(each, 1) for name, each in speeds.items()}


@torch.no_grad()
def _best(call: Callable[[], Any]) -> float:
    call()
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while (started := time.perf_counter()) < end:
        call()
        best = min(best, time.perf_counter() - started)
    return best


def _processor() -> str:
    """Its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    if not named and platform.system() == "Darwin":
        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        named = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return named or platform.processor() or platform.machine()

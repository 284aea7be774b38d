"""Which backend computes: the C kernels where they are at hand and won their race, else the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffeo.ops.tracing import tracing

__all__ = ["kernels", "using"]

_CHOSEN: ContextVar[str] = ContextVar("backend", default="fastest")
_PLAIN = (Tensor, nn.Parameter)  # subclasses may hold no memory

try:
    cpu: Any = import_module("diffeo.ops.cpu")
except ModuleNotFoundError as error:
    if error.name != "diffeo.ops.cpu":
        raise
    cpu = None


@contextmanager
def using(backend: Literal["reference", "cpu", "fastest"]) -> Iterator[None]:
    """Within this block compute by one backend: "cpu" also where its kernels lost their race; "fastest" is the default.

    Raises:
        ValueError: for another name.
    """
    if backend not in ("reference", "cpu", "fastest"):
        raise ValueError(f"expected a backend among reference, cpu, fastest, got {backend!r}")
    token = _CHOSEN.set(backend)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def kernels(kind: str, *tensors: Tensor | None) -> Any:
    """The kernels, if those of this kind may compute with these tensors: float32 on the CPU; else None."""
    if cpu is None or tracing():
        return None
    chosen = _CHOSEN.get()
    if chosen == "reference":
        return None
    for t in tensors:
        if t is not None and not (type(t) in _PLAIN and t.dtype is torch.float32 and t.is_cpu):
            return None
    return cpu if cpu.usable(kind, forced=chosen == "cpu") else None

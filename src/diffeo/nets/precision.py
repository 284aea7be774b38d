"""Networks in bfloat16: their products take a fraction of the time where the processor has units for it.

Only networks: what they condition, log-determinants above all, stays in the flow's own precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = ["autocast", "bfloat16", "in_bfloat16"]

_ASKED: ContextVar[bool] = ContextVar("bfloat16", default=False)


@contextmanager
def bfloat16(asked: bool = True) -> Iterator[None]:
    """Within this block networks multiply in bfloat16 (and add in float32)."""
    token = _ASKED.set(asked)
    try:
        yield
    finally:
        _ASKED.reset(token)


def in_bfloat16() -> bool:
    """Whether networks are asked for bfloat16; a graph that is compiled keeps the flow's precision."""
    return not torch.compiler.is_compiling() and _ASKED.get()


def autocast(like: Tensor) -> torch.autocast:
    """The block that a network runs in, on the device of ``like``; its outputs are to be cast back by the network."""
    return torch.autocast(like.device.type, torch.bfloat16, enabled=in_bfloat16())

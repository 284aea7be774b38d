"""The incremental walk of a feed-forward masked network, with its univariate map, in one call (``native.c``).

Its plain twin is ``nets/walk.py`` driven by ``transforms/autoregressive.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffeo.kernels.native import library, pointer
from diffeo.kernels.network import Structure

__all__ = ["MapSpec", "walk_fused"]

_KINDS = {"shift": 0, "scale": 1, "affine": 2, "spline": 3}
_MAX_BINS = 64  # of native.c
_MAX_SIZE = 3 * _MAX_BINS + 8
_BLOCK = 16  # elements whose earlier contributions are computed together


class MapSpec(NamedTuple):
    """A univariate map as the kernel knows it."""

    kind: str
    bins: int = 0
    bound: float = 0.0
    min_bin: float = 0.0
    max_log_bend: float = 0.0


class _Map(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int),
        ("bins", ctypes.c_int),
        ("bound", ctypes.c_double),
        ("min_bin", ctypes.c_double),
        ("max_log_bend", ctypes.c_double),
    )


def walk_fused(
    structure: Structure, tensors: Sequence[Tensor], shared: Tensor | None, maps: Sequence[MapSpec], z: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Solve x_i = f(z_i; net(x_<i)) for all i, or return None where the plain twin must.

    Args:
        structure: the masked network, its outputs ordered element by element.
        tensors: weight and bias of each layer, then the weight of the direct connections where there are any.
        shared: the context's part of the first layer's sums, ``(rows, units)``, or None.
        maps: the univariate map, as a chain in the order of generation.
        z: ``(rows, elements)``.

    Returns:
        x ``(rows, elements)`` and log|det dx/dz| ``(rows,)``.
    """
    elements = structure.layers[0].columns
    size = structure.layers[-1].units // elements
    if z.dim() != 2 or z.shape[1] != elements:
        raise ValueError(f"expected z of shape (rows, {elements}), got {tuple(z.shape)}")
    if not structure.known(z, shared, tensors[0]) or size > _MAX_SIZE or any(each.bins > _MAX_BINS for each in maps):
        return None
    z, tensors = z.contiguous(), [t.contiguous() for t in tensors]
    kinds = (_Map * len(maps))(*(_Map(_KINDS[each.kind], *each[1:]) for each in maps))
    shared = None if shared is None else shared.expand(len(z), -1).contiguous()
    x, log_det = torch.empty_like(z), z.new_empty(len(z))
    native: Any = library()
    failed = native.walk_f32(
        ctypes.c_long(len(z)), ctypes.c_long(elements), ctypes.c_long(size),
        ctypes.byref(structure.described(tensors)), pointer(shared), kinds, ctypes.c_int(len(maps)), pointer(z),
        pointer(x), pointer(log_det), ctypes.c_long(_BLOCK), ctypes.c_int(torch.get_num_threads()),
    )  # fmt: skip
    return None if failed else (x, log_det)

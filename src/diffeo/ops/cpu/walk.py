"""The incremental walk of a feed-forward masked network, with its univariate map, in one call (``native.c``).

Its plain twin is ``nets/walk.py`` driven by ``transforms/autoregressive.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffeo.ops.cpu.build import library, pointer
from diffeo.ops.cpu.maps import MapSpec, described, known
from diffeo.ops.cpu.network import Structure

__all__ = ["walk_fused"]

_BLOCK = 16  # elements whose earlier contributions are computed together


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
    if not (structure.known(z, shared, tensors[0]) and known(maps, generate=True)):
        return None
    z, tensors = z.contiguous(), [t.contiguous() for t in tensors]
    shared = None if shared is None else shared.expand(len(z), -1).contiguous()
    x, log_det = torch.empty_like(z), z.new_empty(len(z))
    native: Any = library()
    failed = native.invert_f32(
        len(z), elements, size, ctypes.byref(structure.described(tensors)), pointer(shared), described(tuple(maps)),
        len(maps), z.data_ptr(), x.data_ptr(), log_det.data_ptr(), _BLOCK, torch.get_num_threads(),
    )  # fmt: skip
    return None if failed else (x, log_det)

"""The incremental walk of a feed-forward masked network, with its univariate map, in one call (``native.c``).

Its plain twin is ``nets/walk.py`` driven by ``transforms/autoregressive.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffeo.kernels.native import library, pointer, usable

__all__ = ["DenseLayer", "MapSpec", "walk_fused"]

_ACTIVATIONS = {"relu": 0, "silu": 1, "tanh": 2, "elu": 3}
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


@dataclass
class DenseLayer:
    """One layer of a masked network whose units are sorted by degree.

    Attributes:
        weight: ``(units, units of the layer before)``, masked.
        bias: ``(units,)``.
        ends: ``ends[k]`` counts the units computable once k = 0 .. elements - 1 elements are known.
        residual: whether the layer's input is added to its output.
    """

    weight: Tensor
    bias: Tensor
    ends: Sequence[int]
    residual: bool


class _Layer(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("ends", ctypes.POINTER(ctypes.c_long)),
        ("units", ctypes.c_long), ("columns", ctypes.c_long), ("residual", ctypes.c_int),
    )  # fmt: skip


class _Map(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int), ("bins", ctypes.c_int), ("bound", ctypes.c_double), ("min_bin", ctypes.c_double),
        ("max_log_bend", ctypes.c_double),
    )  # fmt: skip


def walk_fused(
    layers: Sequence[DenseLayer],
    direct: Tensor | None,
    shared: Tensor | None,
    activation: str,
    input_bound: float,
    maps: Sequence[MapSpec],
    z: Tensor,
) -> tuple[Tensor, Tensor] | None:
    """Solve x_i = f(z_i; net(x_<i)) for all i, or return None where the plain twin must.

    Args:
        layers: the network, the output layer last, its rows ordered element by element.
        direct: weight of the connections from inputs to outputs, or None.
        shared: the context's part of the first layer's sums, ``(rows, units)``, or None.
        activation: its name.
        input_bound: the network sees input_bound tanh(x / input_bound).
        maps: the univariate map, as a chain in the order of generation.
        z: ``(rows, elements)``.

    Returns:
        x ``(rows, elements)`` and log|det dx/dz| ``(rows,)``.
    """
    size = layers[-1].weight.shape[0] // layers[0].weight.shape[1]
    if z.dim() != 2 or z.shape[1] != layers[0].weight.shape[1]:
        raise ValueError(f"expected z of shape (rows, {layers[0].weight.shape[1]}), got {tuple(z.shape)}")
    if (
        not usable(z, shared, layers[0].weight)
        or activation not in _ACTIVATIONS
        or size > _MAX_SIZE
        or any(each.bins > _MAX_BINS for each in maps)
    ):
        return None
    z = z.contiguous()
    tensors = [(layer.weight.contiguous(), layer.bias.contiguous()) for layer in layers]
    ends = [(ctypes.c_long * len(layer.ends))(*layer.ends) for layer in layers]
    described = (_Layer * len(layers))(
        *(
            _Layer(weight.data_ptr(), bias.data_ptr(), end, *weight.shape, layer.residual)
            for (weight, bias), end, layer in zip(tensors, ends, layers, strict=True)
        )
    )
    kinds = (_Map * len(maps))(*(_Map(_KINDS[each.kind], *each[1:]) for each in maps))
    direct = None if direct is None else direct.contiguous()
    shared = None if shared is None else shared.expand(len(z), -1).contiguous()
    x, log_det = torch.empty_like(z), z.new_empty(len(z))
    native: Any = library()
    failed = native.walk_f32(
        ctypes.c_long(len(z)), ctypes.c_long(z.shape[1]), ctypes.c_long(size), described, ctypes.c_int(len(layers)),
        pointer(direct), pointer(shared), ctypes.c_int(_ACTIVATIONS[activation]), ctypes.c_float(input_bound), kinds,
        ctypes.c_int(len(maps)), pointer(z), pointer(x), pointer(log_det), ctypes.c_long(_BLOCK),
        ctypes.c_int(torch.get_num_threads()),
    )  # fmt: skip
    return None if failed else (x, log_det)

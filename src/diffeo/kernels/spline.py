"""The rational-quadratic spline in one pass over memory, forward and backward (``spline.h``).

Its plain twin is ``RationalQuadraticSpline`` in ``transforms/univariate.py``.
"""

from __future__ import annotations

from ctypes import c_double, c_int, c_long
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diffeo.kernels.native import library, pointer, usable

__all__ = ["Spline", "spline_map"]

_MAX_BINS = 64  # of native.c


class Spline(Protocol):
    """What the kernel must know of a spline."""

    bins: int
    bound: float
    min_bin: float
    max_log_bend: float


def spline_map(spline: Spline, value: Tensor, params: Tensor, *, generate: bool) -> tuple[Tensor, Tensor] | None:
    """Map values ``(*batch, n)`` given params ``(size, *batch, n)``, or return None where the plain twin must.

    Generation has no backward pass here: training evaluates the other side.
    """
    if not usable(value, params) or spline.bins > _MAX_BINS or params.shape[1:] != value.shape or not value.numel():
        return None
    needs_grad = torch.is_grad_enabled() and (value.requires_grad or params.requires_grad)
    if needs_grad and generate:
        return None
    columns = value.shape[-1] if value.dim() else 1
    rows = value.numel() // columns
    flat = _flat(params, rows, columns)
    value = value.contiguous()
    if needs_grad:
        return _Normalize.apply(value, flat, spline)
    return _call(spline, value, flat, generate, precise=not torch.is_grad_enabled())


def _flat(params: Tensor, rows: int, columns: int) -> Tensor:
    """View params as ``(size, rows, columns)`` with contiguous columns, copying only where the layout forbids it."""
    flat = params.reshape(params.shape[0], rows, columns)
    return flat if columns == 1 or flat.stride(2) == 1 else flat.contiguous()


def _layout(spline: Spline, params: Tensor) -> list[Any]:
    by_param, by_row = params.stride(0), params.stride(1)
    return [
        pointer(params), c_long(by_param), c_long(by_row), c_int(spline.bins), c_double(spline.bound),
        c_double(spline.min_bin), c_double(spline.max_log_bend),
    ]  # fmt: skip


def _call(spline: Spline, value: Tensor, params: Tensor, generate: bool, precise: bool) -> tuple[Tensor, Tensor]:
    _, rows, columns = params.shape
    out, log_det = torch.empty_like(value), torch.empty_like(value)
    native: Any = library()
    native.spline_map_f32(
        c_long(rows), c_long(columns), pointer(value), *_layout(spline, params), c_int(generate), c_int(precise),
        pointer(out), pointer(log_det), c_int(torch.get_num_threads()),
    )  # fmt: skip
    return out, log_det


class _Normalize(torch.autograd.Function):
    """z = g(x) and its log-derivative, with gradients computed afresh from x and the parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, params: Tensor, spline: Spline) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, params)
        ctx.spline = spline
        return _call(spline, x, params, generate=False, precise=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_z: Tensor, by_log: Tensor) -> tuple[Tensor, Tensor, None]:
        x, params = ctx.saved_tensors
        size, rows, columns = params.shape
        by_x, by_params = torch.empty_like(x), x.new_empty(rows, size, columns)
        by_z, by_log = by_z.contiguous(), by_log.contiguous()
        native: Any = library()
        native.spline_backward_f32(
            c_long(rows), c_long(columns), pointer(x), *_layout(ctx.spline, params), pointer(by_z), pointer(by_log),
            pointer(by_x), pointer(by_params), c_int(torch.get_num_threads()),
        )  # fmt: skip
        return by_x, by_params.movedim(1, 0), None

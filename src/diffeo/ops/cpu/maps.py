"""Univariate maps and chains of them in one pass over memory, forward and backward (``native.c``, ``spline.h``).

Their plain twins are the classes of ``transforms/univariate.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffeo.ops.cpu.build import differentiable_gradients, library, usable

__all__ = ["MapSpec", "Twin", "described", "known", "map_values"]

_KINDS = {"shift": 0, "scale": 1, "affine": 2, "spline": 3, "logistics": 4}
_MAX_BINS, _MAX_MAPS = 64, 8  # of native.c

Twin = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class MapSpec(NamedTuple):
    """A univariate map as the kernels know it."""

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


def known(maps: Sequence[MapSpec], *, generate: bool) -> bool:
    """Whether the kernels take this chain of maps; mixtures of logistics only to generate."""
    large = [each.bins for each in maps if each.kind in ("spline", "logistics")]
    kinds = {each.kind for each in maps}
    fit = len(maps) <= _MAX_MAPS and len(large) <= 1 and max(large, default=0) <= _MAX_BINS
    return fit and (generate or "logistics" not in kinds)


@lru_cache
def described(maps: tuple[MapSpec, ...]) -> Any:
    """The chain as C sees it."""
    return (_Map * len(maps))(*(_Map(_KINDS[each.kind], *each[1:]) for each in maps))


def map_values(
    maps: Sequence[MapSpec], value: Tensor, params: Tensor, twin: Twin, *, generate: bool
) -> tuple[Tensor, Tensor] | None:
    """Map values ``(*batch, n)`` given params ``(size, *batch, n)``, or return None where the plain twin must.

    Generation has no backward pass here: training evaluates the other side.

    Args:
        maps: a chain in the order of generation.
        value: what to map.
        params: the parameters of all maps.
        twin: the same in PyTorch's operations, for second derivatives.
        generate: from noise to data, or back.
    """
    if (
        not usable(value, params)
        or params.shape[1:] != value.shape
        or not value.numel()
        or not known(maps, generate=generate)
    ):
        return None
    needs_grad = torch.is_grad_enabled() and (value.requires_grad or params.requires_grad)
    if needs_grad and generate:
        return None
    if value.dim() == 2 and value.stride(0) == 1 != value.stride(1):  # feature-major seen from the rows
        found = map_values(maps, value.mT, params.mT, twin, generate=generate)
        return None if found is None else (found[0].mT, found[1].mT)
    if needs_grad:
        return _Normalize.apply(value, params, tuple(maps), twin)
    return _call(maps, value, params, generate, precise=not torch.is_grad_enabled())


def _flat(params: Tensor, value: Tensor) -> Tensor:
    """View params as ``(size, rows, columns)`` with contiguous columns, copying only where the layout forbids it."""
    columns = value.shape[-1] if value.dim() else 1
    flat = params.reshape(params.shape[0], -1, columns)
    return flat if columns == 1 or flat.stride(2) == 1 else flat.contiguous()


def _arguments(maps: Sequence[MapSpec], value: Tensor, flat: Tensor) -> list[Any]:
    return [
        flat.shape[1], flat.shape[2], described(tuple(maps)), len(maps), value.data_ptr(), flat.data_ptr(),
        flat.stride(0), flat.stride(1),
    ]  # fmt: skip


def _call(
    maps: Sequence[MapSpec], value: Tensor, params: Tensor, generate: bool, precise: bool
) -> tuple[Tensor, Tensor]:
    value, flat = value.contiguous(), _flat(params, value)
    out, log_det = torch.empty_like(value), torch.empty_like(value)
    native: Any = library()
    native.map_f32(
        *_arguments(maps, value, flat), generate, precise, out.data_ptr(), log_det.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out, log_det


class _Normalize(torch.autograd.Function):
    """z = f^-1(x) and its log-derivative, with gradients computed afresh from x and the parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, params: Tensor, maps: tuple[MapSpec, ...], twin: Twin) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, params)
        ctx.maps, ctx.twin = maps, twin
        return _call(maps, x, params, generate=False, precise=False)

    @staticmethod
    def backward(ctx: Any, by_z: Tensor, by_log: Tensor) -> tuple[Tensor | None, ...]:
        x, params = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for
            twins = ctx.twin(x, params)
            return *differentiable_gradients(twins, (by_z, by_log), (x, params), ctx.needs_input_grad[:2]), None, None
        x, flat = x.contiguous(), _flat(params, x)
        by_x = torch.empty_like(x)
        by_flat = torch.empty_like(flat)  # in the same layout, so that what made the parameters need not copy
        by_z, by_log = by_z.contiguous(), by_log.contiguous()
        native: Any = library()
        native.map_backward_f32(
            *_arguments(ctx.maps, x, flat), by_z.data_ptr(), by_log.data_ptr(), by_x.data_ptr(), by_flat.data_ptr(),
            by_flat.stride(0), by_flat.stride(1), torch.get_num_threads(),
        )  # fmt: skip
        return by_x, by_flat.reshape(params.shape), None, None

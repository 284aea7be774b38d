"""Univariate maps and chains of them in one pass over memory, forward and backward."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from diffeo.ops.cpu.binding import needs_grad, second_derivatives, structure
from diffeo.ops.cpu.build import library
from diffeo.ops.specs import MapSpec, Univariate

__all__ = ["described", "known", "map_values"]

_KINDS = {"shift": 0, "scale": 1, "affine": 2, "spline": 3, "logistics": 4}
_MAX_BINS, _MAX_MAPS = 64, 8  # of the C code


_Map = structure("i kind bins, d bound min_bin max_log_bend")


def known(univariate: Univariate, *, generate: bool) -> tuple[MapSpec, ...] | None:
    """The chain of maps, if the kernels take it; mixtures of logistics only to generate."""
    maps = univariate.specs()
    return maps if maps is not None and _takes(maps, generate) else None


@lru_cache
def _takes(maps: tuple[MapSpec, ...], generate: bool) -> bool:
    large = [each.bins for each in maps if each.kind in ("spline", "logistics")]
    kinds = {each.kind for each in maps}
    fit = len(maps) <= _MAX_MAPS and len(large) <= 1 and max(large, default=0) <= _MAX_BINS
    return fit and kinds <= _KINDS.keys() and (generate or "logistics" not in kinds)


@lru_cache
def described(maps: tuple[MapSpec, ...]) -> Any:
    """The chain as C sees it."""
    return (_Map * len(maps))(*(_Map(_KINDS[each.kind], *each[1:]) for each in maps))


def map_values(
    univariate: Univariate, value: Tensor, params: Tensor, *, generate: bool
) -> tuple[Tensor, Tensor] | None:
    """Map values ``(*batch, n)`` given params ``(size, *batch, n)``; None where the reference must.

    Generation has no backward pass here: training evaluates the other direction.
    """
    maps = known(univariate, generate=generate)
    if maps is None or params.shape[1:] != value.shape or not value.numel():
        return None
    transposed = value.dim() == 2 and value.stride(0) == 1 != value.stride(1)  # what is contiguous is its transpose
    if transposed:
        value, params = value.mT, params.mT
    if not needs_grad(value, params):
        mapped, log_det = _call(maps, value, params, generate, precise=not torch.is_grad_enabled())
    elif generate:
        return None
    else:
        mapped, log_det = _Normalize.apply(value, params, maps, univariate)
    return (mapped.mT, log_det.mT) if transposed else (mapped, log_det)


def _flat(params: Tensor, value: Tensor) -> Tensor:
    """View params as ``(size, rows, columns)`` with contiguous columns, copying only where the layout forbids it."""
    columns = value.shape[-1] if value.dim() else 1
    flat = params.reshape(params.shape[0], -1, columns)
    return flat if columns == 1 or flat.stride(2) == 1 else flat.contiguous()


def _arguments(maps: tuple[MapSpec, ...], value: Tensor, flat: Tensor) -> list[Any]:
    return [
        flat.shape[1], flat.shape[2], described(maps), len(maps), value.data_ptr(), flat.data_ptr(),
        flat.stride(0), flat.stride(1),
    ]  # fmt: skip


def _call(
    maps: tuple[MapSpec, ...], value: Tensor, params: Tensor, generate: bool, precise: bool
) -> tuple[Tensor, Tensor]:
    value, flat = value.contiguous(), _flat(params, value)
    out, log_det = torch.empty_like(value), torch.empty_like(value)
    library().map_f32(
        *_arguments(maps, value, flat), generate, precise, out.data_ptr(), log_det.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out, log_det


class _Normalize(torch.autograd.Function):
    """z = f^-1(x) and its log-derivative, with gradients computed afresh from x and the parameters."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, params: Tensor, maps: tuple[MapSpec, ...], univariate: Univariate
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, params)
        ctx.maps, ctx.univariate = maps, univariate
        return _call(maps, x, params, generate=False, precise=False)

    @staticmethod
    def backward(ctx: Any, by_z: Tensor, by_log: Tensor) -> tuple[Tensor | None, ...]:
        x, params = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for
            derivatives = second_derivatives(
                ctx.univariate.normalize, (x, params), (by_z, by_log), ctx.needs_input_grad[:2]
            )
            return *derivatives, None, None
        x, flat = x.contiguous(), _flat(params, x)
        by_x = torch.empty_like(x)
        by_flat = torch.empty_like(flat)  # in the same layout, so that what made the parameters need not copy
        by_z, by_log = by_z.contiguous(), by_log.contiguous()
        library().map_backward_f32(
            *_arguments(ctx.maps, x, flat), by_z.data_ptr(), by_log.data_ptr(), by_x.data_ptr(), by_flat.data_ptr(),
            by_flat.stride(0), by_flat.stride(1), torch.get_num_threads(),
        )  # fmt: skip
        return by_x, by_flat.reshape(params.shape), None, None

"""WaveNet in one call forward, one backward, and one to invert it with its univariate map."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffeo.ops import reference
from diffeo.ops.cpu.binding import needs_grad, pointer, second_derivatives, structure
from diffeo.ops.cpu.build import library
from diffeo.ops.cpu.maps import described as described_maps
from diffeo.ops.cpu.maps import known
from diffeo.ops.specs import Univariate, WaveNetSpec

__all__ = ["invert_wavenet", "pack", "release", "wavenet"]


_WEIGHTS = "first first_bias taps gate_bias residual residual_bias skip skip_bias mid mid_bias last last_bias"
_WaveNet = structure(f"p {_WEIGHTS}, L dilations, l size channels depth kernel skip_size hop frames")


def _described(spec: WaveNetSpec, weights: Sequence[Tensor], shared: Tensor | None) -> Any:
    """The network as C sees it; the weights (contiguous, perhaps packed) must outlive it."""
    depth, frames = len(spec.dilations), 0 if shared is None else shared.shape[-1]
    channels, skip, size = (len(weights[bias]) for bias in (1, 7, 11))
    return _WaveNet(
        *map(pointer, weights), (ctypes.c_long * depth)(*spec.dilations), size, channels, depth, spec.kernel, skip,
        spec.hop, frames,
    )  # fmt: skip


def wavenet(spec: WaveNetSpec, x: Tensor, shared: Tensor | None, weights: Sequence[Tensor]) -> Tensor | None:
    """The outputs at x ``(rows, T)``, ``(rows, size, T)``; None where the reference must."""
    if not x.numel():
        return None
    if needs_grad(x, shared, *weights):
        return _Forward.apply(spec, x, shared, *weights)
    return _forward(spec, x, shared, weights, None)


def invert_wavenet(
    spec: WaveNetSpec, univariate: Univariate, z: Tensor, shared: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Solve x_t = f(z_t; net(x_<t)) for z ``(rows, T)`` sample by sample; None where the reference must."""
    maps = known(univariate, generate=True)
    if maps is None or not z.numel():
        return None
    z, shared, weights = _contiguous(z, shared, weights)
    packed, columns = pack(spec, weights, shared, library().vector_lanes())
    x, log_det = torch.empty_like(z), z.new_empty(len(z))
    failed = library().wavenet_invert_f32(
        *z.shape, ctypes.byref(_described(spec, packed, shared)), pointer(columns), described_maps(maps), len(maps),
        z.data_ptr(), x.data_ptr(), log_det.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return None if failed else (x, log_det)


def pack(
    spec: WaveNetSpec, weights: Sequence[Tensor], shared: Tensor | None, lanes: int
) -> tuple[list[Tensor], Tensor | None]:
    """The weights as the inversion reads them, transposed and all widths filled up to whole vectors of so many lanes.

    Shared, ``(rows, depth, 2 channels, frames)``, becomes ``(rows, depth, frames, 2 * filled channels)``.
    """
    first, first_bias, taps, gate_bias, residual, residual_bias, skip, skip_bias, mid, mid_bias, last, last_bias = (
        weights
    )

    def filled(value: Tensor, *, rows: bool = False) -> Tensor:
        """Fill the last dimension, and with ``rows`` the one before it, up to whole vectors with zeros."""
        columns = (0, -value.shape[-1] % lanes)
        return F.pad(value, (*columns, 0, -value.shape[-2] % lanes) if rows else columns).contiguous()

    depth, halves = len(spec.dilations), [2, spec.channels]
    packed = [
        filled(first.mT),
        filled(first_bias),
        filled(filled(taps.unflatten(2, halves).permute(0, 1, 4, 2, 3)).flatten(3), rows=True),
        filled(gate_bias.unflatten(1, halves)),
        filled(residual.mT, rows=True),
        filled(residual_bias),
        filled(skip.unflatten(1, [depth, spec.channels]).permute(1, 2, 0), rows=True),
        filled(skip_bias),
        filled(mid.mT, rows=True),
        filled(mid_bias),
        filled(last.mT, rows=True),
        filled(last_bias),
    ]
    return packed, None if shared is None else filled(shared.unflatten(2, halves).permute(0, 1, 4, 2, 3)).flatten(3)


def _forward(
    spec: WaveNetSpec, x: Tensor, shared: Tensor | None, weights: Sequence[Tensor], kept: Tensor | None
) -> Tensor:
    out = x.new_empty(len(x), spec.size, x.shape[1])
    x, shared, weights = _contiguous(x, shared, weights)
    failed = library().wavenet_f32(
        *x.shape, ctypes.byref(_described(spec, weights, shared)), pointer(shared), x.data_ptr(), out.data_ptr(),
        pointer(kept), torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError("expected memory for a WaveNet's layers, got none")
    return out


def _contiguous(
    x: Tensor, shared: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    shared = None if shared is None else shared.expand(len(x), -1, -1, -1).contiguous()
    return x.contiguous(), shared, [each.contiguous() for each in weights]


def release(spec: WaveNetSpec) -> None:
    """Give back the memory of passes whose gradients nobody can ask for any more."""
    _spare(spec).clear()


def _spare(spec: WaveNetSpec) -> list[Tensor]:
    """Memory for the next passes: fresh pages of the system's would take as long as the network itself."""
    return spec.kept.setdefault("spare", [])


class _Kept:
    """What a backward pass needs, ``(rows, size)``, in a network's spare memory, which has it back in the end."""

    def __init__(self, spec: WaveNetSpec, rows: int, size: int) -> None:
        self.spare = _spare(spec)
        try:
            self.values = self.spare.pop()
        except IndexError:
            self.values = torch.empty(0)
        if self.values.shape != (rows, size):
            self.spare.clear()  # of another length, like this one
            self.values = torch.empty(rows, size, dtype=torch.float32, device="cpu")

    def __del__(self) -> None:
        self.spare.append(self.values)


class _Forward(torch.autograd.Function):
    """The network with gradients; second derivatives are the reference's."""

    @staticmethod
    def forward(ctx: Any, spec: WaveNetSpec, x: Tensor, shared: Tensor | None, *weights: Tensor) -> Tensor:
        size = library().wavenet_kept(x.shape[1], ctypes.byref(_described(spec, weights, shared)))
        ctx.spec, ctx.kept = spec, _Kept(spec, len(x), size)
        ctx.save_for_backward(x, shared, *weights)
        return _forward(spec, x, shared, weights, ctx.kept.values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, shared, *weights = inputs = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for
            needed = ctx.needs_input_grad[1:]

            def plain(x: Tensor, shared: Tensor | None, *weights: Tensor) -> list[Tensor]:
                return [reference.wavenet(ctx.spec, x, shared, weights)]

            return None, *second_derivatives(plain, inputs, [grad], needed)
        grad = grad.contiguous()
        rows, expanded, tensors = _contiguous(x, shared, weights)
        by_x = torch.empty_like(rows) if ctx.needs_input_grad[1] else None
        by_shared = torch.empty_like(expanded) if expanded is not None and ctx.needs_input_grad[2] else None
        learns = any(ctx.needs_input_grad[3:])  # a frozen network passes gradients on for half the price
        by_weights = rows.new_empty(len(rows), sum(each.numel() for each in tensors)) if learns else None
        failed = library().wavenet_backward_f32(
            *rows.shape, ctypes.byref(_described(ctx.spec, tensors, expanded)), rows.data_ptr(),
            ctx.kept.values.data_ptr(), grad.data_ptr(), pointer(by_x), pointer(by_shared), pointer(by_weights),
            torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError("expected memory for a WaveNet's gradients, got none")
        if by_shared is not None and shared.shape[0] != len(rows):
            by_shared = by_shared.sum(0, keepdim=True)
        if by_weights is None:
            return None, by_x, by_shared, *(None for _ in tensors)
        parts = by_weights.sum(0).split([each.numel() for each in tensors])
        return None, by_x, by_shared, *(part.reshape(each.shape) for part, each in zip(parts, tensors, strict=True))

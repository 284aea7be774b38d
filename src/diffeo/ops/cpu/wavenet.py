"""WaveNet in one call forward and one backward, and its incremental walk with its univariate map (``wavenet.h``).

The plain twin is ``WaveNet`` in ``nets/wavenet.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffeo.ops.cpu.build import differentiable_gradients, library, pointer, usable
from diffeo.ops.cpu.maps import MapSpec, known
from diffeo.ops.cpu.maps import described as described_maps

__all__ = ["Dilated", "read", "walk"]


class _WaveNet(ctypes.Structure):
    _fields_ = (
        ("weights", ctypes.c_void_p * 12),
        ("dilations", ctypes.POINTER(ctypes.c_long)),
        *((name, ctypes.c_long) for name in ("size", "channels", "depth", "kernel", "skip", "hop", "frames")),
    )


@dataclass
class Dilated:
    """A WaveNet without its numbers; the twin is the same network in PyTorch's operations.

    ``spare`` is memory of readings whose gradients nobody can ask for any more: the next ones take it, for what is
    given back to the system comes back page by page, which takes as long as the network itself.
    """

    size: int
    channels: int
    dilations: Sequence[int]
    kernel: int
    skip: int
    hop: int
    twin: Callable[..., Tensor] = field(repr=False)
    spare: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Copies start without spare memory."""
        return {**self.__dict__, "spare": []}

    def described(self, weights: Sequence[Tensor], frames: int, widths: tuple[int, int, int] | None = None) -> _WaveNet:
        """The network as C sees it; the weights (contiguous) must outlive it. Widths: size, channels, skip."""
        size, channels, skip = widths or (self.size, self.channels, self.skip)
        depth = len(self.dilations)
        return _WaveNet(
            (ctypes.c_void_p * 12)(*(each.data_ptr() for each in weights)),
            (ctypes.c_long * depth)(*self.dilations),
            *(size, channels, depth, self.kernel, skip, self.hop, frames),
        )


def _frames(shared: Tensor | None) -> int:
    return 0 if shared is None else shared.shape[-1]


def read(net: Dilated, x: Tensor, shared: Tensor | None, weights: Sequence[Tensor]) -> Tensor:
    """Read a WaveNet at x ``(rows, T)``: ``(rows, size, T)``.

    Args:
        net: which network.
        x: the samples.
        shared: the context's part of the gates, ``(rows, layers, 2 channels, frames)``, or one row for all, or None.
        weights: in the order of ``wavenet.h``.
    """
    if not (usable(x, shared, *weights) and x.numel()):
        return net.twin(x, shared, *weights)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, shared, *weights)):
        return _Read.apply(net, x, shared, *weights)
    return _forward(net, x, shared, weights, None)


def walk(
    net: Dilated, maps: Sequence[MapSpec], z: Tensor, shared: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Solve x_t = f(z_t; net(x_<t)) for all t, or return None where the plain twin must.

    Args:
        net: which network.
        maps: the univariate map, as a chain in the order of generation.
        z: ``(rows, T)``.
        shared: as in ``read``.
        weights: as in ``read``.

    Returns:
        x ``(rows, T)`` and log|det dx/dz| ``(rows,)``.
    """
    if not (usable(z, shared, *weights) and known(maps, generate=True) and z.numel()):
        return None
    z, shared, weights = _contiguous(z, shared, weights)
    first, first_bias, taps, gate_bias, residual, residual_bias, skip, skip_bias, mid, mid_bias, last, last_bias = (
        weights
    )
    depth, halves = len(net.dilations), [2, net.channels]
    packed = [
        _filled(first.mT),
        _filled(first_bias),
        _filled(_filled(taps.unflatten(2, halves).permute(0, 1, 4, 2, 3)).flatten(3), rows=True),
        _filled(gate_bias.unflatten(1, halves)),
        _filled(residual.mT, rows=True),
        _filled(residual_bias),
        _filled(skip.unflatten(1, [depth, net.channels]).permute(1, 2, 0), rows=True),
        _filled(skip_bias),
        _filled(mid.mT, rows=True),
        _filled(mid_bias),
        _filled(last.mT, rows=True),
        _filled(last_bias),
    ]
    if shared is not None:  # (rows, depth, frames, 2, channels)
        shared = _filled(shared.unflatten(2, halves).permute(0, 1, 4, 2, 3))
    widths = len(packed[11]), len(packed[1]), len(packed[7])
    described = net.described(packed, 0 if shared is None else shared.shape[2], widths)
    x, log_det = torch.empty_like(z), z.new_empty(len(z))
    native: Any = library()
    failed = native.wavenet_invert_f32(
        *z.shape, ctypes.byref(described), pointer(shared), described_maps(tuple(maps)), len(maps), z.data_ptr(),
        x.data_ptr(), log_det.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return None if failed else (x, log_det)


def _filled(value: Tensor, *, rows: bool = False) -> Tensor:
    """Fill the last dimension, and with ``rows`` the one before it, up to whole vectors with zeros."""
    native: Any = library()
    lanes = native.vector_lanes()
    columns = (0, -value.shape[-1] % lanes)
    return F.pad(value, (*columns, 0, -value.shape[-2] % lanes) if rows else columns).contiguous()


def _forward(net: Dilated, x: Tensor, shared: Tensor | None, weights: Sequence[Tensor], kept: Tensor | None) -> Tensor:
    out = x.new_empty(len(x), net.size, x.shape[1])
    x, shared, weights = _contiguous(x, shared, weights)
    native: Any = library()
    failed = native.wavenet_f32(
        *x.shape, ctypes.byref(net.described(weights, _frames(shared))), pointer(shared), x.data_ptr(), out.data_ptr(),
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


class _Kept:
    """What a backward pass needs, ``(rows, size)``, in a network's spare memory, which has it back in the end."""

    def __init__(self, net: Dilated, rows: int, size: int) -> None:
        self.spare = net.spare
        try:
            self.values = self.spare.pop()
        except IndexError:
            self.values = torch.empty(0)
        if self.values.shape != (rows, size):
            self.spare.clear()  # of another length, like this one
            self.values = torch.empty(rows, size, dtype=torch.float32, device="cpu")

    def __del__(self) -> None:
        self.spare.append(self.values)


class _Read(torch.autograd.Function):
    """The network with gradients; second derivatives are those of the twin."""

    @staticmethod
    def forward(ctx: Any, net: Dilated, x: Tensor, shared: Tensor | None, *weights: Tensor) -> Tensor:
        native: Any = library()
        size = native.wavenet_kept(x.shape[1], ctypes.byref(net.described(weights, _frames(shared))))
        ctx.net, ctx.kept = net, _Kept(net, len(x), size)
        ctx.save_for_backward(x, shared, *weights)
        return _forward(net, x, shared, weights, ctx.kept.values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        net = ctx.net
        x, shared, *weights = inputs = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for
            outputs = [net.twin(x, shared, *weights)]
            return None, *differentiable_gradients(outputs, [grad], inputs, ctx.needs_input_grad[1:])
        grad = grad.contiguous()
        fed, given, tensors = _contiguous(x, shared, weights)
        by_x = torch.empty_like(fed) if ctx.needs_input_grad[1] else None
        by_shared = torch.empty_like(given) if given is not None and ctx.needs_input_grad[2] else None
        learns = any(ctx.needs_input_grad[3:])  # a frozen network passes gradients on for half the price
        by_weights = fed.new_empty(len(fed), sum(each.numel() for each in tensors)) if learns else None
        native: Any = library()
        failed = native.wavenet_backward_f32(
            *fed.shape, ctypes.byref(net.described(tensors, _frames(given))), fed.data_ptr(),
            ctx.kept.values.data_ptr(), grad.data_ptr(), pointer(by_x), pointer(by_shared), pointer(by_weights),
            torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError("expected memory for a WaveNet's gradients, got none")
        if by_shared is not None and shared.shape[0] != len(fed):
            by_shared = by_shared.sum(0, keepdim=True)
        if by_weights is None:
            return None, by_x, by_shared, *(None for _ in tensors)
        parts = by_weights.sum(0).split([each.numel() for each in tensors])
        return None, by_x, by_shared, *(part.reshape(each.shape) for part, each in zip(parts, tensors, strict=True))

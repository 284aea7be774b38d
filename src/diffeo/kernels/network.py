"""Feed-forward networks, dense or masked, in one call forward and one backward (``network.h``).

Its plain twin is ``Feedforward`` in ``nets/feedforward.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffeo.kernels.native import differentiable_gradients, library, pointer, usable

__all__ = ["Structure", "Wiring", "ends_of", "network"]

_ACTIVATIONS = {"relu": 0, "silu": 1, "tanh": 2, "elu": 3}


class _Layer(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("seen", ctypes.POINTER(ctypes.c_long)),
        ("first", ctypes.POINTER(ctypes.c_long)),
        ("ends", ctypes.POINTER(ctypes.c_long)),
        ("units", ctypes.c_long),
        ("columns", ctypes.c_long),
        ("residual", ctypes.c_int),
    )


class _Network(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        ("direct", ctypes.POINTER(_Layer)),
        ("depth", ctypes.c_int),
        ("activation", ctypes.c_int),
        ("bound", ctypes.c_float),
    )


def _longs(numbers: Sequence[int]) -> Any:
    return (ctypes.c_long * len(numbers))(*numbers)


class Wiring:
    """What the units of a layer see. Units and columns are sorted, so that a mask is a staircase.

    Args:
        seen: unit u sees the first ``seen[u]`` columns; ascending.
        first: column j is seen by the units from ``first[j]`` on; ascending.
        ends: ``ends[k]`` counts the units computable once k inputs are known; None where there is no such order.
    """

    def __init__(self, seen: Sequence[int], first: Sequence[int], ends: Sequence[int] | None = None) -> None:
        self.units, self.columns = len(seen), len(first)
        self.ends = ends
        self.arrays = _longs(seen), _longs(first), None if ends is None else _longs(ends)

    @classmethod
    def dense(cls, units: int, columns: int) -> Wiring:
        """Every unit sees every column."""
        return cls([columns] * units, [0] * columns)

    @classmethod
    def masked(cls, own: Tensor, seen: Tensor, elements: int) -> Wiring:
        """A unit of degree m sees the columns of degree at most m; degrees are sorted."""
        return cls(
            torch.searchsorted(seen, own, right=True).tolist(),
            torch.searchsorted(own, seen).tolist(),
            ends_of(own, elements),
        )

    @property
    def full(self) -> bool:
        """Whether there is nothing to mask."""
        return self.arrays[0][0] == self.columns

    def mask(self) -> Tensor:
        """The staircase as a matrix of zeros and ones ``(units, columns)``."""
        return (torch.arange(self.columns) < torch.tensor(list(self.arrays[0]))[:, None]).float()


def ends_of(degrees: Tensor, elements: int) -> list[int]:
    """How many of the units (sorted by degree) are computable once k = 0 .. elements elements are known."""
    return torch.searchsorted(degrees, torch.arange(elements + 1), right=True).tolist()


@dataclass
class Structure:
    """A network without its numbers.

    Attributes:
        layers: wiring of each layer, the output layer last.
        direct: wiring of the connections from inputs to outputs, or None.
        residual: for each layer, whether its input is added to its output.
        activation: its name.
        bound: the network sees ``bound tanh(x / bound)``.
        twin: the same network in PyTorch's operations: ``twin(x, shared, *tensors)``.
    """

    layers: list[Wiring]
    direct: Wiring | None
    residual: list[bool]
    activation: str
    bound: float
    twin: Callable[..., Tensor] = field(repr=False)

    def known(self, *tensors: Tensor | None) -> bool:
        """Whether the kernels take this network and these tensors."""
        return self.activation in _ACTIVATIONS and usable(*tensors)

    def described(self, tensors: Sequence[Tensor]) -> _Network:
        """The network as C sees it; ``tensors`` (contiguous) must outlive it."""
        wirings = [*self.layers, *([] if self.direct is None else [self.direct])]
        depth = len(self.layers)
        layers = (_Layer * len(wirings))()
        for index, wiring in enumerate(wirings):
            layer = layers[index]
            layer.weight = tensors[2 * index].data_ptr()
            if index < depth:
                layer.bias = tensors[2 * index + 1].data_ptr()
                layer.residual = self.residual[index]
            layer.seen, layer.first, layer.ends = wiring.arrays
            layer.units, layer.columns = wiring.units, wiring.columns
        direct = None if self.direct is None else ctypes.pointer(layers[depth])
        return _Network(layers, direct, depth, _ACTIVATIONS[self.activation], self.bound)


def network(structure: Structure, x: Tensor, shared: Tensor | None, tensors: Sequence[Tensor]) -> Tensor:
    """Read a network at x ``(inputs, rows)``; ``(outputs, rows)``.

    Args:
        structure: which network.
        x: in any layout.
        shared: added to the first layer's sums, ``(rows, units)`` or ``(1, units)``, or None.
        tensors: weight and bias of each layer, then the weight of the direct connections where there are any.
    """
    if not (structure.known(x, shared, tensors[0]) and x.numel()):
        return structure.twin(x, shared, *tensors)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, shared, *tensors)):
        return _Read.apply(structure, x, shared, *tensors)
    return _forward(structure, x, shared, [t.contiguous() for t in tensors], None, None)


def _pointers(tensors: Sequence[Tensor | None] | None) -> Any:
    if tensors is None:
        return None
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


def _room(x: Tensor, features: int) -> Tensor:
    """Memory for what is kept of a layer, in the kernel's own layout."""
    native: Any = library()
    native.kept_floats.restype = ctypes.c_long
    return x.new_empty(native.kept_floats(ctypes.c_long(x.shape[1]), ctypes.c_long(features)))


def _forward(
    structure: Structure,
    x: Tensor,
    shared: Tensor | None,
    tensors: Sequence[Tensor],
    values: Sequence[Tensor] | None,
    sums: Sequence[Tensor | None] | None,
) -> Tensor:
    out = x.new_empty(structure.layers[-1].units, x.shape[1])
    shared = None if shared is None else shared.expand(x.shape[1], -1).contiguous()
    native: Any = library()
    failed = native.network_f32(
        ctypes.c_long(x.shape[1]), ctypes.byref(structure.described(tensors)), pointer(shared), pointer(x),
        ctypes.c_long(x.stride(0)), ctypes.c_long(x.stride(1)), pointer(out), _pointers(values), _pointers(sums),
        ctypes.c_int(torch.get_num_threads()),
    )  # fmt: skip
    if failed:
        raise MemoryError("expected memory for a network's hidden units, got none")
    return out


class _Read(torch.autograd.Function):
    """The network with its gradients; a second derivative is taken of the plain twin."""

    @staticmethod
    def forward(ctx: Any, structure: Structure, x: Tensor, shared: Tensor | None, *tensors: Tensor) -> Tensor:
        flat = [t.contiguous() for t in tensors]
        hidden = [wiring.units for wiring in structure.layers[:-1]]
        values = [_room(x, size) for size in (structure.layers[0].columns, *hidden)]
        # What a ReLU lets through tells its slope; other slopes are those at the sums.
        simple = structure.activation == "relu"
        sums = [
            None if simple and not residual else _room(x, size)
            for size, residual in zip(hidden, structure.residual, strict=False)
        ]
        out = _forward(structure, x, shared, flat, values, sums)
        ctx.structure, ctx.values = structure, values
        ctx.sums = [value if total is None else total for total, value in zip(sums, values[1:], strict=True)]
        ctx.save_for_backward(x, shared, *tensors)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        structure: Structure = ctx.structure
        x, shared, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for
            inputs = (x, shared, *tensors)
            return None, *differentiable_gradients([structure.twin(*inputs)], [grad], inputs, ctx.needs_input_grad[1:])
        by_x = x.new_empty(x.shape) if ctx.needs_input_grad[1] else None
        by_shared = None if shared is None else x.new_empty(structure.layers[0].units, x.shape[1])
        gradients = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]
        depth = len(structure.layers)
        direct = gradients[2 * depth] if structure.direct is not None else None
        native: Any = library()
        failed = native.network_backward_f32(
            ctypes.c_long(x.shape[1]), ctypes.byref(structure.described([t.contiguous() for t in tensors])),
            _pointers(ctx.values), _pointers(ctx.sums), pointer(grad.contiguous()), pointer(by_x),
            _pointers(gradients[: 2 * depth : 2]), _pointers(gradients[1 : 2 * depth : 2]), pointer(direct),
            pointer(by_shared), ctypes.c_int(torch.get_num_threads()),
        )  # fmt: skip
        if failed:
            raise MemoryError("expected memory for a network's gradients, got none")
        if by_shared is not None:
            by_shared = by_shared.mT.sum_to_size(shared.shape)
        return None, by_x, by_shared, *gradients

"""Feed-forward networks, dense or masked, in one call forward and one backward (``network.h``).

Its plain twin is ``Feedforward`` in ``nets/feedforward.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffeo.ops.cpu.build import differentiable_gradients, library, pointer, usable
from diffeo.ops.cpu.maps import MapSpec, Twin, known
from diffeo.ops.cpu.maps import described as described_maps

__all__ = ["Mapping", "Structure", "Wiring", "ends_of", "mapped", "network"]

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


class _Mapping(ctypes.Structure):
    _fields_ = (
        ("maps", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("generate", ctypes.c_int),
        ("precise", ctypes.c_int),
        ("elements", ctypes.c_long),
        ("by_element", ctypes.c_long),
        ("by_param", ctypes.c_long),
        ("value", ctypes.c_void_p),
        ("value_by_element", ctypes.c_long),
        ("value_by_row", ctypes.c_long),
        ("out", ctypes.c_void_p),
        ("log_det", ctypes.c_void_p),
        ("params", ctypes.c_void_p),
        ("grad_log", ctypes.c_void_p),
        ("by_value", ctypes.c_void_p),
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


class Room(NamedTuple):
    """Memory for what the backward pass needs, in the kernel's own layout; places are in numbers.

    Attributes:
        size: how many numbers in all.
        values: where the inputs of each layer begin.
        sums: where what each activation gets begins, or None where its outputs tell enough.
        slopes: where to read what each activation's slope follows from.
        params: where the network's outputs begin, or None where they are not mapped.
    """

    size: int
    values: Sequence[int]
    sums: Sequence[int | None]
    slopes: Sequence[int]
    params: int | None

    def at(self, kept: Tensor) -> tuple[Any, Any, Any, int | None]:
        """The addresses of values, sums, slopes and params in this memory, as C takes them."""
        start, width = kept.data_ptr(), kept.element_size()
        values, sums, slopes = (
            (ctypes.c_void_p * len(places))(*(None if each is None else start + width * each for each in places))
            for places in (self.values, self.sums, self.slopes)
        )
        return values, sums, slopes, None if self.params is None else start + width * self.params


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
    last: Any = field(default=None, repr=False, compare=False)  # the numbers described last, and how
    last_room: Any = field(default=None, repr=False, compare=False)  # what was asked for last, and the room for it

    def __getstate__(self) -> dict[str, Any]:
        """Addresses must not be copied or stored."""
        return {**self.__dict__, "last": None}

    def room(self, rows: int, *, mapped: bool) -> Room:
        """The room for what the backward pass needs of so many rows, with the outputs if they are mapped."""
        if self.last_room is None or self.last_room[0] != (rows, mapped):
            hidden = [wiring.units for wiring in self.layers[:-1]]
            # What a ReLU lets through tells its slope; other slopes are those at the sums.
            simple = [self.activation == "relu" and not each for each in self.residual[:-1]]
            units = [self.layers[0].columns, *hidden, *(h for h, easy in zip(hidden, simple, strict=True) if not easy)]
            native: Any = library()
            sizes = [native.kept_floats(rows, each) for each in [*units, *([self.layers[-1].units] * mapped)]]
            *places, size = accumulate(sizes, initial=0)
            params = places.pop() if mapped else None
            values, more = places[: len(hidden) + 1], iter(places[len(hidden) + 1 :])
            sums = [None if easy else next(more) for easy in simple]
            slopes = [value if own is None else own for own, value in zip(sums, values[1:], strict=True)]
            self.last_room = (rows, mapped), Room(size, values, sums, slopes, params)
        return self.last_room[1]

    def known(self, *tensors: Tensor | None) -> bool:
        """Whether the kernels take this network and these tensors."""
        return self.activation in _ACTIVATIONS and usable(*tensors)

    def described(self, tensors: Sequence[Tensor]) -> _Network:
        """The network as C sees it; ``tensors`` (contiguous) must outlive it."""
        addresses = [t.data_ptr() for t in tensors]
        if self.last is not None and self.last[0] == addresses:
            return self.last[1]
        wirings = [*self.layers, *([] if self.direct is None else [self.direct])]
        depth = len(self.layers)
        layers = (_Layer * len(wirings))()
        for index, wiring in enumerate(wirings):
            layer = layers[index]
            layer.weight = addresses[2 * index]
            if index < depth:
                layer.bias = addresses[2 * index + 1]
                layer.residual = self.residual[index]
            layer.seen, layer.first, layer.ends = wiring.arrays
            layer.units, layer.columns = wiring.units, wiring.columns
        direct = None if self.direct is None else ctypes.pointer(layers[depth])
        result = _Network(layers, direct, depth, _ACTIVATIONS[self.activation], self.bound)
        self.last = addresses, result
        return result


class Mapping(NamedTuple):
    """What to do with a network's outputs: they are the parameters of univariate maps of other values.

    Attributes:
        maps: a chain in the order of generation.
        size: parameters per element.
        interleaved: whether outputs are ordered element by element, or else parameter by parameter.
        generate: from noise to data, or back.
        twin: the map in PyTorch's operations: values ``(n, rows)`` and params ``(size, n, rows)`` to the mapped values
            and log-derivatives.
    """

    maps: tuple[MapSpec, ...]
    size: int
    interleaved: bool
    generate: bool
    twin: Twin

    def params(self, outputs: Tensor) -> Tensor:
        """View a network's outputs ``(size * n, rows)`` as ``(size, n, rows)``."""
        return (
            outputs.unflatten(0, (-1, self.size)).transpose(0, 1)
            if self.interleaved
            else outputs.unflatten(0, (self.size, -1))
        )

    def described(self, value: Tensor, out: Tensor, log_det: Tensor, params: int | None, **more: Any) -> _Mapping:
        """The mapping as C sees it; ``params`` is the address for them."""
        maps = described_maps(self.maps)
        result = _Mapping(
            ctypes.addressof(maps), len(maps), self.generate, not torch.is_grad_enabled(), len(value),
            *((self.size, 1) if self.interleaved else (1, len(value))), value.data_ptr(), *value.stride(),
            out.data_ptr(), log_det.data_ptr(), params, **more,
        )  # fmt: skip
        result.keep = maps  # alive as long as what points to it
        return result


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
    if _needs_grad(x, shared, *tensors):
        return _Read.apply(structure, None, x, shared, None, *tensors)[0]
    return _forward(structure, None, x, shared, None, tensors)[0]


def mapped(
    structure: Structure,
    mapping: Mapping,
    x: Tensor,
    shared: Tensor | None,
    value: Tensor,
    tensors: Sequence[Tensor],
) -> tuple[Tensor, Tensor] | None:
    """Map values by the parameters that a network gives at x, in one call; None where the plain twins must.

    Args:
        structure: which network.
        mapping: what its outputs mean.
        x: what the network reads, ``(inputs, rows)``.
        shared: as in ``network``.
        value: what is mapped, ``(n, rows)``; may be x itself.
        tensors: as in ``network``.

    Returns:
        The mapped values ``(n, rows)`` and the log-derivatives summed over elements, ``(rows,)``.
    """
    if not (
        structure.known(x, value, shared, tensors[0])
        and value.numel()
        and known(mapping.maps, generate=mapping.generate)
    ):
        return None
    if not _needs_grad(x, shared, value, *tensors):
        return _forward(structure, mapping, x, shared, value, tensors)
    if mapping.generate:  # no backward pass here: training evaluates the other side
        return None
    return _Read.apply(structure, mapping, x, shared, value, *tensors)


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def _forward(
    structure: Structure,
    mapping: Mapping | None,
    x: Tensor,
    shared: Tensor | None,
    value: Tensor | None,
    tensors: Sequence[Tensor],
    values: Any = None,
    sums: Any = None,
    params: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The outputs, or the mapped values and log-derivatives; what the backward pass needs goes to the last three."""
    tensors = [t.contiguous() for t in tensors]
    rows = x.shape[1]
    out = x.new_empty(structure.layers[-1].units if value is None else len(value), rows)
    log_det = x.new_empty(0 if mapping is None else rows)
    applied = None if mapping is None or value is None else mapping.described(value, out, log_det, params)
    shared = None if shared is None else shared.expand(rows, -1).contiguous()
    native: Any = library()
    failed = native.network_f32(
        rows, ctypes.byref(structure.described(tensors)), pointer(shared), x.data_ptr(), *x.stride(), out.data_ptr(),
        values, sums, None if applied is None else ctypes.byref(applied), torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError("expected memory for a network's hidden units, got none")
    return out, log_det


class _Read(torch.autograd.Function):
    """The network, and the map of its outputs if any, with gradients; second derivatives are those of the twins."""

    @staticmethod
    def forward(
        ctx: Any,
        structure: Structure,
        mapping: Mapping | None,
        x: Tensor,
        shared: Tensor | None,
        value: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        room = structure.room(x.shape[1], mapped=mapping is not None)
        ctx.kept = x.new_empty(room.size)
        ctx.values, sums, ctx.slopes, ctx.params = room.at(ctx.kept)
        result = _forward(structure, mapping, x, shared, value, tensors, ctx.values, sums, ctx.params)
        ctx.structure, ctx.mapping, ctx.same = structure, mapping, value is x
        ctx.save_for_backward(x, shared, value, *tensors)
        if mapping is None:
            ctx.mark_non_differentiable(result[1])
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:
        structure, mapping = ctx.structure, ctx.mapping
        x, shared, value, *tensors = inputs = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for
            outputs = [structure.twin(x, shared, *tensors)]
            if mapping is not None:
                moved, log_det = mapping.twin(value, mapping.params(outputs[0]))
                outputs = [moved, log_det.sum(0)]
            grads = [grad, grad_log][: len(outputs)]
            return None, None, *differentiable_gradients(outputs, grads, inputs, ctx.needs_input_grad[2:])
        needs_x, needs_value = ctx.needs_input_grad[2], ctx.needs_input_grad[4]
        by_x = x.new_empty(x.shape) if needs_x else None
        by_value = None if not needs_value else by_x if ctx.same else x.new_empty(value.shape)
        by_shared = None if shared is None else x.new_empty(structure.layers[0].units, x.shape[1])
        tensors = [t.contiguous() for t in tensors]
        gradients = [torch.empty_like(t) for t in tensors]
        depth = len(structure.layers)
        direct = gradients[2 * depth] if structure.direct is not None else None
        grad, grad_log = grad.contiguous(), grad_log.contiguous()
        applied = mapping and mapping.described(
            value, grad, grad_log, ctx.params, grad_log=grad_log.data_ptr(),
            by_value=None if by_value is None else by_value.data_ptr(),
        )  # fmt: skip
        native: Any = library()
        failed = native.network_backward_f32(
            x.shape[1], ctypes.byref(structure.described(tensors)), ctx.values, ctx.slopes, grad.data_ptr(),
            pointer(by_x), _pointers(gradients[: 2 * depth : 2]), _pointers(gradients[1 : 2 * depth : 2]),
            pointer(direct), pointer(by_shared), None if applied is None else ctypes.byref(applied),
            torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError("expected memory for a network's gradients, got none")
        if by_shared is not None:
            by_shared = by_shared.mT.sum_to_size(shared.shape)
        return None, None, by_x, by_shared, None if by_value is by_x else by_value, *gradients

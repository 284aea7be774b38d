"""Feed-forward networks with the map of their outputs: one call forward, one backward, one to invert."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffeo.ops import reference
from diffeo.ops.cpu.binding import addresses, needs_grad, pointer, second_derivatives, structure
from diffeo.ops.cpu.build import library
from diffeo.ops.cpu.maps import described as described_maps
from diffeo.ops.cpu.maps import known
from diffeo.ops.specs import MapSpec, NetworkSpec, Univariate, Wiring

__all__ = ["Description", "describe", "invert_network", "mapped_network", "network"]

_ACTIVATIONS = {"relu": 0, "silu": 1, "tanh": 2, "elu": 3}
_BLOCK = 16  # elements of an inversion whose earlier contributions are computed together


_Layer = structure("p weight bias, L seen first ends, l units columns, i residual")
_Network = structure("p layers direct context, i depth activation, f bound")
_Mapping = structure(
    "p maps, i count generate precise, l elements by_element by_param, p value, l value_by_element value_by_row, "
    "p out log_det params grad_log by_value"
)


class Workspace(NamedTuple):
    """Memory for what the backward pass needs, in the kernel's own layout; places are in numbers.

    Attributes:
        size: how many numbers in all.
        values: where the inputs of each layer begin, and after these the context.
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


class Description:
    """A network as C sees it, and the numbers and the workspace described last."""

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec
        sources = spec.sources
        self._layers = (_Layer * len(sources))(*map(_layer, sources, [*spec.residual, False, False]))
        self._numbers: Any = None
        self._workspace: Any = None

    def with_numbers(self, tensors: Sequence[Tensor]) -> Any:
        """The network with its weights and biases (contiguous), which must outlive it."""
        places = [t.data_ptr() for t in tensors]
        last = self._numbers
        if last is not None and last[0] == places:
            return last[1]
        spec, layers, depth = self.spec, type(self._layers).from_buffer_copy(self._layers), len(self.spec.layers)
        weights, biases = _by_source(spec, places)
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight = weight
        for layer, bias in zip(layers, biases, strict=False):
            layer.bias = bias
        direct = None if spec.direct is None else ctypes.addressof(layers[depth])
        context = None if spec.context is None else ctypes.addressof(layers[len(layers) - 1])
        result = _Network(ctypes.addressof(layers), direct, context, depth, _ACTIVATIONS[spec.activation], spec.bound)
        result.keep = layers  # alive as long as what points to it
        self._numbers = places, result
        return result

    def workspace(self, rows: int, *, mapped: bool) -> Workspace:
        """The memory that the backward pass needs of so many rows, with the outputs if they are mapped."""
        last = self._workspace
        if last is not None and last[0] == (rows, mapped):
            return last[1]
        hidden = [wiring.units for wiring in self.spec.layers[:-1]]
        # What a ReLU lets through tells its slope; other slopes are those at the sums.
        simple = [self.spec.activation == "relu" and not each for each in self.spec.residual[:-1]]
        beside = [] if self.spec.context is None else [self.spec.context.columns]
        inputs = [self.spec.layers[0].columns, *hidden, *beside]
        units = [*inputs, *(h for h, easy in zip(hidden, simple, strict=True) if not easy)]
        outputs = [self.spec.layers[-1].units] * mapped
        *places, size = accumulate((library().kept_floats(rows, each) for each in [*units, *outputs]), initial=0)
        params = places.pop() if mapped else None
        values, more = places[: len(inputs)], iter(places[len(inputs) :])
        sums = [None if easy else next(more) for easy in simple]
        slopes = [value if kept is None else kept for kept, value in zip(sums, values[1:], strict=False)]
        result = Workspace(size, values, sums, slopes, params)
        self._workspace = (rows, mapped), result
        return result


def describe(spec: NetworkSpec) -> Description | None:
    """The network as C sees it, made once; None if the kernels do not know it."""
    description = spec.kept.get("cpu")
    if description is None and spec.activation in _ACTIVATIONS:
        description = spec.kept["cpu"] = Description(spec)
    return description


def _incomplete(spec: NetworkSpec, context: Tensor | None) -> bool:
    """Whether a context is missing; one that is not asked for is ignored."""
    return spec.context is not None and context is None


def _by_source(spec: NetworkSpec, tensors: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """A network's weights, one for each source, and its biases, one for each layer, of its tensors or their like."""
    layers = 2 * len(spec.layers)
    return [*tensors[:layers:2], *tensors[layers:]], [*tensors[1:layers:2]]


def _layer(wiring: Wiring, residual: bool) -> Any:
    """A layer as C sees it, without its numbers."""
    numbers = wiring.seen, wiring.first, wiring.ends
    arrays = [None if each is None else (ctypes.c_long * len(each))(*each) for each in numbers]
    return _Layer(None, None, *arrays, wiring.units, wiring.columns, residual)


def _described_mapping(
    spec: NetworkSpec, size: int, maps: Sequence[MapSpec], value: Tensor, out: Tensor, log_det: Tensor,
    params: int | None, *, generate: bool, precise: bool, **more: Any,
) -> Any:  # fmt: skip
    """The maps, of so many parameters, of a network's outputs as C sees them; ``params`` is the address for these."""
    chain = described_maps(maps)
    result = _Mapping(
        ctypes.addressof(chain), len(chain), generate, precise, len(value),
        *((size, 1) if spec.interleaved else (1, len(value))), value.data_ptr(), *value.stride(), out.data_ptr(),
        log_det.data_ptr(), params, **more,
    )  # fmt: skip
    result.keep = chain  # alive as long as what points to it
    return ctypes.byref(result)


def network(spec: NetworkSpec, x: Tensor, context: Tensor | None, tensors: Sequence[Tensor]) -> Tensor | None:
    """The outputs at x ``(inputs, rows)``; None where the reference must."""
    description = describe(spec)
    if description is None or not x.numel() or _incomplete(spec, context):
        return None
    if needs_grad(x, context, *tensors):
        return _Forward.apply(description, None, (), x, context, None, *tensors)[0]
    return _forward(description, None, (), x, context, None, tensors)[0]


def mapped_network(
    spec: NetworkSpec,
    univariate: Univariate,
    x: Tensor,
    context: Tensor | None,
    value: Tensor,
    tensors: Sequence[Tensor],
    *,
    generate: bool,
) -> tuple[Tensor, Tensor] | None:
    """Map values ``(n, rows)`` by the parameters that the network gives at x; None where the reference must."""
    description, maps = describe(spec), known(univariate, generate=generate)
    if description is None or maps is None or not value.numel() or _incomplete(spec, context):
        return None
    if not needs_grad(x, context, value, *tensors):
        precise = not torch.is_grad_enabled()
        return _forward(description, univariate, maps, x, context, value, tensors, generate=generate, precise=precise)
    if generate:  # no backward pass here: training evaluates the other direction
        return None
    return _Forward.apply(description, univariate, maps, x, context, value, *tensors)


def invert_network(
    spec: NetworkSpec, univariate: Univariate, z: Tensor, context: Tensor | None, tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Solve x_i = f(z_i; net(x_<i)) for z ``(rows, elements)`` in one call; None where the reference must."""
    description, maps = describe(spec), known(univariate, generate=True)
    if description is None or maps is None or _incomplete(spec, context):
        return None
    z, tensors = z.contiguous(), [t.contiguous() for t in tensors]
    context = None if context is None else context.expand(len(z), -1).contiguous()
    x, log_det = torch.empty_like(z), z.new_empty(len(z))
    failed = library().invert_f32(
        *z.shape, univariate.size, ctypes.byref(description.with_numbers(tensors)), pointer(context),
        described_maps(maps), len(maps), z.data_ptr(), x.data_ptr(), log_det.data_ptr(), _BLOCK,
        torch.get_num_threads(),
    )  # fmt: skip
    return None if failed else (x, log_det)


def _forward(
    description: Description,
    univariate: Univariate | None,
    maps: Sequence[MapSpec],
    x: Tensor,
    context: Tensor | None,
    value: Tensor | None,
    tensors: Sequence[Tensor],
    kept: tuple[Any, Any, int | None] = (None, None, None),
    *,
    generate: bool = False,
    precise: bool = False,
) -> tuple[Tensor, Tensor]:
    """The outputs, or mapped values and log-derivatives; ``kept`` is for the backward pass: values, sums, params."""
    spec, rows, mapping = description.spec, x.shape[1], None
    tensors = [t.contiguous() for t in tensors]
    out = x.new_empty(spec.layers[-1].units if value is None else len(value), rows)
    log_det = x.new_empty(0 if univariate is None else rows)
    values, sums, params = kept
    if univariate is not None and value is not None:
        size = univariate.size
        mapping = _described_mapping(spec, size, maps, value, out, log_det, params, generate=generate, precise=precise)
    context = None if context is None else context.expand(rows, -1).contiguous()
    failed = library().network_f32(
        rows, ctypes.byref(description.with_numbers(tensors)), pointer(context), x.data_ptr(), *x.stride(),
        out.data_ptr(), values, sums, mapping, torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError("expected memory for a network's hidden units, got none")
    return out, log_det


class _Forward(torch.autograd.Function):
    """The network, and the map of its outputs if any, with gradients; second derivatives are the reference's."""

    @staticmethod
    def forward(
        ctx: Any,
        description: Description,
        univariate: Univariate | None,
        maps: Sequence[MapSpec],
        x: Tensor,
        context: Tensor | None,
        value: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        workspace = description.workspace(x.shape[1], mapped=univariate is not None)
        ctx.kept = x.new_empty(workspace.size)
        ctx.values, sums, ctx.slopes, ctx.params = workspace.at(ctx.kept)
        kept = ctx.values, sums, ctx.params
        result = _forward(description, univariate, maps, x, context, value, tensors, kept)
        ctx.description, ctx.univariate, ctx.maps, ctx.same = description, univariate, maps, value is x
        ctx.save_for_backward(x, context, value, *tensors)
        if univariate is None:
            ctx.mark_non_differentiable(result[1])
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:
        spec, univariate = ctx.description.spec, ctx.univariate
        x, context, value, *tensors = inputs = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for

            def plain(x: Tensor, context: Tensor | None, value: Tensor | None, *tensors: Tensor) -> Sequence[Tensor]:
                if univariate is None or value is None:
                    return [reference.network(spec, x, context, tensors)]
                return reference.mapped_network(spec, univariate, x, context, value, tensors, generate=False)

            return None, None, None, *second_derivatives(plain, inputs, [grad, grad_log], ctx.needs_input_grad[3:])
        needs_x, needs_context, needs_value = ctx.needs_input_grad[3:6]
        by_x = x.new_empty(x.shape) if needs_x else None
        by_value = None if not needs_value else by_x if ctx.same else x.new_empty(value.shape)
        by_context = x.new_empty(context.shape[1], x.shape[1]) if needs_context and spec.context is not None else None
        tensors = [t.contiguous() for t in tensors]
        gradients = [torch.empty_like(t) for t in tensors]
        weights, biases = _by_source(spec, gradients)
        mapping = None
        grad, grad_log = grad.contiguous(), grad_log.contiguous()
        if univariate is not None:
            mapping = _described_mapping(
                spec, univariate.size, ctx.maps, value, grad, grad_log, ctx.params, generate=False, precise=False,
                grad_log=grad_log.data_ptr(), by_value=pointer(by_value),
            )  # fmt: skip
        failed = library().network_backward_f32(
            x.shape[1], ctypes.byref(ctx.description.with_numbers(tensors)), ctx.values, ctx.slopes, grad.data_ptr(),
            pointer(by_x), pointer(by_context), addresses(weights), addresses(biases), mapping,
            torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError("expected memory for a network's gradients, got none")
        if by_context is not None:
            by_context = by_context.mT.sum_to_size(context.shape)
        return None, None, None, by_x, by_context, None if by_value is by_x else by_value, *gradients

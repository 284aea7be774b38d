"""Feed-forward networks, dense or masked: a forward pass, that and a map in one, incremental inversion, its transpose.

Values are feature-major, ``(features, rows)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from diffeo.ops.reference.incremental import TriangularLayer, evaluate_incrementally
from diffeo.ops.specs import NetworkSpec, Univariate, Wiring, ends_of
from diffeo.ops.tracing import tracing

__all__ = [
    "ACTIVATIONS",
    "context_sums",
    "derivative",
    "invert_network",
    "mapped_network",
    "network",
    "soft_bound",
    "solve_transposed_network",
    "unroll_network",
]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "elu": F.elu,
    "tanh": torch.tanh,
}


def soft_bound(value: Tensor, bound: float) -> Tensor:
    """Bound smoothly to (-bound, bound): ``bound * tanh(value / bound)``, the identity near zero, no dead clamp."""
    return bound * torch.tanh(value / bound)


def derivative(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The elementwise derivative of ``function`` at each entry of ``at``."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        return torch.autograd.grad(function(at).sum(), at)[0]


def _masked(wiring: Wiring, weight: Tensor) -> Tensor:
    """A layer's weight, masked in every pass, so that no weight, however set, can break the order."""
    return weight if wiring.full else weight * wiring.mask(weight, keep=not tracing())


def context_sums(spec: NetworkSpec, context: Tensor | None, tensors: Sequence[Tensor]) -> Tensor | None:
    """The context's part of the first layer's sums: C bounded(c), ``(units, rows)`` or ``(units, 1)``.

    Args:
        spec: which network.
        context: as in ``network``.
        tensors: likewise.
    """
    if spec.context is None or context is None:
        return None
    return F.linear(soft_bound(context, spec.bound), tensors[-1]).mT


def network(
    spec: NetworkSpec, x: Tensor, context: Tensor | None, tensors: Sequence[Tensor], sums: list[Tensor] | None = None
) -> Tensor:
    """h_1 = act(W_1 bounded(x) + C bounded(c) + b_1), h_l = act(W_l h_{l-1} + b_l) (+ h_{l-1}), y = W h_L + b (+ V x).

    Args:
        spec: which network.
        x: ``(inputs, rows)``.
        context: c ``(rows, contexts)``, or one for all ``(1, contexts)``, or None.
        tensors: see ``NetworkSpec``.
        sums: receives what each activation gets.

    Returns:
        ``(outputs, rows)``.
    """
    inputs = h = soft_bound(x, spec.bound)
    added = context_sums(spec, context, tensors)
    activation, last = ACTIVATIONS[spec.activation], len(spec.layers) - 1
    for index, wiring in enumerate(spec.layers):
        weight, bias = tensors[2 * index : 2 * index + 2]
        total = torch.addmm(bias[:, None], _masked(wiring, weight), h)
        if index == 0 and added is not None:
            total = total + added
        if index < last:
            if sums is not None:
                sums.append(total)
            new = activation(total)
            h = new + h if spec.residual[index] else new
    return total if spec.direct is None else total + _masked(spec.direct, spec.direct_weight(tensors)) @ inputs


def mapped_network(
    spec: NetworkSpec,
    univariate: Univariate,
    x: Tensor,
    context: Tensor | None,
    value: Tensor,
    tensors: Sequence[Tensor],
    *,
    generate: bool,
) -> tuple[Tensor, Tensor]:
    """Map values ``(n, rows)`` by the parameters that a network gives at x.

    Returns:
        The mapped values ``(n, rows)`` and the log-derivatives summed over elements, ``(rows,)``.
    """
    params = spec.params(network(spec, x, context, tensors), univariate.size)
    mapped, log_det = (univariate.generate if generate else univariate.normalize)(value, params)
    return mapped, log_det.sum(0)


def invert_network(
    spec: NetworkSpec, univariate: Univariate, z: Tensor, context: Tensor | None, tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Solve x_i = f(z_i; net(x_<i)) for all i by incremental inversion. Not differentiable.

    Args:
        spec: a masked network, its outputs ordered element by element.
        univariate: the map f.
        z: ``(rows, elements)``.
        context: as in ``network``.
        tensors: likewise.

    Returns:
        x ``(rows, elements)`` and log|det dx/dz| ``(rows,)``.
    """
    noise = z.mT.contiguous()
    x, log_det = torch.empty_like(noise), z.new_zeros(len(z))
    activation, last = ACTIVATIONS[spec.activation], len(spec.layers) - 1
    added = context_sums(spec, context, tensors)
    hidden = [noise.new_empty(wiring.units, len(z)) for wiring in spec.layers[:-1]]

    def finish(index: int, units: slice, sums: Tensor) -> Tensor:
        sums += tensors[2 * index + 1][units, None]
        if index == 0 and added is not None:
            sums += added[units]
        if index == last:
            return sums
        value = activation(sums)
        if spec.residual[index]:
            value += hidden[index - 1][units]
        hidden[index][units] = value
        return value

    def step(i: int, params: Tensor) -> Tensor:
        x[i], log_derivative = univariate.generate(noise[i], params)
        log_det.add_(log_derivative)
        return soft_bound(x[i], spec.bound)[None]

    layers = [
        TriangularLayer([(index, tensors[2 * index])], wiring.ends or (), partial(finish, index))
        for index, wiring in enumerate(spec.layers)
    ]
    if spec.direct is not None:
        layers[-1].sources.append((0, spec.direct_weight(tensors)))
    evaluate_incrementally(layers, step, len(x), 1, noise)
    return x.mT, log_det


def unroll_network(
    spec: NetworkSpec, univariate: Univariate, z: Tensor, context: Tensor | None, tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Solve as ``invert_network`` does, in operations that change nothing: anything can differentiate and trace it.

    Args:
        spec: a masked network, its outputs ordered element by element.
        univariate: the map f.
        z: ``(elements, rows)``.
        context: as in ``network``.
        tensors: likewise.

    Returns:
        x ``(elements, rows)`` and log|det dx/dz| ``(rows,)``.
    """
    activation, last, added = ACTIVATIONS[spec.activation], len(spec.layers), context_sums(spec, context, tensors)
    ends = [[*range(len(z) + 1)], *(list(wiring.ends or ()) for wiring in spec.layers)]
    values: list[list[Tensor]] = [[] for _ in ends]  # of each layer, the inputs' first, what is known so far
    x: list[Tensor] = []
    logs: list[Tensor] = []
    for k, noise in enumerate(z.unbind(0)):
        params = z.new_zeros(0)
        for index in range(1, last + 1):
            units = slice(ends[index][k - 1] if k else 0, ends[index][k])
            if units.start == units.stop:
                continue
            weight, bias = tensors[2 * index - 2][units], tensors[2 * index - 1][units, None]
            known = torch.cat(values[index - 1]) if values[index - 1] else None
            if known is None:
                total = bias.expand(-1, z.shape[1])
            else:
                total = torch.addmm(bias, weight[:, : ends[index - 1][k]], known)
            if index == 1 and added is not None:
                total = total + added[units]
            if index == last:
                if spec.direct is not None and k:
                    total = total + spec.direct_weight(tensors)[units, :k] @ torch.cat(values[0])
                params = total
                continue
            new = activation(total)
            values[index].append(new if known is None or not spec.residual[index - 1] else known[units] + new)
        value, log_derivative = univariate.generate(noise, params)
        x.append(value)
        logs.append(log_derivative)
        values[0].append(soft_bound(value, spec.bound)[None])
    return torch.stack(x), torch.stack(logs).sum(0)


def solve_transposed_network(
    spec: NetworkSpec,
    degrees: Sequence[Tensor],
    x: Tensor,
    context: Tensor | None,
    tensors: Sequence[Tensor],
    by_params: Tensor,
    diagonal: Tensor,
    grad: Tensor,
) -> Tensor:
    """Solve J^T u = grad, last element first, where J = diag(diagonal) + (dz/dparams) (dparams/dx) is dz/dx.

    In reversed order, of the elements and of the units of each layer, the transposed network is masked just as the
    network is: a unit of degree m has degree D - m there. So the solve is an incremental evaluation of it, at the price
    of one backward pass.

    Args:
        spec: a masked network, its outputs ordered element by element.
        degrees: of the units of each layer, the inputs' first.
        x: where the network is linearised, ``(elements, rows)``.
        context: as in ``network``.
        tensors: likewise.
        by_params: dz_i/dparams_i, ``(size, elements, rows)``.
        diagonal: dz_i/dx_i at fixed parameters, ``(elements, rows)``.
        grad: ``(elements, rows)``.

    Returns:
        u ``(elements, rows)``.
    """
    solution = torch.empty_like(grad, memory_format=torch.contiguous_format)
    elements, size = len(x), len(by_params)
    last = elements - 1
    sums: list[Tensor] = []
    network(spec, x, context, tensors, sums)
    slopes = [derivative(ACTIVATIONS[spec.activation], each).flip(0) for each in sums]
    outer = derivative(lambda value: soft_bound(value, spec.bound), x)
    backward = [weight.mT.flip(0, 1) for weight in tensors[: 2 * len(spec.layers) : 2]]
    depth = len(slopes)
    gradients = [torch.empty_like(slope) for slope in slopes]  # with respect to each layer's values

    def finish(index: int, units: slice, sums: Tensor) -> Tensor:
        if index + 1 < depth and spec.residual[index + 1]:
            sums += gradients[index + 1][units]
        gradients[index][units] = sums
        return sums * slopes[index][units]

    def step(k: int, total: Tensor) -> Tensor:
        i = last - k
        solution[i] = (grad[i] - total[0] * outer[i]) / diagonal[i]
        return (by_params[:, i] * solution[i]).flip(0)  # the parameters of an element, too, are met in reversed order

    layers = []
    for position, index in enumerate(reversed(range(depth))):
        ends = ends_of((elements - degrees[index + 1]).flip(0), elements)
        layers.append(TriangularLayer([(position, backward[index + 1])], ends, partial(finish, index)))
    sources = [(depth, backward[0])]
    if spec.direct is not None:
        sources.append((0, spec.direct_weight(tensors).mT.flip(0, 1)))
    ends = [min(k + 1, elements) for k in range(elements + 1)]
    layers.append(TriangularLayer(sources, ends, lambda units, sums: sums))
    evaluate_incrementally(layers, step, elements, size, x)
    return solution

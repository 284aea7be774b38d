"""The operations that must be fast, each with one definition and any number of backends.

``reference`` defines them in plain PyTorch. ``cpu`` computes them in C where a compiler is at hand, and can be deleted.
The caller of an operation does not know which backend computes it: these functions choose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from diffeo.ops import reference
from diffeo.ops.dispatch import cpu, kernels, using
from diffeo.ops.reference.solvers import AdaptiveSolution, Control
from diffeo.ops.specs import (
    FieldSpec,
    MapSpec,
    Matching,
    NetworkSpec,
    PathSpec,
    Trained,
    Univariate,
    WaveNetSpec,
    Wiring,
)
from diffeo.ops.tracing import loop, numbers_are_known, tracing

__all__ = [
    "FieldSpec",
    "MapSpec",
    "Matching",
    "NetworkSpec",
    "PathSpec",
    "Trained",
    "Univariate",
    "WaveNetSpec",
    "Wiring",
    "adaptive",
    "fused_update",
    "invert_network",
    "invert_wavenet",
    "loop",
    "map_values",
    "mapped_network",
    "matching",
    "network",
    "numbers_are_known",
    "release",
    "tracing",
    "using",
    "wavenet",
]


def map_values(univariate: Univariate, value: Tensor, params: Tensor, *, generate: bool) -> tuple[Tensor, Tensor]:
    """Map values ``(*batch, n)`` given params ``(size, *batch, n)``: the mapped values and their log-derivatives."""
    fast = kernels("map", value, params)
    result = None if fast is None else fast.map_values(univariate, value, params, generate=generate)
    return result or (univariate.generate if generate else univariate.normalize)(value, params)


def network(spec: NetworkSpec, x: Tensor, context: Tensor | None, tensors: Sequence[Tensor]) -> Tensor:
    """A feed-forward network at x ``(inputs, rows)``: ``(outputs, rows)``; see ``reference.network``."""
    fast = kernels("network", x, context, tensors[0])
    result = None if fast is None else fast.network(spec, x, context, tensors)
    return reference.network(spec, x, context, tensors) if result is None else result


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
    """Map values ``(n, rows)`` by the parameters that a network gives at x; see ``reference.mapped_network``.

    Returns:
        The mapped values ``(n, rows)`` and the log-derivatives summed over elements, ``(rows,)``.
    """
    fast = kernels("network", x, context, value, tensors[0])
    if fast is not None:
        result = fast.mapped_network(spec, univariate, x, context, value, tensors, generate=generate)
        if result is not None:
            return result
    params = spec.params(network(spec, x, context, tensors), univariate.size)
    mapped, log_det = map_values(univariate, value, params, generate=generate)
    return mapped, log_det.sum(0)


def invert_network(
    spec: NetworkSpec, univariate: Univariate, z: Tensor, context: Tensor | None, tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Solve x_i = f(z_i; net(x_<i)) at the price of one pass; see ``reference.invert_network``.

    Raises:
        ValueError: for z ``(rows, elements)`` of another shape.
    """
    if z.dim() != 2 or z.shape[1] != spec.layers[0].columns:
        raise ValueError(f"expected z of shape (rows, {spec.layers[0].columns}), got {tuple(z.shape)}")
    fast = kernels("inversion", z, context, tensors[0])
    result = None if fast is None else fast.invert_network(spec, univariate, z, context, tensors)
    return result or reference.invert_network(spec, univariate, z, context, tensors)


def wavenet(spec: WaveNetSpec, x: Tensor, shared: Tensor | None, tensors: Sequence[Tensor]) -> Tensor:
    """A WaveNet at x ``(rows, T)``: ``(rows, size, T)``; see ``reference.wavenet``."""
    fast = kernels("wavenet", x, shared, tensors[0])
    result = None if fast is None else fast.wavenet(spec, x, shared, tensors)
    return reference.wavenet(spec, x, shared, tensors) if result is None else result


def invert_wavenet(
    spec: WaveNetSpec, univariate: Univariate, z: Tensor, shared: Tensor | None, tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Solve x_t = f(z_t; net(x_<t)) sample by sample; see ``reference.invert_wavenet``."""
    fast = kernels("wavenet inversion", z, shared, tensors[0])
    result = None if fast is None else fast.invert_wavenet(spec, univariate, z, shared, tensors)
    return result or reference.invert_wavenet(spec, univariate, z, shared, tensors)


def adaptive(
    f: Callable[[Tensor, Tensor, Tensor | None], Tensor], y: Tensor, control: Control, field: FieldSpec | None = None
) -> AdaptiveSolution:
    """Solve dy/dt = f(t, y); see ``reference.adaptive``.

    Args:
        f: the derivative.
        y: the states at the start, ``(rows, size)``, or with the log-det ``(rows, size + 1)``.
        control: where to begin and to end, and the tolerances.
        field: the same derivative by its description, where it has one; then the solution lists no steps.

    Raises:
        SolverError: where f is not finite, or a row needs more evaluations than it may take.
    """
    if field is not None:
        fast = kernels("ode", y, field.context, *field.moments, *field.tensors)
        result = None if fast is None else fast.adaptive(field, y, control)
        if result is not None:
            return result
    return reference.adaptive(f, y, control)


def matching(field: FieldSpec, noise: Tensor, data: Tensor, t: Tensor) -> Matching | None:
    """Inputs and targets of a velocity's network in flow matching; None where the velocity computes them itself.

    Args:
        field: the velocity.
        noise: ``(rows, size)``.
        data: ``(rows, size)``.
        t: ``(rows,)``.
    """
    fast = kernels("matching", noise, data, t, field.context, *field.moments)
    return None if fast is None else fast.matching(field, noise, data, t)


def fused_update(parameters: Sequence[Tensor]) -> Any:
    """The class that norms all gradients in one call and takes AdamW's step in another; None: ``torch.optim`` does.

    It is made of the ``Trained`` records of all parameters, AdamW's betas and epsilon, and changes them in place.
    """
    fast = kernels("update", *parameters)
    return fast.FusedUpdate if fast is not None and all(p.is_contiguous() for p in parameters) else None


def release(spec: WaveNetSpec) -> None:
    """Give back memory that a network's gradients left for the next pass."""
    if cpu is not None:
        cpu.release(spec)

"""Continuous flows: solving their equations for all rows in one call, and what flow matching asks."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from diffeo.ops.cpu.binding import pointer, structure
from diffeo.ops.cpu.build import library
from diffeo.ops.cpu.network import describe
from diffeo.ops.reference.solvers import (
    DORMAND_PRINCE,
    ERROR_WEIGHTS,
    AdaptiveSolution,
    Control,
    not_finite,
    not_met,
)
from diffeo.ops.specs import FieldSpec, Matching

__all__ = ["adaptive", "matching"]

_PATHS = {"linear": 0, "cosine": 1, "vp": 2}


_Field = structure(
    "p net data_mean noise_mean data_std noise_std context, l size context_size frequencies, i path, d low high bound"
)
_Tableau = structure("l stages, p times coefficients error")
_Control = structure("f start stop rtol atol least safety shrink grow, l most")
_Trouble = structure("l count row, i finite, f t")


def _described(field: FieldSpec, net: int | None = None) -> Any:
    """The velocity as C sees it; its tensors (contiguous) must outlive it. ``net`` is the network's address."""
    return _Field(
        net, *(each.data_ptr() for each in field.moments), pointer(field.context), field.moments[0].numel(),
        0 if field.context is None else field.context.shape[1], field.frequencies, _PATHS[field.path.kind],
        field.path.low, field.path.high, field.bound,
    )  # fmt: skip


@lru_cache(maxsize=1)
def _tableau() -> Any:
    """Dormand and Prince's method as C sees it."""
    count = len(DORMAND_PRINCE.times)

    def floats(numbers: Sequence[float]) -> Any:
        return (ctypes.c_float * len(numbers))(*numbers)

    rows = [[*weights, *[0.0] * (count - len(weights))] for weights in DORMAND_PRINCE.stages]
    arrays = floats(DORMAND_PRINCE.times), floats([each for row in rows for each in row]), floats(ERROR_WEIGHTS)
    result = _Tableau(count, *(ctypes.addressof(array) for array in arrays))
    result.keep = arrays  # alive as long as what points to them
    return result


def adaptive(field: FieldSpec, y: Tensor, control: Control) -> AdaptiveSolution | None:
    """Solve from y ``(rows, size)``, or with the log-det ``(rows, size + 1)``; None where the reference must.

    Raises:
        SolverError: where the velocity is not finite, or a row needs more evaluations than it may take.
    """
    description = describe(field.network)
    if description is None or not y.numel():
        return None
    weights, y = [each.contiguous() for each in field.tensors], y.contiguous()
    network = description.with_numbers(weights)  # to be held until C has returned
    described = _described(field, ctypes.addressof(network))
    out, error, trouble = torch.empty_like(y), y.new_empty(len(y)), _Trouble()
    evaluations = torch.empty_like(error, dtype=torch.long)
    failed = library().ode_adaptive_f32(
        *y.shape, ctypes.byref(described), ctypes.byref(_tableau()), ctypes.byref(_Control(*control)), y.data_ptr(),
        out.data_ptr(), evaluations.data_ptr(), error.data_ptr(), ctypes.byref(trouble), torch.get_num_threads(),
    )  # fmt: skip
    if failed == 1:
        raise MemoryError("expected memory for the states and the network's hidden units, got none")
    if failed:
        raise not_met(trouble.row, trouble.t, control) if trouble.finite else not_finite(trouble.row, trouble.t)
    return AdaptiveSolution(out, evaluations, error, [])


def matching(field: FieldSpec, noise: Tensor, data: Tensor, t: Tensor) -> Matching | None:
    """What flow matching asks at noise and data ``(rows, size)``, t ``(rows,)``; None where the reference must."""
    if not data.numel():
        return None
    noise, data, t = noise.contiguous(), data.contiguous(), t.contiguous()
    rows, size = data.shape
    inputs = data.new_empty(field.network.layers[0].columns, rows)
    std, target = data.new_empty(size, rows), data.new_empty(size, rows)
    failed = library().matching_f32(
        rows, ctypes.byref(_described(field)), noise.data_ptr(), data.data_ptr(), t.data_ptr(), inputs.data_ptr(),
        std.data_ptr(), target.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError("expected memory for the inputs of a network, got none")
    return Matching(inputs, std, target)

"""Continuous flows: solving their equations for all rows in one call, and what flow matching asks (``ode.h``).

The plain twins are ``Velocity`` in ``nets/velocity.py`` and ``adaptive`` in ``transforms/solvers.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffeo.ops.cpu.build import library, pointer
from diffeo.ops.cpu.network import Structure

__all__ = ["Control", "Field", "Matched", "PathSpec", "Solved", "Trouble", "matched", "solve_adaptive"]

_PATHS = {"linear": 0, "cosine": 1, "vp": 2}


class PathSpec(NamedTuple):
    """A path from noise to data as the kernels know it; the rates are those of "vp" at the data and at the noise."""

    kind: str
    low: float = 0.0
    high: float = 0.0


class _Field(ctypes.Structure):
    _fields_ = (
        ("net", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("data_mean", "noise_mean", "data_std", "noise_std", "given")),
        ("size", ctypes.c_long),
        ("given_size", ctypes.c_long),
        ("frequencies", ctypes.c_long),
        ("path", ctypes.c_int),
        ("low", ctypes.c_double),
        ("high", ctypes.c_double),
    )


class _Tableau(ctypes.Structure):
    _fields_ = (
        ("stages", ctypes.c_long),
        ("times", ctypes.c_void_p),
        ("coefficients", ctypes.c_void_p),
        ("error", ctypes.c_void_p),
    )


class _Control(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_float) for name in ("start", "stop", "rtol", "atol", "least", "safety", "shrink", "grow")),
        ("most", ctypes.c_long),
    )


class _Trouble(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_long),
        ("row", ctypes.c_long),
        ("finite", ctypes.c_int),
        ("t", ctypes.c_float),
    )


@dataclass
class Field:
    """A velocity: that of a Gaussian in closed form, and a network's correction to it.

    Attributes:
        structure: the network, whose inputs are ``[(x - mean_t) / std_t, t, sines, cosines, given]``.
        tensors: its weights and biases.
        moments: means of the data and of the noise, standard deviations of the data and of the noise, ``(size,)``.
        given: what else the network is told of each row, ``(rows, given)``, or None.
        frequencies: how many sines and how many cosines of octaves, 2^k pi t.
        path: between noise and data.
    """

    structure: Structure
    tensors: Sequence[Tensor]
    moments: Sequence[Tensor]
    given: Tensor | None
    frequencies: int
    path: PathSpec

    def described(self, net: int | None = None) -> _Field:
        """The velocity as C sees it; its tensors (contiguous) must outlive it. ``net`` is the network's address."""
        return _Field(
            net, *(each.data_ptr() for each in self.moments), pointer(self.given), self.moments[0].numel(),
            0 if self.given is None else self.given.shape[1], self.frequencies, _PATHS[self.path.kind], self.path.low,
            self.path.high,
        )  # fmt: skip


class Matched(NamedTuple):
    """What flow matching asks of the network: std_t times its outputs at ``inputs`` are to be ``target``.

    Inputs are ``(inputs, rows)``, std and target ``(size, rows)``.
    """

    inputs: Tensor
    std: Tensor
    target: Tensor


class Control(NamedTuple):
    """How steps are chosen: see ``adaptive`` in ``transforms/solvers.py``."""

    start: float
    stop: float
    rtol: float
    atol: float
    least: float
    safety: float
    shrink: float
    grow: float
    most: int


class Trouble(NamedTuple):
    """The first row that failed, at which time, and whether its velocity was finite there."""

    row: int
    t: float
    finite: bool


class Solved(NamedTuple):
    """The states at the end; per row, evaluations and the sum of the estimated errors; what failed, or None."""

    y: Tensor
    evaluations: Tensor
    error: Tensor
    trouble: Trouble | None


def solve_adaptive(
    field: Field,
    times: Sequence[float],
    stages: Sequence[Sequence[float]],
    error_weights: Sequence[float],
    y: Tensor,
    control: Control,
) -> Solved | None:
    """Solve from the states y, or return None where the plain twin must.

    Args:
        field: the velocity.
        times: of the stages of a Runge-Kutta method whose last stage is at the new state.
        stages: the weights of the earlier stages in each one.
        error_weights: of the stages in the estimated error.
        y: ``(rows, size)``, or with the log-det ``(rows, size + 1)``.
        control: how steps are chosen.
    """
    weights, y = [each.contiguous() for each in field.tensors], y.contiguous()
    if not (field.structure.known(*weights, *field.moments, field.given, y) and y.numel()):
        return None
    count = len(times)
    coefficients = y.new_zeros(2 + count, count)
    for row, numbers in enumerate([times, error_weights, *stages]):
        coefficients[row, : len(numbers)] = torch.tensor(numbers)
    at = [each.data_ptr() for each in coefficients]
    tableau = _Tableau(count, at[0], at[2], at[1])
    net = field.structure.described(weights)
    described = field.described(ctypes.addressof(net))
    out, error, trouble = torch.empty_like(y), y.new_empty(len(y)), _Trouble()
    evaluations = torch.empty_like(error, dtype=torch.long)
    native: Any = library()
    failed = native.ode_adaptive_f32(
        *y.shape, ctypes.byref(described), ctypes.byref(tableau), ctypes.byref(_Control(*control)), y.data_ptr(),
        out.data_ptr(), evaluations.data_ptr(), error.data_ptr(), ctypes.byref(trouble), torch.get_num_threads(),
    )  # fmt: skip
    if failed == 1:
        raise MemoryError("expected memory for the states and the network's hidden units, got none")
    return Solved(out, evaluations, error, Trouble(trouble.row, trouble.t, bool(trouble.finite)) if failed else None)


def matched(field: Field, noise: Tensor, data: Tensor, t: Tensor) -> Matched | None:
    """What flow matching asks of a velocity's network between noise and data, or None where the plain twin must.

    Args:
        field: the velocity.
        noise: ``(rows, size)``.
        data: ``(rows, size)``.
        t: ``(rows,)``.
    """
    if not (field.structure.known(noise, data, t, field.given, *field.moments) and data.numel()):
        return None
    noise, data, t = noise.contiguous(), data.contiguous(), t.contiguous()
    rows, size = data.shape
    inputs = data.new_empty(field.structure.layers[0].columns, rows)
    std, target = data.new_empty(size, rows), data.new_empty(size, rows)
    native: Any = library()
    failed = native.matching_f32(
        rows, ctypes.byref(field.described()), noise.data_ptr(), data.data_ptr(), t.data_ptr(), inputs.data_ptr(),
        std.data_ptr(), target.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError("expected memory for the inputs of a network, got none")
    return Matched(inputs, std, target)

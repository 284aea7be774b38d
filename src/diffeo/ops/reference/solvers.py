"""Solvers of dy/dt = f(t, y): pure functions of rows that do not know each other.

The state y is ``(rows, size)``; ``f(t, y, rows)`` gets one time per row, ``(n,)``, the states ``(n, size)`` and which
rows they are (indices, or None for all of them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffeo.ops.tracing import loop, numbers_are_known

__all__ = [
    "DORMAND_PRINCE",
    "ERROR_WEIGHTS",
    "FIXED",
    "AcceptedStep",
    "AdaptiveSolution",
    "Control",
    "SolverError",
    "Tableau",
    "adaptive",
    "fixed",
    "not_finite",
    "not_met",
    "replay",
]

Derivative = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class SolverError(ValueError):
    """A solution that cannot be found; the message names the row and the time."""


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: k_i = f(t + c_i h, y + h sum_j a_ij k_j), y' = y + h sum_i b_i k_i."""

    times: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


# Methods of fixed steps, by name.
FIXED = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": Tableau((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}

# Dormand and Prince 1980. The last stage is the derivative at the new point, with which the next step begins (FSAL).
_LAST = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
DORMAND_PRINCE = Tableau(
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _LAST,
    ),
    _LAST,
)
ERROR_WEIGHTS = (
    71 / 57600,
    0.0,
    -71 / 16695,
    71 / 1920,
    -17253 / 339200,
    22 / 525,
    -1 / 40,
)  # fifth order minus fourth
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 8.0  # of the step's length, which the fifth root of the error decides


class Control(NamedTuple):
    """How ``adaptive`` chooses its steps from ``start`` to ``stop``."""

    start: float
    stop: float
    rtol: float
    atol: float
    least: float  # length of a step that is not accepted, below which the tolerance cannot be met
    safety: float
    shrink: float
    grow: float
    most: int  # evaluations of a row

    @classmethod
    def of(cls, y: Tensor, start: float, stop: float, rtol: float, atol: float, most: int) -> Control:
        """For states like y, whose rounding errors would otherwise be taken for the method's."""
        eps = torch.finfo(y.dtype).eps
        rtol, atol = (max(tolerance, 4 * eps) for tolerance in (rtol, atol))
        return cls(start, stop, rtol, atol, 16 * eps * max(abs(start), abs(stop)), _SAFETY, _SHRINK, _GROW, most)


class AcceptedStep(NamedTuple):
    """A step that some rows took together, each from its own time t by its own signed length h, both ``(n,)``."""

    rows: Tensor | None
    t: Tensor
    h: Tensor


class AdaptiveSolution(NamedTuple):
    """The states at the end; per row, evaluations and the sum of the estimated errors; the steps that were taken.

    A kernel keeps no steps: there the list is empty.
    """

    y: Tensor
    evaluations: Tensor
    error: Tensor
    steps: list[AcceptedStep]


def fixed(f: Derivative, y: Tensor, start: float, stop: float, method: str, steps: int) -> Tensor:
    """Solve from ``start`` to ``stop`` in equal steps of a method of ``FIXED``.

    Raises:
        SolverError: where the state stops being finite.
    """
    rows = y.shape[:1]
    tableau, h = FIXED[method], y.new_full(rows, (stop - start) / steps)
    if torch.compiler.is_exporting():
        return _looped(f, y, start, stop, tableau, steps)
    for index in range(steps):
        t = y.new_full(rows, start + index * (stop - start) / steps)
        y = _add(y, h, tableau.weights, _stages(f, tableau, t, h, y, f(t, y, None), None))
        _check_finite(y, t, None)
    return y


def _looped(f: Derivative, y: Tensor, start: float, stop: float, tableau: Tableau, steps: int) -> Tensor:
    """``fixed`` as a loop in the graph, whose size does not grow with the steps."""

    def step(y: Tensor, t: Tensor) -> Tensor:
        t = t.expand(y.shape[0])
        h = torch.full_like(t, (stop - start) / steps)
        return _add(y, h, tableau.weights, _stages(f, tableau, t, h, y, f(t, y, None), None))

    times = start + torch.arange(steps, dtype=y.dtype, device=y.device) * ((stop - start) / steps)
    result: Tensor = loop(step, y, times)
    return result


def adaptive(f: Derivative, y: Tensor, control: Control) -> AdaptiveSolution:
    """Solve by Dormand and Prince's method of order 5(4); every row has its own steps and leaves when it is done.

    A step is accepted where the estimated error of every element is at most ``atol + rtol |y|``. So no row hides
    behind the others, no element behind the rest of its row, and no row takes the steps that another one needs.

    Args:
        f: the derivative.
        y: the states at the start, ``(rows, size)``.
        control: where to begin and to end, the tolerances, and how many evaluations a row may take.

    Raises:
        SolverError: where f is not finite, or a row needs more evaluations.
        ValueError: where the numbers are not known while it runs.
    """
    if not numbers_are_known():
        raise ValueError(
            "expected a solver of fixed steps (say solver='rk4', steps=16) where a graph is made or vmap batches rows, "
            "got an adaptive one, whose steps follow from the numbers"
        )
    start, stop, rtol, atol, least, *_, most = control
    sign, done = (1.0 if stop > start else -1.0), torch.empty_like(y)
    evaluations = torch.full((len(y),), 2, dtype=torch.long, device=y.device)
    total = y.new_zeros(len(y))
    rows = torch.arange(len(y), device=y.device)
    t = y.new_full((len(y),), start)
    k = f(t, y, None)
    _check_finite(k, t, None)
    length = _first_length(f, y, t, k, stop - start, rtol, atol)
    steps: list[AcceptedStep] = []
    count = 2  # evaluations of the rows that are still under way
    while len(rows):
        which = None if len(rows) == len(done) else rows
        remaining = (stop - t) * sign
        last = length >= remaining * (1 - 1e-6)  # a sliver left over would cost a step
        h = sign * torch.where(last, remaining, length)
        stages = _stages(f, DORMAND_PRINCE, t, h, y, k, which)
        new = _add(y, h, DORMAND_PRINCE.weights, stages)
        error = _add(None, h, ERROR_WEIGHTS, stages).abs()
        worst = (error / torch.maximum(y.abs(), new.abs()).mul_(rtol).add_(atol)).amax(1)
        accepted = worst <= 1
        count += 6
        # A trial that left the numbers is too long a step; the velocity itself is finite where a step begins.
        growth = _SAFETY * worst.clamp_min(1e-10) ** -0.2
        growth = torch.where(worst.isfinite(), growth.clamp(_SHRINK, _GROW), 0.5 * _SHRINK)
        length = h.abs() * torch.where(accepted, growth, growth.clamp_max(1.0))
        if accepted.all():
            y, k = new, stages[6]
            steps.append(AcceptedStep(which, t, h))
            total[rows] += error.amax(1)
        else:
            y, k = (torch.where(accepted[:, None], a, b) for a, b in ((new, y), (stages[6], k)))
            steps.append(AcceptedStep(rows[accepted], t[accepted], h[accepted]))
            total[rows[accepted]] += error[accepted].amax(1)
        finished = accepted & last
        t = torch.where(accepted, torch.where(last, stop, t + h), t)
        stuck = ~accepted & (length < least)
        if count + 6 > most:
            stuck |= ~finished
        if stuck.any():
            raise _stuck(stuck, worst, rows, t, control)
        if finished.any():
            going = (~finished).nonzero()[:, 0]
            done[rows[finished]] = y[finished]
            evaluations[rows[finished]] = count
            rows, y, k, t, length = (each[going] for each in (rows, y, k, t, length))
    return AdaptiveSolution(done, evaluations, total, steps)


def replay(f: Derivative, y: Tensor, start: float, steps: Sequence[AcceptedStep]) -> Tensor:
    """Take the steps of an adaptive solution again: what autograd sees, so that gradients are those of these steps."""
    k = f(y.new_full((len(y),), start), y, None)
    for rows, t, h in steps:
        if rows is None:
            stages = _stages(f, DORMAND_PRINCE, t, h, y, k, None)
            y, k = _add(y, h, DORMAND_PRINCE.weights, stages), stages[6]
        elif len(rows):
            here = y[rows]
            stages = _stages(f, DORMAND_PRINCE, t, h, here, k[rows], rows)
            y = y.index_copy(0, rows, _add(here, h, DORMAND_PRINCE.weights, stages))
            k = k.index_copy(0, rows, stages[6])
    return y


def _stages(
    f: Derivative, tableau: Tableau, t: Tensor, h: Tensor, y: Tensor, first: Tensor, rows: Tensor | None
) -> list[Tensor]:
    """The derivatives k_i of a step from y, of which the first one is known."""
    derivatives = [first]
    for time, weights in zip(tableau.times[1:], tableau.stages[1:], strict=True):
        derivatives.append(f(torch.add(t, h, alpha=time), _add(y, h, weights, derivatives), rows))
    return derivatives


def _add(y: Tensor | None, h: Tensor, weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """Y + h sum_i w_i k_i."""
    used = [(weight, stage) for weight, stage in zip(weights, stages, strict=False) if weight]
    total = used[0][1] * used[0][0]
    for weight, stage in used[1:]:
        total = torch.add(total, stage, alpha=weight)
    return total * h[:, None] if y is None else torch.addcmul(y, total, h[:, None])


def _first_length(f: Derivative, y: Tensor, t: Tensor, k: Tensor, way: float, rtol: float, atol: float) -> Tensor:
    """A length for each row's first step, from one more evaluation (Hairer et al., Solving ODEs I, II.4)."""
    scale = atol + rtol * y.abs()
    size, slope = ((each / scale).abs().amax(1) for each in (y, k))
    short = torch.where((size < 1e-5) | (slope < 1e-5), 1e-6, 0.01 * size / slope.clamp_min(1e-30))
    short = short.clamp_max(abs(way))
    probe = torch.copysign(short, short.new_tensor(way))
    probed = f(t + probe, torch.addcmul(y, k, probe[:, None]), None)
    bend = ((probed - k) / scale).abs().amax(1).nan_to_num(torch.inf) / short
    steepest = torch.maximum(slope, bend)
    length = torch.where(steepest <= 1e-15, (1e-3 * short).clamp_min(1e-6), (0.01 / steepest) ** 0.2)
    return torch.minimum(100 * short, length).clamp(1e-8 * abs(way), abs(way))


def _check_finite(value: Tensor, t: Tensor, rows: Tensor | None) -> None:
    if numbers_are_known() and value.numel() and not torch.isfinite(torch.stack(torch.aminmax(value.detach()))).all():
        raise not_finite(*_first(~value.detach().isfinite().all(1), rows, t))


def _first(bad: Tensor, rows: Tensor | None, t: Tensor) -> tuple[int, float]:
    """The first of the bad rows, and its time."""
    index = int(bad.nonzero()[0, 0])
    return index if rows is None else int(rows[index]), float(t[index])


def not_finite(row: int, t: float) -> SolverError:
    """The error of a velocity that is not finite."""
    return SolverError(f"expected a finite velocity, got NaN or infinity in row {row} at t = {t:.6g}")


def not_met(row: int, t: float, control: Control) -> SolverError:
    """The error of a row that needs more evaluations than it may take."""
    return SolverError(
        f"expected the tolerance rtol={control.rtol:g}, atol={control.atol:g} to be met within {control.most} "
        f"evaluations, got to t = {t:.6g} in row {row}; loosen the tolerance or allow more"
    )


def _stuck(stuck: Tensor, worst: Tensor, rows: Tensor, t: Tensor, control: Control) -> SolverError:
    bad = stuck & ~worst.isfinite()
    return not_finite(*_first(bad, rows, t)) if bad.any() else not_met(*_first(stuck, rows, t), control)

"""Continuous flows: the data are where noise is carried by a velocity field."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from diffeo import ops
from diffeo.nets.trace import estimated_trace, exact_trace
from diffeo.ops.reference.solvers import FIXED, Control, fixed, replay
from diffeo.transforms.base import Transform, as_shape

__all__ = ["ODE", "Solution", "Solves", "watched_solves"]

ADAPTIVE = "dopri5"
FAR = 1e30  # no float32 holds its square, and a step from it has eight orders of magnitude to go
FEWEST = 32  # evaluations in fixed steps, below which what is integrated beside a solution is not its density


class Solution(NamedTuple):
    """Where a solve ended, and what it took.

    Attributes:
        value: ``(*batch, *event)``.
        log_det: log|det| of the map from start to end, ``(*batch,)``; None where it was not asked for.
        evaluations: of the velocity, per row, ``(*batch,)``.
        error: per row, the estimated errors of all steps added up (largest element); NaN for fixed steps.
    """

    value: Tensor
    log_det: Tensor | None
    evaluations: Tensor
    error: Tensor


@dataclass
class Solves:
    """What solves took, together: how many rows, their evaluations of the velocity, the largest estimated error."""

    rows: int = 0
    evaluations: int = 0
    error: float = 0.0

    def add(self, evaluations: Tensor, error: Tensor) -> None:
        """Count one more solve; errors that are not known (fixed steps) stay NaN."""
        if evaluations.numel():
            self.rows += evaluations.numel()
            self.evaluations += int(evaluations.sum())
            worst = float(error.detach().max())
            self.error = worst if math.isnan(worst) else max(worst, self.error)

    def summary(self) -> dict[str, Any]:
        """Return plain data for a report: nothing where nothing was solved; the error of fixed steps is None."""
        if not self.rows:
            return {}
        error = None if math.isnan(self.error) else self.error
        return {"solver": {"evaluations_per_row": self.evaluations / self.rows, "largest_error": error}}


_WATCHED: ContextVar[Solves | None] = ContextVar("_WATCHED", default=None)


@contextmanager
def watched_solves() -> Iterator[Solves]:
    """Count the solves inside the block: a likelihood is reported with its solver's error."""
    solves = Solves()
    token = _WATCHED.set(solves)
    try:
        yield solves
    finally:
        _WATCHED.reset(token)


class ODE(Transform):
    r"""Where a velocity carries noise in a unit of time.

    .. math::
        \frac{dy}{dt} = v(y, t, c), \quad y(0) = z, \quad x = y(1), \qquad
        \log\left|\det \frac{\partial x}{\partial z}\right| = \int_0^1 \mathrm{div}\, v(y(t), t, c)\, dt

    Chen et al. 2018 (arXiv:1806.07366); ``FlowMatching`` trains the velocity without solving anything, and
    ``MaximumLikelihood`` by solving, as FFJORD does (Grathwohl et al. 2018, arXiv:1810.01367). The divergence is
    integrated with the state, under the same tolerance. Gradients are those of the steps that were taken.

    Args:
        velocity: ``velocity(x, t, context)`` for x ``(rows, *event)``, t ``(rows,)``, context ``(rows, *context)`` or
            None; of the shape of x, rows independent of each other. Where it has a method ``with_divergence`` of the
            same arguments, that is used; a true attribute ``sampling_only`` forbids likelihoods.
        event_shape: the shape of one example, a number for vectors.
        solver: "dopri5", whose steps follow the tolerance, row by row; "euler", "midpoint", "heun" or "rk4", in
            ``steps`` equal steps.
        rtol: relative tolerance of every step. Where trajectories part, errors grow a hundredfold and more on the way.
        atol: absolute tolerance of every step.
        steps: how many, for the solvers that need it.
        divergence: "exact", at the price of as many tangents as the event has elements; or "hutchinson", an unbiased
            estimate from one random probe of signs, the same throughout a solve and drawn from torch's generator.
        max_evaluations: of the velocity, that a row may take.

    Raises:
        ValueError: for bad arguments; when solving, for a velocity of a wrong shape or without finite values, or a
            tolerance that cannot be met (naming row and t), and for likelihoods from fewer than 32 evaluations in
            fixed steps or of a field that is for sampling only.
    """

    def __init__(
        self,
        velocity: nn.Module,
        event_shape: int | Sequence[int],
        *,
        solver: str = ADAPTIVE,
        rtol: float = 1e-6,
        atol: float = 1e-6,
        steps: int | None = None,
        divergence: Literal["exact", "hutchinson"] = "exact",
        max_evaluations: int = 10_000,
    ) -> None:
        super().__init__()
        if solver != ADAPTIVE and solver not in FIXED:
            raise ValueError(f"expected a solver among {', '.join([ADAPTIVE, *FIXED])}, got {solver!r}")
        if (steps is not None) == (solver == ADAPTIVE):
            raise ValueError(f"expected steps for solvers of fixed steps alone, got {solver!r} with steps={steps}")
        if steps is not None and steps < 1:
            raise ValueError(f"expected at least one step, got {steps}")
        if divergence not in ("exact", "hutchinson"):
            raise ValueError(f"expected divergence='exact' or 'hutchinson', got {divergence!r}")
        for name, number in (("rtol", rtol), ("atol", atol), ("max_evaluations", max_evaluations)):
            if not 0 < number < math.inf:
                raise ValueError(f"expected {name} above 0, got {number}")
        self.velocity: Any = velocity
        self.event_shape = as_shape(event_shape)
        self.event_dim = len(self.event_shape)
        self.solver, self.steps = solver, steps
        self.rtol, self.atol, self.max_evaluations = rtol, atol, max_evaluations
        self.divergence = divergence

    def replaced(self, velocity: nn.Module | None = None, **changes: Any) -> ODE:
        """Return another ODE with some arguments replaced.

        Args:
            velocity: by default the one that it has, shared.
            changes: arguments of the constructor, by name.

        Raises:
            ValueError: for bad arguments.
        """
        arguments = {name: getattr(self, name) for name in inspect.signature(ODE).parameters}
        return ODE(**{**arguments, "velocity": self.velocity if velocity is None else velocity, **changes})

    @property
    def fast(self) -> frozenset[str]:
        """Neither: both take many evaluations of a network; a few fixed steps are for sampling alone."""
        return frozenset({"forward"} if self._coarse else ())

    @property
    def has_log_det(self) -> bool:
        """Whether what is integrated beside a solution is its density: not in a few steps, nor if guided."""
        return not (self._coarse or getattr(self.velocity, "sampling_only", False))

    @property
    def _coarse(self) -> bool:
        return self.steps is not None and self.steps * len(FIXED[self.solver].times) < FEWEST

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Generate, without the divergence."""
        return self.solve(z, 0.0, 1.0, context).value

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Normalize, without the divergence."""
        return self.solve(x, 1.0, 0.0, context).value

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Solve from t = 0 to 1."""
        return self._mapped(z, 0.0, 1.0, context)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Solve from t = 1 to 0; what is beyond ``FAR`` is taken for ``FAR``, where normal noise has no density left.

        Without that, the velocity there, or a step, would leave the numbers that there are.
        """
        return self._mapped(x.nan_to_num(FAR).clamp(-FAR, FAR), 1.0, 0.0, context)

    def _mapped(self, value: Tensor, start: float, stop: float, context: Tensor | None) -> tuple[Tensor, Tensor]:
        solution = self.solve(value, start, stop, context, log_det=True)
        assert solution.log_det is not None
        return solution.value, solution.log_det

    def solve(
        self, value: Tensor, start: float, stop: float, context: Tensor | None = None, *, log_det: bool = False
    ) -> Solution:
        """Carry points from one time to another.

        Args:
            value: the points at ``start``, ``(*batch, *event)``.
            start: the time to begin at; noise is at 0, data are at 1.
            stop: the time to end at, earlier or later.
            context: ``(*batch, *context)``.
            log_det: whether to integrate the divergence as well.
        """
        if log_det:
            self._check_likelihood()
        batch = self._batch_shape(value)
        rows = value.reshape(math.prod(batch), *self.event_shape)
        contexts = None
        if context is not None:  # whose batch may be one that broadcasts
            event = context.shape[len(batch) :]
            contexts = context.expand(*batch, *event).reshape(rows.shape[0], *event)
        f = self._derivative(rows, contexts, log_det)
        state = rows.flatten(1)  # (rows, size)
        if log_det:
            state = torch.cat([state, state.new_zeros(state.shape[0], 1)], 1)
        if not rows.shape[0]:
            evaluations, error = torch.zeros_like(state[:, 0], dtype=torch.long), state.new_zeros(0)
        elif self.steps is not None:
            state = fixed(f, state, start, stop, self.solver, self.steps)
            evaluations = torch.full_like(state[:, 0], self.steps * len(FIXED[self.solver].times), dtype=torch.long)
            error = torch.full_like(state[:, 0].detach(), math.nan)
        else:
            describes = hasattr(self.velocity, "field") and (not log_det or self.divergence == "exact")
            field = self.velocity.field(len(rows), contexts) if describes and not torch.is_grad_enabled() else None
            control = Control.of(state, start, stop, self.rtol, self.atol, self.max_evaluations)
            with torch.no_grad():
                solution = ops.adaptive(f, state, control, field)
            evaluations, error = solution.evaluations, solution.error
            state = replay(f, state, start, solution.steps) if torch.is_grad_enabled() else solution.y
        watched = _WATCHED.get()
        if watched is not None:
            watched.add(evaluations, error)
        size = self.event_shape.numel()
        return Solution(
            state[:, :size].reshape(value.shape),
            state[:, size].reshape(batch) if log_det else None,
            evaluations.reshape(batch),
            error.reshape(batch),
        )

    def trajectory(self, value: Tensor, times: Sequence[float], context: Tensor | None = None) -> Tensor:
        """Carry points from the first time to each of the others in turn.

        Args:
            value: the points at the first time, ``(*batch, *event)``.
            times: noise is at 0, data are at 1.
            context: ``(*batch, *context)``.

        Returns:
            ``(len(times), *batch, *event)``.

        Raises:
            ValueError: as ``solve``, see the class.
        """
        passed = [value]
        for start, stop in pairwise(times):
            passed.append(self.solve(passed[-1], start, stop, context).value)
        return torch.stack(passed)

    def _check_likelihood(self) -> None:
        if getattr(self.velocity, "sampling_only", False):
            raise ValueError(
                f"expected a velocity that has a likelihood, got {type(self.velocity).__name__}, which is for sampling"
            )
        if self._coarse:
            raise ValueError(
                f"expected at least {FEWEST} evaluations for a likelihood, got {self.steps} steps of {self.solver}: "
                f"the density of so coarse a solve is not that of its samples; solve by {ADAPTIVE}, or take more steps"
            )

    def _derivative(
        self, start: Tensor, context: Tensor | None, log_det: bool
    ) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """The derivative of the state ``(n, size)``, or with the log-det ``(n, size + 1)``."""
        size = self.event_shape.numel()
        probe = None
        if log_det and self.divergence == "hutchinson":
            probe = torch.empty_like(start, requires_grad=False).bernoulli_().mul_(2).sub_(1)

        def derivative(t: Tensor, state: Tensor, rows: Tensor | None) -> Tensor:
            x = state[:, :size].reshape(-1, *self.event_shape)
            contexts, signs = (each if each is None or rows is None else each[rows] for each in (context, probe))
            if not log_det:
                return expect_velocity(self.velocity(x, t, contexts), x).flatten(1)
            v, divergence = self._with_divergence(x, t, contexts, signs)
            return torch.cat([v.flatten(1), divergence[:, None]], 1)

        return derivative

    def _with_divergence(
        self, x: Tensor, t: Tensor, context: Tensor | None, probe: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        def at(x: Tensor) -> Tensor:
            return expect_velocity(self.velocity(x, t, context), x)

        if probe is not None:
            return estimated_trace(at, x, probe)
        if hasattr(self.velocity, "with_divergence"):
            v, divergence = self.velocity.with_divergence(x, t, context)
            return expect_velocity(v, x), divergence
        return exact_trace(at, x)


def expect_velocity(v: Tensor, x: Tensor) -> Tensor:
    """Return a velocity at x, which must have its shape.

    Args:
        v: a velocity.
        x: where it was taken.

    Raises:
        ValueError: if it has another.
    """
    if v.shape != x.shape:
        raise ValueError(f"expected a velocity of the shape of its input {tuple(x.shape)}, got {tuple(v.shape)}")
    return v

"""The trace of a function's Jacobian, row by row: what a continuous flow integrates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

__all__ = ["estimated_trace", "exact_trace"]

_ELEMENTS = 2**22  # numbers of the tangents that are held at a time


def exact_trace(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return y = function(x) and tr dy/dx, from one backward pass per element, several at a time: sum_i d y_i / d x_i.

    Args:
        function: maps ``(rows, *event)`` to the same shape, rows independent of each other; of operations that
            ``torch.func`` can differentiate.
        x: ``(rows, *event)``, an event of any shape.

    Returns:
        ``(rows, *event)`` and ``(rows,)``; differentiable.
    """
    size = x[0].numel()
    directions = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:])

    differentiated: Any = vjp(function, x)
    y, pulled_back = differentiated

    def along(direction: Tensor) -> Tensor:
        gradient: Tensor
        (gradient,) = pulled_back(direction.expand_as(x))
        return (gradient * direction).flatten(1).sum(1)

    several = max(1, _ELEMENTS // x.numel())
    traces: list[Tensor] = [vmap(along)(chosen).sum(0) for chosen in directions.split(several)]
    return y, torch.stack(traces).sum(0)


def estimated_trace(function: Callable[[Tensor], Tensor], x: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """Return y = function(x) and e^T (dy/dx) e, whose mean over probes e of signs +-1 is the trace (Hutchinson 1990).

    One backward pass. Shapes as in ``exact_trace``; the probe has that of x.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        at = x if x.requires_grad else x.detach().requires_grad_()
        y = function(at)
        (product,) = torch.autograd.grad(y, at, probe, create_graph=differentiable)
    trace = (product * probe).flatten(1).sum(1)
    return (y, trace) if differentiable else (y.detach(), trace)

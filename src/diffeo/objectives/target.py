"""A log-density known up to a constant, as its user writes it: checked, in batches, with gradients if it has them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["LogDensity", "Target"]

LogDensity = Callable[..., Any]


class Target:
    """The log-density of points ``(n, *event)``, in nats up to a constant, as a function that a user wrote says it.

    The first points that it is called with show what the function is: of a batch or, called in a loop, of one point;
    of torch, with gradients, or of numpy, without. -inf is where the density is zero. It is no module: parameters that
    the function may have are not trained.

    Args:
        log_density: from points ``(n, *event)`` to ``(n,)``, or from one point ``(*event)`` to a number; tensors, or
            what numpy makes of them. Given contexts it is called with them as second argument.
        vectorized: whether it takes batches; by default found out.
    """

    def __init__(self, log_density: LogDensity | Target, vectorized: bool | None = None) -> None:
        known: Any = log_density if isinstance(log_density, Target) else None
        self.function: LogDensity = log_density if known is None else known.function
        self.vectorized: bool | None = known.vectorized if known is not None and vectorized is None else vectorized
        if not callable(self.function):
            remedy = "; pass its log_prob" if hasattr(self.function, "log_prob") else ""
            raise TypeError(f"expected a log-density as a function of points, got {type(log_density).__name__}{remedy}")
        self.differentiable: bool | None = None  # until it was called

    def __call__(self, x: Tensor, context: Tensor | None = None, strict: bool = True) -> Tensor:
        """Evaluate the log-density.

        Args:
            x: ``(n, *event)``.
            context: ``(n, *context)``, or None.
            strict: whether NaN and +inf are refused; else they are -inf, as where a move has run out of all bounds.

        Returns:
            ``(n,)``, finite or -inf.

        Raises:
            ValueError: for results of another shape, NaN or +inf, or a batch whose rows depend on each other.
        """
        if not len(x):
            return x.new_zeros(0)
        if self.differentiable is None:
            self.examine(x, context)
        values = self._values(x if self.differentiable else x.detach(), context)
        if not strict:
            return torch.where(values.isnan() | (values == math.inf), -math.inf, values)
        self._check(values, x)
        return values

    def examine(self, x: Tensor, context: Tensor | None = None) -> None:
        """Find out at a few points what the function is.

        Args:
            x: ``(n, *event)``.
            context: ``(n, *context)``, or None.

        Raises:
            ValueError: as a call.
        """
        # so many that a batch is not mistaken for a point
        count = next(k for k in range(3, 100) if k not in x.shape[1:])
        rows = torch.arange(count, device=x.device) % len(x)
        few = x.detach()[rows]
        contexts = None if context is None else context[rows]
        if self.vectorized is None:
            self.vectorized = self._takes_batches(few, contexts)
        values = self._values(few, contexts)
        alone = self._values(few[:1], None if contexts is None else contexts[:1])
        if not torch.allclose(values[:1], alone, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError(
                "expected a log-density of each point by itself, got one that changes with the points beside it: "
                f"{values[0]:g} in a batch, {alone[0]:g} alone"
            )
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a float made of a point that has gradients, as later ones have not
                self.differentiable = self._values(few.clone().requires_grad_(), contexts).requires_grad
        except (RuntimeError, TypeError):  # numpy takes no tensor that needs a gradient
            self.differentiable = False

    def _takes_batches(self, x: Tensor, context: Tensor | None) -> bool:
        shape: tuple[int, ...] | None = None
        failure: Exception | None = None
        try:
            shape = tuple(torch.as_tensor(self._called(x, context)).shape)
        except Exception as error:
            failure = error
        if shape == (len(x),):
            return True
        try:
            one = torch.as_tensor(self._called(x[0], None if context is None else context[0]))
        except Exception as error:
            one, failure = None, failure or error
        if one is not None and one.numel() == 1 and shape != (len(x), 1):
            return False
        said = [] if shape is None else [f"shape {shape}"]
        got = ", ".join(said + ([] if failure is None else [f"{type(failure).__name__}: {failure}"]))
        raise ValueError(
            f"expected a log-density that returns shape ({len(x)},) for points {tuple(x.shape)}, or a number for one "
            f"point {tuple(x.shape[1:])}, got {got}"
        ) from failure

    def _called(self, x: Tensor, context: Tensor | None) -> Any:
        x = x.clone()  # which the function may write into
        return self.function(x) if context is None else self.function(x, context)

    def _values(self, x: Tensor, context: Tensor | None) -> Tensor:
        if self.vectorized:
            values = torch.as_tensor(self._called(x, context))
        else:
            contexts = [None] * len(x) if context is None else list(context)
            each = (torch.as_tensor(self._called(point, c)) for point, c in zip(x, contexts, strict=True))
            values = torch.stack([value.reshape(()) for value in each])
        if values.shape != (len(x),):
            raise ValueError(f"expected log-densities of shape ({len(x)},), got {tuple(values.shape)}")
        if values.is_complex():
            raise ValueError("expected log-densities as real numbers, got complex ones")
        return values.to(x.device, torch.promote_types(values.dtype, x.dtype))  # what is in float64 stays so

    @staticmethod
    def _check(values: Tensor, x: Tensor) -> None:
        bad = (values.isnan() | (values == math.inf)).nonzero()
        if len(bad):
            where = int(bad[0])
            point = ", ".join(f"{value:.4g}" for value in x[where].detach().flatten()[:8].tolist())
            raise ValueError(
                f"expected log-densities that are finite, or -inf where there is none, got {values[where].item()} at "
                f"{len(bad)} of {len(values)} points, first at ({point}{', ...' if x[where].numel() > 8 else ''})"
            )

"""The exponential moving average of the weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Average"]


class Average:
    """A slowly moving copy of parameters: a <- d a + (1 - d) p with d = min(decay, (1 + t) / (10 + t)) at update t.

    The ramp lets the average forget the random start; decay 0 makes it a plain copy. Buffers are not averaged: whoever
    uses the average uses the model's current buffers.

    Args:
        parameters: what is averaged.
        decay: d once the ramp is over, in [0, 1).

    Raises:
        ValueError: for a decay out of this range.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"expected ema in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.parameters = list(parameters)
        self.averages = [p.detach().clone() for p in parameters]

    def advance(self) -> float:
        """Count an update and return its decay."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        return decay

    @torch.no_grad()
    def update(self) -> None:
        """Move the average a little towards the parameters."""
        torch._foreach_lerp_(self.averages, self.parameters, 1 - self.advance())

    def restore(self, averages: Sequence[Tensor], updates: int) -> None:
        """Take up an average where it was left after so many updates.

        Args:
            averages: one per parameter.
            updates: how many there were.
        """
        self.updates = updates
        self._copy(self.averages, [a.to(current.device) for a, current in zip(averages, self.averages, strict=True)])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model hold the average inside the block, and its own weights again afterwards."""
        weights = [p.detach().clone() for p in self.parameters]
        self._copy(self.parameters, self.averages)
        try:
            yield
        finally:
            self._copy(self.parameters, weights)

    @staticmethod
    @torch.no_grad()
    def _copy(to: list[Tensor], source: list[Tensor]) -> None:
        torch._foreach_copy_(to, source)

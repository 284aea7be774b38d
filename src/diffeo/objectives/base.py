"""What training minimises."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

__all__ = ["Objective"]


class Objective(nn.Module, ABC):
    """A loss per example that trains ``flow``: ``objective(x, context=None)`` is (N,) for x of shape (N, *event).

    Randomness must come from torch's default generators, which ``fit`` seeds before every step.
    """

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow: Any = flow

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the loss of each example."""

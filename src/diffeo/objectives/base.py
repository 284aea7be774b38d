"""What training minimises."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from diffeo.arguments import KnowsArguments

__all__ = ["Objective"]


class Objective(KnowsArguments, nn.Module, ABC):
    """A loss per example that trains ``flow``: ``objective(x, context=None)`` is ``(N,)`` for x ``(N, *event)``.

    Randomness must come from torch's default generators, which ``fit`` seeds before every step.

    An objective that pairs data with noise sets ``pool``: ``fit`` then gives ``couple`` so many rows at a time, and
    ``forward`` pairs (z, x), of shape ``(N, 2, *event)``, in place of x. ``remedy`` says what may help where losses are
    not finite.

    Args:
        flow: the module to train; its best weights are kept.
    """

    pool: int = 0
    remedy: str = "clean the data or lower the learning rate"

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow: Any = flow

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the loss of each example.

        Args:
            x: ``(N, *event)``; pairs (z, x) ``(N, 2, *event)`` where ``fit`` couples them with noise.
            context: ``(N, *context)``, or None.

        Returns:
            ``(N,)``, differentiable in the parameters of ``flow``.
        """

    def couple(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return a noise of its own for each row of a pool.

        Args:
            x: the rows, ``(pool, *event)``.
            context: of each row, ``(pool, *context)``.

        Returns:
            The shape of x.

        Raises:
            NotImplementedError: for an objective that pairs data with nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} pairs data with nothing")

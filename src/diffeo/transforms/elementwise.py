"""Elementwise: every element has its own univariate map, the same for all examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffeo.transforms.base import Transform, as_shape, sum_event
from diffeo.transforms.univariate import UnivariateLike, as_univariate

__all__ = ["Elementwise"]


class Elementwise(Transform):
    """x_i = f(z_i; params_i) with learned parameters that see neither the data nor the context.

    With ``Scale`` this is NICE's diagonal rescaling.

    Args:
        univariate: the map, or its name (``as_univariate``).
        event_shape: the shape of one example, a number for vectors.
    """

    def __init__(self, univariate: UnivariateLike, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.univariate = as_univariate(univariate)
        shape = as_shape(event_shape)
        self.event_dim = len(shape)
        self.params = nn.Parameter(torch.zeros((self.univariate.size, *shape)))

    def _params(self, value: Tensor) -> Tensor:
        batch = (1,) * (value.dim() - self.event_dim)
        return self.params.reshape(self.univariate.size, *batch, *self.params.shape[1:])

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Generate elementwise."""
        x, log_det = self.univariate.forward_and_log_det(z, self._params(z))
        return x, sum_event(log_det, self.event_dim)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalize elementwise."""
        z, log_det = self.univariate.inverse_and_log_det(x, self._params(x))
        return z, sum_event(log_det, self.event_dim)

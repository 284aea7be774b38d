"""Elementwise: every element has its own univariate map, which sees no other element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffeo.transforms.base import Transform, as_shape, sum_event
from diffeo.transforms.univariate import UnivariateLike, as_univariate

__all__ = ["Elementwise"]


class Elementwise(Transform):
    r"""Each element is mapped by learned parameters of its own, which a context c may shift linearly.

    .. math:: x_i = f(z_i; \theta_i + (W c)_i)

    With ``Scale`` this is NICE's diagonal rescaling; with ``Affine`` and a context, behind normal noise, a diagonal
    Gaussian given that context. W starts at zero.

    Args:
        univariate: the map, or its name (``as_univariate``).
        event_shape: the shape of one example, a number for vectors.
        context: size of the context, 0 for maps that are the same for all examples.

    Example:
        >>> layer, z = diffeo.transforms.Elementwise("affine", 3), torch.randn(5, 3)
        >>> torch.equal(layer(z), z)  # all parameters are zero at first
        True
    """

    def __init__(self, univariate: UnivariateLike, event_shape: int | Sequence[int], context: int = 0) -> None:
        super().__init__()
        self.univariate = as_univariate(univariate)
        shape = as_shape(event_shape)
        self.event_dim = len(shape)
        self.params = nn.Parameter(torch.zeros((self.univariate.size, *shape)))
        self.context: Any = nn.Linear(context, self.params.numel(), bias=False) if context else None
        if self.context is not None:
            nn.init.zeros_(self.context.weight)

    def _params(self, value: Tensor, context: Tensor | None) -> Tensor:
        batch = (1,) * (value.dim() - self.event_dim)
        params: Tensor = self.params.reshape(self.univariate.size, *batch, *self.params.shape[1:])
        if self.context is None or context is None:
            return params
        shift: Tensor = self.context(context)  # (*batch, size * event)
        params = params + shift.unflatten(-1, self.params.shape).movedim(-self.event_dim - 1, 0)
        return params

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Generate elementwise."""
        x, log_det = self.univariate.forward_and_log_det(z, self._params(z, context))
        return x, sum_event(log_det, self.event_dim)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalize elementwise."""
        z, log_det = self.univariate.inverse_and_log_det(x, self._params(x, context))
        return z, sum_event(log_det, self.event_dim)

"""Transforms of another view of the event: squeezed, in part, or flattened. What multi-scale architectures are made of.

Each wraps a transform of the view and keeps the event's shape: x = back(f(view(z))). So the latents of an image have
the image's shape at any number of scales, and nothing but ``Chain`` composes them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffeo.transforms.base import Chain, Transform, expect_transform, sum_event

__all__ = ["Flattened", "Part", "Squeezed", "latent_scales", "squeeze", "unsqueeze"]


def squeeze(value: Tensor) -> Tensor:
    """Trade resolution for channels: a value ``(*, C, H, W)`` becomes ``(*, 4 C, H/2, W/2)``.

    Of each 2 x 2 square the upper left pixels come first, then the lower right, upper right and lower left ones: the
    first half of the channels is one colour of a checkerboard, the second half the other (as where RealNVP factors out
    half of the variables, Dinh et al. 2016, arXiv:1605.08803).

    Raises:
        ValueError: for an odd height or width.
    """
    height, width = value.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(f"expected an even height and width to squeeze, got {height} x {width}")
    return torch.cat([value[..., y::2, x::2] for y, x in ((0, 0), (1, 1), (0, 1), (1, 0))], dim=-3)


def unsqueeze(value: Tensor) -> Tensor:
    """The inverse of ``squeeze``: ``(*, 4 C, H, W)`` to ``(*, C, 2 H, 2 W)``."""
    upper_left, lower_right, upper_right, lower_left = value.chunk(4, dim=-3)
    upper = torch.stack([upper_left, upper_right], dim=-1).flatten(-2)  # (*, C, H, 2 W)
    lower = torch.stack([lower_left, lower_right], dim=-1).flatten(-2)
    return torch.stack([upper, lower], dim=-2).flatten(-3, -2)  # (*, C, 2 H, 2 W)


class _OnView(Transform):
    """x = back(f(view(z))); log|det| is that of f, because a view only moves elements.

    Args:
        transform: the transform f of the view.
        event_dim: the rank of the event.
        view_dim: the rank of the view.
    """

    def __init__(self, transform: Transform, event_dim: int, view_dim: int) -> None:
        super().__init__()
        if expect_transform(transform).event_dim > view_dim:
            raise ValueError(f"expected a transform of events of rank up to {view_dim}, got {transform.event_dim}")
        if transform.branches > 1:
            raise ValueError(f"expected a transform that is one-to-one, got {type(transform).__name__}")
        self.transform = transform
        self.event_dim = event_dim
        self.view_dim = view_dim

    @abstractmethod
    def _view(self, value: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The view, and what takes a changed view back to an event."""

    @property
    def fast(self) -> frozenset[str]:
        """Those of the wrapped transform."""
        return self.transform.fast

    @property
    def has_log_det(self) -> bool:
        """Whether the wrapped transform has it."""
        return self.transform.has_log_det

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Generate on the view."""
        return self._apply_to_view(self.transform.forward_and_log_det, z, context)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalize on the view."""
        return self._apply_to_view(self.transform.inverse_and_log_det, x, context)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Generate on the view, without the log-det."""
        view, back = self._view(z)
        return back(self.transform.forward(view, context))

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Normalize on the view, without the log-det."""
        view, back = self._view(x)
        return back(self.transform.inverse(view, context))

    def _apply_to_view(
        self, method: Callable[..., tuple[Tensor, Tensor]], value: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        view, back = self._view(value)
        mapped, log_det = method(view, context)
        return back(mapped), sum_event(log_det, self.view_dim - self.transform.event_dim)


class Squeezed(_OnView):
    """A transform of images whose blocks of 2 x 2 pixels became channels, ``(4 C, H/2, W/2)``; see ``squeeze``.

    x = unsqueeze(f(squeeze(z))): Dinh et al. 2016, arXiv:1605.08803.

    Args:
        transform: the transform f of squeezed images.

    Raises:
        ValueError: when applied to an image of odd height or width.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__(transform, event_dim=3, view_dim=3)

    def _view(self, value: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return squeeze(value), unsqueeze


class Part(_OnView):
    r"""A transform of the first channels a; the others are factored out (Dinh et al. 2016, arXiv:1605.08803).

    .. math:: x_a = f(z_a), \qquad x_b = z_b

    Args:
        transform: the transform f of the first channels.
        channels: their number, counted along the first event dimension.
        event_dim: the rank of the event; by default the transform's.

    Raises:
        ValueError: when applied to an event of fewer channels.
    """

    def __init__(self, transform: Transform, channels: int, event_dim: int | None = None) -> None:
        rank = transform.event_dim if event_dim is None else event_dim
        super().__init__(transform, event_dim=rank, view_dim=rank)
        if channels < 1:
            raise ValueError(f"expected channels >= 1, got {channels}")
        self.channels = channels

    def _view(self, value: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        dim = -self.event_dim
        rest = value.shape[dim] - self.channels
        if rest < 0:
            raise ValueError(f"expected at least {self.channels} channels, got {value.shape[dim]}")
        first, others = value.split([self.channels, rest], dim=dim)
        return first, lambda mapped: torch.cat([mapped, others], dim=dim)


class Flattened(_OnView):
    """A transform f of vectors, which sees the event row by row: x = reshape(f(flatten(z))).

    Args:
        transform: the transform f of vectors.
        event_dim: the rank of the event (3 for images).
    """

    def __init__(self, transform: Transform, event_dim: int = 3) -> None:
        super().__init__(transform, event_dim=event_dim, view_dim=1)

    def _view(self, value: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return value.flatten(-self.event_dim), lambda mapped: mapped.reshape(value.shape)


def latent_scales(transform: Any, event_shape: torch.Size) -> Tensor:
    """At which scale each latent element of a multi-scale transform lives: 0 the finest, factored out first.

    Args:
        transform: a transform whose first part in the order of generation is the coarser scale, as recipes build it.
        event_shape: the shape of its events.

    Returns:
        Whole numbers of the event's shape; all 0 for a transform without ``Part``.
    """
    scales = torch.zeros(event_shape, dtype=torch.long)
    if isinstance(transform, Chain):
        return latent_scales(next(iter(transform)), event_shape)
    if isinstance(transform, _OnView):
        view, back = transform._view(scales)
        return back(latent_scales(transform.transform, view.shape) + isinstance(transform, Part))
    return scales

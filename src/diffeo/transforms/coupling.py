"""Coupling: one part of the event conditions the other."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffeo.nets.mlp import MLP
from diffeo.nets.resnet import ResNet
from diffeo.transforms.base import Transform, sum_event
from diffeo.transforms.linear import reorder
from diffeo.transforms.univariate import UnivariateLike, as_univariate

__all__ = ["Coupling", "alternating_mask", "checkerboard_mask", "half_mask"]


def half_mask(features: int, *, flip: bool = False) -> Tensor:
    """Return a mask that is True on the first half (rounded up) of the elements.

    Args:
        features: how many elements.
        flip: True on the other half instead.
    """
    return (torch.arange(features) < (features + 1) // 2) ^ flip


def alternating_mask(features: int, *, flip: bool = False) -> Tensor:
    """Return a mask that is True on the elements 0, 2, 4, ... (NICE's odd/even partition).

    Args:
        features: how many elements.
        flip: True on 1, 3, 5, ... instead.
    """
    return (torch.arange(features) % 2 == 0) ^ flip


def checkerboard_mask(shape: Sequence[int], *, flip: bool = False) -> Tensor:
    """Return a mask that is True where row + column is even, in every channel.

    Args:
        shape: of the image, (C, H, W).
        flip: True where it is odd instead.
    """
    channels, height, width = shape
    board = (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0
    return (board ^ flip).repeat(channels, 1, 1)


class Coupling(Transform):
    r"""One part a of the elements stays, and says how the other part b is mapped.

    .. math::
        x_a = z_a, \quad x_b = f(z_b; \mathrm{net}(z_a, c)), \qquad
        \log\left|\det \frac{\partial x}{\partial z}\right| = \sum_b \log|f'(z_b)|

    The Jacobian is triangular, and both directions cost one pass. a is where the mask is True. NICE with ``Shift``
    (arXiv:1410.8516), RealNVP with ``Affine`` (arXiv:1605.08803), NSF with splines (arXiv:1906.04032).

    A mask of one dimension divides the first event dimension (features of a vector, channels of an image): the net then
    takes the a-part and returns ``univariate.size`` times the b-part along that dimension. A mask of the event's full
    shape (a checkerboard): the net takes the event with zeros on b, and returns parameters for every element.

    Args:
        univariate: the map of each b-element, or its name (``as_univariate``).
        mask: booleans; True passes through and conditions.
        net: ``net(z_a, context)``, or ``net(z_a)`` as of an ``nn.Sequential``, which sees no context; output channels
            are ordered parameter by parameter.
        event_dim: the rank of the event; by default the mask's.

    Raises:
        ValueError: for a mask that is not boolean, of all True or all False, or of another rank; for a network of the
            wrong width (of a network whose widths cannot be asked for, when it is first applied).
        TypeError: for what is no map or no network.

    Example:
        >>> net = diffeo.nets.MLP(1, 4, (8,))  # from one element to two parameters for each of two
        >>> layer = diffeo.transforms.Coupling("affine", [True, False, False], net)
        >>> z = torch.randn(5, 3)
        >>> bool((layer(z)[:, 0] == z[:, 0]).all())  # what conditions passes through
        True
    """

    mask: Tensor
    parts: Tensor
    order: Tensor

    def __init__(
        self,
        univariate: UnivariateLike,
        mask: Tensor | Sequence[Any],
        net: nn.Module,
        event_dim: int | None = None,
    ) -> None:
        super().__init__()
        mask = torch.as_tensor(mask)
        if mask.dtype != torch.bool:
            raise ValueError(f"expected a boolean mask such as [True, False], got values of {mask.dtype}")
        if mask.all() or not mask.any():
            raise ValueError("expected a mask with both True and False, got only one of them")
        if not callable(net) or isinstance(net, type):
            raise TypeError(f"expected a network such as MLP(2, 6), got {net!r}")
        self.univariate = as_univariate(univariate)
        self.net: Any = net
        self.sees_context = _takes_two(net)
        self.event_dim = mask.dim() if event_dim is None else event_dim
        self.divides = mask.dim() == 1
        if not self.divides and mask.dim() != self.event_dim:
            raise ValueError(f"expected a mask of 1 or {self.event_dim} dimensions, got {mask.dim()}")
        self.register_buffer("mask", mask, persistent=False)
        kept, moved = mask.flatten().nonzero().squeeze(1), (~mask).flatten().nonzero().squeeze(1)
        self.sizes = [len(kept), len(moved)]
        inputs, moving = self.sizes if self.divides else (len(mask), len(mask))
        widths = _widths(net, self.event_dim)
        if widths is not None and widths != (inputs, self.univariate.size * moving):
            raise ValueError(
                f"expected a network of {inputs} inputs and {self.univariate.size * moving} outputs "
                f"({self.univariate.size} for each of {moving}), got {widths[0]} and {widths[1]}"
            )
        parts = torch.cat([kept, moved])
        self.register_buffer("parts", parts, persistent=False)
        self.register_buffer("order", parts.argsort(), persistent=False)
        self.ordered = torch.equal(parts, torch.arange(len(parts)))  # a comes first already
        self.even_first = bool(mask.flatten()[0])
        alternating = alternating_mask(len(parts), flip=not self.even_first)
        self.alternates = len(parts) % 2 == 0 and torch.equal(mask.flatten(), alternating)

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Generate: b by the map, a unchanged."""
        return self._couple(z, context, generate=True)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalize: b by the inverse map, a unchanged."""
        return self._couple(x, context, generate=False)

    def _couple(self, value: Tensor, context: Tensor | None, *, generate: bool) -> tuple[Tensor, Tensor]:
        if self.event_dim == 1 and hasattr(self.net, "mapped"):
            return self._couple_columns(value, context, generate)
        value = value.movedim(-self.event_dim, -1)  # channels last, as convolutions leave them: nothing is copied
        if self.divides:
            a, b = (value if self.ordered else reorder(value, -1, self.parts, self.order)).split(self.sizes, dim=-1)
            b, log_det = self._map(a, b, context, generate)
            moved = torch.cat([a, b], dim=-1)
            moved = moved if self.ordered else reorder(moved, -1, self.order, self.parts)
        else:
            keep = self.mask.movedim(0, -1)
            b, log_det = self._map(torch.where(keep, value, 0), value, context, generate, keep)
            moved = torch.where(keep, value, b)
        return moved.movedim(-1, -self.event_dim), log_det

    def _map(
        self, a: Tensor, b: Tensor, context: Tensor | None, generate: bool, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        inputs = (a.movedim(-1, -self.event_dim), *([context] if self.sees_context else []))
        output = self.net(*inputs).movedim(-self.event_dim, -1)
        size, moving = self.univariate.size, b.shape[-1]
        if output.shape[-1] != size * moving:
            raise ValueError(
                f"expected a network of {size * moving} outputs ({size} for each of {moving}), got {output.shape[-1]}"
            )
        univariate = self.univariate.forward_and_log_det if generate else self.univariate.inverse_and_log_det
        b, log_det = univariate(b, output.unflatten(-1, (size, moving)).movedim(-2, 0))
        return b, sum_event(log_det if keep is None else torch.where(keep, 0, log_det), self.event_dim)

    def _couple_columns(self, value: Tensor, context: Tensor | None, generate: bool) -> tuple[Tensor, Tensor]:
        """Vectors, whose network and map are one call, feature-major, ``(n, rows)``: every element is contiguous."""
        columns = value.reshape(-1, value.shape[-1]).mT
        contexts = None if context is None else context.reshape(-1, context.shape[-1])
        if self.alternates:
            even, odd = columns.unflatten(0, (-1, 2)).unbind(1)  # views
            a, b = (even, odd) if self.even_first else (odd, even)
        else:
            a, b = (columns if self.ordered else reorder(columns, 0, self.parts, self.order)).split(self.sizes)
        b, log_det = self.net.mapped(self.univariate, a, b, contexts, generate=generate)
        if self.alternates:
            moved = torch.stack((a, b) if self.even_first else (b, a), 1).flatten(0, 1)
        else:
            moved = torch.cat([a, b])
            moved = moved if self.ordered else reorder(moved, 0, self.order, self.parts)
        return moved.mT.reshape(value.shape), log_det.reshape(value.shape[:-1])


def _widths(net: nn.Module, event_dim: int) -> tuple[int, int] | None:
    """How many inputs and outputs a network of such events has, where it can be asked."""
    if (event_dim == 1 and isinstance(net, MLP)) or (event_dim == 3 and isinstance(net, ResNet)):
        return net.widths
    layers = list(net) if isinstance(net, nn.Sequential) else [net]
    if event_dim == 1 and layers and type(layers[0]) is type(layers[-1]) is nn.Linear:
        return layers[0].in_features, layers[-1].out_features
    return None


def _takes_two(net: nn.Module) -> bool:
    """Whether a network takes (x, context), and not x alone as ``nn.Sequential`` does."""
    try:
        inspect.signature(net.forward).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # no signature to be had
        pass
    return True

"""A small U-Net: the network of velocities of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffeo import ops
from diffeo.arguments import KnowsArguments
from diffeo.nets.activations import as_widths, get_activation, rate_for_width, soften, zero_last
from diffeo.nets.precision import autocast

__all__ = ["UNet"]


class UNet(KnowsArguments, nn.Module):
    """(x, embedding) -> the shape of x, zero at first: residual blocks on ever coarser images and back up.

    Every level has a block on the way down, whose result is handed across, and one on the way up; each but the last
    halves the image (odd sides are rounded up). On the coarsest level all places attend to each other. Ronneberger et
    al. 2015 (arXiv:1505.04597); blocks as in Ho et al. 2020 (arXiv:2006.11239).

    Args:
        channels: of x.
        hidden: channels of each level, the finest first.
        embedding: how many numbers (time and context) there are besides x.
        activation: a name in ``ACTIVATIONS``.

    Raises:
        ValueError: for sizes that are not positive, or no level.
    """

    def __init__(
        self, channels: int, hidden: Sequence[int] = (32, 64), embedding: int = 0, activation: str = "silu"
    ) -> None:
        super().__init__()
        hidden = as_widths(hidden)
        if not hidden or min(channels, *hidden) < 1:
            raise ValueError(f"expected positive sizes, got {channels} channels, hidden={hidden}")
        self.activation = get_activation(activation)
        self.lr_scale = rate_for_width(hidden)
        wide = 2 * hidden[-1]
        self.embed = nn.Sequential(nn.Linear(embedding, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU())
        self.first = nn.Conv2d(channels, hidden[0], 3, padding=1)
        levels = list(zip([hidden[0], *hidden], hidden, strict=False))
        self.down: Any = nn.ModuleList(_Block(a, b, wide, self.activation) for a, b in levels)
        self.attention = _Attention(hidden[-1])
        self.up: Any = nn.ModuleList(_Block(2 * b, a, wide, self.activation) for a, b in reversed(levels))
        self.last = nn.Sequential(_norm(hidden[0]), nn.SiLU(), nn.Conv2d(hidden[0], channels, 3, padding=1))
        zero_last(self.last[-1])

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply the network.

        Args:
            x: ``(rows, channels, H, W)``.
            embedding: of time and context, ``(rows, embedding)``.

        Returns:
            The shape of x.
        """
        with autocast(x):
            embedded = self.embed(embedding)
            h = soften(x)
            if not ops.tracing():  # vmap knows no memory formats
                h = h.contiguous(memory_format=torch.channels_last)
            h = self.first(h)
            across = []
            for index, block in enumerate(self.down):
                h = block(F.avg_pool2d(h, 2, ceil_mode=True) if index else h, embedded)
                across.append(h)
            h = self.attention(h)
            for block, kept in zip(self.up, reversed(across), strict=True):
                if h.shape[-2:] != kept.shape[-2:]:
                    h = F.interpolate(h, size=kept.shape[-2:], mode="nearest")
                h = block(torch.cat([h, kept], 1), embedded)
            out: Tensor = self.last(h)
            return out.to(x.dtype)


class _Block(nn.Module):
    """h + conv(act(norm(conv(act(norm(h)))) (1 + scale) + shift)): scale and shift come from the embedding."""

    def __init__(self, inputs: int, outputs: int, embedding: int, activation: Any) -> None:
        super().__init__()
        self.activation = activation
        self.norms: Any = nn.ModuleList([_norm(inputs), _norm(outputs)])
        self.convolutions: Any = nn.ModuleList(nn.Conv2d(a, outputs, 3, padding=1) for a in (inputs, outputs))
        self.embedding = nn.Linear(embedding, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ``(rows, inputs, H, W)`` given ``(rows, embedding)`` to ``(rows, outputs, H, W)``."""
        scale, shift = self.embedding(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.convolutions[0](self.activation(self.norms[0](x)))
        h = torch.addcmul(shift, self.norms[1](h), 1 + scale)
        out: Tensor = self.skip(x) + self.convolutions[1](self.activation(h))
        return out


class _Attention(nn.Module):
    """h + W softmax(Q^T K / sqrt(channels)) V over the places of an image, one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.inputs = nn.Conv2d(channels, 3 * channels, 1)
        self.outputs = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(rows, channels, H, W)`` to the same shape."""
        query, key, value = self.inputs(self.norm(x)).flatten(2).chunk(3, dim=1)  # each (rows, channels, H W)
        weights = torch.softmax(query.mT @ key / math.sqrt(x.shape[1]), -1)  # (rows, H W, H W)
        attended: Tensor = self.outputs((value @ weights.mT).reshape(x.shape))
        return x + attended


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 8), channels)

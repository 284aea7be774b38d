"""A small convolutional network that reads a series or a picture into a few numbers: an embedding of long contexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffeo.arguments import KnowsArguments
from diffeo.nets.activations import as_widths, get_activation

__all__ = ["CNN"]

GROUPS = 8  # of channels that are normalised together


class CNN(KnowsArguments, nn.Module):
    """Series ``(n, [channels,] length)`` or pictures ``(n, channels, height, width)`` -> ``(n, outputs)``.

    A convolution, then a stage for each width: stride 2, and a residual block h + conv(act(norm(conv(act(norm(h)))))),
    normalised in groups of channels, so that a row's output does not depend on the batch (Wu and He 2018,
    arXiv:1803.08494). What is left is averaged within at most ``pooled`` parts of each side, and mapped linearly.

    Args:
        shape: of one input: ``(length,)``, ``(channels, length)`` or ``(channels, height, width)``.
        outputs: how many numbers there are to be.
        hidden: channels of each stage, each of which halves the sides.
        activation: a name in ``ACTIVATIONS``.
        pooled: parts of each side that are told apart at the end.

    Raises:
        ValueError: for another shape, sizes that are not positive, or an unknown activation.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        hidden: Sequence[int] = (16, 32, 64),
        activation: str = "relu",
        pooled: int = 4,
    ) -> None:
        super().__init__()
        hidden = as_widths(hidden)
        if len(shape) not in (1, 2, 3) or min(*shape, outputs, pooled, *hidden, len(hidden)) < 1:
            raise ValueError(
                f"expected inputs of shape (length,), (channels, length) or (channels, height, width), got {shape}"
                if len(shape) not in (1, 2, 3)
                else f"expected positive sizes, got {tuple(shape)}, outputs={outputs}, hidden={hidden}, {pooled} parts"
            )
        channels, *sides = shape if len(shape) > 1 else (1, *shape)
        self.sides = len(sides)
        one = len(sides) == 1
        conv: Any = nn.Conv1d if one else nn.Conv2d
        stages: list[nn.Module] = [conv(channels, hidden[0], 5, padding=2)]
        for before, width in zip([hidden[0], *hidden], hidden, strict=False):
            stages += [conv(before, width, 3, stride=2, padding=1), _Block(conv, width, activation)]
        for _ in hidden:
            sides = [(side + 1) // 2 for side in sides]
        parts = [min(side, pooled) for side in sides]
        pool: Any = nn.AdaptiveAvgPool1d if one else nn.AdaptiveAvgPool2d
        stages.append(pool(parts))
        self.stages = nn.Sequential(*stages)
        self.last = nn.Linear(hidden[-1] * torch.Size(parts).numel(), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network.

        Args:
            x: ``(n, *shape)``.

        Returns:
            ``(n, outputs)``.
        """
        if x.dim() == self.sides + 1:  # series of one channel
            x = x[:, None]
        out: Tensor = self.last(self.stages(x).flatten(1))
        return out


class _Block(nn.Module):
    """h + conv(act(norm(conv(act(norm(h))))))."""

    def __init__(self, conv: Any, width: int, activation: str) -> None:
        super().__init__()
        groups = next(each for each in range(min(GROUPS, width), 0, -1) if width % each == 0)
        self.norms: Any = nn.ModuleList(nn.GroupNorm(groups, width) for _ in range(2))
        self.convolutions: Any = nn.ModuleList(conv(width, width, 3, padding=1) for _ in range(2))
        self.activation = get_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(self.activation(norm(h)))
        return x + h

"""Recipes of images (C, H, W): convolutional couplings over several scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor

from diffeo.bases import StandardNormal
from diffeo.flow import Flow
from diffeo.nets import ResNet
from diffeo.recipes.assembly import Preprocess, assemble, event_shape, recipe
from diffeo.transforms import (
    LU,
    ActNorm,
    Affine,
    Chain,
    Coupling,
    Part,
    Permutation,
    Squeezed,
    Transform,
    Univariate,
    UnivariateLike,
    alternating_mask,
    as_univariate,
    checkerboard_mask,
    half_mask,
)

__all__ = ["convolutional", "glow", "multiscale"]

Net = Callable[[int, int, Sequence[int]], ResNet]  # from input and output channels and the hidden ones


@recipe(paper={"transforms": 32, "hidden": [512], "kernels": [1], "residual": False})
def glow(
    features: Sequence[int],
    context: int = 0,
    *,
    preset: Literal["paper"] | None = None,
    univariate: UnivariateLike = Affine(3.0),
    transforms: int = 8,
    hidden: Sequence[int] = (64,),
    activation: str = "relu",
    residual: bool = False,
    scales: int = 3,
    kernels: Sequence[int] = (3,),
    preprocess: Preprocess = ("standardize",),
) -> Flow:
    """Glow: steps of actnorm, 1x1 convolution and affine coupling on squeezed images (arXiv:1807.03039).

    Every scale squeezes, takes ``transforms`` steps, and hands the first half of the channels on to the next. One pass
    of the networks each way.

    Args:
        features: the shape (C, H, W) of an image, of even height and width.
        context: how many numbers the density is conditioned on, 0 for none.
        preset: "paper" is its network for CIFAR-10.
        univariate: the map of each element in a coupling (``as_univariate``).
        transforms: how many steps at each scale.
        hidden: channels of each block of ``ResNet``.
        activation: "relu", "silu", "tanh" ...; see ``diffeo.nets.MLP``.
        residual: add each block's input to its output.
        scales: how many scales at most; fewer where a side becomes odd.
        kernels: sizes of the convolutions in a block.
        preprocess: steps from the data inwards, names or pairs (name, arguments).

    Raises:
        ValueError: for another shape, or unknown names.

    Example:
        >>> flow = diffeo.glow(features=(1, 8, 8), transforms=1, hidden=(4,))
        >>> flow.sample(2).shape
        torch.Size([2, 1, 8, 8])
    """
    shape = event_shape(features)
    if len(shape) != 3 or shape[1] % 2 or shape[2] % 2:
        raise ValueError(f"expected features (channels, height, width) with even sides for glow, got {shape}")
    if scales < 1:
        raise ValueError(f"expected at least one scale, got {scales}")
    mapping = as_univariate(univariate)
    net = partial(ResNet, context=context, activation=activation, residual=residual, kernels=kernels)
    layers = _steps(shape, scales, transforms, lambda mask: convolutional(mapping, mask, hidden, net))
    return assemble(StandardNormal(shape), layers, context, preprocess)


def _steps(shape: Sequence[int], scales: int, transforms: int, couple: Callable[[Tensor], Coupling]) -> list[Transform]:
    """Glow's scales from this one on, in the order of generation."""
    channels, height, width = shape
    if scales < 1 or height % 2 or width % 2:
        return []
    coarser = _steps((2 * channels, height // 2, width // 2), scales - 1, transforms, couple)
    layers: list[Transform] = [Part(Chain(coarser), 2 * channels)] if coarser else []
    wide = 4 * channels
    for index in range(transforms):
        shuffle = Permutation.random(wide, seed=scales * transforms + index, event_dim=3)
        layers += [couple(half_mask(wide)), LU(wide, event_dim=3), shuffle, ActNorm(wide, event_dim=3)]
    return [Squeezed(Chain(layers))]


def multiscale(
    shape: Sequence[int],
    scales: int,
    transforms: int,
    packed: bool,
    couple: Callable[[Tensor, int], Coupling],
    squeezes: int = 0,
) -> list[Transform]:
    """RealNVP's scales from this one on, in the order of generation: couplings, each behind an ActNorm.

    From the data inwards, a scale has ``transforms`` checkerboard couplings, a squeeze, as many channel couplings, and
    hands half of the channels on to the next one. The last scale has one checkerboard coupling more and no squeeze.
    There are at most ``scales`` of them; sides that are odd, or below 4, are not squeezed.

    Args:
        shape: the shape (C, H, W) of the image at this scale.
        scales: how many scales at most.
        transforms: couplings of each kind.
        packed: a checkerboard divides a squeezed image's channels into halves; networks that see it so, where the sides
            are even, are four times cheaper than those that see zeros at the other half of the full resolution.
        couple: makes a coupling from a mask and the number of squeezes before it.
        squeezes: how many there were before this scale.
    """
    channels, height, width = shape
    even = height % 2 == 0 and width % 2 == 0
    last = scales <= 1 or not even or min(height, width) < 4
    wide = 4 * channels

    def layers(masks: Sequence[Tensor], depth: int) -> list[Transform]:
        made: list[Transform] = []
        for mask in masks:
            made += [couple(mask, depth), ActNorm(mask.shape[0], event_dim=3)]
        return made

    squeezed: list[Transform] = []
    if not last:
        inner = multiscale(
            (2 * channels, height // 2, width // 2), scales - 1, transforms, packed, couple, squeezes + 1
        )
        squeezed = [
            Part(Chain(inner), 2 * channels),
            *layers([alternating_mask(wide, flip=flip) for flip in _alternate(transforms)], squeezes + 1),
        ]
    flips = _alternate(transforms + last)
    if packed and even:
        squeezed += layers([half_mask(wide, flip=flip) for flip in flips], squeezes + 1)
        return [Squeezed(Chain(squeezed))]
    boards = layers([checkerboard_mask(shape, flip=flip) for flip in flips], squeezes)
    return boards if last else [Squeezed(Chain(squeezed)), *boards]


def _alternate(count: int) -> list[bool]:
    return [index % 2 == 1 for index in range(count)]


def convolutional(univariate: Univariate, mask: Tensor, hidden: Sequence[int], net: Net) -> Coupling:
    """A coupling of images (C, H, W).

    Args:
        univariate: the map of each element.
        mask: of one dimension, which divides the channels, or of three, which divides the elements.
        hidden: channels of the network's blocks.
        net: makes the network from its input and output channels and the hidden ones.
    """
    kept = int(mask.sum()) if mask.dim() == 1 else len(mask)
    moved = len(mask) - kept if mask.dim() == 1 else len(mask)
    return Coupling(univariate, mask, net(kept, univariate.size * moved, hidden), event_dim=3)

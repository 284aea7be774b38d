"""Images as numbers, and as a flow takes them, in PyTorch's operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffeo.modalities.base import Plain

__all__ = ["PlainPixels"]


class PlainPixels(Plain):
    """Images ``(C, H, W)`` of pixels 0 .. levels - 1 as float32; a context is the number of its class.

    Args:
        shape: of an image.
        levels: of grey.
        classes: the labels, none of a run that knows none.
    """

    dtype = torch.float32
    draws = 0

    def __init__(self, shape: tuple[int, int, int], levels: int, classes: Sequence[str]) -> None:
        self.shape, self.levels, self.classes = tuple(shape), levels, tuple(classes)
        self.context_shape = (1,) if classes else ()
        self.described = {
            "shape": list(shape),
            "levels": levels,
            "classes": list(classes),
            "encoding": f"pixels of (channels, height, width) as float32, whole numbers 0 .. {levels - 1}; a context is"
            " the place of its label in 'classes', 0, 1, ...",
        }

    def inwards(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The pixels themselves."""
        return x, None

    def context_inwards(self, context: Tensor) -> Tensor:
        """The labels one-hot."""
        return (context == torch.arange(len(self.classes))).to(self.dtype)

    def outwards(self, x: Tensor, context: Tensor | None, exact: bool = False) -> Tensor:
        """Whole numbers within the levels."""
        return x if exact else x.nan_to_num(0.0).clamp(0, self.levels - 1).floor()

    def context_outwards(self, context: Tensor) -> Tensor:
        """The labels' numbers."""
        return context.argmax(1, keepdim=True).to(self.dtype)

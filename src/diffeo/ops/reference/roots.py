"""The step of a search for roots of increasing functions."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["newton_or_half"]


def newton_or_half(x: Tensor, step: Tensor, low: Tensor, high: Tensor, moved: Tensor) -> Tensor:
    """Where the search goes on: at Newton's point, or in the middle of the bracket where that is surer.

    It is where Newton's step leaves the bracket, is no number, or is more than half as long as the last move. Without
    that limit it can go to and fro between two points of the bracket for good.

    Args:
        x: where the search is.
        step: Newton's, to be added; all of one shape.
        low: the lower end of the bracket.
        high: its upper end.
        moved: how far the last move went.
    """
    to = x + step
    return torch.where((to >= low) & (to <= high) & (step.abs() <= 0.5 * moved), to, (low + high) / 2)

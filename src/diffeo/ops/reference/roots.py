"""The step of a search for roots of increasing functions."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["newton_or_half"]


def newton_or_half(x: Tensor, step: Tensor, low: Tensor, high: Tensor, moved: Tensor) -> Tensor:
    """Where the search goes on: at Newton's point, or in the middle of the bracket where that is surer.

    The middle is surer where Newton's step leaves the bracket, is no number, or is more than half as long as the last
    move: without that limit the search can go to and fro between two points of the bracket for good. Whoever is done
    must not be moved any more: a step of mere rounding is no shorter than the one before.

    Args:
        x: where the search is.
        step: Newton's, to be added; all of one shape.
        low: the lower end of the bracket.
        high: its upper end.
        moved: how far the last move went; at first the bracket's width.
    """
    to = x + step
    return torch.where((to >= low) & (to <= high) & (step.abs() <= 0.5 * moved), to, (low + high) / 2)

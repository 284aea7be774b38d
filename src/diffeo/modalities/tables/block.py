"""Some encoded rows, in arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Block"]


class Block(NamedTuple):
    """Rows in arrays: x (n, features), context (n, context_size) or None, weights (n,) or None."""

    x: np.ndarray
    context: np.ndarray | None
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.x)

    def choose(self, rows: np.ndarray | slice) -> Block:
        """Return some of the rows."""
        return Block(self.x[rows], *(None if part is None else part[rows] for part in self[1:]))

    @staticmethod
    def join(blocks: Sequence[Block]) -> Block:
        """Return the rows of all of them, of which there is one at least."""
        if len(blocks) == 1:
            return blocks[0]
        first = blocks[0]
        context, weights = (
            None if first[i] is None else np.concatenate([block[i] for block in blocks]) for i in (1, 2)
        )
        return Block(np.concatenate([block.x for block in blocks]), context, weights)

    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the arrays as tensors that share their memory."""
        context, weights = (None if part is None else torch.from_numpy(part) for part in self[1:])
        return torch.from_numpy(self.x), context, weights

"""Masked products that skip the zeros.

With units sorted by degree, a masked weight matrix is block lower-triangular: half of a dense product would multiply by
zero. Rows are taken in blocks, each with the columns that any of its rows may see, forward and backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Blocks", "masked_linear"]

_ROWS = 64  # smaller blocks skip more zeros, larger ones multiply faster
_MOST = 8


class Blocks(NamedTuple):
    """The parts of a masked matrix that are not all zero.

    Attributes:
        rows: (start, stop, columns): these rows see at most the first ``columns`` columns.
        columns: (start, stop, row): these columns are seen by no row before ``row``.
    """

    rows: list[tuple[int, int, int]]
    columns: list[tuple[int, int, int]]

    @classmethod
    def of(cls, own: Tensor, seen: Tensor) -> Blocks:
        """Divide the mask ``own[:, None] >= seen[None, :]``, both sorted."""
        rows = [
            (a, b, int(torch.searchsorted(seen, own[b - 1], right=True)))
            for a, b in _cut(len(own), max(1, min(_MOST, len(own) // _ROWS)))
        ]
        columns = [
            (a, b, int(torch.searchsorted(own, seen[a])))
            for a, b in _cut(len(seen), max(1, min(_MOST, len(seen) // _ROWS)))
        ]
        return cls(rows, columns)


def _cut(size: int, parts: int) -> list[tuple[int, int]]:
    edges = [size * i // parts for i in range(parts + 1)]
    return list(zip(edges, edges[1:], strict=False))


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, blocks: Blocks) -> Tensor:
    """weight @ x + bias, ``(outputs, rows)``, for a weight that is zero outside its blocks and x ``(inputs, rows)``."""
    return _MaskedLinear.apply(x, weight, bias, blocks)


class _MaskedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, blocks: Blocks) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.blocks, ctx.biased = blocks, bias is not None
        out = x.new_empty(len(weight), x.shape[1])
        for start, stop, seen in blocks.rows:
            if bias is None:
                torch.mm(weight[start:stop, :seen], x[:seen], out=out[start:stop])
            else:
                torch.addmm(bias[start:stop, None], weight[start:stop, :seen], x[:seen], out=out[start:stop])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        by_x = by_weight = None
        if torch.is_grad_enabled():  # a second derivative is asked for: the plain, differentiable formulas
            return weight.mT @ grad, grad @ x.mT, grad.sum(1) if ctx.biased else None, None
        grad = grad.contiguous()
        if ctx.needs_input_grad[0]:
            by_x = torch.empty_like(x, memory_format=torch.contiguous_format)
            for start, stop, first in ctx.blocks.columns:
                torch.mm(weight[first:, start:stop].mT, grad[first:], out=by_x[start:stop])
        if ctx.needs_input_grad[1]:
            by_weight = torch.zeros_like(weight)
            for start, stop, seen in ctx.blocks.rows:
                torch.mm(grad[start:stop], x[:seen].mT, out=by_weight[start:stop, :seen])
        return by_x, by_weight, grad.sum(1) if ctx.biased else None, None

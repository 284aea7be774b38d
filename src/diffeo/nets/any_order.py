"""A network that reads any part of a row: the conditioner of densities in which every column may come first."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffeo.arguments import KnowsArguments

__all__ = ["AnyOrder"]

REACH = 3.0  # how far from 0 a number is told apart piece by piece; beyond, only linearly
FARTHEST = 6.0  # and where it is cut off


class AnyOrder(KnowsArguments, nn.Module):
    """(levels, numbers, known, context) -> h: the sum of what each known column says, through residual layers.

    h_0 = b + C c + sum_{i known} (E_i[level_i] + W_i phi(number_i)), h_l = h_{l-1} + silu(W_l norm(h_{l-1}) + b_l), and
    parameters V norm(h_L) + a, of which ``head`` computes as many as are asked for. phi(s) is 1, s, and s cut into
    pieces between -3 and 3 (piecewise linear encoding, Gorishniy et al. 2022, arXiv:2203.05556). What is not known adds
    nothing, so that one network holds the conditionals of all orders (Uria et al. 2014, arXiv:1310.1757).

    Args:
        levels: for each column, how many levels it has.
        numeric: for each column, whether it has a number besides.
        outputs: how many parameters.
        hidden: the width H.
        layers: the number L of residual layers.
        bins: pieces of a number.
        context: size of the context, 0 for none.
        dropout: the share of a layer's outputs that training leaves out.
    """

    offsets: Tensor
    edges: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        numeric: Sequence[bool],
        outputs: int,
        hidden: int = 512,
        layers: int = 3,
        bins: int = 32,
        context: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        columns = len(levels)
        self.numeric = [i for i, has in enumerate(numeric) if has]
        self.nothing = sum(levels)  # the row of the table that says nothing
        self.register_buffer("offsets", torch.tensor([0, *levels[:-1]]).cumsum(0), persistent=False)
        self.register_buffer("edges", torch.linspace(-REACH, REACH, bins + 1), persistent=False)
        self.table = nn.Embedding(self.nothing + 1, hidden)
        nn.init.normal_(self.table.weight, std=1 / math.sqrt(columns))
        pieces = torch.randn(len(self.numeric) * (bins + 2), hidden)
        self.pieces = nn.Parameter(pieces * (0.5 / math.sqrt(columns)))
        self.bias = nn.Parameter(torch.zeros(hidden))
        with torch.no_grad():
            self.table.weight[-1] = 0
        self.context = nn.Linear(context, hidden, bias=False) if context else None
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers + 1))
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, levels: Tensor, numbers: Tensor, known: Tensor, context: Tensor | None = None) -> Tensor:
        """Read the known columns.

        Args:
            levels: ``(n, columns)``, whole numbers, -1 for none.
            numbers: ``(n, numeric columns)``, about standard normal, NaN for none.
            known: ``(n, columns)``, true for the columns that may be looked at.
            context: ``(n, context)``, or None.

        Returns:
            The last hidden layer, ``(n, H)``.
        """
        rows = torch.where(known & (levels >= 0), levels + self.offsets, self.nothing)
        h = F.embedding_bag(rows, self.table.weight, mode="sum", padding_idx=self.nothing)
        h = torch.addmm(h + self.bias, self._pieces(numbers, known).flatten(1), self.pieces)
        if self.context is not None:
            h = h + self.context(context)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            h = h + self.dropout(F.silu(layer(norm(h))))
        result: Tensor = self.norms[-1](h)
        return result

    def head(self, h: Tensor, which: Tensor | None = None) -> Tensor:
        """Return these of the parameters, all by default: ``(n, outputs)``.

        Args:
            h: what ``forward`` returns, ``(n, H)``.
            which: their numbers ``(outputs,)``.
        """
        weight, bias = self.last.weight, self.last.bias
        return F.linear(h, weight, bias) if which is None else F.linear(h, weight[which], bias[which])

    def _pieces(self, numbers: Tensor, known: Tensor) -> Tensor:
        """phi of every number ``(n, numeric columns, bins + 2)``, 0 where it is not known."""
        there = known[:, self.numeric] & ~torch.isnan(numbers)
        s = numbers.nan_to_num(0.0).clamp(-FARTHEST, FARTHEST).unsqueeze(-1)
        pieces = ((s - self.edges[:-1]) / (self.edges[1] - self.edges[0])).clamp(0, 1)
        return torch.cat([torch.ones_like(s), s / 2, pieces], -1) * there.unsqueeze(-1)

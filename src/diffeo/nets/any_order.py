"""Networks that read part of a row: any part, or what comes before in one order; the conditioners of mixed columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffeo import ops
from diffeo.arguments import KnowsArguments

__all__ = ["AnyOrder", "Ordered"]

REACH = 3.0  # how far from 0 a number is told apart piece by piece; beyond, only linearly
FARTHEST = 6.0  # and where it is cut off
NARROWEST = 4  # units that an ordered network has at least for each column


class AnyOrder(KnowsArguments, nn.Module):
    r"""(levels, numbers, known, context) -> h: the sum of what each known column says, through residual layers.

    .. math::
        h_0 &= b + C c + \sum_{i\ \text{known}} \left(E_i[\text{level}_i] + W_i\, \phi(\text{number}_i)\right) \\
        h_l &= h_{l-1} + \mathrm{silu}(W_l\, \mathrm{norm}(h_{l-1}) + b_l), \qquad
        \text{params} = V\, \mathrm{norm}(h_L) + a

    ``head`` computes as many of the parameters as are asked for. :math:`\phi(s)` is 1, s, and s cut into pieces between
    -3 and 3 (piecewise linear encoding, Gorishniy et al. 2022, arXiv:2203.05556). What is not known adds nothing, so
    that one network holds the conditionals of all orders (Uria et al. 2014, arXiv:1310.1757).

    Args:
        levels: for each column, how many levels it has.
        numeric: for each column, whether it has a number besides.
        outputs: pairs of a column and how many of its parameters come next.
        hidden: the width H.
        layers: the number L of residual layers.
        bins: pieces of a number.
        context: size of the context, 0 for none.
        dropout: the share of a layer's outputs that training leaves out.
    """

    any_order = True

    offsets: Tensor
    edges: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        numeric: Sequence[bool],
        outputs: Sequence[tuple[int, int]],
        hidden: int = 512,
        layers: int = 3,
        bins: int = 32,
        context: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        columns = len(levels)
        self.numeric = [i for i, has in enumerate(numeric) if has]
        self._places = {i: s for s, i in enumerate(self.numeric)}
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
        self.norms: Any = nn.ModuleList(self._norm(columns, hidden) for _ in range(layers + 1))
        self.layers: Any = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(hidden, sum(count for _, count in outputs))

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
        h = self._looked_up(rows)
        there = known[:, self.numeric] & ~torch.isnan(numbers)
        h = torch.addmm(h + self.bias, self._encoded(numbers, there).flatten(1), self._weight("pieces"))
        if self.context is not None:
            h = h + self.context(context)
        return self._layers(h)

    def _looked_up(self, rows: Tensor) -> Tensor:
        """The sum of the table's rows of these numbers ``(n, columns)``: ``(n, H)``."""
        weight = self._weight("table.weight")
        if not ops.tracing():
            return F.embedding_bag(rows, weight, mode="sum", padding_idx=self.nothing)
        numbers = torch.arange(self.nothing, device=rows.device)  # by comparing, which every runtime knows
        column = (numbers.unsqueeze(1) >= self.offsets).sum(1) - 1
        return (rows.index_select(1, column) == numbers).to(weight.dtype) @ weight[: self.nothing]

    def start(self, rows: int, context: Tensor | None = None) -> list[Tensor]:
        """The state of a reading column by column, of which nothing has been read yet.

        Args:
            rows: how many.
            context: ``(n, context)``, or None.
        """
        h = self.bias.expand(rows, -1)
        return [h if self.context is None else h + self.context(context)]

    def read(self, state: list[Tensor], column: int, levels: Tensor, numbers: Tensor | None, known: Tensor) -> None:
        """Read one more column, in those rows where it is known.

        Args:
            state: what ``start`` returned; it changes.
            column: which.
            levels: of its cells ``(n,)``, as in ``forward``.
            numbers: of its cells ``(n,)``, None if it has none.
            known: in which rows it is, ``(n,)``.
        """
        rows = torch.where(known & (levels >= 0), levels + self.offsets[column], self.nothing)
        weight = self._weight("table.weight")
        if ops.tracing():
            state[0] = state[0] + torch.where(rows.unsqueeze(1) < self.nothing, weight[rows], 0)
        else:
            state[0] = state[0] + F.embedding_bag(rows[:, None], weight, mode="sum", padding_idx=self.nothing)
        if numbers is not None:
            place, width = self._places[column], self.edges.numel() + 1
            weight = self._weight("pieces")[place * width : (place + 1) * width]
            state[0] = torch.addmm(state[0], self._encoded(numbers, known & ~torch.isnan(numbers)), weight)

    def hidden(self, state: list[Tensor], column: int) -> Tensor:
        """What ``head`` needs of the rows as far as they have been read, for the parameters of a column: ``(n, H)``.

        Args:
            state: what ``start`` returned.
            column: which.
        """
        return self._layers(state[0])

    def head(self, h: Tensor, which: Tensor | None = None) -> Tensor:
        """Return these of the parameters, all by default: ``(n, outputs)``.

        Args:
            h: what ``forward`` returns, ``(n, H)``.
            which: their numbers ``(outputs,)``.
        """
        weight, bias = self._weight("last.weight"), self.last.bias
        return F.linear(h, weight, bias) if which is None else F.linear(h, weight[which], bias[which])

    @staticmethod
    def _norm(columns: int, hidden: int) -> nn.Module:
        """A layer that normalises what a unit of its input may see."""
        return nn.LayerNorm(hidden)

    def _layers(self, h: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            update = F.linear(self.norms[k](h), self._weight(f"layers.{k}.weight"), layer.bias)
            h = h + self.dropout(F.silu(update))
        result: Tensor = self.norms[-1](h)
        return result

    def _weight(self, name: str) -> Tensor:
        """The parameter of this name, as it is used."""
        return self.get_parameter(name)

    def _encoded(self, numbers: Tensor, there: Tensor) -> Tensor:
        """phi of numbers ``(*shape, bins + 2)``, 0 where they are not there."""
        s = numbers.nan_to_num(0.0).clamp(-FARTHEST, FARTHEST).unsqueeze(-1)
        pieces = ((s - self.edges[:-1]) / (self.edges[1] - self.edges[0])).clamp(0, 1)
        return torch.cat([torch.ones_like(s), s / 2, pieces], -1) * there.unsqueeze(-1)


class Ordered(AnyOrder):
    """The same, masked: a parameter of column i sees the columns before i alone, so that one pass gives those of all.

    The units of a layer are D groups of one width; group i sees the groups up to i and the columns before i, and is
    normalised by itself; the parameters of column i see the groups up to i (Germain et al. 2015, arXiv:1502.03509).
    ``read`` and ``hidden`` give the parameters column by column at the price of one pass: a group is computed once.

    Args:
        levels, numeric, outputs, layers, bins, context, dropout: as of ``AnyOrder``.
        hidden: the least width; it is brought to a multiple of the number of columns, four times that at least.
    """

    any_order = False

    def __init__(
        self,
        levels: Sequence[int],
        numeric: Sequence[bool],
        outputs: Sequence[tuple[int, int]],
        hidden: int = 512,
        layers: int = 3,
        bins: int = 32,
        context: int = 0,
        dropout: float = 0.0,
    ) -> None:
        columns = len(levels)
        self.width = max(NARROWEST, math.ceil(hidden / columns))  # of a group
        super().__init__(levels, numeric, outputs, columns * self.width, layers, bins, context, dropout)
        group = torch.arange(columns).repeat_interleave(self.width)
        masks = {
            "table.weight": _repeated([*enumerate(levels), (columns, 1)]) < group,
            "pieces": _repeated([(i, bins + 2) for i in self.numeric]) < group,
            "last.weight": _repeated(outputs) >= group,
            **{f"layers.{layer}.weight": group[:, None] >= group for layer in range(layers)},
        }
        self._masks = {name: f"mask{k}" for k, name in enumerate(masks)}
        for name, mask in masks.items():
            self.register_buffer(self._masks[name], mask, persistent=False)

    @staticmethod
    def _norm(columns: int, hidden: int) -> nn.Module:
        return nn.GroupNorm(columns, hidden)

    def _weight(self, name: str) -> Tensor:
        return self.get_parameter(name) * self.get_buffer(self._masks[name])

    def start(self, rows: int, context: Tensor | None = None) -> list[Tensor]:
        """The state of a reading in order, each layer's units and the same normalised; see ``AnyOrder.start``.

        Args:
            rows: how many.
            context: ``(n, context)``, or None.
        """
        first = super().start(rows, context)[0].clone()
        return [first, *(torch.zeros_like(first) for _ in range(2 * len(self.layers) + 1))]

    def hidden(self, state: list[Tensor], column: int) -> Tensor:
        """The last hidden layer as far as column's parameters see it, zero beyond: ``(n, H)``; without gradients.

        Args:
            state: what ``start`` returned, into which all columns before this one have been read, each once.
            column: which; that of the last call was the one before.
        """
        depth, seen = len(self.layers), (column + 1) * self.width
        here = slice(column * self.width, seen)
        for k, norm in enumerate(self.norms):
            h, normal = state[k], state[depth + 1 + k]
            normal[:, here] = F.layer_norm(h[:, here], (self.width,)) * norm.weight[here] + norm.bias[here]
            if k < depth:
                layer = self.layers[k]
                update = F.linear(normal[:, :seen], layer.weight[here, :seen], layer.bias[here])
                state[k + 1][:, here] = h[:, here] + F.silu(update)
        return state[-1]


def _repeated(counts: Sequence[tuple[int, int]]) -> Tensor:
    """Each number as often as its count says, ``(counts' sum, 1)``."""
    return torch.tensor([number for number, count in counts for _ in range(count)], dtype=torch.long)[:, None]

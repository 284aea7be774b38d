"""The density of rows of categories, whole numbers, gaps and real numbers, one column given any others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffeo import ops
from diffeo.transforms.base import DataDependent
from diffeo.transforms.factor import Factor, as_factors
from diffeo.transforms.opened import Opened
from diffeo.transforms.preprocess import Gaussianize, Standardize
from diffeo.transforms.univariate import MixtureOfLogistics

__all__ = ["Mixed"]

NEVER = -1e30  # the logarithm of no mass; finite, so that gradients of what is masked are 0 and not NaN
SHARPEST = 9.0  # the largest -log of a component's scale, in standard deviations of the column made normal
BROADEST = 4.0  # the largest log of it
RESOLUTION = 1e-6  # of noise within the interval of a part
BEYOND = 1e6  # where the line of a column made normal ends, for the outermost cell of a column with bounds
NARROW = 1e-2  # a cell's width in scales, below which the density in its middle says its mass to six digits


@dataclass(frozen=True)
class _Search:
    """What the noise of a cell of a smooth column stands for, where it is no single value and no copy.

    Attributes:
        column: its number.
        there: ``(n,)``: whether it is so.
        grid: ``(n,)``: the number of the grid on which the value lies.
        noise: ``(n,)``: the logit of the share of the mixture below the value. ``params``: the mixture, ``(3 K, n)``.
    """

    column: int
    there: Tensor
    grid: Tensor
    noise: Tensor
    params: Tensor


@dataclass(frozen=True)
class _Cells:
    """What depends on the rows alone.

    Attributes:
        levels: ``(n, D)``: the number of the single value that a cell holds, -1 for another.
        missing: ``(n, D)``: NaN.
        numbers: ``(n, S)``: of the smooth columns, made normal; NaN where missing. ``slopes``: the logarithms of their
            derivatives.
        low, high: ``(n, S, G)``: the ends of the cells, made normal. ``on``: whether the value is on that grid, and
            within the column's bounds.
    """

    levels: Tensor
    missing: Tensor
    numbers: Tensor
    slopes: Tensor
    low: Tensor
    high: Tensor
    on: Tensor


class Mixed(DataDependent):
    r"""A density of mixed columns: the mean over R orders s of the columns of what the conditionals multiply to.

    .. math:: p(x) = \frac{1}{R} \sum_{r=1}^R \prod_t p(x_{s_r(t)} \mid x_{s_r(1)}, \dots, x_{s_r(t-1)})

    One network gives the parameters of every column given any others (``AnyOrder``), so that every conditional is at
    hand: ``log_conditionals`` in one pass, ``complete`` column by column. A factor is a mixture

    .. math::
        p(x_i \mid \text{known}) = \sum_v w_v [x_i = v] + \sum_c w_c [x_i = a_c x_{j(c)} + b_c] + \sum_g w_g\, p_g(x_i)

    of masses of single values, of copies of known columns, and of a mixture of logistics, as a density or as masses
    :math:`F(x + h/2) - F(x - h/2)` on grids of step h. Logistics live where the column's own distribution has been made
    normal (``Gaussianize``), of a column with bounds after these have been moved to infinity (``Opened``), so that
    nothing lies beyond. Training draws orders at random (``AnyOrderLikelihood``; Uria et al. 2014,
    arXiv:1310.1757; Hoogeboom et al. 2022, arXiv:2110.02037).

    As a map it is the inverse distribution function of uniform noise z, column by column: an interval of :math:`z_i`
    chooses the part of the mixture, and the place within it the value. Single values are intervals, so their noise is
    drawn at random when x is encoded (``inverse``), as for dequantised numbers; densities do not depend on it. z_1 also
    says which order it is.

    A missing cell is NaN. Where gaps have a mass, it is that; elsewhere the column is marginalised: left out of every
    condition, and of the sum.

    By an ``Ordered`` network there is one order only, that of the columns. A density then takes one pass, and so does a
    sample; other conditionals and marginals there are none, and a gap without a mass has NaN for a density.

    Args:
        network: an ``AnyOrder`` or ``Ordered`` of the ``network_sizes`` of these columns.
        columns: a ``Factor`` for each column, or its fields by name.
        components: logistics of a smooth column.
        orders: the number R of orders, drawn by ``seed``; the first is that of the columns.
        seed: of the orders.

    Raises:
        ValueError: for no columns, copies of columns that are not there (or not before, in one order), numbers below 1,
            or several orders of a network that has one.
    """

    takes_missing = True

    orders: Tensor
    steps: Tensor
    there: Tensor
    origins: Tensor
    dense: Tensor
    places: Tensor

    def __init__(
        self,
        network: nn.Module,
        columns: Sequence[Factor | Mapping[str, Any]],
        components: int = 10,
        orders: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        factors = as_factors(columns)
        if not factors:
            raise ValueError("expected at least one column, got none")
        for name, number in (("components", components), ("orders", orders)):
            if number < 1:
                raise ValueError(f"expected {name} >= 1, got {number}")
        if any(j == i or not 0 <= j < len(factors) for i, each in enumerate(factors) for j, _, _ in each.copies):
            raise ValueError("expected copies of other columns")
        self.any_order = bool(network.any_order)
        if not self.any_order and orders > 1:
            raise ValueError(f"expected one order by an ordered network, got {orders}")
        if not self.any_order and any(j > i for i, each in enumerate(factors) for j, _, _ in each.copies):
            raise ValueError("expected copies of columns that come before, in one order")
        self.factors, self.components = factors, components
        self.smooth = [i for i, factor in enumerate(factors) if factor.steps]
        self.grids = max((len(factor.steps) for factor in factors), default=0) or 1
        self._place = {i: s for s, i in enumerate(self.smooth)}
        self._masses = [factor.levels + len(factor.copies) for factor in factors]
        self._tables = [f"values{i}" if factor.values else "" for i, factor in enumerate(factors)]
        for table, factor in zip(self._tables, factors, strict=True):
            if table:
                self.register_buffer(table, torch.tensor(factor.values), persistent=False)
        # Of smooth columns (S, G): steps, 1 where there is no grid; and which of the G are there.
        steps = torch.ones(len(self.smooth), self.grids)
        there = torch.zeros(steps.shape, dtype=torch.bool)
        for s, i in enumerate(self.smooth):
            for g, step in enumerate(factors[i].steps):
                steps[s, g], there[s, g] = step or 1.0, True
        self.register_buffer("steps", steps, persistent=False)
        self.register_buffer("there", there, persistent=False)
        origins = torch.tensor([factors[i].origin for i in self.smooth])
        self.register_buffer("origins", origins, persistent=False)
        dense = torch.tensor([factors[i].continuous for i in self.smooth], dtype=torch.bool)
        self.register_buffer("dense", dense, persistent=False)
        self.opened = Opened([factors[i].ends for i in self.smooth])
        # Which points of each grid, by their numbers, are the first and the last within the bounds: (2, S, G).
        places = torch.tensor([-torch.inf, torch.inf])[:, None, None].repeat(1, *steps.shape)
        for s in self.opened.ends:
            for g, step in enumerate(filter(None, factors[self.smooth[s]].steps)):
                places[:, s, g] = torch.tensor(factors[self.smooth[s]].places(step))
        self.register_buffer("places", places, persistent=False)
        self.all_dense = all(factors[i].continuous for i in self.smooth)
        size = (max(1, len(self.smooth)),)
        self.scale, self.curve = Standardize(size), Gaussianize(size, max_slope=1000.0)

        self.network: Any = network
        with torch.no_grad():  # at first: equal masses, and about a standard normal
            last: Any = network.last
            last.weight.mul_(0.1)
            last.bias.zero_()
            parts = last.bias[sum(self._masses) :].view(len(self.smooth), self.grids + 2, components)
            parts[:, -2] = torch.linspace(-2, 2, components)
            parts[:, -1] = -1.0
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randperm(len(factors), generator=generator) for _ in range(orders - 1)]
        self.register_buffer("orders", torch.stack([torch.arange(len(factors)), *drawn]))

    @property
    def fast(self) -> frozenset[str]:
        """Neither where each direction takes a pass of the network for every column; in one order densities."""
        return frozenset() if self.any_order else frozenset({"inverse"})

    def initialize(self, x: Tensor) -> None:
        """Make smooth columns normal by these rows' quantiles; single values with masses do not count."""
        levels = self._levels(x)
        for s, i in enumerate(self.smooth):
            values = x[:, i][~torch.isnan(x[:, i])]
            rest = x[:, i][(levels[:, i] < 0) & ~torch.isnan(x[:, i])]
            if len(rest.unique()) < max(2, len(values) // 1000):  # all but a few are single values
                rest = values
            if len(rest.unique()) < 2:
                continue
            self.opened.initialize(s, rest)
            rest = self.opened.open(s, rest)[0]
            maps = [Standardize(1), Gaussianize(1, max_slope=1000.0)]
            for part, whole in zip(maps, (self.scale, self.curve), strict=True):
                part = part.to(x)
                rows = rest[:, None] if part is maps[0] else maps[0].inverse(rest[:, None])
                part.initialize(rows)
                for name, buffer in whole.named_buffers():
                    if name != "initialized":
                        buffer[s] = part.get_buffer(name)[0]

    @torch.no_grad()
    def put_floor(self, share: float) -> None:
        """Make one logistic of every smooth column as broad as there is, in the middle of the data and always there.

        A smooth density that only single values taught is as sharp as they are: without a floor another value, where
        there was none, costs thousands of nats.

        Args:
            share: of the mass of the column that it has where nothing is known.
        """
        nothing = torch.zeros(1, len(self.factors), dtype=torch.bool, device=self.orders.device)
        cells = self._cells(torch.full(nothing.shape, torch.nan, device=self.orders.device))
        h = self.network(cells.levels, cells.numbers, nothing)
        logits, weights, _, _ = self._split(h, range(len(self.factors)))
        last = self.network.last
        for s, i in enumerate(self.smooth):
            others = weights[0, s].clone()
            others[:, -1] = NEVER
            known = logits[i][0, : self.factors[i].levels]  # a copy of what is not known has no mass
            total = torch.cat([known, others.flatten()]).logsumexp(0)
            outputs = self._which(i)[self._masses[i] :].view(self.grids + 2, self.components)[:, -1]
            last.weight[outputs] = 0
            last.bias[outputs] = NEVER / 2
            last.bias[outputs[0]] = total + math.log(share)
            last.bias[outputs[-2:]] = last.bias.new_tensor([0.0, BROADEST])

    # ---- Densities --------------------------------------------------------------------------------------------------

    def log_conditionals(self, x: Tensor, known: Tensor, context: Tensor | None = None) -> Tensor:
        r""":math:`\log p(x_i \mid \text{known columns})`, in one pass, of every column: ``(n, D)``.

        Args:
            x: ``(n, D)``; cells that are not known are only asked for their density.
            known: ``(n, D)``, true where the density is conditional on the cell.
            context: ``(n, context)``.
        """
        self._see(x)
        cells = self._cells(x)
        known = self._usable(known, cells)
        h = self.network(cells.levels, cells.numbers, known, context)
        joint, total = self._parts(x, cells, known, h, range(len(self.factors)))
        return self._log_prob(joint, total, cells, range(len(self.factors)))

    def log_prob_given(self, x: Tensor, known: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(the other columns | the known columns), the mean over orders: ``(n,)``; as in ``log_conditionals``."""
        each = [self._in_order(x, known, context, order)[0].sum(1) for order in self.orders]
        return torch.stack(each).logsumexp(0) - math.log(len(each))

    def log_prob_of(self, x: Tensor, wanted: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(the wanted columns), the others marginalised, the mean over orders: ``(n,)``.

        Args:
            x: ``(n, D)``.
            wanted: ``(n, D)``, true for the columns whose density it is.
            context: ``(n, context)``.
        """
        nothing = torch.zeros_like(wanted)
        each = [self._in_order(x, nothing, context, order, wanted=wanted)[0].sum(1) for order in self.orders]
        return torch.stack(each).logsumexp(0) - math.log(len(each))

    def log_shares(self, x: Tensor, known: Tensor, context: Tensor | None = None) -> Tensor:
        """log p of each column given the known ones and those before it ``(n, D)``, 0 of known ones.

        The mean over orders. The sum over columns is never above ``log_prob_given``.

        Args:
            x: ``(n, D)``.
            known: ``(n, D)``, true where all the others are conditional on the cell.
            context: ``(n, context)``.
        """
        return self.log_in_orders(x, known, context).mean(0)

    def log_in_orders(
        self, x: Tensor, known: Tensor, context: Tensor | None = None, orders: Tensor | None = None
    ) -> Tensor:
        """log p of each column given the known ones and those before it in each of the orders, ``(R, n, D)``.

        Args:
            x: ``(n, D)``.
            known: ``(n, D)``, true where all the others are conditional on the cell.
            context: ``(n, context)``.
            orders: the numbers of the columns in each order ``(R, D)``; by default those of the density.
        """
        orders = self.orders if orders is None else orders
        return torch.stack([self._in_order(x, known, context, order)[0] for order in orders])

    def leave_out(self, columns: Sequence[int]) -> None:
        """From now on leave these columns out of every order, and so out of the density and of all its conditions.

        Args:
            columns: which; not all of them.

        Raises:
            ValueError: for a network of one order.
        """
        if not self.any_order:
            raise ValueError("expected a network of any order, to leave columns out; got one of one order")
        left = [[i for i in order if i not in columns] for order in self.orders.tolist()]
        self.orders = self.orders.new_tensor(left)

    def _in_order(
        self,
        x: Tensor,
        known: Tensor,
        context: Tensor | None,
        order: Tensor,
        noise: bool = False,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-densities of each column, in turn, and where asked for the noise that it is made of: both ``(n, D)``.

        Columns that are not wanted are passed over: they have no density, and no other depends on them.
        """
        self._see(x)
        cells, columns = self._cells(x), range(len(self.factors))
        z = torch.rand_like(x) if noise else None

        def note(i: int, usable: Tensor, h: Tensor, joint: Tensor) -> None:
            if z is not None:
                with torch.no_grad():
                    z[:, i] = self._encode(i, x, cells, usable, h, joint)

        if not self.any_order:
            everything = torch.ones_like(known)
            h = self.network(cells.levels, cells.numbers, everything, context)
            each, totals = self._parts(x, cells, everything, h, columns)
            for i in columns:
                note(i, everything, h, each[i])
            return self._log_prob(each, totals, cells, columns), z
        shares: list[Tensor] = [torch.zeros_like(x[:, 0])] * len(self.factors)
        usable = self._usable(known, cells)
        state = self._start(cells.levels, cells.numbers, usable, context)
        for i in order.tolist():
            if not known[:, i].all():
                h = self.network.hidden(state, i)
                joint, total = self._parts(x, cells, usable, h, [i])
                passed = known[:, i] if wanted is None else known[:, i] | ~wanted[:, i]
                shares[i] = torch.where(passed, 0, self._log_prob(joint, total, cells, [i])[:, 0])
                note(i, usable, h, joint[0])
                now = self._usable(self._and(known, i), cells)
                if wanted is not None:
                    now = now & wanted
                self.network.read(state, i, cells.levels[:, i], self._of(cells.numbers, i), now[:, i] & ~usable[:, i])
                known, usable = self._and(known, i), now
        return torch.stack(shares, 1), z

    def _in_all_orders(self, x: Tensor, context: Tensor | None) -> Tensor:
        """log p(x) ``(n,)``, all orders of one column side by side: as many operations as columns.

        For graphs, in which no number can say which column is next.
        """
        count, (n, columns) = len(self.orders), x.shape
        places = self.orders.argsort(1)  # where each column stands in each order (R, D)

        def repeated(value: Tensor) -> Tensor:
            return value.expand(count, *value.shape).flatten(0, 1)

        cells, contexts = self._cells(x), None if context is None else repeated(context)
        many = _Cells(*(repeated(getattr(cells, field.name)) for field in fields(_Cells)))
        x, total = repeated(x), x.new_zeros(count, n)
        for i in range(columns):
            before = places < places[:, i : i + 1]
            known = self._usable(before.unsqueeze(1).expand(count, n, columns).flatten(0, 1), many)
            h = self.network(many.levels, many.numbers, known, contexts)
            joint, totals = self._parts(x, many, known, h, [i])
            total = total + self._log_prob(joint, totals, many, [i]).reshape(count, n)
        return total.logsumexp(0) - math.log(count)

    def _start(self, levels: Tensor, numbers: Tensor, usable: Tensor, context: Tensor | None) -> list[Tensor]:
        """The network's state when it has read what is known."""
        state: list[Tensor] = self.network.start(len(levels), context)
        for j in usable.any(0).nonzero()[:, 0].tolist():
            self.network.read(state, j, levels[:, j], self._of(numbers, j), usable[:, j])
        return state

    def _of(self, numbers: Tensor, i: int) -> Tensor | None:
        """Of numbers (n, S) those of column i, if it has any."""
        return numbers[:, self._place[i]] if i in self._place else None

    def log_prob(self, noise: Callable[[Tensor], Tensor], x: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(x) of uniform noise, which need not be drawn: its density is 1."""
        rows, contexts = _flat(x), None if context is None else _flat(context)
        if self.any_order and not ops.numbers_are_known():
            return self._in_all_orders(rows, contexts).reshape(x.shape[:-1])
        nothing = torch.zeros_like(rows, dtype=torch.bool)
        log_prob = self.log_prob_given(rows, nothing, contexts)
        return log_prob.reshape(x.shape[:-1])

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z = F(x), drawn within its interval where x has a mass, and log p(x)."""
        z, shares = self.encode_in_orders(_flat(x), None if context is None else _flat(context))
        log_prob = shares.sum(2).logsumexp(0) - math.log(len(shares))
        return z.reshape(x.shape), log_prob.reshape(x.shape[:-1])

    def encode_in_orders(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The noise z of rows ``(n, D)``, and log p of their cells in each of the orders ``(R, n, D)``.

        Args:
            x: ``(n, D)``.
            context: ``(n, context)``.
        """
        nothing = torch.zeros_like(x, dtype=torch.bool)
        each = [self._in_order(x, nothing, context, order, noise=True) for order in self.orders]
        shares = torch.stack([part for part, _ in each])
        with torch.no_grad():
            # A row comes by an order with the probability that the order has, given the row; an impossible one by any.
            taken = torch.multinomial(shares.sum(2).T.clamp_min(NEVER).softmax(1), 1)[:, 0]
            z = torch.stack([noise for _, noise in each if noise is not None])[taken, torch.arange(len(x))]
            z[:, 0] = (taken + z[:, 0]) / len(each)
        return z, shares

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x = F^-1(z), and -log p(x)."""
        x = self.forward(z, context)
        return x, -self.log_prob(torch.zeros_like, x, context)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """x = F^-1(z)."""
        rows, contexts = _flat(z), None if context is None else _flat(context)
        if not ops.numbers_are_known():
            return self._in_a_graph(rows, contexts).reshape(z.shape)
        nothing = torch.zeros_like(rows, dtype=torch.bool)
        return self.complete(rows, nothing, contexts, z=rows).reshape(z.shape)

    def _in_a_graph(self, z: Tensor, context: Tensor | None) -> Tensor:
        """x = F^-1(z) ``(n, D)``, as ``complete`` draws it, every row by its own order: nothing is changed in place."""
        columns = torch.arange(len(self.factors), device=z.device)
        first = z[:, 0] * len(self.orders)
        which = first.floor().clamp(0, len(self.orders) - 1)
        z = torch.cat([(first - which).unsqueeze(1), z[:, 1:]], 1)
        orders = self.orders[which.long()]  # (n, D)

        def step(state: tuple[Tensor, ...], t: Tensor) -> tuple[Tensor, ...]:
            x, levels, numbers, known = state
            new = columns == orders.index_select(1, t)  # (n, D): the column whose turn it is
            h = self.network(levels, numbers[:, self.smooth], known, context)
            drawn = self._decode_one(x, z, known, h, new)
            each = [(self._level(i, drawn), self._number(i, drawn)) for i in range(len(columns))]
            level = torch.stack([level for level, _ in each], 1)
            number = torch.stack([torch.zeros_like(drawn) if number is None else number for _, number in each], 1)
            chosen = [
                torch.where(new, there, before)
                for there, before in ((drawn.unsqueeze(1), x), (level, levels), (number, numbers))
            ]
            return *chosen, known | new

        nothing = torch.zeros_like(z)
        state = (nothing, nothing.long() - 1, nothing.clone(), nothing > 0)
        result: Tensor = ops.loop(step, state, columns)[0]
        return result

    def _decode_one(self, x: Tensor, z: Tensor, known: Tensor, h: Tensor, new: Tensor) -> Tensor:
        """``_decode`` of one column for each row, which ``new`` ``(n, D)`` says ``(n,)``: with one search for all."""
        each = [self._choose(i, x, z[:, i], known, h, True) for i in range(len(self.factors))]
        value = torch.where(new, torch.stack([value for value, _ in each], 1), 0).sum(1)
        if not self.smooth:
            return value
        searched = [search for _, search in each if search is not None]
        mine = new[:, self.smooth].T  # (S, n)
        noise = torch.where(mine, torch.stack([search.noise for search in searched]), 0).sum(0)
        params = torch.where(mine.unsqueeze(1), torch.stack([search.params for search in searched]), 0).sum(0)
        s = self._solve(noise, params, z.dtype)
        for search, here in zip(searched, mine, strict=True):
            value = torch.where(here & search.there, self._from_normal(search, s), value)
        return value

    @torch.no_grad()
    def complete(
        self, x: Tensor, known: Tensor, context: Tensor | None = None, *, gaps: bool = True, z: Tensor | None = None
    ) -> Tensor:
        """Draw the cells that are not known given those that are: ``(n, D)``.

        Args:
            x: ``(n, D)``; what its unknown cells hold does not matter.
            known: ``(n, D)``, true for cells to keep.
            context: ``(n, context)``.
            gaps: whether a missing cell may be drawn.
            z: uniform noise ``(n, D)``, drawn by default.
        """
        z = torch.rand_like(x) if z is None else z
        first = z[:, 0] * len(self.orders)
        which = first.floor().long().clamp(0, len(self.orders) - 1)
        z = torch.cat([(first - which)[:, None], z[:, 1:]], 1)
        result = x.clone()
        for r, order in enumerate(self.orders):
            mine = (which == r).nonzero()[:, 0]
            if len(mine):
                contexts = None if context is None else context[mine]
                result[mine] = self._drawn(x[mine], known[mine], contexts, z[mine], order, gaps)
        return result

    def _drawn(self, x: Tensor, known: Tensor, context: Tensor | None, z: Tensor, order: Tensor, gaps: bool) -> Tensor:
        x = torch.where(known, x, 0)
        cells = self._cells(x)
        usable = self._usable(known, cells)
        state = self._start(cells.levels, cells.numbers, usable, context)
        for i in order.tolist():
            new = ~known[:, i]
            if new.any():
                h = self.network.hidden(state, i)
                drawn = self._decode(i, x, z[:, i], usable, h, gaps)
                x[:, i] = torch.where(new, drawn, x[:, i])
                self.network.read(state, i, self._level(i, x[:, i]), self._number(i, x[:, i]), new)
                usable[:, i] |= new
        return x

    def _and(self, known: Tensor, i: int) -> Tensor:
        """What is known, and column i."""
        return known | (torch.arange(known.shape[1], device=known.device) == i)

    # ---- Cells and factors ------------------------------------------------------------------------------------------

    def _levels(self, x: Tensor) -> Tensor:
        """The number of the single value in each cell, -1 for another: ``(n, D)``."""
        return torch.stack([self._level(i, x[:, i]) for i in range(len(self.factors))], 1)

    def _level(self, i: int, value: Tensor) -> Tensor:
        """The number of the single value in each cell of column i, -1 for another: ``(n,)``."""
        factor, level = self.factors[i], torch.full_like(value, -1, dtype=torch.long)
        if factor.values:
            table = self.get_buffer(self._tables[i])
            if ops.tracing():
                places = torch.arange(len(table), device=value.device)
                level = torch.where(value.unsqueeze(-1) == table, places, -1).amax(-1)
            else:
                nearest = torch.searchsorted(table, value.contiguous()).clamp_max(len(table) - 1)
                level = torch.where(table[nearest] == value, nearest, level)
        if factor.gaps:
            level = torch.where(torch.isnan(value), len(factor.values), level)
        return level

    def _cells(self, x: Tensor) -> _Cells:
        missing = torch.isnan(x)
        value = x[:, self.smooth]
        filled = value.nan_to_num(0.0)
        numbers, slopes = self._normal(filled)
        exact = filled.unsqueeze(-1).expand(*filled.shape, self.grids)
        dense = self.dense[:, None]  # where a cell is the value itself
        origins = self.origins[:, None]
        places = ((exact - origins) / self.steps).round()
        points = torch.where(dense, exact, places * self.steps + origins)
        rounding = 0.01 * self.steps[:, :1] + 4e-7 * exact.abs()
        on = ((points - exact).abs() <= rounding) & self.there
        low = high = numbers.unsqueeze(-1).expand(on.shape)
        if not self.all_dense:
            half = torch.where(dense, 0, self.steps / 2)
            low, high = self._normal(torch.stack([points - half, points + half]).movedim(-1, 1))[0].movedim(1, -1)
        if self.opened.ends:
            first, last = self.places
            low = torch.where(~dense & (places <= first), -BEYOND, low)
            high = torch.where(~dense & (places >= last), BEYOND, high)
            inside = [self._inside(i, filled[:, s]) for s, i in enumerate(self.smooth)]
            on = on & torch.stack(inside, 1).unsqueeze(-1)
        numbers = torch.where(torch.isnan(value), torch.nan, numbers)
        return _Cells(self._levels(x), missing, numbers, slopes, low, high, on)

    def _normal(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Smooth columns (..., S), made normal, and the logarithm of the derivative."""
        if not self.smooth:
            return value, value
        value, opened = self.opened(value)
        s, log_slope = self.curve.normalize((value - self.scale.mean) / self.scale.std)
        return s, log_slope - self.scale.std.log() + opened

    def _number(self, i: int, value: Tensor) -> Tensor | None:
        """Cells of column i made normal ``(n,)``, if it is smooth."""
        if i not in self._place:
            return None
        s = self._place[i]
        value, _ = self.opened.open(s, value)
        return self.curve.normalize((value - self.scale.mean[s]) / self.scale.std[s], s)[0]

    def _inside(self, i: int, value: Tensor) -> Tensor:
        """Whether values of column i lie within its bounds."""
        low, high = self.factors[i].ends
        return (value > low) & (value < high)

    def _usable(self, known: Tensor, cells: _Cells) -> Tensor:
        """Known cells that say something: not those that are marginalised."""
        return known & ~(cells.missing & (cells.levels < 0))

    def _rows(self, columns: Sequence[int]) -> tuple[list[int], list[int]]:
        """How many masses each of the columns has, and which of them are smooth."""
        return [self._masses[i] for i in columns], [i for i in columns if i in self._place]

    def _which(self, i: int) -> Tensor:
        """The outputs of the network that are column i's."""
        start, masses = sum(self._masses[:i]), sum(self._masses)
        outputs = [torch.arange(start, start + self._masses[i])]
        if i in self._place:
            size = (self.grids + 2) * self.components
            outputs.append(torch.arange(size) + masses + self._place[i] * size)
        return torch.cat(outputs).to(self.orders.device)

    def _split(self, h: Tensor, columns: Sequence[int]) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Logits of masses, a tensor for each column; of smooth ones weights (n, S, G, K), locations, log-scales."""
        masses, smooth = self._rows(columns)
        whole = len(columns) == len(self.factors)
        params = self.network.head(h, None if whole else torch.cat([self._which(i) for i in columns]))
        logits, rest = params.split([sum(masses), params.shape[1] - sum(masses)], 1)
        rest = rest.reshape(h.shape[0], len(smooth), self.grids + 2, self.components)
        there = self.there[[self._place[i] for i in smooth]]
        weights = torch.where(there.unsqueeze(-1), rest[:, :, :-2], NEVER)
        return list(logits.split(masses, 1)), weights, rest[:, :, -2], rest[:, :, -1].clamp(-SHARPEST, BROADEST)

    def _parts(
        self, x: Tensor, cells: _Cells, known: Tensor, h: Tensor, columns: Sequence[int]
    ) -> tuple[list[Tensor], Tensor]:
        """Log joint mass of each part of a factor with the cell, a tensor (n, parts) for each column, and log totals.

        The parts are the single values as one, the copies, and the grids or the density; the totals (n, columns) are
        what to divide by.
        """
        logits, weights, means, log_scales = self._split(h, columns)
        smooth = [self._place[i] for i in columns if i in self._place]
        rest = (weights + self._likelihood(cells, means, log_scales, smooth)).logsumexp(-1)  # (n, S, G)
        sums = weights.flatten(2).logsumexp(-1)
        joint, totals, s = [], [], 0
        for k, i in enumerate(columns):
            factor, logit = self.factors[i], self._available(i, logits[k], x, known)
            level = cells.levels[:, i]
            parts, all_of_them = [], [logit]
            if factor.levels:
                mass = logit.gather(1, level.clamp_min(0)[:, None])[:, 0]
                parts.append(torch.where(level >= 0, mass, NEVER))
            for c, (j, a, b) in enumerate(factor.copies):
                meant = self._on_grid(i, a * x[:, j] + b)
                near = (x[:, i] - meant).abs() <= self._tolerance(factor, x[:, i])
                parts.append(torch.where(near, logit[:, factor.levels + c], NEVER))
            if factor.steps:
                all_of_them.append(sums[:, s, None])
                here = rest[:, s]
                if factor.continuous and parts:  # a density counts for nothing where there is a mass
                    massive = torch.stack(parts, 1).amax(1, keepdim=True) > NEVER / 2
                    here = torch.where(massive, NEVER, here)
                parts += torch.where(cells.missing[:, i, None], NEVER, here).unbind(1)
                s += 1
            joint.append(torch.stack(parts, 1))
            totals.append(torch.cat(all_of_them, 1).logsumexp(1))
        return joint, torch.stack(totals, 1)

    def _available(self, i: int, logit: Tensor, x: Tensor, known: Tensor) -> Tensor:
        """Logits of masses without those of copies of what is not known or missing, or that would be out of bounds."""
        factor = self.factors[i]
        if not factor.copies:
            return logit
        sources = [j for j, _, _ in factor.copies]
        there = known[:, sources] & ~torch.isnan(x[:, sources])
        if factor.bounded:
            copies = [self._inside(i, self._on_grid(i, a * x[:, j] + b)) for j, a, b in factor.copies]
            there = there & torch.stack(copies, 1)
        return torch.where(F.pad(there, (factor.levels, 0), value=True), logit, NEVER)

    @staticmethod
    def _tolerance(factor: Factor, value: Tensor) -> Tensor:
        """How far from a copy a value may lie: what float32 rounds away, and a hundredth of a cell."""
        return 1e-6 * value.abs() + 0.01 * min(factor.steps, default=0.0)

    def _likelihood(self, cells: _Cells, means: Tensor, log_scales: Tensor, smooth: Sequence[int]) -> Tensor:
        """Log density, or log mass of the cell, of every logistic: ``(n, S, G, K)``."""
        if not smooth:
            return means.new_zeros(means.shape[0], 0, self.grids, self.components)
        rates = torch.exp(-log_scales)
        numbers, slopes = (part[:, smooth, None].nan_to_num(0.0) for part in (cells.numbers, cells.slopes))
        t = (numbers - means) * rates
        density = F.logsigmoid(t) + F.logsigmoid(-t) - log_scales + slopes  # (n, S, K)
        dense = self.dense[smooth]
        result = density.unsqueeze(2).expand(*density.shape[:2], self.grids, -1)
        if not self.all_dense and not all(self.factors[self.smooth[s]].continuous for s in smooth):
            low, high = (
                (end[:, smooth, :, None] - means.unsqueeze(2)) * rates.unsqueeze(2) for end in (cells.low, cells.high)
            )
            # A narrow cell has its middle's density times its width: a difference would be what float32 rounds away.
            narrow = high - low < NARROW
            widths = (cells.high - cells.low)[:, smooth]
            by_slope = self.steps[smooth].log() + cells.slopes[:, smooth, None]
            log_width = torch.where(widths < NARROW / 10, by_slope, widths.clamp_min(NARROW / 100).log())
            middle = (density - slopes).unsqueeze(2) + log_width.unsqueeze(-1)
            # F(b) - F(a) = F(b) F(-a) (1 - e^(a - b)): exact in both tails
            width = torch.where(narrow, 1.0, high - low)
            mass = F.logsigmoid(high) + F.logsigmoid(-low) + torch.log(-torch.expm1(-width))
            mass = torch.where(narrow, middle, mass)
            result = torch.where(dense[:, None, None], result, mass)
        return torch.where(cells.on[:, smooth].unsqueeze(-1), result, NEVER)

    def _log_prob(self, joint: list[Tensor], totals: Tensor, cells: _Cells, columns: Sequence[int]) -> Tensor:
        """log p of the cells of these columns given what is known: ``(n, columns)``, 0 where marginalised."""
        result = []
        for k, i in enumerate(columns):
            factor = self.factors[i]
            log_prob = joint[k].logsumexp(1) - totals[:, k]
            if factor.unseen:
                seen = cells.levels[:, i] >= 0
                other = torch.full_like(log_prob, factor.unseen).log()
                log_prob = torch.where(seen, log_prob + torch.log1p(torch.tensor(-factor.unseen)), other)
            else:
                log_prob = torch.where(log_prob < NEVER / 2, -torch.inf, log_prob)
            left_out = cells.missing[:, i] & (cells.levels[:, i] < 0)
            result.append(torch.where(left_out, 0 if self.any_order else torch.nan, log_prob))
        return torch.stack(result, 1)

    # ---- Noise ------------------------------------------------------------------------------------------------------

    def _weights(self, i: int, h: Tensor, x: Tensor, known: Tensor, gaps: bool = True) -> tuple[Tensor, Tensor]:
        """Masses of single values, copies and grids ``(n, parts)``, adding up to 1; logistics ``(n, G, 3, K)``."""
        (logit,), weights, means, log_scales = self._split(h, [i])
        factor = self.factors[i]
        logit = self._available(i, logit, x, known)
        if factor.gaps and not gaps:
            logit = logit.index_fill(1, torch.tensor([len(factor.values)], device=h.device), NEVER)
        if not factor.steps:
            return logit.softmax(1), weights
        weights = weights[:, 0, : len(factor.steps)]
        parts = torch.cat([logit, weights.logsumexp(-1)], 1).softmax(1)
        shape = [part.expand(weights.shape) for part in (means, log_scales)]
        return parts, torch.stack([weights, *shape], 2)

    def _decode(self, i: int, x: Tensor, z: Tensor, known: Tensor, h: Tensor, gaps: bool) -> Tensor:
        """The value that the noise stands for ``(n,)``."""
        value, search = self._choose(i, x, z, known, h, gaps)
        if search is None:
            return value
        s = self._solve(search.noise, search.params, z.dtype)
        return torch.where(search.there, self._from_normal(search, s), value)

    def _choose(
        self, i: int, x: Tensor, z: Tensor, known: Tensor, h: Tensor, gaps: bool
    ) -> tuple[Tensor, _Search | None]:
        """The single value or copy that the noise stands for ``(n,)``, and what it stands for where it is neither."""
        factor = self.factors[i]
        parts, logistics = self._weights(i, h, x, known, gaps)
        ends = parts.double().cumsum(1)
        part = (z.double()[:, None] * ends[:, -1:] >= ends).sum(1).clamp_max(parts.shape[1] - 1)
        value = torch.full_like(z, torch.nan)
        if factor.values:
            table = self.get_buffer(self._tables[i])
            value = torch.where(part < len(table), table[part.clamp_max(len(table) - 1)], value)
        for c, (j, a, b) in enumerate(factor.copies, start=factor.levels):
            value = torch.where(part == c, self._on_grid(i, a * x[:, j] + b), value)
        if not factor.steps:
            return value, None
        first = self._masses[i]
        g = (part - first).clamp_min(0)
        size = parts.double().gather(1, part[:, None])[:, 0]
        within = (z.double() * ends[:, -1] - ends.gather(1, part[:, None])[:, 0] + size) / size
        here = g.reshape(-1, 1, 1, 1).expand(-1, 1, *logistics.shape[2:])
        params = logistics.gather(1, here).flatten(1).double().mT  # (3 K, n)
        noise = torch.logit(within.clamp(RESOLUTION / 2, 1 - RESOLUTION / 2))
        return value, _Search(i, part >= first, g, noise, params)

    def _solve(self, noise: Tensor, params: Tensor, dtype: torch.dtype) -> Tensor:
        """Where mixtures of logistics reach the noise, a logit ``(n,)``."""
        return MixtureOfLogistics(self.components, 1e9).generate(noise, params)[0].to(dtype)

    def _from_normal(self, search: _Search, s: Tensor) -> Tensor:
        """The value of a smooth column, on the grid that was chosen, from where it is when made normal ``(n,)``."""
        place = self._place[search.column]
        smooth = self._inverse_normal(s, place)
        if not self.factors[search.column].continuous:
            step, (first, last) = self.steps[place, search.grid], self.places[:, place, search.grid]
            places = ((smooth - self.origins[place]) / step).round().clamp(first, last)
            smooth = self.origins[place] + places * step
        return smooth

    def _on_grid(self, i: int, value: Tensor) -> Tensor:
        """Values moved to the nearest point of the column's finest grid, if it has one: one point, also for halves."""
        factor = self.factors[i]
        if not factor.steps or factor.continuous:
            return value
        return factor.origin + ((value - factor.origin) / factor.steps[0]).round() * factor.steps[0]

    def _inverse_normal(self, s: Tensor, place: int) -> Tensor:
        return self.opened.close(
            place, self.curve.generate(s, place)[0] * self.scale.std[place] + self.scale.mean[place]
        )

    def _encode(self, i: int, x: Tensor, cells: _Cells, known: Tensor, h: Tensor, joint: Tensor) -> Tensor:
        """Noise that stands for the cells of column i ``(n,)``: random within the interval of a mass.

        Where several parts of the factor have the value, one of them is drawn.
        """
        factor, level = self.factors[i], cells.levels[:, i]
        rows = torch.arange(len(h), device=h.device)
        chosen = torch.multinomial(joint.softmax(1), 1)[:, 0]
        part = chosen
        if factor.levels:  # which stand as one in ``joint``
            part = torch.where(chosen == 0, level.clamp_min(0), chosen - 1 + factor.levels)
        parts, logistics = self._weights(i, h, x, known)
        size = parts.double().gather(1, part[:, None])[:, 0]
        within = torch.rand_like(size)
        if factor.steps:
            g = (part - self._masses[i]).clamp_min(0)
            params = logistics[rows, g].flatten(1).double().mT
            mixture, place = MixtureOfLogistics(self.components, 1e9), self._place[i]
            low, high = (
                torch.sigmoid(mixture.normalize(end[rows, place, g].double(), params)[0])
                for end in (cells.low, cells.high)
            )
            within = torch.where(part >= self._masses[i], low + within * (high - low), within)
        within = within.clamp(RESOLUTION, 1 - RESOLUTION)  # or rounding would make it that of the next part
        z = parts.double().cumsum(1).gather(1, part[:, None])[:, 0] - size * (1 - within)
        unknown = cells.missing[:, i] & (level < 0)
        return torch.where(unknown, torch.rand_like(z), z).to(h.dtype)


def _flat(value: Tensor) -> Tensor:
    """The rows of a batch of any shape."""
    return value.reshape(-1, value.shape[-1])

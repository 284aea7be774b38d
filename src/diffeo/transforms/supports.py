"""Supports: bounds, simplexes, increasing vectors and circles, which no sample leaves and outside which no density is.

Each is a transform on the data's side, from noise on the whole line to the support, and knows the shapes of both.
``as_support`` makes one of a constraint or a prior of ``torch.distributions``, of a name, of bounds, or of a list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
    VonMises,
    constraints,
)

from diffeo import ops
from diffeo.transforms.base import Transform, as_shape, sum_event

__all__ = ["Bounded", "Circle", "Concatenated", "Increasing", "Simplex", "Support", "as_support", "strictly_inside"]

Ends = float | Sequence[Any] | Tensor | None

MOST = 256  # turns of all angles together, over which a density is summed
OFF = 1e-5  # by how much the sum of a point of the simplex may differ from 1, for rounding


class Support(Transform):
    """A transform from noise onto a support: events of data have ``event_shape``, those of noise ``noise_shape``."""

    preprocesses = True
    event_shape: torch.Size

    @property
    def noise_shape(self) -> torch.Size:
        """The shape of one event of noise: that of the data, but on a simplex."""
        return self.event_shape

    @property
    def constraint(self) -> constraints.Constraint:
        """The support in the words of ``torch.distributions``; real numbers, where these have none for it."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def off_bounds(self, x: Tensor) -> Tensor:
        """Move elements that lie on a bound to the next number inside, where there is a density; no others.

        By rounding, draws of a prior lie on its bounds now and then.

        Args:
            x: ``(*batch, *event)``.
        """
        return x


def _table(value: Ends, shape: torch.Size, missing: float) -> Tensor:
    """Numbers ``shape`` in float64, of a number, a nested sequence or a tensor; None is the missing one."""

    def filled(each: Any) -> Any:
        if isinstance(each, Sequence):
            return [filled(one) for one in each]
        return missing if each is None else each

    table = torch.as_tensor(filled(value), dtype=torch.float64).detach().cpu()
    try:
        return table.expand(shape).clone()
    except RuntimeError:
        raise ValueError(f"expected a number or numbers of shape {tuple(shape)}, got {tuple(table.shape)}") from None


def _plain(table: Tensor) -> Any:
    """A table as nested lists, without infinities, which JSON does not have."""

    def emptied(each: Any) -> Any:
        return [emptied(one) for one in each] if isinstance(each, list) else each if math.isfinite(each) else None

    return emptied(table.tolist())


class Bounded(Support):
    r"""Each element between ``low``, l, and ``high``, h, of which either may be infinite; exact in the tails.

    .. math::
        \text{both:}\quad & x = l + (h - l)\, \Phi(z), \quad & \log|dx/dz| &= \log(h - l) - (z^2 + \log 2\pi) / 2 \\
        \text{low alone:}\quad & x = l + e^z, & \log|dx/dz| &= z \\
        \text{high alone:}\quad & x = h - e^{-z}, & \log|dx/dz| &= -z \\
        \text{neither:}\quad & x = z, & \log|dx/dz| &= 0

    :math:`\Phi` is the standard normal distribution function: standard normal noise becomes uniform on an interval, and
    layers that end like it in their tails have a density up to the bounds. Values that are generated lie strictly
    inside in the flow's own precision; on the bounds and outside, :math:`\log|dz/dx|` is -inf.

    Args:
        event_shape: the shape of one example, a number for vectors; ``()`` treats all elements alike.
        low: lower ends, a number or one per element, None or -inf for none.
        high: upper ends, likewise.

    Raises:
        ValueError: unless low < high in every element, further apart than neighbouring numbers of the default dtype.
    """

    def __init__(self, event_shape: int | Sequence[int], low: Ends = None, high: Ends = None) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        self.event_dim = len(self.event_shape)
        # In float64 whatever the flow's precision, so no buffers: a bound that was rounded once is another bound.
        self.low = _table(low, self.event_shape, -math.inf)
        self.high = _table(high, self.event_shape, math.inf)
        self._kept: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}
        *_, least, most = self._ends(torch.zeros(()))
        for a, b, fits in zip(*(each.flatten().tolist() for each in (self.low, self.high, least <= most)), strict=True):
            if not fits:
                raise ValueError(f"expected low < high, as far apart as {least.dtype} can tell, got {a} and {b}")
        lower, upper = self.low > -math.inf, self.high < math.inf
        kinds = ((lower & upper, _interval), (lower & ~upper, _above), (~lower & upper, _below))
        self._kinds = [(where, kind) for where, kind in kinds if where.any()]
        self._alike = any(bool(where.all()) for where, _ in self._kinds)  # all elements are of one kind

    def arguments(self) -> dict[str, Any]:
        """The shape and the ends, without infinities."""
        return {"event_shape": [*self.event_shape], "low": _plain(self.low), "high": _plain(self.high)}

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x from z, and clipped to the numbers inside."""
        low, high, least, most = self._ends(z)
        x, logs = self._map(z, (low, high), generate=True)
        return x.clamp(least, most), sum_event(logs, self.event_dim)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z from x, or from the number inside that is nearest."""
        low, high, least, most = self._ends(x)
        z, logs = self._map(x.clamp(least, most), (low, high), generate=False)
        outside = (x <= low) | (x >= high)
        return z, sum_event(logs.masked_fill(outside, -torch.inf), self.event_dim)

    @property
    def constraint(self) -> constraints.Constraint:
        """Bounds of one kind, or those of each element of a vector."""
        ends = [end.to(torch.get_default_dtype()) for end in (self.low, self.high)]
        if self._alike or not self._kinds:
            return constraints.independent(_bound(*ends), self.event_dim)
        if self.event_dim != 1:
            return super().constraint
        return _side_by_side([_bound(low, high) for low, high in zip(*ends, strict=True)], [1] * len(self.low))

    def off_bounds(self, x: Tensor) -> Tensor:
        """Move elements that lie on a bound to the next number inside."""
        low, high, least, most = self._ends(x)
        return torch.where(x == low, least, torch.where(x == high, most, x))

    def _ends(self, like: Tensor) -> tuple[Tensor, ...]:
        """The ends, and the least and the greatest number inside; kept, for a training asks at every step."""
        place = like.device, like.dtype
        if ops.tracing():  # what is recorded has no numbers
            return self._ends_at(*place)
        if place not in self._kept:
            with torch.inference_mode(False):  # or no training could use them
                self._kept[place] = self._ends_at(*place)
        return self._kept[place]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}  # of devices that another machine may lack

    def _ends_at(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        low, high = self.low.to(device, dtype), self.high.to(device, dtype)
        return low, high, *strictly_inside(low, high)

    def _map(self, value: Tensor, ends: tuple[Tensor, Tensor], *, generate: bool) -> tuple[Tensor, Tensor]:
        if self._alike:
            return self._kinds[0][1](value, *ends, generate)
        mapped, logs = value, torch.zeros_like(value)
        for where, kind in self._kinds:
            here = where.to(value.device)
            # Of the other elements something harmless: what is not selected must have finite gradients, too.
            low, high = (torch.where(here, end, other) for end, other in zip(ends, (0, 1), strict=True))
            each, log = kind(torch.where(here, value, 0.0 if generate else 0.5), low, high, generate)
            mapped, logs = torch.where(here, each, mapped), torch.where(here, log, logs)
        return mapped, logs


def _bound(low: Tensor, high: Tensor) -> Any:
    """The constraint of elements that all have the same ends."""
    if (high == math.inf).all():
        return constraints.real if (low == -math.inf).all() else constraints.greater_than(low)
    return constraints.less_than(high) if (low == -math.inf).all() else constraints.interval(low, high)


def _side_by_side(parts: Sequence[Any], sizes: Sequence[int]) -> constraints.Constraint:
    return constraints.independent(constraints.cat(parts, dim=-1, lengths=sizes), 1)


def strictly_inside(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest number strictly between the ends: finite, and beside 0 none that is denormal."""
    tiny = torch.finfo(low.dtype).tiny
    infinity = low.new_tensor(torch.inf)
    least, most = torch.nextafter(low, infinity), torch.nextafter(high, -infinity)
    return torch.where(low == 0, tiny, least), torch.where(high == 0, -tiny, most)


def _interval(value: Tensor, low: Tensor, high: Tensor, generate: bool) -> tuple[Tensor, Tensor]:
    """x = low + (high - low) Phi(z), from the nearer end, and back."""
    width = high - low
    if generate:
        lower = value <= 0
        # Phi of what is at most 0; PyTorch's ndtr is 1 + erf, and 0 far out.
        part = 0.5 * width * torch.special.erfc(torch.where(lower, -value, value) * math.sqrt(0.5))
        return torch.where(lower, low + part, high - part), width.log() - _half_square(value)
    below, above = value - low, high - value
    z = torch.special.ndtri((torch.minimum(below, above) / width).clamp_min(torch.finfo(value.dtype).tiny))
    return torch.where(below <= above, z, -z), _half_square(z) - width.log()


def _half_square(z: Tensor) -> Tensor:
    return 0.5 * (z.square() + math.log(2 * math.pi))


def _above(value: Tensor, low: Tensor, high: Tensor, generate: bool) -> tuple[Tensor, Tensor]:
    """x = low + exp(z), and back."""
    if generate:
        return low + _exp(value), value
    z = (value - low).log()
    return z, -z


def _below(value: Tensor, low: Tensor, high: Tensor, generate: bool) -> tuple[Tensor, Tensor]:
    """x = high - exp(-z), and back."""
    if generate:
        return high - _exp(-value), -value
    z = -(high - value).log()
    return z, z


def _exp(value: Tensor) -> Tensor:
    """exp(value), finite."""
    return value.clamp_max(math.log(torch.finfo(value.dtype).max) - 1).exp()


class Simplex(Support):
    r"""Positive vectors that sum to 1, by stick breaking.

    .. math::
        x_k = s_k (1 - x_1 - \dots - x_{k-1}), \quad s_k = \sigma(z_k - \log(D - k)), \qquad
        \log\left|\frac{dx}{dz}\right| = \sum_{k=1}^D \log x_k

    for k < D; the last element is the rest, and z = 0 is the centre. The density is that of the first D - 1 elements,
    as in ``torch.distributions.Dirichlet``. A point whose sum is not 1, up to rounding, or that has an element that is
    not positive, has no image: its :math:`\log|dz/dx|` is -inf.

    Args:
        size: the number D of elements, at least 2; noise has one less.

    Raises:
        ValueError: for another size.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 2:
            raise ValueError(f"expected a simplex of at least 2 elements, got {size}")
        self.event_shape = as_shape(size)

    @property
    def noise_shape(self) -> torch.Size:
        """One number less than the data."""
        return torch.Size((self.event_shape[0] - 1,))

    @property
    def constraint(self) -> constraints.Constraint:
        """That of the simplex."""
        return constraints.simplex

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Break off part after part, in logarithms."""
        shifted = z - self._shift(z)
        rest = F.pad(F.logsigmoid(-shifted).cumsum(-1), (1, 0))  # log(1 - x_1 - ... - x_{k-1}), k = 1 ... D
        log_x = rest + F.pad(F.logsigmoid(shifted), (0, 1))
        return log_x.exp().clamp_min(torch.finfo(z.dtype).tiny), log_x.sum(-1)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z_k = log x_k - log(x_{k+1} + ... + x_D) + log(D - k)."""
        inside = (x > 0).all(-1) & ((x.sum(-1) - 1).abs() <= OFF)
        positive = x.clamp_min(torch.finfo(x.dtype).tiny)
        log_x, rest = positive.log(), positive.flip(-1).cumsum(-1).flip(-1)[..., 1:].log()
        return log_x[..., :-1] - rest + self._shift(x), torch.where(inside, -log_x.sum(-1), -torch.inf)

    def _shift(self, like: Tensor) -> Tensor:
        return torch.arange(self.event_shape[0] - 1, 0, -1, dtype=like.dtype, device=like.device).log()


class Increasing(Support):
    r"""Increasing vectors, from a first element that is free or above ``low``.

    .. math::
        x_k = x_{k-1} + e^{z_k}, \qquad x_1 = z_1 \ \text{or}\ x_0 = \mathrm{low}, \qquad
        \log\left|\frac{dx}{dz}\right| = \sum_k z_k

    The sum is over the exponents. A vector that does not increase strictly has no image: its :math:`\log|dz/dx|` is
    -inf.

    Args:
        event_shape: the size n of a vector, or ``(n,)``.
        low: a bound below the first, None or -inf for none.

    Raises:
        ValueError: for events that are no vectors.
    """

    def __init__(self, event_shape: int | Sequence[int], low: float | None = None) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        if len(self.event_shape) != 1:
            raise ValueError(f"expected increasing vectors, got events of shape {tuple(self.event_shape)}")
        self.low = -math.inf if low is None else low

    def arguments(self) -> dict[str, Any]:
        """The shape and the bound, which is None and not infinite."""
        return {"event_shape": [*self.event_shape], "low": self.low if math.isfinite(self.low) else None}

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add step by step, where a step below the resolution of floating point is one to the next number."""
        first, *steps = z.unbind(-1)
        x = [first if self.low == -math.inf else self._next(torch.full_like(first, self.low), first)]
        for step in steps:
            x.append(self._next(x[-1], step))
        return torch.stack(x, -1), self._logs(z).sum(-1)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z_k = log(x_k - x_{k-1})."""
        before = F.pad(x[..., :-1], (1, 0), value=0.0 if self.low == -math.inf else self.low)
        steps = x - before
        logs = torch.where(steps > 0, steps, 1).log()
        z = torch.cat([x[..., :1], logs[..., 1:]], -1) if self.low == -math.inf else logs
        valid = (self._logs(steps) > 0).all(-1)
        return z, torch.where(valid, -self._logs(z).sum(-1), -torch.inf)

    def _logs(self, value: Tensor) -> Tensor:
        """The elements that are steps: all, or all but the first."""
        return value[..., 1:] if self.low == -math.inf else value

    @staticmethod
    def _next(before: Tensor, log_step: Tensor) -> Tensor:
        most = torch.finfo(before.dtype).max
        least = torch.nextafter(before.detach(), torch.full_like(before, most))
        return torch.maximum(before + _exp(log_step), least).clamp_max(most)


class Circle(Support):
    r"""Angles in [low, low + period), with densities that are as smooth at the cut as elsewhere.

    No bijection of the line and the circle has such densities, so noise is wrapped around the circle twice:

    .. math::
        x = \mathrm{low} + \mathrm{period} \cdot \mathrm{frac}(t), \quad
        t = 2 \sigma(0.8\, z) - \tfrac{1}{2} \in (-\tfrac{1}{2}, \tfrac{3}{2}), \qquad
        p(x) = \sum_z p(z) \left|\frac{dz}{dx}\right|

    over the two z that x comes from, whose t differ by 1.

    The sum is exact, and smooth wherever the density of t falls to 0 at the ends, as for all noise with tails like the
    normal or the logistic distribution's. Standard normal noise is nearly uniform on the circle. An angle is taken
    modulo the period, so the density is periodic. With m angles, :math:`2^m` densities are summed. ``inverse`` gives
    the z of t = frac(t).

    Args:
        event_shape: the shape of one example, a number for vectors.
        low: the least angle, a number or one per element.
        period: of the angles, likewise.

    Raises:
        ValueError: for ends that are not finite, periods that are not positive, or more than eight angles.
    """

    SLOPE = 0.8  # at which normal noise is uniform on the circle to about 4 %

    def __init__(self, event_shape: int | Sequence[int], low: Ends = -math.pi, period: Ends = 2 * math.pi) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        self.event_dim = len(self.event_shape)
        self.low = _table(low, self.event_shape, math.inf)
        self.period = _table(period, self.event_shape, math.inf)
        if not (self.low.isfinite().all() and self.period.isfinite().all() and (self.period > 0).all()):
            raise ValueError("expected finite angles and positive periods")
        _expect_few(self.branches)

    @property
    def branches(self) -> int:
        """Two turns of each angle."""
        return int(2 ** self.event_shape.numel())

    @property
    def constraint(self) -> constraints.Constraint:
        """The interval of angles."""
        low, high = (end.to(torch.get_default_dtype()) for end in (self.low, self.low + self.period))
        return constraints.independent(constraints.interval(low, high), self.event_dim)

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Wrap z around the circle; the log-determinant is that of the turn that z lies on."""
        low, period = self.low.to(z), self.period.to(z)
        turns = 2 * torch.sigmoid(self.SLOPE * z) - 0.5
        x = low + period * (turns - turns.detach().floor())
        x = x.clamp(*strictly_inside(low, (self.low + self.period).to(z)))
        logs = (2 * self.SLOPE * period).log() - F.softplus(self.SLOPE * z) - F.softplus(-self.SLOPE * z)
        return x, sum_event(logs, self.event_dim)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the z of the turn in the middle."""
        part = self._part(x)
        z, logs = self._unwrapped(part + 0.5, 1.5 - part)
        return z, sum_event(logs, self.event_dim)

    def preimages(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the z of either turn of every angle, with log|dz/dx|."""
        part = self._part(x)
        first = self._unwrapped(part + 0.5, 1.5 - part)
        below = part < 0.5  # the other turn is the one after or before, from -1/2 to 3/2
        second = self._unwrapped(torch.where(below, part + 1.5, part - 0.5), torch.where(below, 0.5 - part, 2.5 - part))
        count = self.event_shape.numel()
        bits = torch.arange(self.branches, device=x.device)[:, None] >> torch.arange(count, device=x.device) & 1
        turn = bits.bool().reshape(self.branches, *(1,) * (x.dim() - self.event_dim), *self.event_shape)
        z, logs = (torch.where(turn, other, one) for one, other in zip(first, second, strict=True))
        return z, sum_event(logs, self.event_dim)

    def _part(self, x: Tensor) -> Tensor:
        """Which part of the way around an angle is, in [0, 1]: 1 only by rounding, where it is as good as 0."""
        return torch.remainder((x - self.low.to(x)) / self.period.to(x), 1)

    def _unwrapped(self, below: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """z and log|dz/dx|, from the turns to either end, which sum to 2."""
        tiny = torch.finfo(below.dtype).tiny
        p, q = ((each / 2).clamp_min(tiny).log() for each in (below, above))
        return (p - q) / self.SLOPE, -(2 * self.SLOPE * self.period.to(p)).log() - p - q


class Concatenated(Support):
    """Supports of the elements of a vector, one after another; log-determinants add.

    Args:
        parts: supports of vectors.

    Raises:
        ValueError: for none, or supports of other events than vectors.
        TypeError: for parts that are no supports.
    """

    def __init__(self, parts: Sequence[Support]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("expected at least one support, got none")
        for part in parts:
            if not isinstance(part, Support):
                raise TypeError(f"expected supports such as Bounded(2, low=0), got {type(part).__name__}")
            if len(part.event_shape) != 1:
                raise ValueError(f"expected supports of vectors, got one of events of shape {tuple(part.event_shape)}")
        self.parts: Any = nn.ModuleList(parts)
        self.event_shape = torch.Size((sum(part.event_shape[0] for part in parts),))
        _expect_few(self.branches)

    def arguments(self) -> dict[str, Any]:
        """The parts there are now."""
        return {"parts": [*self.parts]}

    @property
    def noise_shape(self) -> torch.Size:
        """As many numbers as all parts have."""
        return torch.Size((sum(part.noise_shape[0] for part in self.parts),))

    @property
    def branches(self) -> int:
        """Those of all parts, in every combination."""
        return math.prod(part.branches for part in self.parts)

    @property
    def constraint(self) -> constraints.Constraint:
        """Those of all parts, where each is one of single elements."""
        inner = [part.constraint.base_constraint for part in self.parts if part.constraint is not constraints.simplex]
        if len(inner) < len(self.parts):
            return super().constraint
        return _side_by_side(inner, [part.event_shape[0] for part in self.parts])

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply each part to its numbers."""
        return self._joined([p.forward_and_log_det(v, context) for p, v in self._split(z, "noise_shape")])

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the inverse of each part to its elements."""
        return self._joined([p.inverse_and_log_det(v, context) for p, v in self._split(x, "event_shape")])

    def preimages(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Every combination of those of the parts."""
        each, count = [], self.branches
        inner = count
        for part, value in self._split(x, "event_shape"):
            inner //= part.branches
            index = torch.arange(count, device=x.device) // inner % part.branches
            z, log_det = part.preimages(value, context)
            each.append((z[index], log_det[index]))
        return self._joined(each)

    def off_bounds(self, x: Tensor) -> Tensor:
        """Move elements that lie on a bound to the next number inside."""
        return torch.cat([part.off_bounds(value) for part, value in self._split(x, "event_shape")], -1)

    def _split(self, value: Tensor, shape: str) -> list[tuple[Any, Tensor]]:
        sizes = [getattr(part, shape)[0] for part in self.parts]
        return [*zip(self.parts, value.split(sizes, -1), strict=True)]

    @staticmethod
    def _joined(each: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        values, log_dets = zip(*each, strict=True)
        return torch.cat(values, -1), torch.stack(log_dets).sum(0)


def _expect_few(branches: int) -> None:
    if branches > MOST:
        raise ValueError(f"expected at most {MOST.bit_length() - 1} angles, whose turns are summed over")


def as_support(what: Any, features: int | Sequence[int] | None = None) -> Support:
    """Return the transform from noise onto a support, which knows the shapes of data and noise.

    Args:
        what: one of

            - a name: ``"real"``, ``"positive"``, ``"unit"`` (the interval of 0 and 1), ``"circle"`` (angles from -pi to
              pi), ``"degrees"`` (from 0 to 360), ``"simplex"``, ``"ordered"``;
            - bounds (low, high), each a number, a tensor with one per element, or None for none;
            - a constraint of ``torch.distributions.constraints``, or Pyro's of ordered vectors;
            - a distribution, such as a prior, for its support; where it has no event, its batch is one;
            - a pair (any of these, how many elements);
            - a sequence of these, for elements one after another;
            - a ``Support``.
        features: how many elements, or their shape; by default as many as there are bounds, or as a distribution has.

    Raises:
        ValueError: for a discrete support, one that is none of these, or one of another shape.
        TypeError: for anything else.

    Example:
        >>> support = diffeo.transforms.as_support(["degrees", (0, None), ("simplex", 3)])
        >>> support.event_shape, support.noise_shape  # three shares are two numbers
        (torch.Size([5]), torch.Size([4]))
        >>> x = support(torch.randn(10, 4))
        >>> bool((x[:, 1] > 0).all()), torch.allclose(x[:, 2:].sum(1), torch.ones(10))
        (True, True)
    """
    shape = None if features is None else as_shape(features)
    support = _support(what, shape)
    if shape is not None and support.event_shape != shape:
        raise ValueError(f"expected a support of events of shape {tuple(shape)}, got {tuple(support.event_shape)}")
    return support


def _support(what: Any, shape: torch.Size | None) -> Support:
    if isinstance(what, Support):
        return what
    if isinstance(what, str):
        if what not in NAMES:
            raise ValueError(f"expected a support among {', '.join(NAMES)}, got {what!r}")
        return NAMES[what](shape)
    if isinstance(what, constraints.Constraint):
        return _of_constraint(what, shape)
    if isinstance(what, Distribution):
        return _of_distribution(what, shape)
    if isinstance(what, Sequence) and len(what):
        if len(what) == 2 and all(each is None or isinstance(each, int | float | Tensor) for each in what):
            low, high = what
            return _bounded(low, high, shape)
        if len(what) == 2 and isinstance(what[1], int):
            return as_support(*what)
        return _concatenated([as_support(each) for each in what])
    raise TypeError(
        "expected a support: a name, bounds (low, high), a constraint, a distribution, or a list of these; "
        f"got {what!r}"
    )


def _bounded(low: Ends, high: Ends, shape: torch.Size | None) -> Support:
    if shape is None:
        ends = [torch.as_tensor(end).shape for end in (low, high) if end is not None]
        shape = max([torch.Size((1,)), *ends], key=torch.Size.numel)
    return Bounded(shape, low, high)


def _vector(make: Callable[..., Support], name: str) -> Callable[[torch.Size | None], Support]:
    """Of a support of vectors, whose size must be known."""

    def sized(shape: torch.Size | None) -> Support:
        if shape is None or len(shape) != 1:
            raise ValueError(f"expected the number of elements of {name}, such as (support, 3), got {shape}")
        return make(shape[0])

    return sized


NAMES: dict[str, Callable[[torch.Size | None], Support]] = {
    "real": lambda shape: _bounded(None, None, shape),
    "positive": lambda shape: _bounded(0.0, None, shape),
    "unit": lambda shape: _bounded(0.0, 1.0, shape),
    "circle": lambda shape: Circle(torch.Size((1,)) if shape is None else shape),
    "degrees": lambda shape: Circle(torch.Size((1,)) if shape is None else shape, 0.0, 360.0),
    "simplex": _vector(Simplex, "a simplex"),
    "ordered": _vector(Increasing, "an ordered vector"),
}


def _concatenated(parts: Sequence[Support]) -> Support:
    """The supports one after another, neighbouring bounds as one."""
    joined: list[Support] = []
    for part in parts:
        if joined and all(type(each) is Bounded and len(each.event_shape) == 1 for each in (joined[-1], part)):
            last = joined.pop()
            low, high = (torch.cat([getattr(each, end) for each in (last, part)]) for end in ("low", "high"))
            part = Bounded(len(low), low, high)
        joined.append(part)
    return joined[0] if len(joined) == 1 else Concatenated(joined)


def _of_constraint(what: Any, shape: torch.Size | None) -> Support:
    """Of a constraint; which those are that have no names of their own, their attributes tell."""
    try:
        discrete = what.is_discrete
    except NotImplementedError:
        raise ValueError(f"expected a constraint with values, got {what}; pass the distribution") from None
    if discrete:
        raise ValueError(f"expected a continuous support, got {what}: a flow is a density of real numbers")
    if isinstance(what, constraints.independent):
        return _of_constraint(what.base_constraint, shape)
    if isinstance(what, constraints.cat):
        return _concatenated([as_support(each, length) for each, length in zip(what.cseq, what.lengths, strict=True)])
    if isinstance(what, constraints.stack):
        return _concatenated([as_support(each, 1) for each in what.cseq])
    if isinstance(what, constraints.MixtureSameFamilyConstraint):
        base: Any = what.base_constraint
        dim = -1  # which of the dimensions of its bounds is that of the components
        while isinstance(base, constraints.independent):
            base, dim = base.base_constraint, dim - base.reinterpreted_batch_ndims
        ends = _bounds(base)
        if ends is None:
            return _of_constraint(base, shape)
        low, high = (end if isinstance(end, Tensor) and end.dim() >= -dim else None for end in ends)
        return _bounded(ends[0] if low is None else low.amin(dim), ends[1] if high is None else high.amax(dim), shape)
    ends = _bounds(what)
    if ends is not None:
        return _bounded(*ends, shape)
    if what is constraints.simplex:
        return NAMES["simplex"](shape)
    name = type(what).__name__.strip("_")  # Pyro's are known by name: nothing here may need Pyro
    if name == "OrderedVector":
        return NAMES["ordered"](shape)
    if name == "PositiveOrderedVector":
        return _vector(lambda size: Increasing(size, 0.0), "an ordered vector")(shape)
    raise ValueError(f"expected a constraint of bounds, a simplex or ordered vectors, got {what}")


def _bounds(what: constraints.Constraint) -> tuple[Ends, Ends] | None:
    """The bounds of each element, or None for a constraint of another kind."""
    ends = [getattr(what, name, None) for name in ("lower_bound", "upper_bound")]
    return (ends[0], ends[1]) if what is constraints.real or any(end is not None for end in ends) else None


def _of_distribution(what: Any, shape: torch.Size | None) -> Support:
    """Of a distribution, whose class says of angles and of affine maps what its constraint does not."""
    if shape is None:
        shape = what.event_shape or what.batch_shape or torch.Size((1,))
    while isinstance(what, Independent | MixtureSameFamily):
        if isinstance(what, MixtureSameFamily) and not isinstance(what.component_distribution, VonMises):
            break
        what = what.base_dist if isinstance(what, Independent) else what.component_distribution
    if isinstance(what, VonMises):
        return Circle(shape)
    if hasattr(what, "dists"):  # sbi's MultipleIndependent
        return _concatenated([as_support(each) for each in what.dists])
    if type(what).support is TransformedDistribution.support:
        base, maps = as_support(what.base_dist, shape), what.transforms
        if isinstance(base, Bounded) and all(each.bijective and each.domain.event_dim == 0 for each in maps):
            low, high = base.low, base.high
            for each in maps:
                ends = each(low), each(high)
                low, high = torch.minimum(*ends), torch.maximum(*ends)
            return _bounded(low, high, shape)
    try:
        constraint = what.support
    except NotImplementedError:
        raise ValueError(f"expected a distribution with a support, got {what}") from None
    return _of_constraint(constraint, shape)

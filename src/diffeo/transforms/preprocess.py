"""Preprocessing as transforms on the data's side, so that a log-likelihood is always in the data's own units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffeo.transforms.base import DataDependent, Transform, as_shape, sum_event
from diffeo.transforms.univariate import rational_quadratic, rational_quadratic_inverse

__all__ = ["Dequantize", "Gaussianize", "Logit", "Rescale", "Standardize", "Whiten"]

LARGEST = 1e30  # of the ends of a range: float32 has room for arithmetic


class Standardize(DataDependent):
    r"""Each element with mean 0 and standard deviation 1 on the noise's side.

    .. math:: x = s z + m, \qquad \log\left|\det \frac{\partial x}{\partial z}\right| = \sum_i \log s_i

    Mean and standard deviation come from the first training batch (``diffeo.fit`` shows it many training rows first)
    and are part of the state. A constant element keeps std 1.

    Args:
        event_shape: the shape of one example, a number for vectors; a size of 1 stands for any, with one mean and std
            for all of it: ``(channels, 1)`` normalizes channels over time.
    """

    preprocesses = True

    mean: Tensor
    std: Tensor

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        shape = as_shape(event_shape)
        self.event_dim = len(shape)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def initialize(self, x: Tensor) -> None:
        """Take mean and standard deviation over the rows."""
        shared = [dim for dim, size in enumerate(self.std.shape, start=1) if size == 1]
        rows = x.movedim(shared, list(range(1, len(shared) + 1))).flatten(0, len(shared))
        mean, std = _moments(rows)
        self.mean.copy_(mean.reshape(self.mean.shape))
        self.std.copy_(std.reshape(self.std.shape))

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x = std z + mean."""
        return self.forward(z), self._log_std(z)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z = (x - mean) / std."""
        return self.inverse(x), -self._log_std(x)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """x = std z + mean."""
        return torch.addcmul(self.mean, z, self.std)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """z = (x - mean) / std."""
        self._see(x)
        return (x - self.mean) / self.std

    def _log_std(self, value: Tensor) -> Tensor:
        batch = self._batch_shape(value)
        return self.std.log().expand(value.shape[len(batch) :]).sum().expand(batch)


def _moments(value: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each element, without a few entries absurdly far from the rest: a million spreads.

    A single entry of 1e30 would otherwise set the scale for good. What is more than a fiftieth is not left out: where
    two clusters lie that far from each other, both are data. In double precision: the squares of float32's largest
    and smallest numbers are none of its own.
    """
    value = value.double()
    middle = value.median(0).values
    deviation = value - middle  # exactly 0 for a constant element, and precise however large the values
    far = deviation.abs()
    spread = far.median(0).values
    keep = (far <= 1e6 * spread) | (spread == 0)
    keep = keep | ((~keep).sum(0) > min(max(2, len(value) // 50), len(value) // 4))
    deviation = torch.where(keep, deviation, 0)
    count = keep.sum(0)
    shift = deviation.sum(0) / count
    std = (torch.where(keep, deviation - shift, 0).square().sum(0) / count).sqrt()
    return middle + shift, torch.where(std > 0, std, 1)


class Whiten(DataDependent):
    r"""Elements without linear correlation on the noise's side, by the covariance of the data.

    .. math::
        x = L z + m, \quad \mathrm{Cov}(x) = L L^T, \qquad
        \log\left|\det \frac{\partial x}{\partial z}\right| = \sum_i \log L_{ii}

    L is lower triangular, so :math:`z_i` knows of :math:`x_1, \dots, x_i` alone: the order of the columns is kept. A
    Gaussian of any covariance becomes the standard one. Columns that determine each other linearly count as if each had
    a millionth of its variance of its own.

    Args:
        event_shape: the size n of a vector, or ``(n,)``.

    Raises:
        ValueError: for events that are no vectors.
    """

    preprocesses = True

    RIDGE = 1e-6  # of a column's variance

    mean: Tensor
    factor: Tensor

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        shape = as_shape(event_shape)
        if len(shape) != 1:
            raise ValueError(f"expected vectors to whiten, got events of shape {tuple(shape)}")
        (size,) = shape
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("factor", torch.eye(size))

    def initialize(self, x: Tensor) -> None:
        """Take mean and covariance over the rows."""
        mean, std = _moments(x)
        standardized = (x - mean) / std
        standardized = torch.where(standardized.abs() <= 1e6, standardized, 0)  # as in the moments
        correlation = standardized.mT @ standardized / len(x)
        diagonal = correlation.diagonal()
        diagonal.copy_(torch.where(diagonal > 0, diagonal + self.RIDGE, 1))  # a constant column keeps its scale
        self.mean.copy_(mean)
        self.factor.copy_(std[:, None] * torch.linalg.cholesky(correlation))

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x = L z + mean."""
        return F.linear(z, self.factor, self.mean), self._log_diagonal(z)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z = L^-1 (x - mean), by substitution."""
        self._see(x)
        if torch.compiler.is_exporting():  # the inverse is a constant there, and other runtimes know no substitution
            eye = torch.eye(len(self.mean), dtype=x.dtype, device=x.device)
            inverse = torch.linalg.solve_triangular(self.factor, eye, upper=False)
            return F.linear(x - self.mean, inverse), -self._log_diagonal(x)
        centred = (x - self.mean).unsqueeze(-1)
        return torch.linalg.solve_triangular(self.factor, centred, upper=False).squeeze(-1), -self._log_diagonal(x)

    def _log_diagonal(self, value: Tensor) -> Tensor:
        return self.factor.diagonal().log().sum().expand(self._batch_shape(value))


class Gaussianize(DataDependent):
    r"""Each element's own distribution becomes a standard normal; what remains is dependence.

    .. math:: z_i = g_i(x_i)

    :math:`g_i` is the monotone rational-quadratic curve through K pairs of the quantile of :math:`x_i` at level
    :math:`\Phi(z_k)` and :math:`z_k`, evenly spaced, and goes on linearly outside. Slopes between knots stay within [1
    / max_slope, max_slope], so that atoms and gaps in the data make neither spikes nor holes in the map. The quantiles
    come from the first training batch, which ``diffeo.fit`` makes of many training rows. Put it after ``Standardize``.
    The curve: Gregory and Delbourgo 1982; as a layer: Meng et al. 2020 (Gaussianization flows, arXiv:2003.01941).

    Args:
        event_shape: the shape of one example, a number for vectors.
        knots: the number K of quantiles.
        max_slope: bound of the slope from knot to knot, and of its inverse.

    Raises:
        ValueError: for fewer than two knots, or a largest slope of at most 1.
    """

    preprocesses = True

    knots_x: Tensor
    knots_z: Tensor
    slopes: Tensor

    def __init__(self, event_shape: int | Sequence[int], knots: int = 33, max_slope: float = 100.0) -> None:
        super().__init__()
        if knots < 2:
            raise ValueError(f"expected knots >= 2, got {knots}")
        if not max_slope > 1:
            raise ValueError(f"expected max_slope > 1, got {max_slope}")
        shape = as_shape(event_shape)
        self.event_dim = len(shape)
        self.max_slope = max_slope
        ladder = torch.linspace(-3, 3, knots).expand(*shape, knots)
        self.register_buffer("knots_x", ladder.clone())
        self.register_buffer("knots_z", ladder.clone())
        self.register_buffer("slopes", torch.ones(*shape, knots))

    def initialize(self, x: Tensor) -> None:
        """Take the quantiles of the rows."""
        rows, count = x.double(), self.knots_x.shape[-1]
        # The outermost knots leave about five rows outside on each side.
        top = torch.special.ndtri(torch.tensor(1 - 5.5 / (len(rows) + 11), dtype=torch.float64)).item()
        z = torch.linspace(-top, top, count, dtype=torch.float64, device=rows.device)
        order = rows.sort(0).values
        position = torch.special.ndtr(z) * (len(rows) - 1)
        below = position.floor().long().clamp(0, len(rows) - 2)
        part = (position - below).reshape(-1, *(1,) * self.event_dim)
        quantiles = torch.lerp(order[below], order[below + 1], part).movedim(0, -1)  # (*event, K)
        step = 2 * top / (count - 1)
        width = quantiles.diff(dim=-1).clamp(step / self.max_slope, step * self.max_slope)
        knots = torch.cat([torch.zeros_like(width[..., :1]), width.cumsum(-1)], -1)
        middle = slice(count // 2, count // 2 + 1)
        slope = step / width
        slopes = torch.cat([slope[..., :1], (slope[..., :-1] * slope[..., 1:]).sqrt(), slope[..., -1:]], -1)
        self.knots_x.copy_(knots + (quantiles - knots)[..., middle])
        self.knots_z.copy_(z.expand_as(knots))
        self.slopes.copy_(slopes)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z = g(x)."""
        self._see(x)
        z, log_slopes = self.normalize(x)
        return z, sum_event(log_slopes, self.event_dim)

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x = g^-1(z)."""
        x, log_slopes = self.generate(z)
        return x, sum_event(log_slopes, self.event_dim)

    def normalize(self, x: Tensor, place: Any = ...) -> tuple[Tensor, Tensor]:
        r""":math:`z = g(x)` and :math:`\log dz_i/dx_i` of each element, both of the shape of x.

        Args:
            x: values of the elements at ``place``, all by default.
            place: an index of the event.
        """
        return self._map(x, place, generate=False)

    def generate(self, z: Tensor, place: Any = ...) -> tuple[Tensor, Tensor]:
        r""":math:`x = g^{-1}(z)` and :math:`\log dx_i/dz_i` of each element, both of the shape of z.

        Args:
            z: noise of the elements at ``place``, all by default.
            place: an index of the event.
        """
        return self._map(z, place, generate=True)

    def _map(self, value: Tensor, place: Any, *, generate: bool) -> tuple[Tensor, Tensor]:
        tables = knots_x, knots_z, rates = self.knots_x[place], self.knots_z[place], self.slopes[place]
        knots, slopes, curve = (
            (knots_z, 1 / rates, rational_quadratic_inverse) if generate else (knots_x, rates, rational_quadratic)
        )
        low, high = knots[..., 0], knots[..., -1]
        clipped = torch.minimum(torch.maximum(value, low), high)
        index = (clipped[..., None] >= knots[..., 1:-1]).sum(-1, keepdim=True)
        entries = *tables[:2], *(each.diff() for each in tables[:2]), rates[..., :-1], rates[..., 1:]
        corners = (entry.expand(*value.shape, -1).gather(-1, index).squeeze(-1) for entry in entries)
        mapped, log_slope = curve(clipped, *corners)
        outer = torch.where(value < low, slopes[..., 0], slopes[..., -1])
        return torch.addcmul(mapped, value - clipped, outer), torch.where(value == clipped, log_slope, outer.log())


class Rescale(Transform):
    r"""A fixed range from ``low``, l, to ``high``, h, becomes [0, 1].

    .. math:: z = \frac{x - l}{h - l}, \qquad \log\left|\det \frac{\partial z}{\partial x}\right| = -D \log(h - l)

    ``Rescale(shape, 0, 256)`` after ``Dequantize`` brings pixels of 0 .. 255 to [0, 1], as NICE and most papers do.

    Args:
        event_shape: the shape of one example, a number for vectors.
        low: what becomes 0.
        high: what becomes 1.

    Raises:
        ValueError: unless low < high, both within 1e30.
    """

    preprocesses = True

    def __init__(self, event_shape: int | Sequence[int], low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        _check_range(low, high)
        shape = as_shape(event_shape)
        self.event_dim = len(shape)
        self.low, self.width = low, high - low
        self.log_det = shape.numel() * math.log(self.width)  # of generation

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x = low + (high - low) z."""
        return self.low + self.width * z, z.new_full(self._batch_shape(z), self.log_det)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z = (x - low) / (high - low)."""
        return (x - self.low) / self.width, x.new_full(self._batch_shape(x), -self.log_det)


def _check_range(low: float, high: float) -> None:
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"expected low < high, got {low} and {high}")
    if max(abs(low), abs(high)) > LARGEST:
        raise ValueError(f"expected ends within {LARGEST:g}, got {low} and {high}")


class Logit(Transform):
    r"""A bounded range from ``low``, l, to ``high``, h, becomes the whole line.

    .. math::
        z = \log \frac{p}{1 - p}, \quad p = \alpha + (1 - 2 \alpha) \frac{x - l}{h - l}, \qquad
        \log\left|\frac{dz}{dx}\right| = \log \frac{1 - 2 \alpha}{h - l} - \log p - \log(1 - p)

    Data outside (low, high) by more than alpha's margin have no image: their log-likelihood is -inf (the density there
    is zero). Papamakarios et al. 2017 (arXiv:1705.07057) use alpha = 1e-6 for MNIST.

    Args:
        event_shape: the shape of one example, a number for vectors.
        low: lower end of the range.
        high: upper end.
        alpha: margin that keeps the ends finite, in (0, 0.5).

    Raises:
        ValueError: unless low < high, both within 1e30, or for another alpha.
    """

    preprocesses = True

    def __init__(
        self, event_shape: int | Sequence[int], low: float = 0.0, high: float = 1.0, alpha: float = 1e-6
    ) -> None:
        super().__init__()
        _check_range(low, high)
        if not 0 < alpha < 0.5:
            raise ValueError(f"expected 0 < alpha < 0.5, got {alpha}")
        self.event_dim = len(as_shape(event_shape))
        self.low, self.high, self.alpha = low, high, alpha

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x = low + (high - low) (sigmoid(z) - alpha) / (1 - 2 alpha)."""
        stretch = (self.high - self.low) / (1 - 2 * self.alpha)
        x = self.low + stretch * (torch.sigmoid(z) - self.alpha)
        # log sigmoid(z) + log sigmoid(-z), exact in the tails
        log_det = math.log(stretch) - F.softplus(z) - F.softplus(-z)
        return x, sum_event(log_det, self.event_dim)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z = logit(p)."""
        stretch = (self.high - self.low) / (1 - 2 * self.alpha)
        p = self.alpha + (x - self.low) / stretch
        q = self.alpha + (self.high - x) / stretch  # 1 - p, without cancellation near the upper end
        tiny = torch.finfo(x.dtype).tiny
        valid = (p > 0) & (q > 0)
        log_p, log_q = p.clamp_min(tiny).log(), q.clamp_min(tiny).log()
        log_det = torch.where(valid, -math.log(stretch) - log_p - log_q, -torch.inf)
        return log_p - log_q, sum_event(log_det, self.event_dim)


class Dequantize(Transform):
    r"""Each discrete value is spread over its cell, whose width is the step h.

    .. math:: z = x + h u, \quad u \sim U[0, 1), \qquad E_u \log p(x + h u) \le \log \frac{P(x)}{h}

    Going back, x is the cell that holds z. The density of x + h u, averaged over u, is the probability P of the value
    divided by its step, so by Jensen's inequality its mean logarithm is a lower bound on the discrete log-likelihood
    (in units of one step). Elements of step 0 are continuous and pass unchanged.

    Where :math:`|x| / h` exceeds about 1e5, float32 itself rounds across cells.

    This is the one transform that is random (the draw follows torch's global generator) and no bijection: x -> z -> x
    is exact, z -> x -> z is exact up to the cell. Theis et al. 2016, arXiv:1511.01844.

    Args:
        event_shape: the shape of one example, a number for vectors.
        step: the distance between neighbouring values, 0 for continuous elements; a nested sequence gives one per
            element, a number the same for all.
        low: a value of the grid.

    Raises:
        ValueError: for steps that are negative or not finite, or all 0.
    """

    preprocesses = True

    step: Tensor
    low: Tensor

    def __init__(
        self, event_shape: int | Sequence[int], step: float | Sequence[float] = 1.0, low: float | Sequence[float] = 0.0
    ) -> None:
        super().__init__()
        shape = as_shape(event_shape)
        self.event_dim = len(shape)
        for name, value in (("step", step), ("low", low)):
            table = torch.as_tensor(value, dtype=torch.get_default_dtype()).expand(shape).clone()
            self.register_buffer(name, table)
        if not (torch.isfinite(self.step).all() and (self.step >= 0).all()):
            raise ValueError("expected steps that are finite and not negative")
        if self.step.numel() and not (self.step > 0).any():
            raise ValueError("expected a step above 0 for one element at least, got none: there is nothing to spread")
        self.noise: Tensor | None = None  # u for all rows alike, in place of draws; set by ``Flow.log_mass``

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x = low + step floor((z - low) / step)."""
        safe = torch.where(self.step > 0, self.step, 1)
        x = torch.addcmul(self.low, safe, torch.floor((z - self.low) / safe))
        return torch.where(self.step > 0, x, z), z.new_zeros(self._batch_shape(z))

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z = x + step u."""
        noise = torch.rand_like(x) if self.noise is None else self.noise.to(x)
        return torch.addcmul(x, self.step, noise), x.new_zeros(self._batch_shape(x))

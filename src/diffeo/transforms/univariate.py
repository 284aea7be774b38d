"""Monotone one-dimensional maps with parameters: stateless, elementwise, usable in every structure.

Every map takes its parameters in one tensor ``params`` of shape ``(size, *z.shape)`` (or broadcastable to it): the
parameter index leads, so that each parameter is a contiguous slice. With all parameters zero every map is the identity.

Maps in ``UNIVARIATES`` have a name, by which recipes, the command line and stored runs know them.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffeo import ops
from diffeo.ops import MapSpec
from diffeo.ops.reference.network import soft_bound
from diffeo.ops.reference.roots import newton_or_half

__all__ = [
    "UNIVARIATES",
    "Affine",
    "Composed",
    "Gated",
    "MixtureOfLogistics",
    "RationalQuadraticSpline",
    "Scale",
    "Shift",
    "Univariate",
    "UnivariateLike",
    "as_univariate",
    "describe",
    "soft_bound",
]


_PARTS, _SECTIONS = 32, 8  # where all rounds are made: each cuts a bracket to a part
_ROUNDS = 100  # of a root search: most take fewer than ten, where Newton's and halvings alternate some sixty


class Univariate(ABC):
    """A monotone map x = f(z; params) of each element on its own; ``size`` is the number of parameters per element.

    A map keeps the arguments of its constructor under their names, so that it can be written down (``describe``).

    Example:
        >>> spline, z = diffeo.transforms.RationalQuadraticSpline(), torch.randn(5)
        >>> x, log_slope = spline.forward_and_log_det(z, torch.randn(spline.size, 5))
        >>> x.shape, log_slope.shape
        (torch.Size([5]), torch.Size([5]))
        >>> torch.allclose(spline.forward_and_log_det(z, torch.zeros(spline.size, 5))[0], z, atol=1e-6)
        True
    """

    size: int

    def __repr__(self) -> str:
        kept = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters if hasattr(self, name)}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in kept.items())})"

    def forward_and_log_det(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        r"""Generate: x and :math:`\log|dx/dz|`.

        Args:
            z: values of any shape.
            params: ``(size, *z.shape)``; all zeros give the identity.

        Returns:
            x and the log-derivatives, both of the shape of z.
        """
        return ops.map_values(self, z, params, generate=True)

    def inverse_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        r"""Normalize: z and :math:`\log|dz/dx|`.

        Args:
            x: values of any shape.
            params: ``(size, *x.shape)``; all zeros give the identity.

        Returns:
            z and the log-derivatives, both of the shape of x.
        """
        return ops.map_values(self, x, params, generate=False)

    @abstractmethod
    def generate(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return what ``forward_and_log_det`` does, in PyTorch's operations.

        Args:
            z: values of any shape.
            params: ``(size, *z.shape)``; all zeros give the identity.

        Returns:
            x and the log-derivatives, both of the shape of z.
        """

    @abstractmethod
    def normalize(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return what ``inverse_and_log_det`` does, in PyTorch's operations.

        Args:
            x: values of any shape.
            params: ``(size, *x.shape)``; all zeros give the identity.

        Returns:
            z and the log-derivatives, both of the shape of x.
        """

    def specs(self) -> tuple[MapSpec, ...] | None:
        """The map as a chain of maps with a name, in the order of generation; None where it is none."""
        return None


class Shift(Univariate):
    r"""A shift by t: the additive coupling of NICE (Dinh et al. 2014, arXiv:1410.8516).

    .. math:: x = z + t, \qquad \log\left|\frac{dx}{dz}\right| = 0
    """

    size = 1

    def generate(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """x = z + t."""
        x = z + params[0]
        return x, z.new_zeros(()).expand_as(x)

    def normalize(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """z = x - t."""
        z = x - params[0]
        return z, x.new_zeros(()).expand_as(z)

    def specs(self) -> tuple[MapSpec, ...] | None:
        """One map."""
        return (MapSpec("shift"),)


class Scale(Univariate):
    r"""A scale, NICE's diagonal rescaling (Dinh et al. 2014, arXiv:1410.8516).

    .. math:: x = e^a z, \qquad \log\left|\frac{dx}{dz}\right| = a
    """

    size = 1

    def generate(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """x = z exp(a)."""
        return z * torch.exp(params[0]), params[0].expand_as(z)

    def normalize(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """z = x exp(-a)."""
        return x * torch.exp(-params[0]), (-params[0]).expand_as(x)

    def specs(self) -> tuple[MapSpec, ...] | None:
        """One map."""
        return (MapSpec("scale"),)


def _check_bound(bound: float) -> None:
    """Refuse a bound that binds nothing, or everything: float32 could not tell the map from none."""
    if isinstance(bound, bool) or not 1e-6 <= bound <= 1e12:
        raise ValueError(f"expected bound in [1e-6, 1e12], got {bound}")


class Affine(Univariate):
    r"""Scale and shift, with a log-scale a that is softly bounded by B.

    .. math:: x = e^a z + t, \qquad a = B \tanh(a' / B), \qquad \log\left|\frac{dx}{dz}\right| = a

    RealNVP and MAF (Dinh et al. 2016, arXiv:1605.08803; Papamakarios et al. 2017, arXiv:1705.07057). The soft bound
    keeps the inverse from exploding far off the data.

    Args:
        bound: the largest absolute log-scale B.

    Raises:
        ValueError: for a bound that is not in [1e-6, 1e12].
    """

    size = 2

    def __init__(self, bound: float = 5.0) -> None:
        _check_bound(bound)
        self.bound = bound

    def generate(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """x = z exp(a) + t."""
        log_scale = soft_bound(params[1], self.bound)
        x = torch.addcmul(params[0], z, torch.exp(log_scale))
        return x, log_scale.expand_as(x)

    def normalize(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """z = (x - t) exp(-a)."""
        log_scale = -soft_bound(params[1], self.bound)
        z = (x - params[0]) * torch.exp(log_scale)
        return z, log_scale.expand_as(z)

    def specs(self) -> tuple[MapSpec, ...] | None:
        """One map."""
        return (MapSpec("affine", bound=self.bound),)


class Gated(Univariate):
    r"""Twice a gate s between x and m, whose logit a is softly bounded by B.

    .. math::
        z = 2 (s x + (1 - s) m), \qquad s = \sigma(a), \qquad a = B \tanh(a' / B), \qquad
        \log\left|\frac{dz}{dx}\right| = \log 2 s

    The step of IAF in its numerically stable form (Kingma et al. 2016, arXiv:1606.04934, eq. 13 and 14), but for the
    factor 2: normalizing is the parallel direction of ``Autoregressive``, so that
    ``Inverse(Autoregressive(Gated(), net))`` samples by it. Given those before it, an element's noise is widened by at
    most 2.

    Without the 2 every step draws noise together. The paper's bias opens the gate at first, but it makes (1 - s) m and
    the gradient of s small, so that learning is slow; see
    docs/decisions/2026-11-29-a-gate-that-begins-as-the-identity.md.

    Args:
        bound: the largest absolute logit B.

    Raises:
        ValueError: for a bound that is not in [1e-6, 1e12].
    """

    size = 2

    def __init__(self, bound: float = 5.0) -> None:
        _check_bound(bound)
        self.bound = bound

    def _gate(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Log 2 s and 2 (1 - s) m."""
        logit = soft_bound(params[1], self.bound)
        return F.logsigmoid(logit) + math.log(2), 2 * torch.sigmoid(-logit) * params[0]

    def generate(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """x = (z - 2 (1 - s) m) / 2 s."""
        log_gate, shift = self._gate(params)
        x = (z - shift) * torch.exp(-log_gate)
        return x, (-log_gate).expand_as(x)

    def normalize(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """z = 2 s x + 2 (1 - s) m."""
        log_gate, shift = self._gate(params)
        z = torch.addcmul(shift, x, torch.exp(log_gate))
        return z, log_gate.expand_as(z)


class RationalQuadraticSpline(Univariate):
    r"""A monotone rational-quadratic spline of K bins on [-bound, bound], the identity outside.

    The spline g is parameterised on the data's side, z = g(x), because training evaluates that side. In a bin of width
    w, height h, slope :math:`s = h / w` and end derivatives :math:`d_0, d_1`, with :math:`\xi = (x - x_k) / w`:

    .. math::
        z &= z_k + h\, \frac{s \xi^2 + d_0\, \xi (1 - \xi)}{s + (d_0 + d_1 - 2 s)\, \xi (1 - \xi)} \\
        \frac{dz}{dx} &= \frac{s^2 \left(d_1 \xi^2 + 2 s\, \xi (1 - \xi) + d_0 (1 - \xi)^2\right)}
        {\left(s + (d_0 + d_1 - 2 s)\, \xi (1 - \xi)\right)^2}

    and generation solves the quadratic in its stable form. Inputs are clipped to the box first and selected after, so
    values and gradients are finite for every finite input.

    Slopes are softly bounded, for float32 cannot invert a map of unbounded slopes where it was never trained: every bin
    keeps a least share of the box, and the derivative at a knot is the harmonic mean of the two slopes that it joins,
    times a factor between 1 / max_bend and max_bend. (A derivative that is free of the slopes can leave a bin's middle
    almost flat.) Without gradients the map is computed in float64: knots are sums of bins, and their rounding would be
    most of a round trip's error. Durkan et al. 2019, arXiv:1906.04032.

    Args:
        bins: the number of bins K; there are 3 K - 1 parameters: K widths, K heights, K - 1 inner derivatives.
        bound: half the side of the box.
        min_bin: least width and height of a bin, as a fraction of the box.
        max_bend: largest ratio between a knot's derivative and the harmonic mean of the two slopes that it joins.

    Raises:
        ValueError: for fewer than two bins, or an argument out of its range.
    """

    def __init__(self, bins: int = 8, bound: float = 5.0, min_bin: float = 0.03, max_bend: float = 4.0) -> None:
        if bins < 2:
            raise ValueError(f"expected bins >= 2, got {bins}")
        _check_bound(bound)
        if not 0 < min_bin * bins < 1:
            raise ValueError(f"expected 0 < min_bin < 1 / bins = {1 / bins:g}, got {min_bin}")
        if not max_bend > 1:
            raise ValueError(f"expected max_bend > 1, got {max_bend}")
        self.bins = bins
        self.bound = bound
        self.min_bin = min_bin
        self.max_bend = max_bend
        self.max_log_bend = math.log(max_bend)
        self.size = 3 * bins - 1

    def _knots(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Left knots and sizes of the bins, both ``(K, ...)``, from unnormalised log-sizes."""
        share = torch.softmax(logits, dim=0)
        sizes = 2 * self.bound * (self.min_bin + (1 - self.min_bin * self.bins) * share)
        return sizes.cumsum(dim=0) - sizes - self.bound, sizes

    def _bin(self, value: Tensor, params: Tensor, *, by_height: bool) -> tuple[Tensor, ...]:
        """x_k, z_k, w, h, d0, d1 of the bin that holds ``value``, by comparing it with all inner knots."""
        k = self.bins
        left, widths = self._knots(params[:k])
        bottom, heights = self._knots(params[k : 2 * k])
        slopes = heights / widths
        joined = 2 * slopes[:-1] * slopes[1:] / (slopes[:-1] + slopes[1:])
        derivatives = joined * torch.exp(soft_bound(params[2 * k :], self.max_log_bend))
        one = torch.ones_like(derivatives[:1])  # at the ends of the box, the derivative of the identity outside
        derivatives = torch.cat([one, derivatives, one])
        index = (value >= (bottom if by_height else left)[1:]).sum(dim=0, keepdim=True)
        tables = left, bottom, widths, heights, derivatives[:-1], derivatives[1:]
        return tuple(table.expand(-1, *value.shape).gather(0, index).squeeze(0) for table in tables)

    def normalize(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """z = g(x)."""
        return self._map(x, params, generate=False)

    def generate(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """x = g^-1(z)."""
        return self._map(z, params, generate=True)

    def _map(self, value: Tensor, params: Tensor, *, generate: bool) -> tuple[Tensor, Tensor]:
        dtype = value.dtype
        if not torch.is_grad_enabled():
            value, params = value.double(), params.double()
        clipped = value.clamp(-self.bound, self.bound)
        curve = rational_quadratic_inverse if generate else rational_quadratic
        mapped, log_det = curve(clipped, *self._bin(clipped, params, by_height=generate))
        inside = value.abs() < self.bound
        return torch.where(inside, mapped, value).to(dtype), torch.where(inside, log_det, 0).to(dtype)

    def specs(self) -> tuple[MapSpec, ...] | None:
        """One map."""
        return (MapSpec("spline", self.bins, self.bound, self.min_bin, self.max_log_bend),)


class MixtureOfLogistics(Univariate):
    r"""The distribution function F of a mixture of logistics: of logistic noise, x has the mixture's density.

    .. math::
        z &= \log \frac{F(x)}{1 - F(x)}, \qquad F(x) = \sum_k w_k\, \sigma\left((x - m_k)\, e^{-a_k}\right) \\
        \log \frac{dz}{dx} &= \log F'(x) - \log F(x) - \log(1 - F(x))

    All three terms come from sums of exponentials over the components, so both tails are exact, and no clamp takes a
    gradient away far from the mass: z grows linearly there. Generation brackets x between the components' own
    :math:`m_k + e^{a_k} z`, and closes in by Newton's method, or halves the bracket where that is slow. Ho et al.
    2019 (Flow++, arXiv:1902.00275); as the head of a WaveNet: van den Oord et al. 2017 (arXiv:1711.10433). Components
    that start equal stay equal: let them start apart.

    Args:
        components: their number K; there are 3 K parameters: K logits of w, K locations m, K log-scales.
        bound: the largest absolute log-scale, a = bound tanh(a' / bound): a floor under the scale.

    Raises:
        ValueError: for less than one component, or a bound that is not in [1e-6, 1e12].
    """

    def __init__(self, components: int = 5, bound: float = 7.0) -> None:
        if components < 1:
            raise ValueError(f"expected components >= 1, got {components}")
        _check_bound(bound)
        self.components = components
        self.bound = bound
        self.size = 3 * components

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, means, raw = params.split(self.components)
        return torch.log_softmax(logits, 0), means, soft_bound(raw, self.bound)

    def normalize(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """z = logit F(x)."""
        log_weights, means, log_scales = self._parts(params)
        # beyond 1e30 scales, squares and sums overflow; the map goes on as a constant
        standardized = ((x - means) * torch.exp(-log_scales)).clamp(-1e30, 1e30)  # (K, *x.shape)
        below, above = F.logsigmoid(standardized), F.logsigmoid(-standardized)
        log_below = torch.logsumexp(log_weights + below, 0)
        log_above = torch.logsumexp(log_weights + above, 0)
        log_density = torch.logsumexp(log_weights + below + above - log_scales, 0)
        return log_below - log_above, log_density - log_below - log_above

    def generate(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """x = F^-1(sigmoid(z)); without gradients in double precision, for the tails' logarithms cancel."""
        with torch.no_grad():
            exact = self._solve(z.double(), params.double())
        if not torch.is_grad_enabled():
            return exact.to(z.dtype), -self.normalize(exact, params.double())[1].to(z.dtype)
        x = exact.to(z.dtype)
        residual, log_slope = self.normalize(x, params)
        # of value x, with the gradient of the solution: dx = (dz - d_params F) / slope
        x = x - (residual - residual.detach() + z.detach() - z) * torch.exp(-log_slope.detach())
        return x, -self.normalize(x, params)[1]

    def _solve(self, z: Tensor, params: Tensor) -> Tensor:
        _, means, log_scales = self._parts(params)
        each = means + torch.exp(log_scales) * z
        low, high = each.amin(0), each.amax(0)
        if not ops.numbers_are_known():
            return self._sectioned(z, params, low, high)
        x, moved, left = (low + high) / 2, high - low, torch.ones_like(z, dtype=torch.bool)
        for _ in range(_ROUNDS):
            reached, log_slope = self.normalize(x, params)
            low, high = torch.where(reached < z, x, low), torch.where(reached > z, x, high)
            new = newton_or_half(x, (z - reached) * torch.exp(-log_slope), low, high, moved)
            moved = (new - x).abs()
            x = torch.where(left, new, x)
            left = left & (moved > 1e-14 * (1 + x.abs()))
            if not left.any():
                break
        return x

    def _sectioned(self, z: Tensor, params: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Close in on x in a fixed number of rounds: a bracket becomes one of its parts, and in the end Newton's."""
        ladder = torch.arange(1, _PARTS, dtype=z.dtype, device=z.device).reshape(-1, *(1,) * z.dim()) / _PARTS
        for _ in range(_SECTIONS):
            width = (high - low) / _PARTS
            reached = self.normalize(low + ladder * (high - low), params.unsqueeze(1))[0]
            passed = (reached < z).sum(0)
            low, high = low + passed * width, low + (passed + 1) * width
        x = (low + high) / 2
        for _ in range(2):
            reached, log_slope = self.normalize(x, params)
            x = torch.minimum(torch.maximum(x + (z - reached) * torch.exp(-log_slope), low), high)
        return x

    def specs(self) -> tuple[MapSpec, ...] | None:
        """One map, to generate."""
        return (MapSpec("logistics", self.components, self.bound),)


class Composed(Univariate):
    r"""Univariate maps one after another, in the order of generation; log-derivatives add.

    .. math:: x = f_K(\dots f_1(z))

    ``Composed(RationalQuadraticSpline(), Affine())`` has a spline's shape at an affine map's place and scale: where one
    element nearly determines another, a spline alone would have to squeeze its bins together at the right place.

    Args:
        maps: in the order of generation; their parameters follow each other in the same order.

    Raises:
        ValueError: for no map.
    """

    def __init__(self, *maps: Univariate) -> None:
        if not maps:
            raise ValueError("expected at least one univariate map, got none")
        self.maps = maps
        self.sizes = [each.size for each in maps]
        self.size = sum(self.sizes)

    def generate(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the maps first to last."""
        parts = zip(self.maps, params.split(self.sizes), strict=True)
        return _in_turn(z, [(each.generate, part) for each, part in parts])

    def normalize(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the inverse maps last to first."""
        parts = zip(self.maps, params.split(self.sizes), strict=True)
        return _in_turn(x, [(each.normalize, part) for each, part in parts][::-1])

    def specs(self) -> tuple[MapSpec, ...] | None:
        """The maps' own, one after another."""
        parts = [each.specs() for each in self.maps]
        return None if None in parts else tuple(step for part in parts for step in part or ())


def _in_turn(
    value: Tensor, steps: Sequence[tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], Tensor]]
) -> tuple[Tensor, Tensor]:
    total = value.new_zeros(())
    for step, params in steps:
        value, log_derivative = step(value, params)
        total = total + log_derivative
    return value, total


UNIVARIATES: dict[str, Callable[..., Univariate]] = {
    "shift": Shift,
    "scale": Scale,
    "affine": Affine,
    "spline": RationalQuadraticSpline,
    # not the mixture of logistics: its components must start apart, which the recipe ``wavenet`` sees to;
    # nor ``Gated``, which is no whole model
}

UnivariateLike = Univariate | str | Mapping[str, Any] | Sequence[Any]  # see ``as_univariate``


def as_univariate(
    value: UnivariateLike | type[Univariate], known: Mapping[str, Callable[..., Univariate]] = UNIVARIATES
) -> Univariate:
    """Make the map that a name or a description stands for; a map stays what it is.

    Args:
        value: a map or its class; a name in ``UNIVARIATES``; a name with arguments, ``{"name": "spline", "bins": 16}``;
            or a sequence of these, applied one after another in the order of generation (``Composed``).
        known: the maps that have a name.

    Raises:
        ValueError: for an unknown name or argument.
        TypeError: for anything else.
    """
    if isinstance(value, Univariate):
        return value
    if isinstance(value, type) and issubclass(value, Univariate):
        return value()
    if isinstance(value, list | tuple) and not any(isinstance(part, list | tuple) for part in value):
        return Composed(*(as_univariate(each, known) for each in value))
    arguments = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise TypeError(
            f"expected a univariate map, a name such as 'affine', or {{'name': 'spline', 'bins': 16}}, got {value!r}"
        )
    if name not in known:
        raise ValueError(f"expected a univariate map among {', '.join(known)}, got {name!r}")
    try:
        inspect.signature(known[name]).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"univariate map {name!r}: {error}") from None
    return known[name](**arguments)


def describe(
    univariate: Univariate, known: Mapping[str, Callable[..., Univariate]] = UNIVARIATES
) -> dict[str, Any] | list[Any] | None:
    """Write a map down as plain data, which ``as_univariate`` makes it from; None for a map that has no name.

    Args:
        univariate: a map.
        known: classes of maps by name.

    Raises:
        ValueError: for a map that does not keep its arguments under their names.
    """
    if type(univariate) is Composed:
        parts = [describe(each, known) for each in univariate.maps]
        if None in parts:
            return None
        return [step for part in parts for step in (part if isinstance(part, list) else [part])]
    kind = type(univariate)
    name = next((name for name, named in known.items() if named is kind), None)
    if name is None:
        return None
    arguments = list(inspect.signature(kind).parameters)
    for each in arguments:
        if not hasattr(univariate, each):
            raise ValueError(f"expected {kind.__name__} to keep its argument {each!r} as an attribute of that name")
    return {"name": name, **{each: getattr(univariate, each) for each in arguments}}


def rational_quadratic(
    x: Tensor, left: Tensor, bottom: Tensor, width: Tensor, height: Tensor, d0: Tensor, d1: Tensor
) -> tuple[Tensor, Tensor]:
    """z = g(x), log dz/dx in the bin [left, left + width] x [bottom, bottom + height] with end derivatives d0, d1."""
    slope = height / width
    xi = (x - left) / width
    mixed = xi * (1 - xi)
    denominator = slope + (d0 + d1 - 2 * slope) * mixed
    z = bottom + height * (slope * xi.square() + d0 * mixed) / denominator
    return z, _log_derivative(xi, slope, d0, d1, denominator)


def rational_quadratic_inverse(
    z: Tensor, left: Tensor, bottom: Tensor, width: Tensor, height: Tensor, d0: Tensor, d1: Tensor
) -> tuple[Tensor, Tensor]:
    """x = g^-1(z) and log dx/dz in the same bin: the root in [0, 1] of a xi^2 + b xi + c = 0, in its stable form."""
    slope = height / width
    eta = (z - bottom) / height
    bend = d0 + d1 - 2 * slope
    a = slope - d0 + eta * bend
    b = d0 - eta * bend
    c = -slope * eta
    # Rounding can push the discriminant of a nearly flat bin below zero; its square root's slope must stay finite.
    discriminant = (b.square() - 4 * a * c).clamp_min(torch.finfo(z.dtype).tiny)
    xi = -2 * c / (b + discriminant.sqrt())
    denominator = slope + bend * xi * (1 - xi)
    return left + width * xi, -_log_derivative(xi, slope, d0, d1, denominator)


def _log_derivative(xi: Tensor, slope: Tensor, d0: Tensor, d1: Tensor, denominator: Tensor) -> Tensor:
    """Log dz/dx at the relative position xi."""
    rest = 1 - xi
    numerator = d1 * xi.square() + 2 * slope * xi * rest + d0 * rest.square()
    return 2 * torch.log(slope) + torch.log(numerator) - 2 * torch.log(denominator)

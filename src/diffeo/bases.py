"""Base distributions: the simple noise z that a flow maps to data. Events of any shape."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffeo import ops
from diffeo.arguments import KnowsArguments
from diffeo.transforms.base import as_shape, sum_event

__all__ = ["Base", "GaussianMixture", "Gaussians", "StandardLogistic", "StandardNormal", "StudentT", "Uniform"]

NEAR = 1e8  # of squared distances in standard deviations, whose rounding is then 1e-8
_PAIRS = 2**18  # of rows and Gaussians that are compared at a time: what the caches of a core hold


class Base(KnowsArguments, nn.Module, ABC):
    """A distribution of noise: ``log_prob(z)`` of ``(*batch, *event)``, in nats, and ``sample(shape)``.

    Args:
        event_shape: the shape of one example, a number for vectors.

    Raises:
        ValueError: for sizes below 1.
        TypeError: for sizes that are no whole numbers.
    """

    device_marker: Tensor
    has_rsample = True  # whether gradients through samples are those of the density's parameters

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        # Samples need a dtype and a device even where the base has no parameters.
        self.register_buffer("device_marker", torch.zeros(()), persistent=False)

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density of noise, in nats.

        Args:
            z: ``(*batch, *event)``.

        Returns:
            ``(*batch,)``.
        """

    @abstractmethod
    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        """Draw noise.

        Args:
            shape: how many, ``()`` for one.

        Returns:
            ``(*shape, *event)``.
        """

    def _sum(self, value: Tensor) -> Tensor:
        return sum_event(value, len(self.event_shape))


class StandardNormal(Base):
    r"""Independent standard normal noise.

    .. math:: \log p(z) = -\tfrac{1}{2} \sum_i (z_i^2 + \log 2\pi)

    Args:
        event_shape: the shape of one example, a number for vectors.

    Raises:
        ValueError: for sizes below 1.
        TypeError: for sizes that are no whole numbers.

    Example:
        >>> diffeo.StandardNormal(3).sample((5,)).shape
        torch.Size([5, 3])
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """Gaussian log-density."""
        return -0.5 * (self._sum(z.square()) + self.event_shape.numel() * math.log(2 * math.pi))

    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        """Draw standard normal noise."""
        marker = self.device_marker
        return torch.randn((*shape, *self.event_shape), dtype=marker.dtype, device=marker.device)


class StandardLogistic(Base):
    r"""Independent logistic noise, the prior of NICE (arXiv:1410.8516).

    .. math:: \log p(z) = -\sum_i \left(\log(1 + e^{z_i}) + \log(1 + e^{-z_i})\right)

    Args:
        event_shape: the shape of one example, a number for vectors.

    Raises:
        ValueError: for sizes below 1.
        TypeError: for sizes that are no whole numbers.
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """Logistic log-density."""
        return -self._sum(F.softplus(z) + F.softplus(-z))

    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        """Draw logistic noise as the logit of uniform noise."""
        marker = self.device_marker
        uniform = torch.rand((*shape, *self.event_shape), dtype=marker.dtype, device=marker.device)
        least = torch.finfo(uniform.dtype).eps / 2  # as far from 0 as the largest draw is from 1
        return torch.log(uniform.clamp_min(least)) - torch.log1p(-uniform)


class Uniform(Base):
    r"""Uniform noise in the box between ``low``, l, and ``high``, h; outside, the log-density is -inf.

    .. math:: \log p(z) = -\sum_i \log(h_i - l_i)

    Args:
        event_shape: the shape of one example.
        low: lower ends, a number or one per element.
        high: upper ends.

    Raises:
        ValueError: unless low < high in every element.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        low: float | Sequence[float] = 0.0,
        high: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__(event_shape)
        for name, value in (("low", low), ("high", high)):
            table = torch.as_tensor(value, dtype=torch.get_default_dtype()).expand(self.event_shape)
            self.register_buffer(name, table.clone(memory_format=torch.contiguous_format))
        if not (self.low < self.high).all():
            raise ValueError("expected low < high in every element")

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density: a constant inside, -inf outside."""
        inside = (z >= self.low) & (z <= self.high)
        return self._sum(torch.where(inside, -(self.high - self.low).log(), -torch.inf))

    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        """Draw uniformly from the box."""
        noise = torch.rand((*shape, *self.event_shape), dtype=self.low.dtype, device=self.low.device)
        return torch.addcmul(self.low, noise, self.high - self.low)


class GaussianMixture(Base):
    r"""A mixture of K diagonal Gaussians with learned weights, means and scales.

    .. math:: p(z) = \sum_k w_k \prod_i N(z_i; \mu_{ki}, s_{ki}^2)

    Means start spread out (standard normal draws from the seed), scales at 1, weights equal.

    Args:
        event_shape: the shape of one example.
        components: the number of Gaussians.
        seed: of the starting means.

    Raises:
        ValueError: for less than one component.
    """

    has_rsample = False  # which component a sample comes from has no gradient

    def __init__(self, event_shape: int | Sequence[int], components: int = 8, seed: int = 0) -> None:
        super().__init__(event_shape)
        if components < 1:
            raise ValueError(f"expected components >= 1, got {components}")
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, *self.event_shape, generator=generator))
        self.log_scales = nn.Parameter(torch.zeros(components, *self.event_shape))

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density by a stable sum over the components."""
        rank = len(self.event_shape)
        standardized = (z.unsqueeze(-rank - 1) - self.means) * torch.exp(-self.log_scales)  # (*batch, K, *event)
        each = -0.5 * standardized.square() - self.log_scales - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(self._sum(each) + torch.log_softmax(self.logits, dim=0), dim=-1)

    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        """Draw a component, then its Gaussian."""
        count = math.prod(shape)
        chosen = torch.multinomial(self.logits.softmax(0), max(count, 1), replacement=True)[:count]
        means, scales = self.means[chosen], self.log_scales[chosen].exp()
        return torch.addcmul(means, scales, torch.randn_like(means)).reshape(*shape, *self.event_shape)


class Gaussians(Base):
    r"""Gaussians of full covariances that were estimated elsewhere: nothing here is learned.

    .. math:: p(z) = \sum_k w_k N(z; m_k, S_k), \qquad S_k^{-1} = W_k^T W_k

    With one component a Gaussian; with a component for each row of data and one covariance :math:`h^2 I` for all, a
    kernel density. W is lower triangular. Weights, means and W are buffers of double precision.

    Args:
        event_shape: the size D of a vector.
        components: the number K of Gaussians.
        shared: whether all have one covariance.

    Raises:
        ValueError: for less than one component, or events that are no vectors.
    """

    has_rsample = False
    _near = False  # unknown

    log_weights: Tensor
    means: Tensor
    whitening: Tensor

    def __init__(self, event_shape: int | Sequence[int], components: int = 1, shared: bool = False) -> None:
        super().__init__(event_shape)
        if components < 1:
            raise ValueError(f"expected components >= 1, got {components}")
        if len(self.event_shape) != 1:
            raise ValueError(f"expected vectors, got events of shape {tuple(self.event_shape)}")
        size, count = self.event_shape[0], 1 if shared else components
        self.register_buffer("log_weights", torch.full((components,), -math.log(components), dtype=torch.float64))
        self.register_buffer("means", torch.zeros(components, size, dtype=torch.float64))
        self.register_buffer("whitening", torch.eye(size, dtype=torch.float64).repeat(count, 1, 1))

    @classmethod
    def of(cls, means: Tensor, covariances: Tensor, weights: Tensor | None = None) -> Gaussians:
        """Make the mixture of these Gaussians.

        Args:
            means: ``(K, D)``.
            covariances: ``(K, D, D)``, or ``(1, D, D)`` of all.
            weights: ``(K,)``, equal by default.

        Raises:
            ValueError: for a covariance that is not positive definite.
        """
        base = cls(means.shape[1], len(means), shared=len(covariances) < len(means))
        factors, failed = torch.linalg.cholesky_ex(covariances.double())
        if failed.any():
            raise ValueError("expected covariances that are positive definite")
        base.means.copy_(means)
        eye = torch.eye(means.shape[1], dtype=torch.float64).expand_as(factors)
        base.whitening.copy_(torch.linalg.solve_triangular(factors, eye, upper=False))
        if weights is not None:
            base.log_weights.copy_((weights.double() / weights.double().sum()).log())
        return base

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density by a stable sum over the components."""
        rows = z.reshape(-1, z.shape[-1]).to(self.means.dtype)
        size, step = z.shape[-1], max(1, _PAIRS // len(self.means))
        parts = [self._summed(part) for part in ([rows] if ops.tracing() else rows.split(step))]
        total = torch.cat(parts) if parts else rows.new_zeros(0)
        return (total - 0.5 * size * math.log(2 * math.pi)).reshape(z.shape[:-1]).to(z.dtype)

    def settle(self) -> None:
        """Find out what cannot be asked while a graph is made.

        That is whether Gaussians of one covariance are so near each other that squares, subtracted, keep their digits.
        """
        self._near = _are_near((self.means - self.means.mean(0)) @ self.whitening[0].mT)

    def _summed(self, rows: Tensor) -> Tensor:
        log_det = self.whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if len(self.whitening) == 1:
            centre = self.means.mean(0)
            white, means = ((each - centre) @ self.whitening[0].mT for each in (rows, self.means))
            if not ops.tracing():
                self._near = _are_near(means)
            if self._near:  # the square of a row is the same for all
                terms = torch.addmm(self.log_weights + log_det - 0.5 * means.square().sum(1), white, means.mT)
                return torch.logsumexp(terms, 1) - 0.5 * white.square().sum(1)
            graphed = rows.requires_grad and torch.is_grad_enabled()
            if ops.tracing() or graphed or white.dtype == torch.float16:  # cdist has no second derivative, nor halves
                squares = torch.zeros_like(white @ means.mT)
                for column, mean in zip(white.mT, means.mT, strict=True):
                    squares = squares + (column[:, None] - mean).square()
            else:
                squares = torch.cdist(white, means, compute_mode="donot_use_mm_for_euclid_dist").square()
            return torch.logsumexp(self.log_weights + log_det - 0.5 * squares, 1)
        pairs = zip(self.means, self.whitening, strict=True)
        squares = torch.stack([((rows - mean) @ factor.mT).square().sum(1) for mean, factor in pairs], 1)
        return torch.logsumexp(self.log_weights + log_det - 0.5 * squares, 1)

    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        """Draw a component, then its Gaussian."""
        count = math.prod(shape)
        chosen = torch.multinomial(self.log_weights.exp(), max(count, 1), replacement=True)[:count]
        noise = torch.randn_like(self.means[chosen])
        factors = self.whitening.expand(len(self.means), -1, -1)
        result = torch.empty_like(noise)
        for each in chosen.unique().tolist() if len(self.whitening) > 1 else [0]:
            mine = chosen == each if len(self.whitening) > 1 else torch.ones_like(chosen, dtype=torch.bool)
            result[mine] = torch.linalg.solve_triangular(factors[each], noise[mine].mT, upper=False).mT
        result = result + self.means[chosen]
        return result.reshape(*shape, *self.event_shape).to(self.device_marker.dtype)


def _are_near(white: Tensor) -> bool:
    """Whether points are so near their centre that squares, subtracted, keep their digits."""
    return bool(white.square().sum(1).max() < NEAR)


class StudentT(Base):
    r"""A round density with heavy tails: no row is far out of it.

    .. math:: \log p(z) = c - \frac{v + D}{2} \log\left(1 + \frac{\|z\|^2}{v}\right)

    Args:
        event_shape: the shape of one example, of D elements.
        freedom: the degrees of freedom v; moments below v are finite.

    Raises:
        ValueError: unless v > 0.
    """

    def __init__(self, event_shape: int | Sequence[int], freedom: float = 2.0) -> None:
        super().__init__(event_shape)
        if not freedom > 0:
            raise ValueError(f"expected freedom > 0, got {freedom}")
        self.freedom = freedom

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density, in which a large |z| counts by its logarithm."""
        v, size = self.freedom, self.event_shape.numel()
        constant = math.lgamma((v + size) / 2) - math.lgamma(v / 2) - 0.5 * size * math.log(v * math.pi)
        return constant - 0.5 * (v + size) * torch.log1p(self._sum(z.double().square()) / v).to(z.dtype)

    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        """Draw normal noise, divided by the root of a chi-squared variable's share."""
        marker = self.device_marker
        noise = torch.randn((*shape, *self.event_shape), dtype=marker.dtype, device=marker.device)
        half = torch.full(tuple(shape), self.freedom / 2, dtype=marker.dtype, device=marker.device)
        scale = (torch._standard_gamma(half) / half).sqrt()
        return noise / scale.reshape(*shape, *(1,) * len(self.event_shape))

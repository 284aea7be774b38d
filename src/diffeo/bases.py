"""Base distributions: the simple noise z that a flow maps to data. Events of any shape."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffeo.arguments import KnowsArguments
from diffeo.transforms.base import as_shape, sum_event

__all__ = ["Base", "GaussianMixture", "StandardLogistic", "StandardNormal", "Uniform"]


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
    """log p(z) = -sum_i (z_i^2 + log 2 pi) / 2.

    Args:
        event_shape: the shape of one example, a number for vectors.

    Raises:
        ValueError: for sizes below 1.
        TypeError: for sizes that are no whole numbers.
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """Gaussian log-density."""
        return -0.5 * (self._sum(z.square()) + self.event_shape.numel() * math.log(2 * math.pi))

    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        """Draw standard normal noise."""
        marker = self.device_marker
        return torch.randn((*shape, *self.event_shape), dtype=marker.dtype, device=marker.device)


class StandardLogistic(Base):
    """log p(z) = -sum_i (softplus(z_i) + softplus(-z_i)), the prior of NICE (arXiv:1410.8516).

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
    """log p(z) = -sum_i log(high_i - low_i) inside the box [low, high], -inf outside.

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
    """p(z) = sum_k w_k prod_i N(z_i; mu_ki, s_ki^2) with learned weights, means and scales.

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

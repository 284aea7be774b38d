"""What a decoder says of data: distributions of each number given some that a network gives."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from diffeo.arguments import KnowsArguments
from diffeo.transforms.univariate import soft_bound

__all__ = ["Bernoulli", "DiscretizedLogistics", "Likelihood"]


class Likelihood(KnowsArguments, ABC):
    """p(x | params) of each element on its own; stateless, ``size`` numbers for each element.

    Values are in the data's own units. The parameter index leads, as of a ``Univariate``: params are
    ``(size, *batch, *event)``.
    """

    size: int

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    @abstractmethod
    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """Return the log-probability of each element, in nats.

        Args:
            x: ``(*batch, *event)``, or what broadcasts to it.
            params: ``(size, *batch, *event)``.

        Returns:
            ``(*batch, *event)``.
        """

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """Return the mean of each element, ``(*batch, *event)``.

        Args:
            params: ``(size, *batch, *event)``.
        """

    @abstractmethod
    def sample(self, params: Tensor) -> Tensor:
        """Draw each element, ``(*batch, *event)``, without gradients.

        Args:
            params: ``(size, *batch, *event)``.
        """

    @abstractmethod
    def prepare(self, x: Tensor) -> Tensor:
        """Bring data into what it is a distribution of, in the data's units; what is so already stays as it is.

        Args:
            x: data of any shape.
        """

    def holds(self, x: Tensor) -> Tensor:
        """Which values are data, once they are prepared: a mask of their shape.

        Args:
            x: of any shape.
        """
        return torch.isfinite(x)

    @abstractmethod
    def scaled(self, x: Tensor) -> Tensor:
        """Bring what ``prepare`` returned into the units of a network, about [-1, 1].

        Args:
            x: of any shape.
        """


class _Levels(Likelihood):
    """Of whole numbers 0 ... levels - 1, such as pixels."""

    def __init__(self, levels: int) -> None:
        if levels < 2:
            raise ValueError(f"expected levels >= 2, got {levels}")
        self.levels = levels

    @property
    def top(self) -> int:
        """The highest level."""
        return self.levels - 1

    def holds(self, x: Tensor) -> Tensor:
        """From 0 to below the number of levels, as of pixels with noise."""
        return (x >= 0) & (x < self.levels)

    def scaled(self, x: Tensor) -> Tensor:
        """2 x / top - 1."""
        return x * (2 / self.top) - 1


class Bernoulli(_Levels):
    r"""Black or white, of pixels that are binarised at a fixed threshold; params are the logit a of white.

    .. math:: p(\text{white}) = \frac{1}{1 + e^{-a}}

    White is what is above (levels - 1) / 2. The same pixel is always binarised to the same value, in training and in
    whatever is reported; of images of two levels nothing is changed.

    Args:
        levels: how many values a pixel can take; 256 of bytes.

    Raises:
        ValueError: for fewer than two.
    """

    size = 1

    def __init__(self, levels: int = 256) -> None:
        super().__init__(levels)

    def prepare(self, x: Tensor) -> Tensor:
        """0 or top."""
        return torch.where(x > self.top / 2, self.top, 0).to(x.dtype)

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """-softplus(-a) where x is white, -softplus(a) where it is black."""
        sign = self.scaled(x)
        return F.logsigmoid(sign * params[0])

    def mean(self, params: Tensor) -> Tensor:
        """Top sigmoid(a)."""
        return self.top * torch.sigmoid(params[0])

    @torch.no_grad()
    def sample(self, params: Tensor) -> Tensor:
        """Draw 0 or top."""
        return self.top * torch.bernoulli(torch.sigmoid(params[0]))


class DiscretizedLogistics(_Levels):
    r"""A mixture of K logistics on [-1, 1], its mass in each of the levels' cells; the ends' cells are open.

    .. math::
        p(x) = \sum_k w_k \left[\sigma\left(\tfrac{y + h - m_k}{s_k}\right)
        - \sigma\left(\tfrac{y - h - m_k}{s_k}\right)\right], \qquad y = 2 h x - 1, \quad h = \tfrac{1}{L - 1}

    for L ``levels``. Salimans et al. 2017 (PixelCNN++, arXiv:1701.05517), channel by channel. With all parameters zero
    the components are spread evenly over [-1, 1].

    Args:
        levels: how many values a pixel can take; 256 of bytes.
        components: their number K; there are 3 K parameters: K logits of w, K shifts of m, K of log s.

    Raises:
        ValueError: for fewer than two levels, or less than one component.
    """

    def __init__(self, levels: int = 256, components: int = 5) -> None:
        super().__init__(levels)
        if components < 1:
            raise ValueError(f"expected components >= 1, got {components}")
        self.components = components
        self.size = 3 * components

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log w, m and log s, each ``(K, *batch, *event)``."""
        logits, shifts, raw = params.split(self.components)
        start = torch.linspace(-1, 1, self.components + 2, device=params.device, dtype=params.dtype)[1:-1]
        means = shifts + start.reshape(-1, *(1,) * (params.dim() - 1))
        return torch.log_softmax(logits, 0), means, soft_bound(raw, 5.0) - 2

    def prepare(self, x: Tensor) -> Tensor:
        """The nearest level."""
        return x.round().clamp(0, self.top)

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """Log p(x), by sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), without cancellation."""
        log_weights, means, log_scales = self._parts(params)
        scale = torch.exp(-log_scales)
        centre, half = (self.scaled(x) - means) * scale, scale / self.top
        # of the open cells at the ends one side is certain
        below = torch.where(x >= self.top, 0, F.logsigmoid(centre + half))
        above = torch.where(x <= 0, 0, F.logsigmoid(half - centre))
        inside = torch.where((x > 0) & (x < self.top), torch.log(-torch.expm1(-2 * half)), 0)
        return torch.logsumexp(log_weights + below + above + inside, 0)

    def mean(self, params: Tensor) -> Tensor:
        r"""The mean of the levels, :math:`\sum_x x\,p(x) = \sum_x P(X > x)`."""
        log_weights, means, log_scales = self._parts(params)
        edges = (2 * torch.arange(self.top, device=params.device, dtype=params.dtype) + 1) / self.top - 1
        total = torch.zeros_like(means[0])
        for edge in edges:
            total += (log_weights.exp() * torch.sigmoid((means - edge) * torch.exp(-log_scales))).sum(0)
        return total

    @torch.no_grad()
    def sample(self, params: Tensor) -> Tensor:
        """Draw a component, from it a number, and take the nearest level."""
        log_weights, means, log_scales = self._parts(params)
        gumbel = -torch.log(-torch.log(torch.rand_like(log_weights).clamp_min(1e-30)))
        which = (log_weights + gumbel).argmax(0, keepdim=True)
        u = torch.rand_like(means[0]).clamp(1e-7, 1 - 1e-7)
        y = means.gather(0, which)[0] + torch.exp(log_scales.gather(0, which)[0]) * torch.logit(u)
        return self.prepare((y + 1) * (self.top / 2))

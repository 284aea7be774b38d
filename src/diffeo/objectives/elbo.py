"""Bounds of the likelihood of a VAE."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from diffeo.arguments import expect_number, expect_whole
from diffeo.objectives.base import Objective

__all__ = ["ELBO", "IWAE"]


class _OfBounds(Objective):
    """An objective of flows that have bounds."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__(flow)
        if not getattr(self.flow, "has_bound", False):
            raise ValueError(f"expected a VAE, whose likelihood has bounds, got {type(flow).__name__}")


class ELBO(_OfBounds):
    r"""The negative ELBO, by one draw z of the posterior for each x, in nats.

    .. math::
        -E_q[\log p(x \mid z)] + \beta \max(\mathrm{KL}, \text{free bits}), \qquad
        \mathrm{KL} = E_q[\log q(z \mid x) - \log p(z)]

    While the KL's mean over the batch is below ``free_bits``, its gradient is left out: so much a latent may tell of x
    for nothing (Kingma et al. 2016, arXiv:1606.04934, appendix C.8, all latents as one group). beta rises linearly from
    0 to 1 during the warm-up (Sønderby et al. 2016, arXiv:1602.02282). In evaluation mode there is neither: the loss is
    the negative ELBO.

    Args:
        flow: the VAE to train.
        free_bits: so many nats, of all latents together.
        warmup: over how many steps beta rises.

    Raises:
        ValueError: for a flow that is no VAE, or a negative number.
    """

    calls: Tensor

    def __init__(self, flow: nn.Module, *, free_bits: float = 0.0, warmup: int = 0) -> None:
        super().__init__(flow)
        expect_number(0, free_bits=free_bits, warmup=warmup)
        self.free_bits, self.warmup = free_bits, warmup
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the loss of each row of x, shape (N,)."""
        terms: tuple[Tensor, Tensor] = self.flow.terms(x)
        log_likelihood, kl = (term[0] for term in terms)
        if not self.training:
            return kl - log_likelihood
        beta = 1.0
        if self.warmup:
            beta = min(1.0, (self.calls.item() + 1) / self.warmup)
            self.calls += torch.is_grad_enabled()
        if self.free_bits and kl.detach().mean() < self.free_bits:
            kl = torch.full_like(kl, self.free_bits)
        return beta * kl - log_likelihood


class IWAE(_OfBounds):
    r"""The negative importance-weighted bound, by k draws z of the posterior for each x, in nats (arXiv:1509.00519).

    .. math:: -\log \frac{1}{k} \sum_{i=1}^k \frac{p(x, z_i)}{q(z_i \mid x)}

    Args:
        flow: the VAE to train.
        samples: the number k; with 1 this is the ``ELBO``.

    Raises:
        ValueError: for a flow that is no VAE, or less than one sample.
    """

    def __init__(self, flow: nn.Module, samples: int = 5) -> None:
        super().__init__(flow)
        expect_whole(1, samples=samples)
        self.samples = samples

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the loss of each row of x, shape (N,)."""
        terms: tuple[Tensor, Tensor] = self.flow.terms(x, self.samples)
        return math.log(self.samples) - torch.logsumexp(terms[0] - terms[1], 0)

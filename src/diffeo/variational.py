"""VAE: a density of a latent variable's data, known by bounds of its logarithm alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from diffeo.arguments import expect_whole
from diffeo.bases import Base
from diffeo.flow import Flow, as_sample_shape
from diffeo.likelihoods import Likelihood
from diffeo.summary import Summarised, Summary, pair, quantity
from diffeo.transforms.base import Transform, as_shape

__all__ = ["SAMPLES", "VAE", "Bound"]

SAMPLES = 100  # of a bound, where no number is given
_DECODED = 2**21  # numbers that are decoded at a time, without gradients


@dataclass(frozen=True, repr=False)
class Bound(Summarised):
    r"""Lower bounds of log p(x) for each example, in nats; all tensors are ``(*batch,)``.

    Attributes:
        elbo: the mean of :math:`\log w` over the samples, :math:`w = p(x, z) / q(z \mid x)`.
        elbo_stderr: its standard error over the samples.
        log_prob: log of the mean of w, the importance-weighted bound, which rises to log p(x) with the samples.
        stderr: its standard error over the samples, that of the mean of w by the mean of w (delta method).
        samples: how many of them, k.
    """

    elbo: Tensor
    elbo_stderr: Tensor
    log_prob: Tensor
    stderr: Tensor
    samples: int

    def _summary(self) -> Summary:
        count = self.elbo.numel()
        facts = {"elbo": _over_examples(self.elbo), f"of {self.samples} samples": _over_examples(self.log_prob)}
        return Summary(f"Bound of log p(x) in nats, {quantity(count, 'example')}", facts)

    @classmethod
    def joined(cls, parts: Sequence[Bound]) -> Bound:
        """The bounds of several parts of the data, each ``(n,)``, as those of all.

        Args:
            parts: at least one, all of as many samples.
        """
        columns = zip(*((part.elbo, part.elbo_stderr, part.log_prob, part.stderr) for part in parts), strict=True)
        elbo, elbo_stderr, log_prob, stderr = map(torch.cat, columns)
        return cls(elbo, elbo_stderr, log_prob, stderr, parts[0].samples)


class VAE(Flow):
    r"""A decoder of latents z, with a flow q that says which z an x may have come from.

    .. math::
        p(x) = E_{p(z)}\, p(x \mid z), \qquad w = \frac{p(x \mid z)\, p(z)}{q(z \mid x)}, \qquad
        E_q \log w \le E_q \log \frac{1}{k} \sum_{i \le k} w_i \le \log p(x)

    The first bound is the ELBO (Kingma and Welling 2013, arXiv:1312.6114; Rezende et al. 2014, arXiv:1401.4082), the
    importance-weighted one rises with k to log p(x) (Burda et al. 2015, arXiv:1509.00519). A posterior that is a flow
    (Rezende and Mohamed 2015, arXiv:1505.05770) needs samples and their density in one pass: any flow with ``"sample"``
    in ``fast``.

    The encoder reads x once, however many samples of z are taken: the posterior is a flow given what the encoder says.
    No bijection of x belongs to a VAE: ``base`` and ``transform`` are those of the prior. There is no ``log_prob``, but
    ``bound``. Trained by ``ELBO`` or ``IWAE``.

    Args:
        encoder: from data as ``likelihood.scaled`` leaves them, ``(n, *event)``, to features ``(n, C)``.
        posterior: :math:`q(z \mid \text{features})`: a flow given a context (C,).
        decoder: from latents ``(n, *latent)`` to ``(n, size * event[0], *event[1:])``, parameter by parameter.
        likelihood: :math:`p(x \mid z)` by the decoder's numbers.
        prior: p(z): a flow without context.
        event_shape: the shape of one example.

    Raises:
        ValueError: for a posterior or a prior of another shape, or that has no density.

    Example:
        >>> vae = diffeo.vae((1, 8, 8), latent=2, width=8, channels=(4,), hidden=(8,))
        >>> bound = vae.bound(torch.randint(0, 256, (3, 1, 8, 8)), samples=10)
        >>> bool((bound.elbo <= bound.log_prob).all())  # the bound of more samples is the tighter one
        True
    """

    def __init__(
        self,
        encoder: nn.Module,
        posterior: Flow,
        decoder: nn.Module,
        likelihood: Likelihood,
        prior: Flow,
        event_shape: int | Sequence[int],
    ) -> None:
        nn.Module.__init__(self)
        if len(posterior.context_shape) != 1 or prior.context_shape or posterior.event_shape != prior.event_shape:
            raise ValueError(
                "expected a posterior given features (C,) and a prior without context, of latents of one shape, got "
                f"{tuple(posterior.event_shape)} given {tuple(posterior.context_shape)} and "
                f"{tuple(prior.event_shape)} given {tuple(prior.context_shape)}"
            )
        if not (posterior.has_log_prob and prior.has_log_prob):
            raise ValueError("expected a posterior and a prior with densities, got one without")
        self.encoder, self.posterior, self.decoder, self.prior = encoder, posterior, decoder, prior
        self.likelihood = likelihood
        self.event_shape = as_shape(event_shape)
        self.context_shape = torch.Size()
        self.context_transform = self.embedding = None
        self.recipe: dict[str, Any] | None = None

    def _summary(self) -> Summary:
        facts = {
            "likelihood": repr(self.likelihood),
            "posterior": self.posterior._pathway(),
            "prior": self.prior._pathway(),
            "fast": f"{', '.join(self.fast) or 'nothing'}; bound in place of log_prob",
        }
        return Summary(self._title(latents=f" with {quantity(self.latent_shape.numel(), 'latent')}"), facts)

    @property
    def base(self) -> Base:  # type: ignore[override]
        """The noise of the prior."""
        return self.prior.base

    @property
    def transform(self) -> Transform:  # type: ignore[override]
        """The bijection of the prior, from noise to latents."""
        return self.prior.transform

    @property
    def latent_shape(self) -> torch.Size:
        """The shape of one z."""
        return self.prior.event_shape

    @property
    def fast(self) -> frozenset[str]:
        """``"sample"``, if the prior samples in one pass; there is no ``"log_prob"``."""
        return self.prior.fast & {"sample"}

    @property
    def has_log_prob(self) -> bool:
        """False: of an integral over z there are bounds alone."""
        return False

    @property
    def has_bound(self) -> bool:
        """True: see ``bound``."""
        return True

    @property
    def has_rsample(self) -> bool:
        """False: pixels are discrete."""
        return False

    def log_prob(
        self, x: Tensor, context: Tensor | None = None, nan: Literal["error", "propagate"] = "error"
    ) -> NoReturn:
        """Refuse: there is no exact log-density.

        Args:
            x: as for a flow.
            context: likewise.
            nan: likewise.

        Raises:
            ValueError: always.
        """
        raise ValueError("a VAE has no exact log_prob; vae.bound(x, samples=100) gives lower bounds of it")

    def sample_and_log_prob(self, shape: int | Sequence[int] = (), context: Tensor | None = None) -> NoReturn:
        """Refuse, as ``log_prob`` does; ``sample`` draws.

        Args:
            shape: as for a flow.
            context: likewise.

        Raises:
            ValueError: always.
        """
        raise ValueError("a VAE has no exact log_prob of its samples; vae.sample(n) draws them")

    def terms(self, x: Tensor, samples: int = 1) -> tuple[Tensor, Tensor]:
        r""":math:`\log p(x \mid z)` and :math:`\log q(z \mid x) - \log p(z)` of draws of the posterior, differentiable.

        Args:
            x: ``(n, *event)``, in the data's units.
            samples: how many z for each x.

        Returns:
            Both ``(samples, n)``, in nats; their difference is log w. The first is -inf of x with values that no pixel
            has, NaN of x with NaN or infinity.

        Raises:
            ValueError: for a wrong shape, or less than one sample.
        """
        rows, _, _ = self._rows(x, None, self.event_shape, "x")
        return self._terms(*self._read(rows), samples)

    def elbo(self, x: Tensor, samples: int = 1) -> Tensor:
        """An estimate of the ELBO of each example by so many draws, differentiable.

        Args:
            x: ``(*batch, *event)``.
            samples: how many z for each x.

        Returns:
            ``(*batch,)``, in nats.

        Raises:
            ValueError: for a wrong shape, NaN or infinity, or less than one sample.
        """
        rows, batch = self._finite(x, self.event_shape, "x")
        log_likelihood, kl = self._terms(*self._read(rows), samples)
        return (log_likelihood - kl).mean(0).reshape(batch)

    @torch.no_grad()
    def bound(self, x: Tensor, samples: int = SAMPLES) -> Bound:
        """The ELBO and the importance-weighted bound of each example, with their standard errors, without gradients.

        However many samples or examples there are, no more of them are decoded at a time than fit into memory.

        Args:
            x: ``(*batch, *event)``.
            samples: how many z for each x, the k of the bound.

        Returns:
            Bounds ``(*batch,)``.

        Raises:
            ValueError: for a wrong shape, NaN or infinity, or less than one sample.
        """
        rows, batch = self._finite(x, self.event_shape, "x")
        at_once = max(1, _DECODED // (self.event_shape.numel() * self.likelihood.size))  # draws of all examples
        few = max(1, at_once // _expect_samples(samples))
        log_w = torch.cat([self._log_weights(part, samples, at_once) for part in rows.split(few)], 1)
        relative = torch.softmax(log_w, 0) * samples  # w / mean w, whose mean is 1
        elbo, log_prob = log_w.mean(0), torch.logsumexp(log_w, 0) - math.log(samples)
        errors = [torch.full_like(elbo, math.nan)] * 2
        if samples > 1 and len(rows):
            errors = [values.std(0) / math.sqrt(samples) for values in (log_w, relative)]
        elbo, elbo_stderr, log_prob, stderr = (each.reshape(batch) for each in (elbo, errors[0], log_prob, errors[1]))
        return Bound(elbo, elbo_stderr, log_prob, stderr, samples)

    def _log_weights(self, x: Tensor, samples: int, at_once: int) -> Tensor:
        """Log w of so many draws for each row ``(samples, n)``, in double precision, so many decoded at a time."""
        read = self._read(x)
        many = max(1, at_once // max(1, len(x)))
        terms = (self._terms(*read, min(many, samples - start)) for start in range(0, samples, many))
        return torch.cat([(log_likelihood - kl).double() for log_likelihood, kl in terms])

    def sample(self, shape: int | Sequence[int] = (), context: Tensor | None = None, *, means: bool = False) -> Tensor:
        """Draw z from the prior and x given z, without gradients.

        Args:
            shape: how many, a number or a shape.
            context: None.
            means: whether to return the mean of x given z, and not a draw.

        Returns:
            ``(*shape, *event)``, in the units of the data.

        Raises:
            ValueError: for what is no shape, or a context.
        """
        self._check_context(context)
        batch = as_sample_shape(shape)
        draw = self.likelihood.mean if means else self.likelihood.sample
        with torch.no_grad():
            (x,) = self._in_chunks(lambda z: (draw(self._params(z)),), self.prior.sample((math.prod(batch),)))
        return x.reshape(*batch, *self.event_shape)

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The centre of each example's posterior, where it maps noise of 0: of a diagonal Gaussian its mean.

        ``posterior.sample(shape, encoder features)`` draws from it; ``features`` gives these.

        Args:
            x: ``(*batch, *event)``.
            context: None.

        Returns:
            Latents, ``(*batch, *latent)``.

        Raises:
            ValueError: for a wrong shape, NaN or infinity, or a context.
        """
        self._check_context(context)
        rows, batch = self._finite(x, self.event_shape, "x")

        def centre(x: Tensor) -> tuple[Tensor]:
            features = self._read(x)[1]
            return (self.posterior.decode(x.new_zeros(len(x), *self.posterior.base.event_shape), features),)

        (z,) = self._in_chunks(centre, rows)
        return z.reshape(*batch, *self.latent_shape)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The mean of x given latents.

        Args:
            z: ``(*batch, *latent)``.
            context: None.

        Returns:
            ``(*batch, *event)``, in the units of the data.

        Raises:
            ValueError: for a wrong shape, NaN or infinity, or a context.
        """
        self._check_context(context)
        rows, batch = self._finite(z, self.latent_shape, "z")
        (x,) = self._in_chunks(lambda z: (self.likelihood.mean(self._params(z)),), rows)
        return x.reshape(*batch, *self.event_shape)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of x given the centre of its posterior.

        Args:
            x: ``(*batch, *event)``.

        Returns:
            The shape of x, in its units.

        Raises:
            ValueError: for a wrong shape, NaN or infinity.
        """
        return self.decode(self.encode(x))

    def features(self, x: Tensor) -> Tensor:
        """What the encoder says of examples: the context of the posterior.

        Args:
            x: ``(*batch, *event)``.

        Returns:
            ``(*batch, C)``.

        Raises:
            ValueError: for a wrong shape, NaN or infinity.
        """
        rows, batch = self._finite(x, self.event_shape, "x")
        return self._read(rows)[1].reshape(*batch, -1)

    def _finite(self, value: Tensor, shape: torch.Size, name: str) -> tuple[Tensor, torch.Size]:
        """Rows (n, *shape), and their batch shape; NaN and infinity are refused."""
        rows, _, batch = self._rows(value, None, shape, name)
        self._expect_finite(rows)
        return rows, batch

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Examples (n, *event) as the likelihood knows them, their features (n, C), and whether they are data (n,).

        That is a number to add to their log-likelihood: 0, -inf of values that no pixel has, NaN of what is not finite.
        """
        held = self.likelihood.holds(x)
        no_data = torch.where(torch.isfinite(x), -math.inf, math.nan).to(x.dtype)
        known = torch.where(held, 0, no_data).flatten(1).sum(1)
        x = self.likelihood.prepare(torch.where(held, x, 0))
        features: Tensor = self.encoder(self.likelihood.scaled(x))
        return x, features, known

    def _terms(self, x: Tensor, features: Tensor, known: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        z, log_q = self.posterior.sample_and_log_prob((_expect_samples(samples),), features)
        log_likelihood = self.likelihood.log_prob(x, self._params(z.flatten(0, 1)).unflatten(1, z.shape[:2]))
        return log_likelihood.flatten(2).sum(2) + known, log_q - self.prior.log_prob(z, nan="propagate")

    def _params(self, z: Tensor) -> Tensor:
        """The decoder's numbers at latents (n, *latent): ``(size, n, *event)``."""
        numbers: Tensor = self.decoder(z)
        return numbers.unflatten(1, (self.likelihood.size, self.event_shape[0])).movedim(1, 0)


def _over_examples(values: Tensor) -> str:
    """The mean of values and its standard error over the examples."""
    if not values.numel():
        return "none"
    each = values.double().flatten()
    return f"mean {pair(each.mean().item(), each.std().item() / math.sqrt(len(each)) if len(each) > 1 else math.nan)}"


def _expect_samples(samples: int) -> int:
    expect_whole(1, samples=samples)
    return samples

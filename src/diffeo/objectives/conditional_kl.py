"""The reverse KL of one autoregressive density to another, position by position: far less noise than one draw's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffeo.bases import StandardLogistic, StandardNormal
from diffeo.transforms import (
    Affine,
    Autoregressive,
    Chain,
    Dequantize,
    Inverse,
    Rescale,
    Scale,
    Shift,
    Standardize,
    Transform,
)

__all__ = ["ConditionalKL", "Conditionals", "PairedKL", "check_noise", "collapsed", "encoded_kl", "entropy"]

# H of one element of noise, in nats: a location does not change it, and a scale s adds ln s.
_ENTROPY = {StandardNormal: 0.5 * math.log(2 * math.pi * math.e), StandardLogistic: 2.0}


class ConditionalKL:
    r"""The reverse KL position by position, each term closed or by many draws.

    .. math:: \mathrm{KL}(q \,\|\, p) = E \sum_t \mathrm{KL}\left(q(x_t \mid z_{<t}) \,\|\, p(x_t \mid x_{<t})\right)

    The student q is a chain of affine autoregressive maps in one order, so that :math:`x_t = m_t + s_t z_t` with m and
    s of :math:`z_{<t}`: a Gaussian or a logistic of known location and scale (``collapsed``). One draw of it and one
    pass of the teacher over that draw give all positions' conditionals. Where both are Gaussian (ClariNet,
    arXiv:1807.07281),

    .. math:: \mathrm{KL}_t = \ln \frac{s_p}{s_q} + \frac{s_q^2 - s_p^2 + (m_p - m_q)^2}{2 s_p^2}

    and for other teachers the cross-entropy is the mean of -log p over ``draws`` values of :math:`x_t` at each
    position, from which the student's entropy is subtracted (Parallel WaveNet, arXiv:1711.10433). Gradients flow
    through the draw into the teacher; freezing its weights is the caller's affair. Rounding to a grid (``Dequantize``)
    is left out: the densities compared are those of the continuous values.

    It is an estimator for ``Distillation``.

    Args:
        draws: values per position where there is no closed form.
        regularizer: weight of :math:`(\ln s_p - \ln s_q)^2`, added per position where both are Gaussian: it keeps the
            scales together where the KL alone is nearly flat. ClariNet has 4; 0 gives the KL itself.

    Raises:
        ValueError: for a student that is no chain of affine maps in one order, or a teacher that is not one
            autoregressive layer.
    """

    def __init__(self, draws: int = 16, regularizer: float = 4.0) -> None:
        if draws < 1 or regularizer < 0:
            raise ValueError(f"expected draws >= 1 and regularizer >= 0, got {draws} and {regularizer}")
        self.draws = draws
        self.regularizer = regularizer

    def __call__(self, student: Any, teacher: Any, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One draw per row of x in its context, and the KL in nats per example (with the regularizer).

        Args:
            student: a flow whose transform is a chain of affine autoregressive maps in one order.
            teacher: a flow of one autoregressive layer.
            x: only its number of rows N counts.
            context: ``(N, *context)``.

        Returns:
            Draws ``(N, T)``, differentiable, and ``(N,)``.
        """
        chain = collapsed(student, student.base.sample((len(x),)), context)
        return chain[0], self._divergence(student, teacher, chain, context)

    def _divergence(
        self, student: Any, teacher: Any, chain: tuple[Tensor, Tensor, Tensor], context: Tensor | None
    ) -> Tensor:
        draw, location, log_scale = chain
        density = Conditionals(teacher, draw, context)
        if density.gaussian and isinstance(student.base, StandardNormal):
            standardized, log_slope = density.normalize(location)  # (m_q - m_p) / s_p and -ln s_p
            log_ratio = log_scale + log_slope  # ln(s_q / s_p)
            each = 0.5 * (torch.expm1(2 * log_ratio) + standardized.square()) - log_ratio
            each = each + self.regularizer * log_ratio.square()
        else:
            noise = type(student.base)(()).to(location).sample((self.draws, *location.shape))
            values = location + torch.exp(log_scale) * noise
            each = -density.log_prob(values).mean(0) - entropy(student, log_scale)
        return each.sum(-1)


class PairedKL(ConditionalKL):
    r"""Both KLs by one forward pass of the student: from noise z the teacher makes the row x, the student s.

    The reverse KL is that of ``ConditionalKL`` at s, the forward KL that of ``encoded_kl`` at x, and both are of the
    same :math:`m_t` and :math:`s_t`: of a student alike to its teacher, s is x. The rows must be the teacher's own
    draws, or their noise is no noise. The price of the forward KL is one pass of the teacher without a gradient.

    It is an estimator of both for ``Distillation``.

    Args:
        draws: values per position where there is no closed form.
        regularizer: weight of :math:`(\ln s_p - \ln s_q)^2`, added per position where both are Gaussian.

    Raises:
        ValueError: as ``ConditionalKL``, and for a student of other noise than the teacher's.
    """

    def __call__(  # type: ignore[override]
        self, student: Any, teacher: Any, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the student's draws ``(N, T)``, reverse and forward KL, ``(N,)`` each, in nats per example.

        Args:
            student: a flow whose transform is a chain of affine autoregressive maps in one order.
            teacher: a flow of one autoregressive layer.
            x: the teacher's own draws, ``(N, T)``.
            context: ``(N, *context)``.
        """
        chain, log_p = _at_encoding(student, teacher, x, context)
        reverse = self._divergence(student, teacher, chain, context)
        return chain[0], reverse, log_p - _log_prob_at(student, x, chain)


def encoded_kl(student: Any, teacher: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
    """The forward KL along the teacher's encoding z of rows x, position by position, in nats per example (N,).

    The student is a chain as for ``ConditionalKL``, read at z = teacher.encode(x): the density that it has for x_t, had
    the past been drawn from z_<t, is compared with the teacher's,

        sum_t ln p(x_t | x_<t) - ln q(x_t | z_<t),    q(x_t | z_<t) = base((x_t - m_t) / s_t) / s_t.

    Its mean over rows of the teacher's is a sum of divergences, 0 for the same map alone. It takes one parallel pass of
    each, with no gradient through the teacher, where the student's likelihood of x takes an incremental inversion. And
    where m_t is not known yet s_t grows to cover the error, so that loss and gradients stay moderate however narrow the
    teacher's conditionals, at which the reverse KL explodes: it is a warm start.

    It is a forward estimator for ``Distillation``.

    Args:
        student: a flow whose transform is a chain of affine autoregressive maps in one order.
        teacher: an invertible flow, whose noise is that of the student.
        x: rows of the teacher's, ``(N, T)``.
        context: ``(N, *context)``.

    Raises:
        ValueError: for a student that is no such chain, or of other noise than the teacher's.
    """
    chain, log_p = _at_encoding(student, teacher, x, context)
    return log_p - _log_prob_at(student, x, chain)


def _at_encoding(
    student: Any, teacher: Any, x: Tensor, context: Tensor | None
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """The student collapsed at the noise of which the teacher makes x, and ln p(x)."""
    check_noise(student, teacher)
    with torch.no_grad():
        z, log_det = teacher.transform.inverse_and_log_det(x, teacher.normalize_context(context))
        log_p = teacher.base.log_prob(z) + log_det
    return collapsed(student, z, context), log_p


def _log_prob_at(student: Any, x: Tensor, chain: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The log-density of x under the conditionals of a collapsed chain."""
    _, location, log_scale = chain
    log_q: Tensor = student.base.log_prob((x - location) * torch.exp(-log_scale)) - log_scale.sum(-1)
    return log_q


def check_noise(student: Any, teacher: Any) -> None:
    """Raise ValueError unless both have the same noise, without which their latents cannot be compared."""
    if type(teacher.base) is not type(student.base):
        names = (type(flow.base).__name__ for flow in (student, teacher))
        raise ValueError("expected the same noise in student and teacher, got {} and {}".format(*names))


class Conditionals:
    """The densities p(y_t | x_<t) of every position of x, of a flow whose transform is one autoregressive layer.

    Args:
        flow: noise, one ``Autoregressive``, and maps of single elements (``Standardize(())`` and the like).
        x: ``(N, T)``.
        context: ``(N, *context)``.

    Raises:
        ValueError: for any other flow.
    """

    def __init__(self, flow: Any, x: Tensor, context: Tensor | None = None) -> None:
        layer, *self.outer = _continuous(flow)
        if not isinstance(layer, Autoregressive) or any(part.event_dim for part in self.outer):
            raise ValueError(f"expected a teacher of one autoregressive layer, got {_names([layer, *self.outer])}")
        self.base = type(flow.base)(()).to(x)  # of one element
        self.gaussian = isinstance(self.base, StandardNormal) and _affine([layer, *self.outer])
        for part in reversed(self.outer):
            x = part.inverse(x)
        self.layer = layer.conditionals(x, flow.normalize_context(context))

    def normalize(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The noise at values y ``(*draws, N, T)`` given x_<t, and log|dz/dy|, both of y's shape."""
        total = torch.zeros_like(y)
        for part in reversed(self.outer):
            y, log_slope = part.inverse_and_log_det(y)
            total = total + log_slope
        z, log_slope = self.layer(y)
        return z, total + log_slope

    def log_prob(self, y: Tensor) -> Tensor:
        """Log p(y_t | x_<t) of values y ``(*draws, N, T)``, of y's shape."""
        z, log_slope = self.normalize(y)
        log_prob: Tensor = self.base.log_prob(z)
        return log_prob + log_slope


def collapsed(flow: Any, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The chain of affine maps as one: x_t = m_t + s_t z_t, with m_t and s_t functions of z_<t.

    The log-derivatives of an element add along a chain, ln s_t = sum_k ln s_kt, and m_t = x_t - s_t z_t.

    Args:
        flow: one whose transform is affine in every element, all in one order.
        z: noise ``(N, T)``.
        context: ``(N, *context)``.

    Returns:
        x, m and ln s, ``(N, T)`` each.

    Raises:
        ValueError: for any other flow.
    """
    parts = _continuous(flow)
    if not _affine(parts):
        raise ValueError(f"expected a student of affine autoregressive maps in one order, got {_names(parts)}")
    x, log_scale = Chain(parts).forward_and_log_diagonal(z, flow.normalize_context(context))
    return x, x - torch.exp(log_scale) * z, log_scale


def entropy(flow: Any, log_scale: Tensor) -> Tensor:
    """The entropy in nats of each position of a collapsed chain, ln s_t + H(noise): of a logistic, ln s_t + 2.

    Its mean over draws, summed over positions, is the entropy H(S) of the whole.

    Args:
        flow: whose noise is normal or logistic.
        log_scale: ln s of ``collapsed``.

    Raises:
        ValueError: for other noise.
    """
    for noise, each in _ENTROPY.items():
        if isinstance(flow.base, noise):
            return log_scale + each
    raise ValueError(f"expected normal or logistic noise, got {type(flow.base).__name__}")


def _continuous(flow: Any) -> list[Transform]:
    return [part for part in flow.parts if not isinstance(part, Dequantize)]


def _affine(parts: Sequence[Transform]) -> bool:
    for part in parts:
        inner = part.transform if isinstance(part, Inverse) else part
        if isinstance(inner, Autoregressive):
            if not isinstance(inner.univariate, Affine | Shift | Scale):
                return False
        elif inner.event_dim or not isinstance(inner, Standardize | Rescale):
            return False
    return True


def _names(parts: Sequence[Transform]) -> str:
    return ", ".join(type(part).__name__ for part in parts)

"""Velocity fields of continuous flows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffeo import ops
from diffeo.arguments import KnowsArguments
from diffeo.nets.mlp import MLP
from diffeo.nets.precision import in_bfloat16
from diffeo.nets.trace import exact_trace
from diffeo.ops.reference.network import soft_bound

__all__ = ["Guided", "Velocity", "embedding_size"]

FREQUENCIES = 6  # of the sinusoidal time embedding: what is sharp in the data is settled in the last instants


def embedding_size(context: int, droppable: bool = False) -> int:
    """How many inputs a velocity's network has besides x: the time's, the context's, and whether there is one."""
    return 2 * FREQUENCIES + 1 + context + droppable


class Velocity(KnowsArguments, nn.Module):
    r"""The velocity of a Gaussian, corrected by a network whose contribution is softly bounded.

    Between noise of mean :math:`m_0` and variance :math:`s_0^2` and data of :math:`m_1` and :math:`s_1^2`, all per
    element, along a path :math:`x_t = a x_1 + s x_0`, the velocity of Gaussians is known in closed form:

    .. math::
        m_t &= a m_1 + s m_0, \qquad \sigma_t^2 = a^2 s_1^2 + s^2 s_0^2 \\
        g(x, t) &= a' m_1 + s' m_0 + \frac{a a' s_1^2 + s s' s_0^2}{\sigma_t^2} (x - m_t) \\
        v(x, t, c) &= g(x, t) + \sigma_t B \tanh(\mathrm{net}(u, t, c) / B), \qquad u = \frac{x - m_t}{\sigma_t}

    A network that starts at zero corrects it: before the first step the flow is the fit of the data by a Gaussian of
    independent elements. Along a trajectory u moves by :math:`du/dt = B \tanh(\mathrm{net}(u, t, c) / B)`: however far
    a point is from the data, its noise lies within B standard deviations, in each element, of where the closed form
    alone leads it. The network sees t with its sines and cosines.

    Args:
        net: (x ``(rows, *event)``, embedding ``(rows, embedding_size(...))``) -> the shape of x. Where it has a method
            ``with_trace`` (that of ``MLP``), exact divergences take that.
        event_shape: the shape of one example.
        path: the coefficients a, s, a', s' at times t, as in ``diffeo.objectives.paths``.
        context: the size of the context, 0 for none.
        droppable: whether the context can be withheld, which guidance needs.
        bound: B, which bounds the correction softly, in standard deviations; None for std_t net(...), without a bound.

    Raises:
        ValueError: for a context to withhold where there is none, or a bound that is not positive.
    """

    initialized: Tensor
    data_mean: Tensor
    noise_mean: Tensor
    data_std: Tensor
    noise_std: Tensor
    multiples: Tensor

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        path: Callable[[Tensor], Sequence[Tensor]],
        context: int = 0,
        droppable: bool = False,
        bound: float | None = None,
    ) -> None:
        super().__init__()
        if droppable and not context:
            raise ValueError("expected a context that can be withheld, got a velocity without context")
        if bound is not None and not 0 < bound < math.inf:
            raise ValueError(f"expected a bound above 0, or None, got {bound}")
        self.net: Any = net
        self.path = path
        self.context_size = context
        self.droppable = droppable
        self.bound = bound
        for name in ("data_mean", "noise_mean"):
            self.register_buffer(name, torch.zeros(tuple(event_shape)))
        for name in ("data_std", "noise_std"):
            self.register_buffer(name, torch.ones(tuple(event_shape)))
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("multiples", math.pi * 2.0 ** torch.arange(FREQUENCIES), persistent=False)

    @torch.no_grad()
    def initialize(self, noise: Tensor | None, data: Tensor) -> None:
        """Start from the Gaussian fits of noise and data.

        Args:
            noise: ``(rows, *event)``; None for standard noise.
            data: ``(rows, *event)``.
        """
        for name, rows in (("noise", noise), ("data", data)):
            if rows is None:
                continue  # mean 0 and std 1, as they are
            std = rows.std(0)
            self.get_buffer(f"{name}_mean").copy_(rows.mean(0))
            self.get_buffer(f"{name}_std").copy_(torch.where(std > 0, std, 1))
        self.initialized.fill_(True)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """The velocity at x ``(rows, *event)`` and times t ``(rows,)``.

        Args:
            x: the points.
            t: the times.
            context: ``(rows, context)``.
            keep: ``(rows,)``, 1 where the context is given, 0 where it is withheld; None gives it everywhere.
        """
        drift, _, standardized, std = self._gaussian(x, t)
        return torch.addcmul(drift, std, self._bounded(self.net(standardized, self._embedding(t, context, keep))))

    def squared_error(
        self, noise: Tensor, data: Tensor, t: Tensor, context: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        r"""The squared distance of the velocity from that of a point on its path, ``(rows,)``.

        .. math:: \left\|v(x_t, t, c) - \frac{dx_t}{dt}\right\|^2, \qquad x_t = a x_1 + s x_0

        The difference is that of the correction from a target. With :math:`x_1` and :math:`x_0` less their means,

        .. math::
            x_t - m_t = a x_1 + s x_0, \qquad
            \text{target} = \frac{a' s - a s'}{\sigma_t^2} (s s_0^2 x_1 - a s_1^2 x_0)

        which takes fewer operations than both velocities. Gradients reach the network's weights alone.

        Args:
            noise: x_0, ``(rows, *event)``.
            data: x_1, likewise.
            t: ``(rows,)``.
            context: as in ``forward``.
            keep: as in ``forward``.
        """
        field = self.field(len(data), context, keep)
        asked = None if field is None else ops.matching(field, noise.flatten(1), data.flatten(1), t)
        if field is not None and asked is not None:
            velocity = asked.std * self._bounded(ops.network(field.network, asked.inputs, None, field.tensors))
            return F.mse_loss(velocity, asked.target, reduction="none").sum(0)
        with torch.no_grad():
            a, s, da, ds = self._point(data, t)
            m1, m0, v1, v0 = self._moments()
            data, noise = data - m1, noise - m0
            variance = a.square() * v1 + s.square() * v0
            std, turn = variance.sqrt(), (da * s - a * ds) / variance
            standardized = torch.addcmul(a * data, s, noise) / std
            target = turn * torch.addcmul(s * v0 * data, a * v1, noise, value=-1)
            embedding = self._embedding(t, context, keep)
        velocity = std * self._bounded(self.net(standardized, embedding))
        return F.mse_loss(velocity, target, reduction="none").flatten(1).sum(1)

    def with_divergence(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the velocity and its divergence, exactly.

        Args:
            x: the points, ``(rows, *event)``.
            t: the times, ``(rows,)``.
            context: ``(rows, context)``, or None.

        Returns:
            The shape of x, and ``(rows,)``.
        """
        drift, slope, standardized, std = self._gaussian(x, t)
        embedding = self._embedding(t, context, None)
        if hasattr(self.net, "with_trace"):
            correction, trace = self.net.with_trace(standardized, embedding, self.bound)
        else:
            correction, trace = exact_trace(lambda x: self._bounded(self.net(x, embedding)), standardized)
        return torch.addcmul(drift, std, correction), slope.flatten(1).sum(1) + trace

    def field(self, rows: int, context: Tensor | None, keep: Tensor | None = None) -> ops.FieldSpec | None:
        """Describe the velocity of rows for the kernels, given their contexts; None where there is no such description.

        Args:
            rows: how many.
            context: ``(rows, context)``, or None.
            keep: ``(rows,)``, 1 where the context is given, 0 where it is withheld; None gives it everywhere.
        """
        path = getattr(self.path, "spec", None)
        if type(self) is not Velocity or type(self.net) is not MLP or path is None or in_bfloat16():
            return None
        if (0 if context is None else context.shape[-1]) != self.context_size:
            return None
        moments = [m.contiguous() for m in (self.data_mean, self.noise_mean, self.data_std, self.noise_std)]
        network, tensors = self.net.joined()
        inputs = None if context is None else torch.cat(self._context_inputs(context.expand(rows, -1), keep), 1)
        size = moments[0].numel() + 2 * FREQUENCIES + 1 + (0 if inputs is None else inputs.shape[1])
        if network.layers[0].columns != size:
            return None
        return ops.FieldSpec(network, tensors, moments, inputs, FREQUENCIES, path, self.bound or math.inf)

    def _bounded(self, outputs: Tensor) -> Tensor:
        """What the correction is of the network's outputs, in standard deviations."""
        return outputs if self.bound is None else soft_bound(outputs, self.bound)

    def _point(self, x: Tensor, t: Tensor) -> list[Tensor]:
        """Where the path stands at t, to be multiplied with x ``(rows, *event)``."""
        shape = (-1, *(1,) * (x.dim() - 1))
        return [each.reshape(shape) for each in self.path(t)]

    def _moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means of the data and of the noise, and their variances."""
        return self.data_mean, self.noise_mean, self.data_std.square(), self.noise_std.square()

    def _gaussian(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The velocity of Gaussians, its slope, (x - mean_t) / std_t and std_t."""
        a, s, da, ds = self._point(x, t)
        m1, m0, v1, v0 = self._moments()
        variance = a.square() * v1 + s.square() * v0
        slope = (a * da * v1 + s * ds * v0) / variance
        residual, std = x - (a * m1 + s * m0), variance.sqrt()
        return torch.addcmul(da * m1 + ds * m0, slope, residual), slope, residual / std, std

    def _embedding(self, t: Tensor, context: Tensor | None, keep: Tensor | None) -> Tensor:
        """What the network gets besides x: the time, its sines and cosines, and the context."""
        angles = t[:, None] * self.multiples
        parts = [t[:, None], angles.sin(), angles.cos()]
        if self.context_size:
            if context is None:
                raise ValueError(f"expected a context of size {self.context_size}, got none")
            parts += self._context_inputs(context, keep)
        return torch.cat(parts, 1)

    def _context_inputs(self, context: Tensor, keep: Tensor | None) -> list[Tensor]:
        """The context, or zeros where it is withheld, and if it can be withheld whether it is there."""
        there = torch.ones_like(context[:, :1]) if keep is None else keep[:, None]
        return [context if keep is None else context * there, *([there] if self.droppable else [])]


class Guided(KnowsArguments, nn.Module):
    """v(x, t) + weight (v(x, t, c) - v(x, t)): classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598).

    With a weight above 1 samples are more typical of their context than the data are. It is for sampling only: what
    they are distributed by is not the density that was learned.

    Args:
        velocity: one that was trained with its context withheld at times.
        weight: 0 ignores the context, 1 is the velocity itself.

    Raises:
        ValueError: for a velocity that cannot be guided, or a weight that is not finite; when called, without context.
    """

    sampling_only = True

    def __init__(self, velocity: Velocity, weight: float) -> None:
        super().__init__()
        if not getattr(velocity, "droppable", False):
            raise ValueError(
                "expected a conditional velocity that knows its context withheld (train it with label dropout), got "
                "one that cannot be guided"
            )
        if not math.isfinite(weight):
            raise ValueError(f"expected a finite weight of guidance, got {weight}")
        self.velocity, self.weight = velocity, weight

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the guided velocity, by one forward pass of twice the rows.

        Args:
            x: the points, ``(rows, *event)``.
            t: the times, ``(rows,)``.
            context: ``(rows, context)``.

        Raises:
            ValueError: without a context.
        """
        if context is None:
            raise ValueError("expected a context to guide by, got none")
        keep = torch.cat([torch.zeros_like(t), torch.ones_like(t)])
        doubled = (each.repeat(2, *(1,) * (each.dim() - 1)) for each in (x, t, context))
        unconditional, conditional = self.velocity(*doubled, keep).chunk(2)
        return torch.lerp(unconditional, conditional, self.weight)

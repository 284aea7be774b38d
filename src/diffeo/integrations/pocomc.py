"""A flow that preconditions pocoMC (https://pocomc.readthedocs.io): ``pocomc.Sampler(..., flow=preconditioner(flow))``.

pocoMC takes flows of zuko alone: this makes a flow look like one. pocoMC trains it, by its own loop.
"""

from __future__ import annotations

from typing import Any

import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Independent, Normal, constraints

from diffeo.bases import StandardNormal
from diffeo.flow import Flow

__all__ = ["ZukoFlow", "preconditioner"]


class _Map(torch.distributions.Transform):
    """The map x -> z of a flow in the words of zuko, or, ``generate``, the one from z to x."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, flow: Flow, generate: bool = False) -> None:
        super().__init__()
        self.flow, self.generate = flow, generate

    @property
    def inv(self) -> _Map:
        return _Map(self.flow, not self.generate)

    def call_and_ladj(self, value: Tensor) -> tuple[Tensor, Tensor]:
        transform = self.flow.transform
        rows = value.reshape(-1, value.shape[-1])
        mapped, log_det = (transform.forward_and_log_det if self.generate else transform.inverse_and_log_det)(rows)
        return mapped.reshape(value.shape), log_det.reshape(value.shape[:-1])

    def _call(self, value: Tensor) -> Tensor:
        return self.call_and_ladj(value)[0]

    def _inverse(self, value: Tensor) -> Tensor:
        return self.inv.call_and_ladj(value)[0]

    def log_abs_det_jacobian(self, value: Tensor, mapped: Tensor) -> Tensor:
        return self.call_and_ladj(value)[1]


class ZukoFlow(zuko.flows.Flow):
    """A flow of vectors, without context, that zuko's users call as one of zuko's.

    Args:
        flow: with standard normal noise, and a density.

    Raises:
        ValueError: for another flow.
    """

    def __init__(self, flow: Flow) -> None:
        nn.Module.__init__(self)  # zuko's flows are made of lazy parts, which there are none of
        if len(flow.event_shape) != 1 or flow.context_shape or not isinstance(flow.base, StandardNormal):
            raise ValueError("expected a flow of vectors without context and of standard normal noise, got another")
        if flow.transform.branches > 1 or not flow.has_log_prob:
            raise ValueError("expected a flow whose density is one change of variables, got another")
        self.flow = flow

    def forward(self, c: Any = None) -> Any:
        """Return the distribution.

        Args:
            c: no context.
        """
        marker = self.flow.base.device_marker
        shape = self.flow.base.event_shape
        noise = Independent(Normal(marker.new_zeros(shape), marker.new_ones(shape), validate_args=False), 1)
        return zuko.distributions.NormalizingFlow(_Map(self.flow), noise)


def preconditioner(flow: Flow) -> ZukoFlow:
    """Return what ``pocomc.Sampler(flow=...)`` takes.

    pocoMC brings parameters to about standard units before the flow sees them, so that it needs no preprocessing
    (``diffeo.nsf(n, preprocess=())``); both directions are called many times, so both should be fast.

    Args:
        flow: of as many elements as there are parameters, without context.

    Raises:
        ValueError: for a flow of images, with a context, of other noise or without a density.
    """
    return ZukoFlow(flow)

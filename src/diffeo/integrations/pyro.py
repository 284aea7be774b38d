"""Flows in Pyro (https://pyro.ai): as the distribution of a site, in a model or a guide, and as an automatic guide.

pyro.module("flow", flow)
pyro.sample("x", distribution(flow, context))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor

from diffeo.flow import Flow, FlowDistribution
from diffeo.recipes import iaf

__all__ = ["AutoFlow", "PyroFlow", "distribution"]


class PyroFlow(FlowDistribution, TorchDistributionMixin):
    """A flow given a context, as Pyro's own distributions are; see ``distribution``.

    Args:
        flow: the density.
        context: ``(*batch, *context_shape)``, or None.
        batch_shape: by default that of the context.
    """

    def __init__(self, flow: Flow, context: Tensor | None = None, batch_shape: Sequence[int] | None = None) -> None:
        super().__init__(flow, context, batch_shape)
        # Pyro asks for the density of what it has drawn, which is at hand when it is drawn and may be slow afterwards.
        self._drawn: tuple[Tensor, Tensor] | None = None

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> PyroFlow:
        """Return the same density over a larger batch.

        Args:
            batch_shape: one that the present one broadcasts to.
            _instance: unused.
        """
        larger = super().expand(batch_shape)
        return PyroFlow(larger.flow, larger.context, larger.batch_shape)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draw with gradients through the transform, and remember the density.

        Args:
            sample_shape: how many for each element of the batch.

        Returns:
            ``(*sample, *batch, *event)``.

        Raises:
            NotImplementedError: for a base whose samples are not differentiable in its parameters.
        """
        if not (self.has_rsample and self.flow.has_log_prob):
            return super().rsample(sample_shape)
        shape = torch.Size(sample_shape)
        whole = shape + self.batch_shape if self.context is None else shape
        self._drawn = self.flow.sample_and_log_prob(whole, self.context)
        return self._drawn[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of values.

        Args:
            value: ``(*sample, *batch, *event)``.

        Returns:
            ``(*sample, *batch)``, in nats.
        """
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        return super().log_prob(value)


def distribution(flow: Flow, context: Tensor | None = None) -> PyroFlow:
    """Return the density given a context, to be sampled by ``pyro.sample``.

    Its parameters are trained where ``pyro.module(name, flow)`` registers them. A flow that is a guide should sample
    fast (``diffeo.iaf``, ``diffeo.realnvp``) and standardise nothing (``preprocess=()``): it has no data.

    Args:
        flow: the density.
        context: ``(*batch, *context_shape)``, or None.

    Raises:
        ValueError: for a missing or superfluous context, or one of a wrong shape.
    """
    return PyroFlow(flow, context)


class AutoFlow(AutoContinuous):
    """The automatic guide of a model's continuous latent variables that is a flow, on their unconstrained values.

    Args:
        model: a Pyro model.
        make: from the number of latent variables to a flow; by default an IAF.
    """

    def __init__(self, model: Callable[..., Any], make: Callable[[int], Flow] | None = None) -> None:
        super().__init__(model)
        self._make = make or _small
        self.flow: Flow | None = None

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.flow = self._make(self.latent_dim)

    def get_posterior(self, *args: Any, **kwargs: Any) -> PyroFlow:
        """Return the density of all latent variables, side by side.

        Args:
            args: of the model; unused.
            kwargs: of the model; unused.
        """
        assert self.flow is not None  # the prototype is set up before
        return distribution(self.flow)


def _small(features: int) -> Flow:
    return iaf(features, hidden=(32, 32), transforms=2 if features > 1 else 1, preprocess=())

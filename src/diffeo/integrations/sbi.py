"""A flow as the density estimator of sbi (https://sbi.readthedocs.io): ``NPE(prior, density_estimator(...))``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn

from diffeo.flow import Flow
from diffeo.recipes import build
from diffeo.transforms import Support, as_support

__all__ = ["FlowEstimator", "density_estimator"]


class FlowEstimator(ConditionalDensityEstimator):
    """A conditional flow behind sbi's interface: its input is what the flow is a density of, its condition the context.

    Args:
        flow: a flow with a context.

    Raises:
        ValueError: for a flow without context, or one that has no density.
    """

    net: Flow

    def __init__(self, flow: Flow) -> None:
        if not flow.context_shape:
            raise ValueError("expected a flow with a context, got one without")
        if not flow.has_log_prob:
            raise ValueError("expected a flow that has a density, got one for samples alone")
        super().__init__(flow, flow.event_shape, flow.context_shape)

    @property
    def embedding_net(self) -> nn.Module | None:
        """The network that reads the condition, if there is one."""
        return self.net.embedding

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Log-densities, in nats; a batch without samples counts as one sample.

        Args:
            input: ``(samples, batch, *event)`` or ``(batch, *event)``.
            condition: ``(batch, *context)`` or ``(samples, batch, *context)``; a batch of 1 fits any.
            kwargs: none.

        Returns:
            ``(samples, batch)``.
        """
        rows = input if input.dim() > len(self.input_shape) + 1 else input[None]
        return self.net.log_prob(rows, condition)

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return -log p of each pair, where draws of a prior that lie on its bounds by rounding count as inside.

        Args:
            input: ``(batch, *event)``.
            condition: ``(batch, *context)``.
            kwargs: none.

        Returns:
            ``(batch,)``.
        """
        support = self.net.parts[-1]
        return -self.net.log_prob(support.off_bounds(input) if isinstance(support, Support) else input, condition)

    def sample(self, sample_shape: Sequence[int], condition: Tensor, **kwargs: Any) -> Tensor:
        """Draw samples.

        Args:
            sample_shape: how many of each condition.
            condition: ``(batch, *context)``.
            kwargs: none.

        Returns:
            ``(*sample_shape, batch, *event)``.
        """
        return self.net.sample(tuple(sample_shape), condition)

    def sample_and_log_prob(
        self, sample_shape: Sequence[int], condition: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Draw samples with their log-densities, without gradients.

        Args:
            sample_shape: how many of each condition.
            condition: ``(batch, *context)``.
            kwargs: none.

        Returns:
            ``(*sample_shape, batch, *event)`` and ``(*sample_shape, batch)``.
        """
        with torch.no_grad():
            return self.net.sample_and_log_prob(tuple(sample_shape), condition)


def density_estimator(
    model: str | Callable[[int, int], Flow] = "nsf",
    prior: Any = None,
    embedding: nn.Module | Sequence[int] | None = None,
    **arguments: Any,
) -> Callable[[Tensor, Tensor], FlowEstimator]:
    """Return the function that makes the estimator, as ``NPE(density_estimator=...)`` takes it.

    Parameters and observations are standardised by the simulations that it is shown, and samples never leave the
    support of the prior: sbi then rejects none.

    Args:
        model: a recipe's name, or a function of the numbers of parameters and of context that makes a flow.
        prior: a prior, or anything else that ``transforms.as_support`` takes; None for real numbers.
        embedding: a network from observations ``(n, *shape)`` to vectors ``(n, C)``, trained with the flow; or the
            recipe's argument, widths of one that reads vectors, such as ``(128, 128, 32)``.
        arguments: of the recipe, such as ``hidden=(64, 64)``.

    Raises:
        ValueError: for widths beside a function; by what is returned, for observations that are no vectors, without an
            embedding.
    """
    net = None if embedding is None or isinstance(embedding, Sequence) else embedding
    if embedding is not None and net is None:
        if callable(model):
            raise ValueError("expected an embedding as a module beside a function that makes the flow, got widths")
        arguments["embedding"] = embedding

    def make(theta: Tensor, x: Tensor) -> FlowEstimator:
        with torch.no_grad():
            read = x[:2] if net is None else net(x[:2])
        if read.dim() != 2:
            raise ValueError(f"expected observations that are vectors, or an embedding, got shape {tuple(x.shape[1:])}")
        support = as_support("real" if prior is None else prior, theta.shape[1:])
        (features,), context = support.noise_shape, read.shape[1]
        flow = model(features, context) if callable(model) else build(
            model, {"features": features, "context": context, "transforms": 5, **arguments}
        )  # fmt: skip
        if net is not None:
            flow = flow.with_embedding(net, x.shape[1:])
        flow = flow.with_support(support).to(theta)
        with torch.no_grad():  # what depends on the data takes its statistics from all of them
            flow.train().log_prob(support.off_bounds(theta), x)
        return FlowEstimator(flow)

    return make

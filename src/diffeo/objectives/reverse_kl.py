"""Reverse KL: a flow learns a density of which the logarithm is known, up to a constant, and no sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffeo.arguments import expect_number
from diffeo.objectives.base import Objective
from diffeo.objectives.distillation import path_gradient, reparameterized
from diffeo.objectives.target import LogDensity, Target
from diffeo.transforms import DataDependent

__all__ = ["ReverseKL", "WithoutData"]


class WithoutData(Objective):
    """An objective that draws its own points: of x it looks at the number of rows alone, (N, 0).

    ``fit(objective, steps=...)`` trains it. Layers that set themselves from data stay as they are.

    Args:
        flow: the flow to train.
        log_density: what it learns; see ``Target``.

    Raises:
        ValueError: for a flow that has no density.
        TypeError: for what is no flow.
    """

    remedy = "lower the learning rate"

    def __init__(self, flow: nn.Module, log_density: LogDensity | Target) -> None:
        super().__init__(flow)
        if not hasattr(self.flow, "has_log_prob"):
            raise TypeError(f"expected a flow, got {type(flow).__name__}")
        if not self.flow.has_log_prob:
            raise ValueError(f"expected a flow with a density, got a {type(flow).__name__} that has samples alone")
        for part in self.flow.modules():
            if isinstance(part, DataDependent):
                part.initialized.fill_(True)
        self.target = Target(log_density)


class _Tempered:
    """What estimators of the KL take for a teacher: the target, its logarithm times beta."""

    def __init__(self, target: Target, beta: float) -> None:
        self.target, self.beta = target, beta

    def log_prob(self, x: Tensor, context: Tensor | None = None, nan: str = "error") -> Tensor:
        return self.beta * self.target(x, context)


class ReverseKL(WithoutData):
    r"""The reverse KL from a log-density, up to its constant; one draw of the flow q per row, in nats.

    .. math:: E_q[\log q(x) - \log \tilde p(x)] = \mathrm{KL}(q \,\|\, p) - \log Z

    By path gradients ("sticking the landing", Roeder et al. 2017, arXiv:1703.09194) the variance of the gradient falls
    to 0 as q comes to match p. They take the density of a draw under fixed weights, which is one incremental inversion
    of a flow that is slow to invert, such as an IAF.

    It seeks modes: what q leaves out costs nothing, *and nothing that q's samples say shows it*. ``fit_target``
    trains by annealed importance sampling instead.

    Args:
        flow: the flow to train, whose samples have gradients.
        log_density: :math:`\log \tilde p` of points ``(n, *event)``, given contexts if the flow has them; see
            ``Target``.
        path_gradients: leave out the part of the gradient that has mean 0, that of log q at a fixed x.
        tempering: over how many steps beta rises from a hundredth to 1, in :math:`\log q - \beta \log \tilde p`: a
            flatter density, whose modes are found more easily.

    Raises:
        ValueError: for a flow whose draws have no gradients, or a negative number of steps. When it is called, for a
            log-density without gradients, or one that gives NaN.

    Example:
        >>> def log_density(x):
        ...     return -x.square().sum(-1)
        >>> objective = diffeo.objectives.ReverseKL(diffeo.iaf(2, hidden=(8,), preprocess=()), log_density)
        >>> diffeo.fit(objective, steps=3, batch_size=16).steps
        3
    """

    remedy = (
        "where the density is zero the reverse KL is infinite: give the flow the density's support, train by "
        "AlphaDivergence or fit_target, or lower the learning rate"
    )
    calls: Tensor

    def __init__(
        self,
        flow: nn.Module,
        log_density: LogDensity | Target,
        *,
        path_gradients: bool = True,
        tempering: int = 0,
    ) -> None:
        super().__init__(flow, log_density)
        if not self.flow.has_rsample:
            raise ValueError(f"expected a flow whose draws have gradients, got {type(self.flow.base).__name__} noise")
        expect_number(0, tempering=tempering)
        self.estimator = path_gradient if path_gradients else reparameterized
        self.tempering = tempering
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return an estimate for each row of x, shape (N,)."""
        beta = 1.0
        if self.training and self.tempering:
            beta = min(1.0, 0.01 + 0.99 * self.calls.item() / self.tempering)
            self.calls += torch.is_grad_enabled()
        _, kl = self.estimator(self.flow, _Tempered(self.target, beta), x, context)
        if torch.is_grad_enabled() and not self.target.differentiable:
            raise ValueError("expected a log-density with gradients (of torch), got one without; fit_target needs none")
        return kl

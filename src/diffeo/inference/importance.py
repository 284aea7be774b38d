"""Importance sampling: what a flow's samples say of a density known up to a constant, and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.arguments import expect_whole
from diffeo.flow import Flow
from diffeo.mixture import Mixture
from diffeo.objectives.annealed import Unbounded
from diffeo.objectives.moves import Moves, State, reweighted
from diffeo.objectives.target import LogDensity, Target
from diffeo.summary import Summarised, Summary, pair, quantity
from diffeo.training.batches import in_proportion

__all__ = ["Importance", "importance", "pareto_k"]

TRUSTED = 0.7  # largest Pareto k-hat
CHUNK = 2**14  # points at a time
MOVED = 2000  # points that are moved to where the target has them
IMPOSSIBLE = 2.0  # forward_ess, above which points that were moved along the density are not of it
FINEST = 1e-3  # of log-weights: what differs by less is rounding, or does not matter
FEW = 0.1  # share of all weight from which on fewer than 5 samples decide
UNSEEN = 0.01  # share of moved points beyond every sample's weight that is no accident


@dataclass(frozen=True, repr=False)
class Importance(Summarised):
    r"""Samples x of a flow q with their weights :math:`w = \tilde p(x) / q(x)`.

    Attributes:
        samples: ``(n, *event)``.
        log_weights: ``(n,)``, in nats; -inf where the density is zero.
        moved: log-weights of some of the samples after moves that lead to where the density has them, or None: a flow
            that leaves out what is near its samples has far larger weights there.
    """

    samples: Tensor
    log_weights: Tensor
    moved: Tensor | None = None

    @property
    def ess(self) -> float:
        r"""The effective sample size as a fraction of the samples, :math:`(\sum w)^2 / (n \sum w^2)`, in [0, 1]."""
        return reweighted(self.log_weights)[1]

    @property
    def weights(self) -> Tensor:
        """The weights ``(n,)`` in double precision, with sum 1."""
        return reweighted(self.log_weights)[0]

    @property
    def log_z(self) -> float:
        r""":math:`\log Z = \log \frac{1}{n} \sum w`; the estimate of Z, the integral of the density, is unbiased."""
        return torch.logsumexp(self.log_weights.double(), 0).item() - math.log(len(self.log_weights))

    @property
    def log_z_stderr(self) -> float:
        r"""The standard error of ``log_z``, as far as the weights show it, :math:`\sqrt{(1/\mathrm{ess} - 1) / n}`."""
        return math.sqrt(max(0.0, 1 / self.ess - 1) / len(self.log_weights)) if self.ess else math.inf

    @cached_property
    def khat(self) -> float:
        """The shape of the largest weights' tail: above 0.7 no figure here is to be trusted; see ``pareto_k``."""
        return pareto_k(self.log_weights)

    @cached_property
    def forward_ess(self) -> float:
        r"""The effective sample size by the moved points, :math:`1 / E_p[w / Z]`.

        With ``ess``, which is the same from the flow's own samples, if nothing near the points is left out, it is an
        estimate in the other direction. Weights are cut at the largest of a sample's, or one point in a far tail would
        be all that it says; ``unseen`` counts those. At most 1, but for chance, of points that are the density's; NaN
        without moved points.
        """
        if self.moved is None:
            return math.nan
        weights = self.moved.double().clamp_max(self.log_weights.max().item())
        log_ess = self.log_z - (torch.logsumexp(weights, 0).item() - math.log(len(weights)))
        return math.exp(log_ess) if log_ess < 700 else math.inf

    @property
    def unseen(self) -> float:
        """The share of moved points with a weight above that of every sample: mass that the flow leaves out."""
        return math.nan if self.moved is None else (self.moved > self.log_weights.max()).double().mean().item()

    @property
    def doubts(self) -> list[str]:
        """Reasons not to trust these figures, in words; none that was found is no proof that there is none."""
        reasons = []
        if not torch.isfinite(self.log_weights).any():
            return ["every sample lies where the density is zero"]
        if self.khat > TRUSTED:
            reasons.append(
                f"Pareto k-hat is {self.khat:.2f} (trusted up to {TRUSTED}): a few samples decide, and the flow's "
                "tails are lighter than the density's"
            )
        if self.unseen > UNSEEN:
            reasons.append(
                f"the flow leaves out mass near its samples: {self.unseen:.0%} of the points that were moved along the "
                "density weigh more than every sample (a base or a spline's box may cut it off)"
            )
        elif self.forward_ess > IMPOSSIBLE:
            reasons.append(
                "the directions disagree: points that were moved along the density weigh less on average than the "
                "flow's samples, as those of no density do; its integral may be infinite"
            )
        elif self.forward_ess < 0.5 * self.ess:
            reasons.append(
                f"the directions disagree: an effective sample size of {self.ess:.0%} by the flow's samples, of "
                f"{self.forward_ess:.0%} by points moved along the density"
            )
        return reasons

    def resample(self, n: int) -> Tensor:
        """Draw samples of the density itself, each of them as often as it weighs.

        Args:
            n: how many.

        Returns:
            ``(n, *event)``.

        Raises:
            ValueError: for less than one, or where all weights are 0.
        """
        expect_whole(1, n=n)
        self._expect_weights()
        return self.samples[torch.multinomial(self.weights, n, replacement=True)]

    def mean(self, function: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The expectation of a function under the density, sum w f(x) / sum w: self-normalised, with a bias of 1 / n.

        Args:
            function: of samples ``(n, *event)``, to ``(n, ...)``; by default the samples themselves.

        Raises:
            ValueError: for a function that returns no value for each sample, or where all weights are 0.
        """
        self._expect_weights()
        values = self.samples if function is None else torch.as_tensor(function(self.samples))
        if values.shape[:1] != self.log_weights.shape:
            raise ValueError(f"expected values ({len(self.log_weights)}, ...) of samples, got {tuple(values.shape)}")
        return torch.tensordot(self.weights.to(values), values, dims=1)

    def _expect_weights(self) -> None:
        if not torch.isfinite(self.log_weights).any():
            raise ValueError("expected a sample where the density is not zero, got none")

    def _summary(self) -> Summary:
        facts = {
            "log Z": pair(self.log_z, self.log_z_stderr),
            "ess": f"{self.ess:.3f} of {len(self.log_weights):,} samples",
            "k-hat": f"{self.khat:.2f}",
        }
        return Summary(f"Importance: weights of {quantity(len(self.log_weights), 'sample')}", facts, self.doubts)

    def __str__(self) -> str:
        lines = [
            f"log Z        {self.log_z:.4f} +- {self.log_z_stderr:.4f}",
            f"ess          {self.ess:.3f} of {len(self.log_weights):,} samples",
            f"k-hat        {self.khat:.2f}",
            *(f"warning      {doubt}" for doubt in self.doubts),
        ]
        return "\n".join(lines)


@torch.no_grad()
def importance(
    flow: Flow | Any,
    log_density: LogDensity | Target,
    n: int = 10_000,
    context: Tensor | None = None,
    *,
    moves: int = 50,
) -> Importance:
    r"""Weigh a flow's samples by a density that is known up to a constant Z.

    .. math::
        \log w_i = \log \tilde p(x_i) - \log q(x_i), \qquad x_i \sim q, \qquad
        Z = \int \tilde p(x)\,dx \approx \frac{1}{n} \sum_i w_i

    Besides, some samples are drawn as they weigh and moved along the density (``Moves``): where the flow cuts off a
    tail, or a base or a spline's box does, they get out of what it covers, and the result says so. A mode far from all
    samples is found by no such moves.

    Args:
        flow: q: anything with ``sample_and_log_prob`` and ``log_prob``.
        log_density: :math:`\log \tilde p` of points ``(n, *event)``, up to a constant; see ``Target``.
        n: how many samples.
        context: of the flow, ``(*context_shape)``, the same for all samples; the log-density is not given it.
        moves: how many times each is moved; 0 for none.

    Returns:
        Samples, weights, and what they say.

    Raises:
        ValueError: for fewer than 2 samples, or a log-density that gives NaN or another shape.
        TypeError: for what is no flow, or no function.

    Example:
        >>> flow = diffeo.Flow(diffeo.StandardNormal(2), diffeo.transforms.Elementwise("affine", 2))  # the identity
        >>> result = diffeo.importance(flow, lambda x: -0.5 * x.square().sum(-1), 100)
        >>> round(result.ess, 3), round(result.log_z, 3)  # log 2 pi
        (1.0, 1.838)
    """
    if not callable(getattr(flow, "sample_and_log_prob", None)):
        raise TypeError(f"expected a flow, with sample_and_log_prob and log_prob, got {type(flow).__name__}")
    expect_whole(2, n=n)
    expect_whole(0, moves=moves)
    target = Target(log_density)
    x, log_q = flow.sample_and_log_prob(n, context)
    log_p = torch.cat([target(part) for part in x.split(CHUNK)])
    log_weights = log_p - log_q
    moved = None
    if moves and torch.isfinite(log_weights).any():
        weights, _ = reweighted(log_weights)
        start = x[in_proportion(weights, torch.rand(()).item())][torch.randperm(n, device=x.device)[:MOVED]]
        moved = moved_weights(flow, target, start, moves, context)
    return Importance(x, log_weights, moved)


def moved_weights(
    flow: Flow | Any, target: Target, x: Tensor, moves: int, context: Tensor | None = None, step: float = 0.2
) -> Tensor:
    """log w of points after moves along the density, in the units of the flow's layers: there nothing has bounds.

    Args:
        flow: q.
        target: log p~.
        x: where they begin, ``(n, *event)``.
        moves: how many for each.
        context: of the flow.
        step: of the first moves; see ``Moves``.

    Returns:
        ``(n,)``, in nats.
    """
    outer = list(flow.preprocessing) if isinstance(flow, Flow) and not isinstance(flow, Mixture) else []
    y = x
    for transform in reversed(outer):
        y = transform.inverse(y)
    shape = y.shape[1:]
    unbounded = Unbounded(target, outer)

    def density(points: Tensor) -> Tensor:
        return unbounded(points.reshape(-1, *shape), strict=False)

    start = y.flatten(1)
    kernel = Moves(bool(target.differentiable), step, start.std(0).clamp_min(1e-6))
    points = kernel(State.at(start, density, kernel.differentiable), density, moves).x.reshape(-1, *shape)
    for transform in outer:
        points = transform.forward(points)
    log_q = flow.log_prob(points, context, nan="propagate").nan_to_num(-math.inf, neginf=-math.inf)
    return target(points, strict=False) - log_q


def pareto_k(log_weights: Tensor) -> float:
    """The shape k of a generalised Pareto distribution fitted to the largest weights, at least 5 of them.

    Moments of the weights of order below 1 / k are finite: above 1/2 they have no variance, from 0.7 on no number of
    samples that one can afford helps. Vehtari et al. 2024 (arXiv:1507.02646), fitted as Zhang and Stephens 2009 do.

    Args:
        log_weights: ``(n,)``; -inf is a weight of 0.

    Returns:
        k; infinity for fewer than 25 samples, or where fewer than 5 have another weight than most and hold more than a
        tenth of all, -infinity where they hold less: weights are bounded, as far as can be seen.
    """
    values = np.sort(log_weights.double().cpu().numpy())
    tail = min(len(values) // 5, math.ceil(3 * math.sqrt(len(values))))
    if tail < 5 or not np.isfinite(values[-tail - 1]):
        return math.inf
    values = FINEST * np.round((values - values[-1]) / FINEST)
    weights = np.exp(values)  # in units of the largest
    cutoff = weights[-tail - 1]
    over = weights[weights > cutoff]  # fewer than the tail where some are alike
    if len(over) < 5:
        return math.inf if over.sum() > FEW * weights.sum() else -math.inf
    return _fitted_shape(over - cutoff)


def _fitted_shape(excess: np.ndarray) -> float:
    """The posterior mean of k over a grid of scales, drawn towards 0.5 by a prior that counts as ten values."""
    count = len(excess)
    grid = 30 + int(math.sqrt(count))
    quarter = excess[int(count / 4 + 0.5) - 1]
    places = np.arange(1, grid + 1) - 0.5
    b = (1 - np.sqrt(grid / places)) / (3 * quarter) + 1 / excess[-1]
    b = b[b != 0]  # the exponential distribution, beside others as near to it as one likes
    shapes = np.log1p(-b[:, None] * excess).mean(1)
    likelihood = count * (np.log(-b / shapes) - shapes - 1)
    weights = np.exp(likelihood - likelihood.max())
    weights /= weights.sum()
    k = float(np.log1p(-(weights @ b) * excess).mean())
    return (count * k + 10 * 0.5) / (count + 10)

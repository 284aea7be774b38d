"""From a log-density to samples, their weights, log Z and a flow, in one call."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffeo.arguments import expect_number, expect_whole
from diffeo.bases import StandardNormal
from diffeo.flow import Flow
from diffeo.inference.importance import Importance, importance, moved_weights
from diffeo.inference.tempering import Particles, temper
from diffeo.objectives import AlphaDivergence, MaximumLikelihood, Target
from diffeo.objectives.annealed import Unbounded
from diffeo.objectives.target import LogDensity
from diffeo.progress import Display
from diffeo.recipes import nsf
from diffeo.summary import Curve, Summarised, Summary, quantity
from diffeo.training.batches import as_tensor
from diffeo.training.fit import FitResult, fit
from diffeo.training.seeding import derive, fork_rng, seed_noise
from diffeo.transforms import Standardize, as_support

__all__ = ["Approximation", "fit_target"]

PARTICLES = 8192
EPOCHS = 50  # on the particles, at most
STEPS = 1500
BINS = 16  # of the default's splines: a density may have many modes in a line
MOVED = 30  # moves of the particles, so that they are not those that the flow was trained on


@dataclass(frozen=True, repr=False)
class Approximation(Summarised):
    """A flow that approximates a density, and what its samples say of that density.

    Attributes:
        flow: q, in evaluation mode.
        importance: samples of q and their weights; in the other direction, weights at the annealed points, which were
            moved on after the training.
        annealed: the points by sequential Monte Carlo that it began with, and their own estimate of log Z.
        history: of the training, one dict per about a hundred steps.
        seconds: how long all of it took.
    """

    flow: Flow
    importance: Importance
    annealed: Particles
    history: list[dict[str, Any]]
    seconds: float

    @property
    def samples(self) -> Tensor:
        """Samples of the flow, ``(n, *event)``: of the density, if they are weighted."""
        return self.importance.samples

    @property
    def log_weights(self) -> Tensor:
        r"""Their log-weights ``(n,)``, :math:`\log \tilde p - \log q`."""
        return self.importance.log_weights

    @property
    def ess(self) -> float:
        """The effective sample size of the samples, in (0, 1]."""
        return self.importance.ess

    @property
    def log_z(self) -> float:
        r"""The estimate of :math:`\log Z = \log \int \tilde p(x)\,dx`."""
        return self.importance.log_z

    @property
    def log_z_stderr(self) -> float:
        """Its standard error, as far as the weights show it."""
        return self.importance.log_z_stderr

    @property
    def khat(self) -> float:
        """The shape of the tail of the weights: trusted up to 0.7."""
        return self.importance.khat

    @property
    def doubts(self) -> list[str]:
        """Reasons not to trust it, in words."""
        return self.importance.doubts

    def _summary(self) -> Summary:
        weighed = self.importance._summary()
        title = f"Approximation of a density of {quantity(self.flow.event_shape.numel(), 'number')}"
        facts = {**weighed.facts, "took": f"{self.seconds:.1f} s"}
        return Summary(title, facts, weighed.notes, [Curve.of(self.history)])

    def __str__(self) -> str:
        return str(self.importance)


def fit_target(
    log_density: LogDensity | Target,
    features: int | None = None,
    *,
    support: Any = None,
    flow: Flow | None = None,
    location: float | Tensor = 0.0,
    scale: float | Tensor = 3.0,
    particles: int = PARTICLES,
    steps: int = STEPS,
    batch_size: int = 512,
    lr: float = 3e-3,
    samples: int = 10_000,
    vectorized: bool | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Approximation:
    r"""Approximate a density :math:`\tilde p(x) / Z` of which the logarithm is known up to a constant.

    1. Sequential Monte Carlo (``temper``) carries ``particles`` from a Gaussian over to the density, to its modes.
    2. The flow learns these points by maximum likelihood.
    3. It learns the density itself by ``AlphaDivergence``: annealed importance sampling with a replay buffer.
    4. ``samples`` of the flow are weighed, and the particles, moved on, show what the flow leaves out.

    Hamiltonian moves where the log-density has gradients (of torch), a random walk where it has none.

    Args:
        log_density: :math:`\log \tilde p` of points ``(n, features)``, or of one point; see ``Target``.
        features: how many numbers a point has; by default as many as the support has.
        support: where the density is not 0, if that is not everywhere: what ``as_support`` takes, such as a prior.
        flow: to train in place of the default, a spline flow: without preprocessing, which is set from the particles.
        location: where to look at first: the mean of the Gaussian, in coordinates without bounds.
        scale: how far around: its standard deviation. All modes should lie within two or three.
        particles: how many points are annealed.
        steps: of the training by ``AlphaDivergence``.
        batch_size: points per step.
        lr: the highest learning rate.
        samples: how many are weighed in the end.
        vectorized: whether the log-density takes batches; by default found out.
        seed: of everything that is random.
        progress: show one bar for all of it; see ``diffeo.fit``.

    Returns:
        The flow, its samples and weights, and reasons to doubt them.

    Raises:
        ValueError: for numbers out of their range, a flow of another size, a support of anything but vectors, or a
            log-density that gives NaN, another shape, or -inf wherever it is looked for.
        TypeError: for what is no flow, or no function.

    Example:
        >>> def log_density(x):  # of points (n, 2)
        ...     return -0.5 * x.square().sum(-1)
        >>> flow = diffeo.nsf(2, hidden=(8,), transforms=1, preprocess=())  # leave it out for a good one
        >>> result = diffeo.fit_target(log_density, flow=flow, particles=100, steps=2, samples=200)
        >>> result.samples.shape, result.log_weights.shape
        (torch.Size([200, 2]), torch.Size([200]))
    """
    started = time.monotonic()
    target = Target(log_density, vectorized)
    on = None if support is None else as_support(support, features)
    if on is not None and len(on.event_shape) != 1:
        raise ValueError(f"expected a support of vectors, got one of shape {tuple(on.event_shape)}")
    size = _size(features if on is None else on.noise_shape.numel(), flow)
    expect_whole(100, particles=particles)
    expect_whole(2, samples=samples)
    expect_whole(1, steps=steps, batch_size=batch_size)
    expect_number(0, above=True, lr=lr)
    middle, width = _numbers("location", location, size), _numbers("scale", scale, size)
    if not (width > 0).all():
        raise ValueError(f"expected scale > 0, got {scale}")
    outer = [] if on is None else [on]
    density = Unbounded(target, outer)
    moving = partial(density, strict=False)
    marker = torch.zeros(()) if flow is None else flow.base.device_marker
    with Display(["annealed points", "density"], progress, "annealing points") as display:
        with fork_rng(marker.device):
            seed_noise(marker.device, derive(seed, "particles"))
            mean, deviation = (value.to(marker).expand(size) for value in (middle, width))
            normal = torch.distributions.Normal(mean, deviation)
            start = normal.sample((particles,))
            density(start[:1000])  # strict, as moves are not
            carried = temper(
                moving, start, lambda y: normal.log_prob(y).sum(-1), differentiable=bool(target.differentiable)
            )
            seed_noise(marker.device, derive(seed, "weights"))
            inner = nsf(size, bins=BINS, affine=True, preprocess=()) if flow is None else copy.deepcopy(flow)
        standardize = Standardize(size).to(marker)
        standardize.initialize(carried.x)
        standardize.initialized.fill_(True)
        whole = Flow(inner.base, [*inner.parts, standardize, *outer], None if on is None else on.event_shape)
        unbounded = Flow(inner.base, [*inner.parts, standardize])
        options: dict[str, Any] = {"batch_size": batch_size, "lr": lr, "seed": seed}
        fit(MaximumLikelihood(unbounded), carried.x, epochs=EPOCHS, progress=display.trainings[0], **options)
        objective = AlphaDivergence(whole, target)
        with torch.no_grad():
            y = standardize.inverse(carried.x)
            log_q = objective.layers.log_prob(y)
            objective.add(y, log_q, (objective.alpha - 1) * (objective.density(y) - log_q))
        trained: FitResult = fit(objective, steps=steps, ema=0.99, progress=display.trainings[1], **options)
    with fork_rng(marker.device), torch.no_grad():
        seed_noise(marker.device, derive(seed, "samples"))
        weighed = importance(whole, target, samples, moves=0)
        points = carried.x
        for transform in outer:
            points = transform.forward(points)
        moved = moved_weights(whole, target, points, MOVED)
    result = Importance(weighed.samples, weighed.log_weights, moved)
    return Approximation(whole, result, carried, trained.history, time.monotonic() - started)


def _numbers(name: str, value: float | Tensor, size: int) -> Tensor:
    """One finite number, or one for each dimension."""
    numbers = as_tensor(value, name)
    if numbers.shape not in ((), (1,), (size,)):
        raise ValueError(f"expected {name} as a number or {size} of them, got {tuple(numbers.shape)}")
    if not torch.isfinite(numbers).all():
        raise ValueError(f"expected a finite {name}, got {value}")
    return numbers


def _size(features: int | None, flow: Flow | None) -> int:
    if flow is not None:
        if not isinstance(flow, Flow):
            raise TypeError(f"expected a flow, got {type(flow).__name__}")
        if not isinstance(flow.base, StandardNormal) or flow.context_shape or len(flow.base.event_shape) != 1:
            raise ValueError("expected a flow of vectors without context, from standard normal noise")
        if any(part.preprocesses for part in flow.parts):
            raise ValueError("expected a flow without preprocessing (preprocess=()), which the particles set")
        if features not in (None, *flow.base.event_shape):
            raise ValueError(f"expected a flow of {features} features, got {flow.base.event_shape[0]}")
        return flow.base.event_shape[0]
    if features is None:
        raise ValueError("expected features, how many numbers a point has, or a support")
    expect_whole(1, features=features)
    return features

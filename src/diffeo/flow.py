"""Flow: a base and a transform make a density with exact likelihoods and samples."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from diffeo import ops
from diffeo.bases import Base
from diffeo.nets.reader import Reader
from diffeo.summary import Summarised, Summary, quantity
from diffeo.transforms.base import Chain, Inverse, Transform, as_shape, expect_transform
from diffeo.transforms.ode import ODE
from diffeo.transforms.preprocess import Dequantize, Standardize
from diffeo.transforms.supports import Support, as_support

__all__ = [
    "BLOCK",
    "DRAWS",
    "Flow",
    "FlowDistribution",
    "as_sample_shape",
    "bits_per_dim",
    "expect_ode",
    "sobol_points",
]

# Without gradients, rows are taken in chunks of this many, so that memory does not grow with their number; of images
# in fewer, of about this many elements, except in training mode, where the first chunk sets data-dependent layers.
_CHUNK = 16384
_ELEMENTS = 2**20

BLOCK = 256  # in whole blocks of so many rows, the last bits of what is said of a row do not depend on the batch

DRAWS = 16  # of the noise that discrete values are spread by, where their probability is asked for


def bits_per_dim(log_prob: Tensor, dims: int, step: float = 1.0) -> Tensor:
    r"""Bits per dimension, :math:`-\log p / (D \ln 2) - \log_2 h` for a step h, of log-likelihoods in nats.

    For pixels of 0 .. 255 the density must be that of the values themselves, dequantised to unit steps (``Dequantize``
    and whatever rescales inside the flow): then a model that knows nothing has exactly 8 bits, and the figure is an
    upper bound on the bits of the discrete values (Theis et al. 2016, arXiv:1511.01844).

    Args:
        log_prob: of whole examples, in nats, of any shape.
        dims: the number D of elements of an example.
        step: how far apart values lie, in the units of the density: 2^-15 of 16-bit sound in [-1, 1).

    Returns:
        Bits, of the shape of ``log_prob``.

    Raises:
        ValueError: for dims below 1.
    """
    if dims < 1:
        raise ValueError(f"expected dims >= 1, got {dims}")
    return -log_prob / (dims * math.log(2)) - math.log2(step)


def sobol_points(size: int, draws: int) -> Tensor:
    """So many points (draws, size) in (0, 1), always the same; beyond the dimensions that there are, they repeat.

    Args:
        size: how many coordinates.
        draws: how many points.
    """
    known = min(size, torch.quasirandom.SobolEngine.MAXDIM)
    points = torch.quasirandom.SobolEngine(known, scramble=True, seed=0).draw(draws)
    return points[:, torch.arange(size) % known]


def _expect_draws(draws: int) -> int:
    if draws < 1:
        raise ValueError(f"expected draws >= 1, got {draws}")
    return draws


def _above(module: str) -> Any:
    """Import a module that is built on flows, for what a flow is asked for and that module does."""
    return import_module(module)


class Flow(Summarised, nn.Module):
    r"""The density of x = f(z), where z is noise of a base.

    .. math:: \log p(x) = \log p(f^{-1}(x)) + \log\left|\det \frac{\partial f^{-1}(x)}{\partial x}\right|

    Shapes are those of torch.distributions: ``(*sample, *batch, *event)``. A context ``(*batch, *context_shape)``
    broadcasts against the leading dimensions of x or z. This is the only place where shapes are checked; tensors of any
    real dtype are accepted and cast to the flow's own.

    Args:
        base: the distribution of the noise.
        transform: the bijection from noise to data, preprocessing included; or several, in the order of generation.
        event_shape: the shape of one example of data; by default that of the base.
        context_shape: the shape of one context, ``()`` for none.
        context_transform: a transform whose inverse normalizes the context before it is used.
        embedding: a module that makes of normalized contexts ``(n, *context_shape)`` what the layers see of them,
            ``(n, ...)``: a network that reads a long recording or a picture, trained with the layers.

    Raises:
        TypeError: for a base or a transform that is none.

    Attributes:
        recipe: the name and arguments that ``diffeo.recipes.build`` makes this flow from, where a recipe made it.

    Example:
        >>> flow = diffeo.Flow(diffeo.StandardNormal(2), diffeo.transforms.Elementwise("affine", 2))
        >>> flow
        Flow of 2 features: 4 parameters
          z to x  StandardNormal → Elementwise(Affine)
          fast    log_prob, sample
        >>> x, log_prob = flow.sample_and_log_prob(5)
        >>> torch.allclose(flow.log_prob(x), log_prob)
        True
    """

    def __init__(
        self,
        base: Base,
        transform: Transform | Iterable[Transform],
        event_shape: int | Sequence[int] | None = None,
        context_shape: int | Sequence[int] = (),
        context_transform: Transform | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(base, Base):
            raise TypeError(f"expected a base such as StandardNormal(2), got {type(base).__name__}")
        if isinstance(transform, Iterable) and not isinstance(transform, Transform):
            transform = Chain(transform)
        self.base = base
        self.transform = expect_transform(transform)
        self.event_shape = base.event_shape if event_shape is None else as_shape(event_shape)
        self.context_shape = as_shape(context_shape)
        self.context_transform = context_transform
        self.embedding = embedding
        self.recipe: dict[str, Any] | None = None

    def _summary(self) -> Summary:
        """What it is of, and how noise becomes data; the tree of its modules is that of ``flow.transform``."""
        facts = {"z to x": self._pathway()}
        if self.embedding is not None:
            facts["embedding"] = f"{type(self.embedding).__name__}, {_parameters(self.embedding)}"
        fast = ", ".join(sorted(self.fast)) or "neither log_prob nor sample"
        return Summary(self._title(), {**facts, "fast": fast if self.has_log_prob else f"{fast}; samples alone"})

    def _title(self, parts: str = "", latents: str = "") -> str:
        """What it is and of what, its recipe, and how many parameters it has; where they are, if not as usual."""
        shape, context = self.event_shape, self.context_shape
        events = quantity(shape[0], "feature") if len(shape) == 1 else f"events of shape {tuple(shape)}"
        condition = "" if not context else f" given a context of {context[0] if len(context) == 1 else tuple(context)}"
        marker = self.base.device_marker
        place = "" if marker.device.type == "cpu" else f" on {marker.device}"
        kind = "" if marker.dtype == torch.float32 else f" in {str(marker.dtype).removeprefix('torch.')}"
        recipe = "" if self.recipe is None else f"{self.recipe['name']}, "
        return f"{type(self).__name__}{parts} of {events}{latents}{condition}: {recipe}{_parameters(self)}{kind}{place}"

    def _pathway(self) -> str:
        """The noise, the layers and the preprocessing, in the order of generation."""
        preprocessing = self.preprocessing
        layers = self.parts[: len(self.parts) - len(preprocessing)]
        steps = [", ".join(_kinds(layers)), ", ".join(_kinds(preprocessing))]
        return " → ".join([type(self.base).__name__, *(step for step in steps if step)])

    def _named(self) -> str:
        """What it is called among others."""
        if self.recipe is not None:
            return str(self.recipe["name"])
        arguments = {name: value for name, value in self.base.arguments().items() if name != "event_shape" and value}
        more = ", ".join(f"{name}={value}" for name, value in arguments.items())
        return f"{type(self.base).__name__}({more})" if more else type(self.base).__name__

    @property
    def fast(self) -> frozenset[str]:
        """What costs one parallel pass, among ``"log_prob"`` and ``"sample"``."""
        return frozenset({"inverse": "log_prob", "forward": "sample"}[side] for side in self.transform.fast)

    @property
    def has_log_prob(self) -> bool:
        """Whether it has a density: not if it is solved in a few fixed steps, or guided, which is for samples alone."""
        return self.transform.has_log_det

    @property
    def has_bound(self) -> bool:
        """Whether there is ``bound``, lower bounds of the log-density in the place of ``log_prob``: of a ``VAE``."""
        return False

    @property
    def has_rsample(self) -> bool:
        """Whether samples have the gradients of all parameters: those of the base, too."""
        return self.base.has_rsample

    @property
    def parts(self) -> list[Transform]:
        """The transforms in the order of generation: layers, then preprocessing."""
        return list(self.transform) if isinstance(self.transform, Chain) else [self.transform]

    @property
    def ode(self) -> ODE | None:
        """The ODE that has to be solved, or None; in a continuous flow it is the only layer."""
        return next((part for part in self.transform.modules() if isinstance(part, ODE)), None)

    @property
    def any_order(self) -> bool:
        """Whether it has the density of any elements given any others: ``log_prob_given`` and ``complete``."""
        return self.transform.any_order

    @property
    def preprocessing(self) -> list[Transform]:
        """The transforms that bring data into the units of the layers, in the order of generation; perhaps none."""
        parts = self.parts
        count = len(parts)
        while count > 1 and parts[count - 1].preprocesses:
            count -= 1
        return parts[count:]

    @property
    def core(self) -> Flow:
        """The flow of the layers alone, in their units; modules are shared, not copied."""
        parts, preprocessing = self.parts, self.preprocessing
        resized = (each for each in preprocessing if isinstance(each, Support) and each.noise_shape != each.event_shape)
        inner = next((each.noise_shape for each in resized), None)
        return self._of(parts[: len(parts) - len(preprocessing)], inner)

    def with_ode(self, velocity: nn.Module | None = None, **changes: Any) -> Flow:
        """The same continuous flow, solved otherwise: with another velocity, solver or tolerance.

        Modules are shared, not copied. It belongs to no recipe.

        Args:
            velocity: by default the one that it has, shared.
            changes: further arguments of ``ODE``, such as ``solver="euler", steps=4``; the others stay as they are.

        Raises:
            ValueError: for a flow that is not continuous, or bad arguments.
        """
        return self._of([expect_ode(self).replaced(velocity, **changes), *self.parts[1:]])

    def _of(self, parts: Iterable[Transform], event_shape: torch.Size | None = None) -> Flow:
        """The same flow of other transforms."""
        shape = self.event_shape if event_shape is None else event_shape
        flow = Flow(self.base, parts, shape, self.context_shape, self.context_transform, self.embedding)
        return flow.train(self.training)

    def with_support(self, what: Any) -> Flow:
        """The same flow of data on a support: bounds, a simplex, a circle, the support of a prior.

        No sample lies outside, and no density is there. Modules are shared, not copied. It belongs to no recipe.

        Args:
            what: what ``transforms.as_support`` takes, for elements of this flow's shape, or a support whose noise has
                that shape: on a simplex of D elements a flow of D - 1.

        Raises:
            ValueError: for a support of another shape, or one that is none.
        """
        support = what if isinstance(what, Support) else as_support(what, self.event_shape)
        if support.noise_shape != self.event_shape:
            raise ValueError(
                f"expected a flow of events of shape {tuple(support.noise_shape)} for the support, "
                f"got one of {tuple(self.event_shape)}"
            )
        return self._of([*self.parts, support], support.event_shape)

    def with_embedding(self, embedding: nn.Module, context_shape: int | Sequence[int]) -> Flow:
        """The same flow, given what a network makes of a context in place of the context.

        Modules are shared, not copied. It belongs to no recipe. The contexts are standardised element by element before
        the network sees them.

        Args:
            embedding: from contexts ``(n, *context_shape)`` to what this flow was made to be conditioned on,
                ``(n, C)``.
            context_shape: of one context as it is now given.

        Raises:
            ValueError: for a flow without context, or one that has an embedding.
        """
        if not self.context_shape:
            raise ValueError("expected a flow with a context, got one without")
        if self.embedding is not None:
            raise ValueError(f"expected a flow without an embedding, got one with {type(self.embedding).__name__}")
        shape = as_shape(context_shape)
        flow = Flow(self.base, self.transform, self.event_shape, shape, Standardize(shape), embedding)
        return flow.train(self.training)

    def default_objective(self) -> Any:
        """Return what it is trained by: maximum likelihood, flow matching if the recipe is that, of a VAE the ELBO."""
        return _above("diffeo.objectives").objective_of(self)

    def save(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """Write a run directory, JSON and safetensors, from which ``diffeo.load`` makes the same flow; no code is kept.

        Args:
            path: a folder that does not exist or is empty.
            force: replace a run that is there.

        Raises:
            UserError: if it cannot be written.
            ValueError: for a flow with parts that are not diffeo's, named.
        """
        _above("diffeo.training.run").save(self, path, force)

    def forward(self, x: Tensor, context: Tensor | None = None, nan: Literal["error", "propagate"] = "error") -> Tensor:
        """Return ``log_prob``, so that what wraps a module's call (``torch.export``, DDP) finds the density.

        Args:
            x: ``(*batch, *event)``.
            context: broadcastable to ``(*batch, *context_shape)``.
            nan: what becomes of rows that hold NaN or infinity, as in ``log_prob``.

        Returns:
            ``(*batch,)``, in nats.

        Raises:
            ValueError: as ``log_prob``.
        """
        return self.log_prob(x, context, nan)

    def log_prob(
        self, x: Tensor, context: Tensor | None = None, nan: Literal["error", "propagate"] = "error"
    ) -> Tensor:
        """Log-density of each example, in nats, in the units of x.

        Args:
            x: ``(*batch, *event)``.
            context: broadcastable to ``(*batch, *context_shape)``.
            nan: what becomes of rows that hold NaN or infinity: ``"error"`` raises, ``"propagate"`` gives NaN for
                exactly those rows. A finite row always gets a finite value or -inf. Within ``torch.func``,
                ``torch.compile``, ``torch.export`` and traces, where nothing can be raised, it is always NaN.

        Returns:
            ``(*batch,)``.

        Raises:
            ValueError: for a wrong shape, a missing or superfluous context, or non-finite rows.

        Example:
            >>> flow = diffeo.maf(features=3, context=2, hidden=(8,))
            >>> flow.log_prob(torch.randn(5, 3), torch.randn(5, 2)).shape
            torch.Size([5])
            >>> x = torch.tensor([[0.0, torch.nan, 0.0], [0.0, 0.0, 0.0]])
            >>> flow.log_prob(x, torch.zeros(2), nan="propagate").isnan().tolist()
            [True, False]
        """
        if nan not in ("error", "propagate"):
            raise ValueError(f"expected nan='error' or 'propagate', got {nan!r}")
        rows, contexts, batch = self._rows(x, context, self.event_shape, "x")
        bad = self._non_finite(
            rows.nan_to_num(0.0, torch.inf, -torch.inf) if self.transform.takes_missing else rows, contexts
        )
        if bad is not None:
            if nan == "error" and not ops.tracing():
                raise _not_finite(bad)
            rows = torch.where(bad.reshape(-1, *(1,) * len(self.event_shape)), 0, rows)
            if contexts is not None:
                contexts = torch.where(bad.reshape(-1, *(1,) * len(self.context_shape)), 0, contexts)
        (log_prob,) = self._in_chunks(self._log_prob, rows, contexts)
        if bad is not None:
            log_prob = torch.where(bad, torch.nan, log_prob)
        return log_prob.reshape(batch)

    def log_mass(
        self,
        x: Tensor,
        context: Tensor | None = None,
        nan: Literal["error", "propagate"] = "error",
        draws: int = DRAWS,
    ) -> Tensor:
        r"""The log-probability of discrete values per step h, which draws bound from below.

        .. math:: \log \frac{1}{S} \sum_s p(x + h u_s)

        The noise :math:`u_s` of every ``Dequantize`` are the S points of a Sobol sequence, the same for all rows, so
        that a row always has the same value, whatever rows are with it; the bound rises with S (Burda et al. 2016,
        arXiv:1509.00519). Of a flow that dequantises nothing this is ``log_prob``.

        Args:
            x: ``(*batch, *event)``.
            context: broadcastable to ``(*batch, *context_shape)``.
            nan: what becomes of rows that hold NaN or infinity, as in ``log_prob``.
            draws: the number S; each takes as long as ``log_prob``.

        Returns:
            ``(*batch,)``, in nats.

        Raises:
            ValueError: as ``log_prob``, or for less than one draw.
        """
        _expect_draws(draws)
        if not self.spreads:
            return self.log_prob(x, context, nan)
        return torch.logsumexp(self._at_points(x, context, nan, draws), 0) - math.log(draws)

    def smoothed_log_prob(
        self,
        x: Tensor,
        scale: float | Tensor,
        context: Tensor | None = None,
        nan: Literal["error", "propagate"] = "error",
        draws: int = DRAWS,
    ) -> Tensor:
        r"""The log-density around x, where values are h apart: how likely it is, seen less sharply, by ``scale`` c.

        .. math:: \frac{1}{S} \sum_s \log p(x + h u_s + c e_s)

        A log-density may be high or low because of detail that means little: a spike at a value that is recorded often,
        a direction in which rows hardly differ. The mean over normal noise :math:`e_s` (randomised smoothing, Cohen et
        al. 2019, arXiv:1902.02918) knows no detail below its scale. The points are of a Sobol sequence, as in
        ``log_mass``.

        Args:
            x: ``(*batch, *event)``.
            scale: standard deviation of the noise, in the units of x, a number or one for each element; not negative.
            context: broadcastable to ``(*batch, *context_shape)``.
            nan: what becomes of rows that hold NaN or infinity, as in ``log_prob``.
            draws: the number S; each takes as long as ``log_prob``.

        Returns:
            ``(*batch,)``, in nats.

        Raises:
            ValueError: as ``log_prob``, for less than one draw, or for a mixed density, whose masses lie at points.
        """
        if self.transform.takes_missing:
            raise ValueError("expected a density of complete numbers, got a mixed one, whose masses lie at points")
        noise = torch.as_tensor(scale, dtype=self.base.device_marker.dtype, device=self.base.device_marker.device)
        return self._at_points(x, context, nan, _expect_draws(draws), noise.expand(self.event_shape)).mean(0)

    def _at_points(
        self,
        x: Tensor,
        context: Tensor | None,
        nan: Literal["error", "propagate"],
        draws: int,
        scale: Tensor | None = None,
    ) -> Tensor:
        """log p at points around each row, the same for all, ``(S, *batch)``: in its cell, and moved by noise."""
        size = self.event_shape.numel()
        points = sobol_points(size if scale is None else 2 * size, draws)
        each = []
        for point in points:
            if scale is None:
                here = x
            else:
                noise = torch.special.ndtri(point[size:].double()).reshape(self.event_shape)
                here = x + scale * noise.to(scale)
            with self.spread_by(point[:size].reshape(self.event_shape)):
                each.append(self.log_prob(here, context, nan))
        return torch.stack(each)

    @property
    def spreads(self) -> bool:
        """Whether discrete values are spread over their cells, by noise (``Dequantize``)."""
        return any(bool((part.step > 0).any()) for part in self.modules() if isinstance(part, Dequantize))

    @contextmanager
    def spread_by(self, noise: Tensor) -> Iterator[None]:
        """Within this block spread discrete values by this noise in place of draws.

        Args:
            noise: in [0, 1), of the shape of an example, the same for all rows, or ``(n, *event)``.
        """
        spreading = [part for part in self.modules() if isinstance(part, Dequantize)]
        try:
            for part in spreading:
                part.noise = noise
            yield
        finally:
            for part in spreading:
                part.noise = None

    def sample(self, shape: int | Sequence[int] = (), context: Tensor | None = None) -> Tensor:
        """Draw samples, without gradients (``sample_and_log_prob`` keeps them).

        Args:
            shape: how many, a number or a shape, for every context.
            context: ``(*batch, *context_shape)``.

        Returns:
            ``(*shape, *batch, *event)``, in the units of the data.

        Raises:
            ValueError: for what is no shape, or a missing or superfluous context, or one that is not finite.

        Example:
            >>> flow = diffeo.maf(features=3, context=2, hidden=(8,))
            >>> flow.sample(100, torch.randn(5, 2)).shape  # a hundred for each context
            torch.Size([100, 5, 3])
        """
        with torch.no_grad():
            return self.decode(self._noise(shape, context), context)

    def sample_and_log_prob(
        self, shape: int | Sequence[int] = (), context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw samples with their log-densities at the price of sampling alone; differentiable (if the base is).

        Args:
            shape: how many, a number or a shape, for every context.
            context: ``(*batch, *context_shape)``.

        Returns:
            Samples ``(*shape, *batch, *event)`` and their log-densities ``(*shape, *batch)``, in nats, in their units.

        Raises:
            ValueError: for what is no shape, a missing or superfluous context, or, without gradients, one that is not
                finite; with them its log-density is NaN.
        """
        rows, contexts, batch = self._rows(self._noise(shape, context), context, self.base.event_shape, "z")
        x, log_prob = self._in_chunks(self._generate, rows, contexts)
        if contexts is not None:  # given NaN nothing is known, though some maps take it for a value out of their box
            log_prob = torch.where(contexts.flatten(1).isfinite().all(1), log_prob, torch.nan)
        return x.reshape(*batch, *self.event_shape), log_prob.reshape(batch)

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Normalize, :math:`z = f^{-1}(x)`; where several z come to x, one of them at random, by how likely each is.

        Args:
            x: ``(*batch, *event)``.
            context: broadcastable to ``(*batch, *context_shape)``.

        Returns:
            Noise, ``(*batch, *base.event_shape)``.

        Raises:
            ValueError: for a wrong shape, or a missing or superfluous context.

        Example:
            >>> flow, x = diffeo.nsf(features=3, hidden=(8,)), torch.randn(5, 3)
            >>> torch.allclose(flow.decode(flow.encode(x)), x, atol=1e-4)
            True
        """
        rows, contexts, batch = self._rows(x, context, self.event_shape, "x")
        (z,) = self._in_chunks(self._encode, rows, contexts)
        return z.reshape(*batch, *self.base.event_shape)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Generate, :math:`x = f(z)`.

        Args:
            z: ``(*batch, *base.event_shape)``.
            context: broadcastable to ``(*batch, *context_shape)``.

        Returns:
            Data, ``(*batch, *event)``.

        Raises:
            ValueError: for a wrong shape, or a missing or superfluous context.
        """
        rows, contexts, batch = self._rows(z, context, self.base.event_shape, "z")
        (x,) = self._in_chunks(lambda z, c: (self.transform.forward(z, self.normalize_context(c)),), rows, contexts)
        return x.reshape(*batch, *self.event_shape)

    def log_prob_given(self, x: Tensor, known: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of the other elements given the known ones, in nats, of a flow of any order.

        Args:
            x: ``(*batch, features)``; NaN is a missing value.
            known: booleans that broadcast to x, true for what the density is conditional on.
            context: broadcastable to ``(*batch, *context_shape)``.

        Returns:
            ``(*batch,)``.

        Raises:
            ValueError: for a flow of one order, or a wrong shape.
        """
        rows, contexts, batch = self._rows(x, context, self.event_shape, "x")
        (log_prob,) = self._in_chunks(
            lambda x, known, c: (self.transform.log_prob_given(x, known, self.normalize_context(c)),),
            rows, self._known(known, batch), contexts,
        )  # fmt: skip
        return log_prob.reshape(batch)

    def log_prob_of(self, x: Tensor, wanted: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of the wanted elements alone, the others marginalised, in nats, of a flow of any order.

        Args:
            x: ``(*batch, features)``; NaN is a missing value.
            wanted: booleans that broadcast to x.
            context: broadcastable to ``(*batch, *context_shape)``.

        Returns:
            ``(*batch,)``; 0 where nothing is wanted.

        Raises:
            ValueError: for a flow of one order, or a wrong shape.
        """
        rows, contexts, batch = self._rows(x, context, self.event_shape, "x")
        (log_prob,) = self._in_chunks(
            lambda x, wanted, c: (self.transform.log_prob_of(x, wanted, self.normalize_context(c)),),
            rows, self._known(wanted, batch), contexts,
        )  # fmt: skip
        return log_prob.reshape(batch)

    def complete(self, x: Tensor, known: Tensor, context: Tensor | None = None, gaps: bool = True) -> Tensor:
        """Draw the elements that are not known given those that are, by a flow of any order; without gradients.

        Args:
            x: ``(*batch, features)``; NaN among the known ones is a missing value.
            known: booleans that broadcast to x, true for what stays as it is.
            context: broadcastable to ``(*batch, *context_shape)``.
            gaps: whether a missing value (NaN) may be drawn.

        Returns:
            ``(*batch, features)``.

        Raises:
            ValueError: for a flow of one order, or a wrong shape.
        """
        rows, contexts, batch = self._rows(x, context, self.event_shape, "x")
        with torch.no_grad():
            (full,) = self._in_chunks(
                lambda x, known, c: (self.transform.complete(x, known, self.normalize_context(c), gaps=gaps),),
                rows, self._known(known, batch), contexts,
            )  # fmt: skip
        return full.reshape(*batch, *self.event_shape)

    def _known(self, known: Tensor, batch: torch.Size) -> Tensor:
        if not self.any_order:
            raise ValueError(
                "expected a flow that has the conditionals of any columns, such as mixed(...), got another"
            )
        if known.dtype != torch.bool:
            raise ValueError(f"expected known of booleans, got {known.dtype}")
        return known.expand(*batch, *self.event_shape).reshape(-1, *self.event_shape)

    def resized(self, event_shape: Sequence[int], context_shape: Sequence[int] = ()) -> Flow:
        """The same density of examples of another shape; parameters and statistics are shared, not copied.

        For transforms that know no size, such as those of the recipes of audio, where the number of samples may vary.

        Args:
            event_shape: the shape of one example, of data and of noise.
            context_shape: the shape of one context, ``()`` for none.

        Raises:
            ValueError: for noise with parameters of its own, which have a shape.
        """
        if any(True for _ in self.base.parameters()) or self.base.event_shape != self.event_shape:
            raise ValueError(f"expected noise that has any shape, got {type(self.base).__name__}")
        base = type(self.base)(event_shape).to(self.base.device_marker)
        flow = Flow(base, self.transform, None, context_shape, self.context_transform, self.embedding)
        flow.training = self.training
        if self.recipe is not None:
            features = list(event_shape) if len(event_shape) > 1 else event_shape[0]
            flow.recipe = {**self.recipe, "arguments": {**self.recipe["arguments"], "features": features}}
        return flow

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """Return the density given a context, as a ``torch.distributions.Distribution``.

        Args:
            context: ``(*batch, *context_shape)``, or None.

        Raises:
            ValueError: for a missing or superfluous context, or one of a wrong shape.
        """
        return FlowDistribution(self, context)

    def _log_prob(self, x: Tensor, context: Tensor | None) -> tuple[Tensor]:
        log_prob = self.transform.log_prob(self.base.log_prob, x, self.normalize_context(context))
        overflowed = log_prob.isnan()
        if self.transform.takes_missing:  # there NaN may also say that a gap has no density
            overflowed &= ~x.isnan().flatten(1).any(1)
        if ops.tracing() or (overflowed.any() and all(p.isfinite().all() for p in self.parameters())):
            # Of finite rows and parameters NaN comes of numbers that grew too large: the noise is too far out to tell.
            log_prob = torch.where(overflowed, -torch.inf, log_prob)
        return (log_prob,)

    def _encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor]:
        context = self.normalize_context(context)
        if self.transform.branches == 1:
            return (self.transform.inverse(x, context),)
        z, log_det = self.transform.preimages(x, context)  # (branches, rows, *event), (branches, rows)
        log_prob = self.base.log_prob(z) + log_det
        gumbel = -torch.empty_like(log_prob).exponential_().log()
        return (z[(log_prob + gumbel).argmax(0), torch.arange(len(x), device=x.device)],)

    def _generate(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        context = self.normalize_context(context)
        if self.transform.branches > 1:  # other noise comes to the same x
            x = self.transform.forward(z, context)
            return x, self.transform.log_prob(self.base.log_prob, x, context)
        x, log_det = self.transform.forward_and_log_det(z, context)
        return x, self.base.log_prob(z) - log_det

    def _in_chunks(
        self, function: Callable[..., tuple[Tensor, ...]], rows: Tensor, *others: Tensor | None
    ) -> list[Tensor]:
        """Call the function on chunks of the rows, unless gradients need them all at once, and join the results."""
        size = _CHUNK if self.training else max(1, min(_CHUNK, _ELEMENTS // rows.shape[1:].numel()))
        size -= size % BLOCK if size > BLOCK else 0
        if torch.is_grad_enabled() or ops.tracing() or len(rows) <= size:
            return list(function(rows, *others))
        parts = [
            function(*(None if each is None else each[i : i + size] for each in (rows, *others)))
            for i in range(0, len(rows), size)
        ]
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    def normalize_context(self, context: Tensor | None) -> Tensor | None:
        """Normalize and embed the context, as the transform takes it.

        Args:
            context: ``(n, *context_shape)``, or None, which it stays.

        Returns:
            The same shape, or ``(n, ...)`` of an embedding.

        Raises:
            ValueError: for an embedding that changes the number of contexts.
        """
        if context is None:
            return None
        if self.context_transform is not None:
            context = self.context_transform.inverse(context)
        if self.embedding is None:
            return context
        if torch.is_grad_enabled() or self.training or ops.tracing() or isinstance(self.embedding, Reader):
            return self._embed(context)
        # Many samples of few contexts: each context is embedded once. (A reader is done before equal rows are found.)
        few, place = torch.unique(context, dim=0, return_inverse=True)
        return self._embed(few)[place]

    def _embed(self, context: Tensor) -> Tensor:
        assert self.embedding is not None
        embedded: Tensor = self.embedding(context)
        if embedded.dim() < 2 or embedded.shape[0] != context.shape[0]:
            raise ValueError(
                f"expected an embedding of {len(context)} contexts in shape ({len(context)}, ...), "
                f"got {tuple(embedded.shape)}"
            )
        return embedded

    def _noise(self, shape: int | Sequence[int], context: Tensor | None) -> Tensor:
        batch = as_sample_shape(shape)
        self._check_context(context)
        if context is not None:
            batch += context.shape[: context.dim() - len(self.context_shape)]
            if not torch.is_grad_enabled():  # a training looks at its losses
                self._expect_finite(context.reshape(-1, *self.context_shape), "contexts")
        return self.base.sample(batch)

    def _check_context(self, context: Tensor | None) -> None:
        rank = len(self.context_shape)
        if context is None:
            if rank:
                raise ValueError(f"expected a context of shape (*batch, {_sizes(self.context_shape)}), got none")
        elif not isinstance(context, Tensor):
            raise TypeError(f"expected a context as a torch.Tensor, got {type(context).__name__}")
        elif not rank:
            raise ValueError(f"expected no context, got one of shape {tuple(context.shape)}")
        elif context.dim() < rank or context.shape[context.dim() - rank :] != self.context_shape:
            raise ValueError(
                f"expected a context of shape (*batch, {_sizes(self.context_shape)}), got {tuple(context.shape)}"
            )

    def _rows(
        self, value: Tensor, context: Tensor | None, event_shape: torch.Size, name: str
    ) -> tuple[Tensor, Tensor | None, torch.Size]:
        """Check, cast, broadcast and flatten: ``(rows, *event)``, ``(rows, *context)`` and the batch shape."""
        if not isinstance(value, Tensor):
            raise TypeError(f"expected {name} as a torch.Tensor, got {type(value).__name__}")
        if value.is_complex():
            raise TypeError(f"expected {name} as real numbers, got {value.dtype}")
        rank = len(event_shape)
        if value.dim() < rank or value.shape[value.dim() - rank :] != event_shape:
            raise ValueError(f"expected {name} of shape (*batch, {_sizes(event_shape)}), got {tuple(value.shape)}")
        self._check_context(context)
        marker = self.base.device_marker
        value = value.to(marker.dtype)
        batch = value.shape[: value.dim() - rank]
        if context is None:
            return value.reshape(math.prod(batch), *event_shape), None, batch
        context = context.to(marker.dtype)
        outer = context.shape[: context.dim() - len(self.context_shape)]
        try:
            batch = batch if batch == outer else torch.broadcast_shapes(batch, outer)
        except RuntimeError:
            raise ValueError(
                f"expected a context whose batch {tuple(outer)} broadcasts against that of {name}, {tuple(batch)}"
            ) from None
        count = math.prod(batch)
        return (
            value.expand(*batch, *event_shape).reshape(count, *event_shape),
            context.expand(*batch, *self.context_shape).reshape(count, *self.context_shape),
            batch,
        )

    def _expect_finite(self, rows: Tensor | None, name: str = "values") -> None:
        """Refuse NaN and infinity in rows, but while a graph is made."""
        if rows is not None and not ops.tracing():
            bad = self._non_finite(rows, None)
            if bad is not None:
                raise _not_finite(bad, name)

    @staticmethod
    def _non_finite(rows: Tensor, context: Tensor | None) -> Tensor | None:
        """Which rows hold NaN or infinity, or None; one pass over memory where there are none."""
        parts = [part.detach() for part in (rows, context) if part is not None]
        if not ops.tracing():
            parts = [part for part in parts if part.numel()]
            if all(math.isfinite(end) for part in parts for end in torch.aminmax(part)):
                return None
        bad = rows.new_zeros(rows.shape[0], dtype=torch.bool)
        for part in parts:
            bad = bad | ~torch.isfinite(part).flatten(1).all(1)
        return bad


def _not_finite(bad: Tensor, name: str = "values") -> ValueError:
    """The error for rows some of which hold NaN or infinity.

    Args:
        bad: which do, ``(n,)``.
        name: what they are.
    """
    return ValueError(
        f"expected finite {name}, got NaN or infinity in {int(bad.sum())} of {len(bad)} rows, first in row "
        f"{int(bad.nonzero()[0, 0])}"
    )


def _parameters(module: nn.Module) -> str:
    return quantity(sum(parameter.numel() for parameter in module.parameters()), "parameter")


def _kinds(transforms: Iterable[Transform]) -> list[str]:
    """The kinds of transforms that these are made of, and how many of each, in the order of their first."""
    counts = Counter(kind for transform in transforms for kind in _leaves(transform))
    return [kind if count == 1 else f"{count} {kind}" for kind, count in counts.items()]


def _leaves(module: nn.Module) -> Iterator[str]:
    """What each of the transforms is called that a module is made of: itself, unless all it has are transforms."""
    children = [*module.children()]
    if children and all(isinstance(child, Transform | nn.ModuleList) for child in children):
        prefix = "Inverse " if isinstance(module, Inverse) else ""
        for child in children:
            yield from (f"{prefix}{kind}" for kind in _leaves(child))
    else:
        univariate = getattr(module, "univariate", None)
        maps = getattr(univariate, "maps", [univariate])
        inside = "" if univariate is None else f"({' + '.join(type(each).__name__ for each in maps)})"
        yield f"{type(module).__name__}{inside}"


def expect_ode(flow: Flow) -> ODE:
    """Return the ODE of a continuous flow.

    Args:
        flow: one whose first transform, in the order of generation, is its only ODE.

    Raises:
        ValueError: for any other.
    """
    first, *rest = flow.parts
    if not isinstance(first, ODE) or any(isinstance(part, ODE) for part in rest):
        raise ValueError("expected a flow whose transform is one ODE behind its preprocessing, got another")
    return first


class FlowDistribution(Distribution):
    """A flow given a context, behaving as any ``torch.distributions.Distribution``.

    Args:
        flow: the density.
        context: ``(*batch, *context_shape)``, or None.
        batch_shape: by default that of the context, ``()`` without one; ``expand`` makes others.

    Raises:
        ValueError: for a missing or superfluous context, or one of a wrong shape.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - the name and form torch asks for

    def __init__(self, flow: Flow, context: Tensor | None = None, batch_shape: Sequence[int] | None = None) -> None:
        flow._check_context(context)
        outer = torch.Size() if context is None else context.shape[: context.dim() - len(flow.context_shape)]
        self.flow = flow
        self.context = context
        super().__init__(
            torch.Size(outer if batch_shape is None else batch_shape), flow.event_shape, validate_args=False
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_shape={tuple(self.batch_shape)}) of {self.flow!r}"

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether ``rsample`` has the gradients of all parameters: that of the base."""
        return self.flow.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        """That of the flow's ``Support``; without one, all real vectors of the event's shape."""
        last = self.flow.parts[-1]
        if isinstance(last, Support):
            return last.constraint
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        """Return the same density over a larger batch, without copying the flow.

        Args:
            batch_shape: one that the present one broadcasts to.

        Raises:
            RuntimeError: for one that it does not.
        """
        shape = torch.Size(batch_shape)
        torch.empty(self.batch_shape).expand(shape)  # raises for shapes that do not fit
        context = self.context
        if context is not None:
            context = context.expand(*shape, *self.flow.context_shape)
        return FlowDistribution(self.flow, context, shape)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draw without gradients.

        Args:
            sample_shape: how many for each element of the batch.

        Returns:
            ``(*sample, *batch, *event)``.
        """
        shape = torch.Size(sample_shape)
        return self.flow.sample(shape + self.batch_shape if self.context is None else shape, self.context)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draw with gradients through the transform.

        Args:
            sample_shape: how many for each element of the batch.

        Returns:
            ``(*sample, *batch, *event)``.

        Raises:
            NotImplementedError: for a base whose samples are not differentiable in its parameters.
        """
        if not self.has_rsample:
            what = self.flow.base if self.flow.base.has_rsample is False else self.flow
            raise NotImplementedError(f"{type(what).__name__} has no reparameterised samples")
        z = self.flow.base.sample(torch.Size(sample_shape) + self.batch_shape)
        return self.flow.decode(z, self.context)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of values.

        Args:
            value: ``(*sample, *batch, *event)``, or of a batch that broadcasts against that.

        Returns:
            ``(*sample, *batch)``, in nats.

        Raises:
            ValueError: as ``Flow.log_prob``.
        """
        rank = len(self.event_shape)
        if not isinstance(value, Tensor) or value.shape[max(0, value.dim() - rank) :] != self.event_shape:
            return self.flow.log_prob(value)  # which refuses it
        outer = value.shape[: value.dim() - rank]
        try:
            batch = torch.broadcast_shapes(outer, self.batch_shape)
        except RuntimeError:
            raise ValueError(
                f"expected values whose batch broadcasts against {tuple(self.batch_shape)}, got {tuple(outer)}"
            ) from None
        return self.flow.log_prob(value.expand(*batch, *self.event_shape), self.context)


def as_sample_shape(shape: Any) -> torch.Size:
    """The shape of so many samples: ``(n,)`` for a number n.

    Args:
        shape: a number or a sequence of numbers.

    Raises:
        ValueError: for anything else, or negative sizes.
    """
    sizes: Any = shape if isinstance(shape, Sequence) and not isinstance(shape, str | bytes) else (shape,)
    try:
        if not any(isinstance(size, bool) or size < 0 for size in sizes):
            return torch.Size(sizes)
    except (TypeError, ValueError, RuntimeError):  # of values that are no whole numbers
        pass
    raise ValueError(f"expected a sample shape without negative sizes, such as 10 or (3, 4), got {shape!r}")


def _sizes(shape: torch.Size) -> str:
    return ", ".join(map(str, shape))

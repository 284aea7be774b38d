"""The contract of every bijection, and the two ways to combine them."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from diffeo.arguments import KnowsArguments

__all__ = ["Chain", "DataDependent", "Inverse", "Transform", "as_shape", "expect_transform", "sum_event"]

_OPPOSITE = {"forward": "inverse", "inverse": "forward"}


def as_shape(shape: int | Sequence[int]) -> torch.Size:
    """The shape of one example: ``(n,)`` for a number n of elements.

    Args:
        shape: a number or a sequence of numbers.

    Raises:
        TypeError: for anything but whole numbers.
        ValueError: for sizes below 1.
    """
    try:
        sizes = (operator.index(shape),) if isinstance(shape, SupportsIndex) else tuple(map(operator.index, shape))
    except TypeError:
        raise TypeError(f"expected a shape such as 2 or (3, 8, 8), got {shape!r}") from None
    if any(size < 1 for size in sizes):
        raise ValueError(f"expected positive event sizes, got {sizes}")
    return torch.Size(sizes)


def sum_event(value: Tensor, event_dim: int) -> Tensor:
    """Sum a value ``(*batch, *event)`` over its last ``event_dim`` dimensions: ``(*batch,)``.

    Args:
        value: ``(*batch, *event)``.
        event_dim: the rank of the event, 0 for none.
    """
    return value.sum(dim=tuple(range(-event_dim, 0))) if event_dim else value


class Transform(KnowsArguments, nn.Module, ABC):
    r"""A differentiable bijection between noise and data, x = f(z), possibly given a context.

    ``forward`` generates, :math:`x = f(z)`, and ``inverse`` normalizes, :math:`z = f^{-1}(x)`. Each ``*_and_log_det``
    returns the log of the absolute Jacobian determinant of the map that it just applied, summed over the event: shape
    ``(*batch,)``.

    Shapes: z and x are ``(*batch, *event)`` with ``event_dim`` event dimensions; the context is ``(*batch, *context)``.
    """

    event_dim: int = 1
    preprocesses: bool = False  # whether it brings data into a network's units, and is no layer of a model
    any_order: bool = False  # whether every part of an event has a density given any other, as ``Mixed`` has
    takes_missing: bool = False  # whether NaN stands for a missing value of x, and does not spoil a row

    @property
    def fast(self) -> frozenset[str]:
        """The directions that cost one parallel pass, among ``"forward"`` and ``"inverse"``."""
        return frozenset(_OPPOSITE)

    @property
    def has_log_det(self) -> bool:
        """Whether its log-determinants are those of its map; if not, a flow of it has samples alone."""
        return True

    @property
    def branches(self) -> int:
        """From how many points of noise each point of data comes: more than one where noise is wrapped."""
        return 1

    @abstractmethod
    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Generate: :math:`x = f(z)` and :math:`\log|\det \partial f / \partial z|`.

        Args:
            z: ``(*batch, *event)``.
            context: ``(*batch, *context)``, or None.

        Returns:
            x, of the shape of z, and the log-determinant, ``(*batch,)``.
        """

    @abstractmethod
    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Normalize: :math:`z = f^{-1}(x)` and :math:`\log|\det \partial f^{-1} / \partial x|`.

        Args:
            x: ``(*batch, *event)``.
            context: ``(*batch, *context)``, or None.

        Returns:
            z, of the shape of x, and the log-determinant, ``(*batch,)``.
        """

    def log_prob(self, noise: Callable[[Tensor], Tensor], x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""The log-density of x, ``(*batch,)``, of the sum over all z that x comes from.

        .. math:: \log p(x) = \log p(z) + \log\left|\det \frac{\partial z}{\partial x}\right|

        Args:
            noise: log p(z), ``(*batch, *event) -> (*batch,)``.
            x: ``(*batch, *event)``.
            context: ``(*batch, *context)``, or None.
        """
        if self.branches > 1:
            z, log_det = self.preimages(x, context)
            return torch.logsumexp(noise(z) + log_det, 0)
        z, log_det = self.inverse_and_log_det(x, context)
        return noise(z) + log_det

    def preimages(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Every z that x comes from, and :math:`\log|\det \partial z / \partial x|` of each; mostly it is one.

        Several come to one x where noise is wrapped, as by ``Circle``.

        Args:
            x: ``(*batch, *event)``.
            context: ``(*batch, *context)``, or None.

        Returns:
            z, ``(branches, *batch, *event)``, and the log-determinants, ``(branches, *batch)``.
        """
        z, log_det = self.inverse_and_log_det(x, context)
        return z[None], log_det[None]

    def forward_and_log_diagonal(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Generate: x and :math:`\log|dx_i/dz_i|` of each element, for a transform that keeps one order throughout.

        Where each element depends on itself and on the ones before it alone, these are the diagonal of the Jacobian,
        of the shape of x, and log|det| is their sum.

        Args:
            z: ``(*batch, *event)``.
            context: ``(*batch, *context)``, or None.

        Returns:
            x and the logs, both of the shape of z.

        Raises:
            ValueError: for a transform without such an order.
        """
        return self._diagonal("forward_and_log_det", z, context)

    def inverse_and_log_diagonal(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Normalize: z and :math:`\log|dz_i/dx_i|` of each element; see ``forward_and_log_diagonal``.

        Args:
            x: ``(*batch, *event)``.
            context: ``(*batch, *context)``, or None.

        Returns:
            z and the logs, both of the shape of x.

        Raises:
            ValueError: for a transform without such an order.
        """
        return self._diagonal("inverse_and_log_det", x, context)

    def _diagonal(self, method: str, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.event_dim:
            raise ValueError(f"expected a transform whose elements keep one order, got {type(self).__name__}")
        result: tuple[Tensor, Tensor] = getattr(self, method)(value, context)  # an event is one element
        return result

    def log_prob_given(self, x: Tensor, known: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of the other elements given the known ones ``(n,)``, for a transform of any order; see ``Mixed``.

        Args:
            x: ``(n, D)``.
            known: ``(n, D)``, true for what the density is conditional on.
            context: ``(n, context)``.

        Raises:
            NotImplementedError: for another transform.
        """
        raise NotImplementedError(f"{type(self).__name__} has no conditionals of any order")

    def log_prob_of(self, x: Tensor, wanted: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of the wanted elements, the others marginalised, ``(*batch,)``, of a transform of any order.

        Args:
            x: ``(*batch, features)``.
            wanted: ``(*batch, features)``, true for the elements whose density it is.
            context: ``(*batch, *context)``, or None.

        Raises:
            NotImplementedError: for another transform.
        """
        raise NotImplementedError(f"{type(self).__name__} has no conditionals of any order")

    def complete(self, x: Tensor, known: Tensor, context: Tensor | None = None, *, gaps: bool = True) -> Tensor:
        """Draw the elements that are not known ``(n, D)``, for a transform of any order; see ``Mixed``.

        Args:
            x: ``(n, D)``.
            known: ``(n, D)``, true for what stays as it is.
            context: ``(n, context)``.
            gaps: whether a missing value may be drawn.

        Raises:
            NotImplementedError: for another transform.
        """
        raise NotImplementedError(f"{type(self).__name__} has no conditionals of any order")

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Generate: :math:`x = f(z)`.

        Args:
            z: ``(*batch, *event)``.
            context: ``(*batch, *context)``, or None.
        """
        return self.forward_and_log_det(z, context)[0]

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Normalize: :math:`z = f^{-1}(x)`.

        Args:
            x: ``(*batch, *event)``.
            context: ``(*batch, *context)``, or None.
        """
        return self.inverse_and_log_det(x, context)[0]

    def _batch_shape(self, value: Tensor) -> torch.Size:
        return value.shape[: value.dim() - self.event_dim]


def expect_transform(value: Any) -> Transform:
    """Return a value that is a transform.

    Args:
        value: anything.

    Raises:
        TypeError: for what is none.
    """
    if not isinstance(value, Transform):
        kind = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"expected a Transform such as Coupling or Chain, got {kind}")
    return value


class Chain(Transform):
    r"""A composition, given in the order of generation.

    .. math::
        x = (f_K \circ \dots \circ f_1)(z_0), \qquad \log\left|\det \frac{\partial x}{\partial z_0}\right|
        = \sum_k \log\left|\det \frac{\partial f_k}{\partial z_{k-1}}\right|

    Each term is summed over the event of the part with the most dimensions.

    Args:
        transforms: the parts f_1 ... f_K.

    Raises:
        ValueError: for none.
        TypeError: for a part that is no transform.

    Example:
        >>> chain = diffeo.transforms.Chain([diffeo.transforms.LU(3), diffeo.transforms.Permutation([2, 0, 1])])
        >>> x, log_det = chain.forward_and_log_det(torch.randn(5, 3))
        >>> x.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, transforms: Iterable[Transform]) -> None:
        super().__init__()
        parts = list(transforms)
        if not parts:
            raise ValueError("expected at least one transform, got none")
        for part in parts:
            expect_transform(part)
        self.transforms: Any = nn.ModuleList(parts)
        self.event_dim = max(part.event_dim for part in parts)

    def arguments(self) -> dict[str, Any]:
        """The parts there are now: what it was given may have been an iterator."""
        return {"transforms": [*self]}

    def __iter__(self) -> Iterator[Any]:
        return iter(self.transforms)

    def __len__(self) -> int:
        return len(self.transforms)

    @property
    def fast(self) -> frozenset[str]:
        """The directions that are fast in every part."""
        return frozenset.intersection(*(transform.fast for transform in self))

    @property
    def has_log_det(self) -> bool:
        """Whether every part has it."""
        return all(transform.has_log_det for transform in self)

    @property
    def branches(self) -> int:
        """Those of every part, in all combinations."""
        return math.prod([part.branches for part in self])  # a list: graphs of torch.compile have no generators

    def preimages(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the inverse parts last to first, each to all that comes of the parts after it; log-dets add."""
        batch = self._batch_shape(x)
        z, total = x[None], x.new_zeros(1, *batch)
        for part in reversed([*self.transforms]):
            contexts = None if context is None else context.expand(len(z), *context.shape)
            z, log_det = part.preimages(z, contexts)
            log_det = sum_event(log_det, self.event_dim - part.event_dim)
            z, total = z.flatten(0, 1), (log_det + total).flatten(0, 1)
        return z, total

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the parts first to last; log-dets add."""
        return self._run(z, context, self.transforms, "forward_and_log_det")

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the inverse parts last to first; log-dets add."""
        return self._run(x, context, reversed([*self.transforms]), "inverse_and_log_det")

    def forward_and_log_diagonal(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the parts first to last; the logs of the diagonals add."""
        return self._run(z, context, self.transforms, "forward_and_log_diagonal")

    def inverse_and_log_diagonal(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the inverse parts last to first; the logs of the diagonals add."""
        return self._run(x, context, reversed([*self.transforms]), "inverse_and_log_diagonal")

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Apply the parts first to last, without their log-dets."""
        for transform in self:
            z = transform.forward(z, context)
        return z

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Apply the inverse parts last to first, without their log-dets."""
        for transform in reversed([*self.transforms]):
            x = transform.inverse(x, context)
        return x

    def _run(
        self, value: Tensor, context: Tensor | None, parts: Iterable[Transform], method: str
    ) -> tuple[Tensor, Tensor]:
        total: Tensor | None = None
        for part in parts:
            value, logs = getattr(part, method)(value, context)
            if method.endswith("det"):  # a part that acts on fewer event dimensions leaves the others in its batch
                logs = sum_event(logs, self.event_dim - part.event_dim)
            total = logs if total is None else total + logs
        assert total is not None  # the constructor refuses an empty chain
        return value, total


class Inverse(Transform):
    r"""The same bijection the other way round: :math:`x = f^{-1}(z)`. ``IAF = Inverse(MAF)``.

    Args:
        transform: the bijection f.

    Raises:
        TypeError: for what is no transform.

    Example:
        >>> maf = diffeo.transforms.Autoregressive("affine", diffeo.nets.MADE(3, 2, (8,)))
        >>> iaf = diffeo.transforms.Inverse(maf)
        >>> maf.fast, iaf.fast
        (frozenset({'inverse'}), frozenset({'forward'}))
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = expect_transform(transform)
        self.event_dim = transform.event_dim

    @property
    def fast(self) -> frozenset[str]:
        """The opposite of the wrapped transform's."""
        return frozenset(_OPPOSITE[direction] for direction in self.transform.fast)

    @property
    def has_log_det(self) -> bool:
        """Whether the wrapped transform has it."""
        return self.transform.has_log_det

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the wrapped inverse."""
        return self.transform.inverse_and_log_det(z, context)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the wrapped forward."""
        return self.transform.forward_and_log_det(x, context)

    def forward_and_log_diagonal(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the wrapped inverse."""
        return self.transform.inverse_and_log_diagonal(z, context)

    def inverse_and_log_diagonal(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the wrapped forward."""
        return self.transform.forward_and_log_diagonal(x, context)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Apply the wrapped inverse, without its log-det."""
        return self.transform.inverse(z, context)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Apply the wrapped forward, without its log-det."""
        return self.transform.forward(x, context)


class DataDependent(Transform):
    """A transform that sets its parameters from the first batch it normalizes (``inverse``) in training mode.

    The buffer ``initialized`` is part of the state, so a loaded transform is never initialised again. Generating never
    initialises: noise says nothing of the data.
    """

    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initialized", torch.tensor(False))

    @abstractmethod
    def initialize(self, x: Tensor) -> None:
        """Set the parameters so that these rows ``(rows, *event)`` come out normalised.

        Args:
            x: at least two rows, all finite.
        """

    def _see(self, x: Tensor) -> None:
        if self.training and not self.initialized:
            batch = self._batch_shape(x)
            rows = x.detach().reshape(math.prod(batch), *x.shape[len(batch) :])
            # One row has no spread, and a poisoned batch must not set the scale for good: wait for the next one.
            bad = torch.isinf(rows) if self.takes_missing else ~torch.isfinite(rows)
            if len(rows) < 2 or bad.any():
                return
            with torch.no_grad():
                self.initialize(rows)
                self.initialized.fill_(True)

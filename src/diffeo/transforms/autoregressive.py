"""Autoregressive transforms: each element is mapped given the ones before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffeo import ops
from diffeo.transforms.base import Transform
from diffeo.transforms.univariate import Univariate, UnivariateLike, as_univariate

__all__ = ["Autoregressive", "AutoregressiveNet"]


class AutoregressiveNet(Protocol):
    """A network whose output for element i sees only the elements before i, and that can be inverted incrementally.

    Values are feature-major, ``(n, rows)``, but those of an inversion; a context is ``(rows, *context)``, or one row
    for all.
    """

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The parameters of all elements in one parallel pass: ``(n, rows)`` to ``(size, n, rows)``."""

    def mapped(
        self, univariate: Univariate, x: Tensor, value: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Normalize values ``(n, rows)`` by the parameters at x: z, and the log-derivatives summed, ``(rows,)``."""

    def invert(self, univariate: Univariate, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Solve x_i = f(z_i; self(x)_i) for z ``(rows, n)``: x and log|det dx/dz|, without gradients."""

    def solve_transposed(
        self, x: Tensor, context: Tensor | None, by_params: Tensor, diagonal: Tensor, grad: Tensor
    ) -> Tensor:
        """Solve J^T u = grad, J = diag(diagonal) + (dz/dparams) (dparams/dx), all but by_params ``(n, rows)``."""


class Autoregressive(Transform):
    r"""Each element is mapped by parameters that depend on the elements before it.

    .. math::
        x_i = f(z_i; \theta_i), \quad \theta_i = \mathrm{net}(x_{<i}, c), \qquad
        \log\left|\det \frac{\partial x}{\partial z}\right| = \sum_i \log|f'(z_i; \theta_i)|

    With ``Affine`` this is MAF (Papamakarios et al. 2017, arXiv:1705.07057); its ``Inverse`` is IAF (Kingma et al.
    2016, arXiv:1606.04934). Normalizing (``inverse``) is one parallel pass. Generating is sequential, by the network's
    incremental inversion, which costs about one pass as well. Both directions are differentiable: the gradient of the
    sequential one is exact, by implicit differentiation, with one transposed solve; second derivatives of that one are
    refused (RuntimeError) but within ``torch.func``.

    Args:
        univariate: the map of each element, or its name (``as_univariate``).
        net: a conditioner such as ``MADE``, with ``size = univariate.size``; see ``AutoregressiveNet``.
        dropout: in training mode, the fraction of elements that the network does not see (Srivastava et al. 2014) when
            it normalizes. Elements themselves are always mapped, so a log-likelihood remains that of a density.

    Raises:
        ValueError: for a network of another size, or a dropout that is no fraction.
        TypeError: for a network that is not autoregressive.

    Example:
        >>> layer = diffeo.transforms.Autoregressive("spline", diffeo.nets.MADE(3, 23, (16,)))
        >>> x = layer(torch.randn(5, 3))  # one element after the other, incrementally
        >>> layer.inverse(x).shape  # all at once
        torch.Size([5, 3])
    """

    def __init__(self, univariate: UnivariateLike, net: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"expected dropout in [0, 1), got {dropout}")
        self.univariate = as_univariate(univariate)
        if not hasattr(net, "invert"):
            raise TypeError(f"expected an autoregressive network such as MADE or WaveNet, got {type(net).__name__}")
        size = self.univariate.size
        if getattr(net, "size", size) != size:
            raise ValueError(f"expected a network of {size} parameters per element, got {net.size}")
        self.net: Any = net
        self.dropout = dropout
        self.unrolls = True  # in a graph; or it is a loop there, small however many elements, with a pass for each

    @property
    def fast(self) -> frozenset[str]:
        """Normalizing is the parallel direction."""
        return frozenset({"inverse"})

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalize in one parallel pass."""
        columns, contexts = self._columns(x, context)
        seen = F.dropout(columns, self.dropout, self.training) if self.dropout else columns
        z, log_det = self.net.mapped(self.univariate, seen, columns, contexts)
        return (z.mT, log_det) if x.dim() == 2 else (z.mT.reshape(x.shape), log_det.reshape(x.shape[:-1]))

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Generate element by element."""
        if ops.tracing():
            columns, contexts = self._columns(z, context)
            x, log_det = self._in_a_graph(columns, contexts)
            return x.mT.reshape(z.shape), log_det.reshape(z.shape[:-1])
        rows, contexts = self._rows(z, context)
        with torch.no_grad():
            x, log_det = self.net.invert(self.univariate, rows, contexts)
        if torch.is_grad_enabled():
            x, log_det = self._attach(rows, x, contexts)
        return x.reshape(z.shape), log_det.reshape(z.shape[:-1])

    def inverse_and_log_diagonal(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalize in one parallel pass."""
        return self.conditionals(x, context)(x)

    def forward_and_log_diagonal(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Generate element by element."""
        x = self.forward(z, context)
        return x, -self.inverse_and_log_diagonal(x, context)[1]

    def conditionals(self, x: Tensor, context: Tensor | None = None) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        r"""The map of each element given those before it in x, from one parallel pass.

        Args:
            x: ``(*batch, *event)``.
            context: ``(*batch, *context)``, or None.

        Returns:
            A function of values y ``(*draws, *x.shape)``, which normalizes every y_i by the parameters that x_<i gives:
            :math:`z_i` and :math:`\log|dz_i/dy_i|`, of y's shape.
        """
        params = self.net(*self._columns(x, context)).mT.reshape(self.univariate.size, *x.shape)

        def normalize(y: Tensor) -> tuple[Tensor, Tensor]:
            extra = (1,) * (y.dim() - x.dim())
            return self.univariate.inverse_and_log_det(y, params.reshape(-1, *extra, *x.shape))

        return normalize

    @staticmethod
    def _rows(value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One batch dimension: ``(rows, n)``, context ``(rows, *context)``."""
        batch = value.dim() - 1
        if batch == 1:
            return value, context
        contexts = (
            None if context is None else context.reshape(math.prod(context.shape[:batch]), *context.shape[batch:])
        )
        return value.reshape(-1, value.shape[-1]), contexts

    def _columns(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Feature-major, ``(n, rows)``, as the network reads: every element is contiguous."""
        rows, contexts = self._rows(value, context)
        return rows.mT.contiguous(), contexts

    def _normalize(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        mapped: tuple[Tensor, Tensor] = self.net.mapped(self.univariate, x, x, context)
        return mapped

    def _in_a_graph(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Generate element by element, ``(n, rows)``: plain operations, which anything can trace."""
        if self.unrolls and hasattr(self.net, "unroll"):
            unrolled: tuple[Tensor, Tensor] = self.net.unroll(self.univariate, z, context)
            return unrolled
        index = torch.arange(len(z), device=z.device)

        def known(x: Tensor, i: Tensor) -> Tensor:
            params = self.net(x.mT, context).index_select(1, i)
            element = self.univariate.generate(z.index_select(0, i), params)[0]
            return torch.where(index == i, element.mT, x)

        # Rows first: loops of graphs take the length of a row for the number of rows, where these are alike.
        x: Tensor = ops.loop(known, torch.zeros_like(z.mT, memory_format=torch.contiguous_format), index)
        return x.mT, -self._normalize(x.mT, context)[1]

    def _attach(self, z: Tensor, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give a solution x of z = f^-1(x) its gradients: dx = J^-1 (dz - d_theta f^-1(x)), with J = df^-1/dx."""
        columns = x.mT.contiguous()
        residual = z.mT - self._normalize(columns, context)[0]
        function: Any = _Implicit
        attached: Tensor = function.apply(residual, columns, context, self)
        return attached.mT, -self._normalize(attached, context)[1]


class _Implicit(torch.autograd.Function):
    """The identity on a solution; its gradient goes to the residual through the transform's transposed solve."""

    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, solution: Tensor, context: Tensor | None, transform: Autoregressive
    ) -> Tensor:
        ctx.save_for_backward(solution, context, residual)
        ctx.transform = transform
        return solution.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, context, residual = ctx.saved_tensors
        transform = ctx.transform
        with torch.no_grad():
            params = transform.net(x, context).requires_grad_()
            with torch.enable_grad():
                z, log_det = transform.univariate.inverse_and_log_det(x, params)
                (by_params,) = torch.autograd.grad(z.sum(), params)
            # J^T u = grad, last element first: J = df^-1/dx is lower triangular
            diagonal = log_det.detach().exp()
            solved: Tensor = transform.net.solve_transposed(x, context, by_params, diagonal, grad)
        if torch.is_grad_enabled():
            function: Any = _Once
            solved = function.apply(solved, residual, grad)
        return solved, None, None, None


class _Once(torch.autograd.Function):
    """A gradient that has none itself: whoever asks for it sees an error, and no zero."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *depends_on: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> NoReturn:
        raise RuntimeError(
            "expected first derivatives of an autoregressive flow's sequential direction, got second ones; torch.func "
            "(jacrev, hessian) gives them"
        )

"""Autoregressive transforms: each element is mapped given the ones before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from diffeo.ops.cpu.maps import MapSpec
from diffeo.ops.cpu.network import Mapping
from diffeo.transforms.base import Transform
from diffeo.transforms.univariate import Univariate

__all__ = ["Autoregressive", "AutoregressiveNet"]


class AutoregressiveNet(Protocol):
    """A network whose output for element i sees only the elements before i, readable in two ways that agree.

    Values are feature-major, ``(n, rows)``; a context is ``(rows, *context)``, or one row for all.
    """

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """All at once: ``(n, rows)`` to ``(size, n, rows)``."""

    def mapped(self, mapping: Mapping, x: Tensor, value: Tensor, context: Tensor | None = None) -> Any:
        """Map values ``(n, rows)`` by the parameters read at x, in one call; None where there is no kernel for it."""

    def walk(self, step: Callable[[int, Tensor], Tensor], like: Tensor, context: Tensor | None = None) -> None:
        """One element at a time: ``step(i, params_i)`` gets ``(size, rows)`` and returns element i, ``(rows,)``."""

    def walk_fused(
        self, maps: Sequence[MapSpec], z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Walk and map z ``(rows, n)`` in one call: x, log|det dx/dz|; None where there is no kernel for it."""

    def walk_back(self, step: Callable[[int, Tensor], Tensor], x: Tensor, context: Tensor | None = None) -> None:
        """The transposed network, last element first: ``step(i, d/dx_i)`` returns d/dparams_i, ``(size, rows)``."""


class Autoregressive(Transform):
    """x_i = f(z_i; net(x_<i, context)); log|det dx/dz| = sum_i log|f'(z_i)|.

    With ``Affine`` this is MAF (Papamakarios et al. 2017, arXiv:1705.07057); its ``Inverse`` is IAF (Kingma et al.
    2016, arXiv:1606.04934). Normalizing (``inverse``) is one parallel pass. Generating is sequential, by the network's
    incremental walk, which costs about one pass as well. Both directions are differentiable: the gradient of the
    sequential one is exact, by implicit differentiation, with one walk backwards.

    Args:
        univariate: the map of each element.
        net: an autoregressive conditioner such as ``MADE``, with ``size = univariate.size``.
    """

    def __init__(self, univariate: Univariate, net: nn.Module) -> None:
        super().__init__()
        if getattr(net, "size", univariate.size) != univariate.size:
            raise ValueError(f"expected a network of {univariate.size} parameters per element, got {net.size}")
        self.univariate = univariate
        self.net: Any = net

    @property
    def cheap(self) -> str:
        """Normalizing is the parallel side."""
        return "inverse"

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalize in one parallel pass."""
        columns, given = self._columns(x, context)
        z, log_det = self._normalize(columns, given)
        return z.mT.reshape(x.shape), log_det.reshape(x.shape[:-1])

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Generate element by element."""
        columns, given = self._columns(z, context)
        with torch.no_grad():
            x, log_det = self._generate(columns, given)
        if torch.is_grad_enabled():
            x, log_det = self._attach(columns, x, given)
        return x.mT.reshape(z.shape), log_det.reshape(z.shape[:-1])

    def inverse_and_log_diagonal(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalize in one parallel pass."""
        return self.conditionals(x, context)(x)

    def forward_and_log_diagonal(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Generate element by element."""
        x = self.forward(z, context)
        return x, -self.inverse_and_log_diagonal(x, context)[1]

    def conditionals(self, x: Tensor, context: Tensor | None = None) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The map of each element given those before it in x, from one parallel pass.

        Returns:
            A function of values y ``(*draws, *x.shape)``, which normalizes every y_i by the parameters that x_<i gives:
            z_i and log|dz_i/dy_i|, of y's shape.
        """
        params = self.net(*self._columns(x, context)).mT.reshape(self.univariate.size, *x.shape)

        def normalize(y: Tensor) -> tuple[Tensor, Tensor]:
            extra = (1,) * (y.dim() - x.dim())
            return self.univariate.inverse_and_log_det(y, params.reshape(-1, *extra, *x.shape))

        return normalize

    @staticmethod
    def _columns(value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Feature-major, ``(n, rows)``, as the network reads: every element is contiguous; context ``(rows, *.)``."""
        batch = value.dim() - 1
        given = None if context is None else context.reshape(math.prod(context.shape[:batch]), *context.shape[batch:])
        return value.reshape(-1, value.shape[-1]).mT.contiguous(), given

    def _normalize(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        maps, size = self.univariate.native(), self.univariate.size
        if maps is not None:
            mapping = Mapping(maps, size, interleaved=True, generate=False, twin=self.univariate.normalize)
            done = self.net.mapped(mapping, x, x, context)
            if done is not None:
                return done
        z, log_det = self.univariate.inverse_and_log_det(x, self.net(x, context))
        return z, log_det.sum(0)

    def _generate(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        maps = self.univariate.native()
        fused = None if maps is None else self.net.walk_fused(maps, z.mT, context)
        if fused is not None:
            return fused[0].mT, fused[1]
        x = torch.empty_like(z)
        log_det = z.new_zeros(z.shape[1])

        def step(i: int, params: Tensor) -> Tensor:
            x[i], log_derivative = self.univariate.forward_and_log_det(z[i], params)
            log_det.add_(log_derivative)
            return x[i]

        self.net.walk(step, z, context)
        return x, log_det

    def _attach(self, z: Tensor, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give a solution x of z = f^-1(x) its gradients: dx = J^-1 (dz - d_theta f^-1(x)), with J = df^-1/dx."""
        residual = z - self._normalize(x, context)[0]
        attached = _Implicit.apply(residual, x, context, self)
        return attached, -self._normalize(attached, context)[1]

    def _solve_transposed(self, x: Tensor, context: Tensor | None, grad: Tensor) -> Tensor:
        """Solve J^T u = grad for u, last element first: J = df^-1/dx is lower triangular."""
        x = x.detach()
        with torch.enable_grad():
            params = self.net(x, context).detach().requires_grad_()
            z, log_det = self.univariate.inverse_and_log_det(x, params)
            (by_params,) = torch.autograd.grad(z.sum(), params)
        diagonal = log_det.detach().exp()  # of J
        solution = torch.empty_like(grad, memory_format=torch.contiguous_format)

        def step(i: int, total: Tensor) -> Tensor:
            solution[i] = (grad[i] - total) / diagonal[i]
            return by_params[:, i] * solution[i]

        self.net.walk_back(step, x, context)
        return solution


class _Implicit(torch.autograd.Function):
    """The identity on a solution; its gradient goes to the residual through the transform's transposed solve."""

    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, solution: Tensor, context: Tensor | None, transform: Autoregressive
    ) -> Tensor:
        ctx.save_for_backward(solution, context)
        ctx.transform = transform
        return solution.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        solution, context = ctx.saved_tensors
        with torch.no_grad():
            return ctx.transform._solve_transposed(solution, context, grad), None, None, None

"""Linear maps of one event dimension: permutation, LU-decomposed matrix, and activation normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffeo import ops
from diffeo.transforms.base import DataDependent, Transform

__all__ = ["LU", "ActNorm", "Permutation", "reorder"]


class Permutation(Transform):
    r"""The elements in another order along the first event dimension.

    .. math:: x_i = z_{\mathrm{order}(i)}, \qquad \log\left|\det \frac{\partial x}{\partial z}\right| = 0

    Args:
        order: a permutation of 0 .. n-1.
        event_dim: the rank of the event (1 for vectors, 3 for images: the channels are permuted).

    Raises:
        ValueError: for an order that is no permutation.
    """

    order: Tensor
    back: Tensor

    def __init__(self, order: Sequence[int] | Tensor, event_dim: int = 1) -> None:
        super().__init__()
        order = torch.as_tensor(order)
        if order.dim() != 1 or not torch.equal(order.sort().values, torch.arange(len(order))):
            raise ValueError(f"expected a permutation of 0 .. {len(order) - 1}, got {order.tolist()}")
        self.event_dim = event_dim
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort(), persistent=False)
        self.reverses = _reverses(order)
        # A loaded order must bring its own way back.
        after_loading: Any = self.register_load_state_dict_post_hook
        after_loading(Permutation._find_back)

    def _find_back(self, _incompatible: object) -> None:
        if not torch.equal(self.order.sort().values, torch.arange(len(self.order), device=self.order.device)):
            raise ValueError("expected a permutation in the state of a Permutation, got repeated or missing places")
        self.back.copy_(self.order.argsort())
        self.reverses = _reverses(self.order)

    @classmethod
    def reversing(cls, features: int, event_dim: int = 1) -> Permutation:
        """Return the permutation that puts the last first.

        Args:
            features: how many elements.
            event_dim: the rank of the event, whose first dimension is permuted.
        """
        return cls(torch.arange(features - 1, -1, -1), event_dim)

    @classmethod
    def random(cls, features: int, seed: int, event_dim: int = 1) -> Permutation:
        """Return a permutation drawn from the seed, so that it is the same wherever it is rebuilt.

        Args:
            features: how many elements.
            seed: decides it.
            event_dim: the rank of the event, whose first dimension is permuted.
        """
        return cls(torch.randperm(features, generator=torch.Generator().manual_seed(seed)), event_dim)

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reorder."""
        return self._move(z, self.order, self.back), z.new_zeros(self._batch_shape(z))

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Put back in order."""
        return self._move(x, self.back, self.order), x.new_zeros(self._batch_shape(x))

    def _move(self, value: Tensor, order: Tensor, back: Tensor) -> Tensor:
        return value.flip(-self.event_dim) if self.reverses else reorder(value, -self.event_dim, order, back)


def _reverses(order: Tensor) -> bool:
    return torch.equal(order, torch.arange(len(order) - 1, -1, -1, device=order.device))


class _Reorder(torch.autograd.Function):
    """Index selection by a permutation, whose gradient is selection by the inverse instead of a slow scatter."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, dim: int, order: Tensor, back: Tensor) -> Tensor:
        ctx.dim = dim
        ctx.save_for_backward(order, back)
        return _select(value, dim, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        order, back = ctx.saved_tensors
        return reorder(grad, ctx.dim, back, order), None, None, None


def reorder(value: Tensor, dim: int, order: Tensor, back: Tensor) -> Tensor:
    """``value.index_select(dim, order)`` for a permutation and its inverse."""
    if ops.tracing():
        return value.index_select(dim, order)
    if torch.is_grad_enabled() and value.requires_grad:
        function: Any = _Reorder
        reordered: Tensor = function.apply(value, dim, order, back)
        return reordered
    return _select(value, dim, order)


def _select(value: Tensor, dim: int, order: Tensor) -> Tensor:
    """``value.index_select(dim, order)``; the order in memory, which suited the layer before, is kept."""
    if value.is_contiguous():
        return value.index_select(dim, order)
    if value.dim() == 2:  # feature-major, then
        return value.mT.index_select(1 - dim % 2, order).mT
    memory = sorted(range(value.dim()), key=value.stride, reverse=True)
    selected = value.permute(memory).index_select(memory.index(dim % value.dim()), order)
    return selected.permute([memory.index(each) for each in range(value.dim())])


class LU(Transform):
    r"""A linear map, as the product of a unit lower triangle L and an upper triangle U with a positive diagonal.

    .. math::
        x = L U z + b, \quad U_{ii} = e^{d_i}, \qquad \log\left|\det \frac{\partial x}{\partial z}\right| = \sum_i d_i

    For images the log-determinant is that times the number of positions. Starts as the identity. For images it is
    Glow's invertible 1x1 convolution (Kingma and Dhariwal 2018, arXiv:1807.03039): the matrix mixes channels, at every
    position alike. Put a random ``Permutation`` before it for the permutation of a full PLU decomposition.

    Args:
        features: the size n of the first event dimension.
        event_dim: the rank of the event.
    """

    def __init__(self, features: int, event_dim: int = 1) -> None:
        super().__init__()
        self.event_dim = event_dim
        self.lower = nn.Parameter(torch.zeros(features, features))
        self.upper = nn.Parameter(torch.zeros(features, features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def _factors(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(len(self.bias), dtype=self.bias.dtype, device=self.bias.device)
        return self.lower.tril(-1) + eye, self.upper.triu(1) + torch.diag(self.log_diagonal.exp())

    def _log_det(self, value: Tensor) -> Tensor:
        positions = value.shape[value.dim() - self.event_dim + 1 :].numel()
        return (positions * self.log_diagonal.sum()).expand(self._batch_shape(value))

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Multiply."""
        lower, upper = self._factors()
        x = torch.nn.functional.linear(z.movedim(-self.event_dim, -1), lower @ upper, self.bias)
        return x.movedim(-1, -self.event_dim), self._log_det(z)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Multiply by the inverse, whose columns solve the two triangular systems: images have far more positions."""
        lower, upper = self._factors()
        eye = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower, eye, upper=False, unitriangular=True)
        inverse = torch.linalg.solve_triangular(upper, inverse, upper=True)
        z = torch.nn.functional.linear(x.movedim(-self.event_dim, -1) - self.bias, inverse)
        return z.movedim(-1, -self.event_dim), -self._log_det(x)


class ActNorm(DataDependent):
    r"""Scale and shift of each feature or channel, so set that the first batch comes out with mean 0 and variance 1.

    .. math:: x = e^s z + b, \qquad \log\left|\det \frac{\partial x}{\partial z}\right| = \sum s

    Initialised once, from the first training batch, and never again after loading (Kingma and Dhariwal 2018,
    arXiv:1807.03039).

    Args:
        features: the size of the first event dimension.
        event_dim: the rank of the event.
    """

    def __init__(self, features: int, event_dim: int = 1) -> None:
        super().__init__()
        self.event_dim = event_dim
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def initialize(self, x: Tensor) -> None:
        """Take mean and standard deviation of each channel over rows and positions."""
        channels = x.movedim(-self.event_dim, 0).flatten(1)  # (n, rows * positions)
        mean, std = channels.mean(1), channels.std(1, correction=0).clamp_min(1e-6)
        self.bias.copy_(mean)
        self.log_scale.copy_(std.log())

    def _parts(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (-1, *(1,) * (self.event_dim - 1))
        positions = value.shape[value.dim() - self.event_dim + 1 :].numel()
        log_det = (positions * self.log_scale.sum()).expand(self._batch_shape(value))
        return self.log_scale.reshape(shape), self.bias.reshape(shape), log_det

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x = z exp(s) + b."""
        log_scale, bias, log_det = self._parts(z)
        return z * log_scale.exp() + bias, log_det

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z = (x - b) exp(-s)."""
        self._see(x)
        log_scale, bias, log_det = self._parts(x)
        return (x - bias) * (-log_scale).exp(), -log_det

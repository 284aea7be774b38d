"""A residual convolutional network: the conditioner of couplings on images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffeo import ops
from diffeo.arguments import KnowsArguments
from diffeo.nets.activations import as_widths, get_activation, overwriting, rate_for_width, soften
from diffeo.nets.precision import autocast

__all__ = ["ResNet"]

Activation = Callable[[Tensor], Tensor]


class ResNet(KnowsArguments, nn.Module):
    r"""(x, context) -> outputs of the same height and width, zero at first so that a flow starts as the identity.

    .. math::
        h_0 &= \mathrm{conv}(\mathrm{soften}(x)) \\
        h_l &= \mathrm{conv}(\mathrm{act}(\mathrm{conv}(\mathrm{act}(h_{l-1})) + C_l\, \mathrm{soften}(c)))
        \; (+\, h_{l-1}) \\
        \text{out} &= \mathrm{conv}(\mathrm{act}(h_L))

    The first and the last convolution are 3 x 3. Every convolution keeps the size (zero padding) and has normalised
    weights :math:`g v / \|v\|` (Salimans and Kingma 2016, arXiv:1602.07868); the last one starts at g = 0. He et al.
    2016 (arXiv:1603.05027) put the activations first; RealNVP uses such networks (Dinh et al. 2016, arXiv:1605.08803).
    With ``hidden=(512,), kernels=(1,), residual=False`` it is the network of Glow (Kingma and Dhariwal 2018,
    arXiv:1807.03039).

    Args:
        inputs: channels of x.
        outputs: channels of the output.
        hidden: channels of each block.
        context: size of the context, 0 for none; it enters every block as a bias.
        activation: a name in ``ACTIVATIONS``.
        residual: add each block's input to its output where the widths agree.
        kernels: sizes of the convolutions within a block, odd.

    Raises:
        ValueError: for sizes that are not positive, no block, or even kernels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int] = (32, 32),
        context: int = 0,
        activation: str = "relu",
        residual: bool = True,
        kernels: Sequence[int] = (3, 1),
    ) -> None:
        super().__init__()
        hidden = as_widths(hidden)
        if not hidden or min(inputs, outputs, *hidden) < 1:
            raise ValueError(f"expected positive sizes, got {inputs} inputs, {outputs} outputs, hidden={hidden}")
        if not kernels or any(size < 1 or size % 2 == 0 for size in kernels):
            raise ValueError(f"expected odd kernel sizes, got {tuple(kernels)}")
        self.activation = get_activation(activation)
        self.lr_scale = rate_for_width(hidden)
        self.first = _Convolution(inputs, hidden[0], 3)
        widths = zip([hidden[0], *hidden], hidden, strict=False)
        self.blocks: Any = nn.ModuleList(_Block(a, b, context, self.activation, residual, kernels) for a, b in widths)
        self.last = _Convolution(hidden[-1], outputs, 3)
        nn.init.zeros_(self.last.normalized.gain)
        nn.init.zeros_(self.last.bias)

    @property
    def widths(self) -> tuple[int, int]:
        """How many channels go in and come out."""
        return self.first.in_channels, self.last.out_channels

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Apply the network.

        Args:
            x: ``(*batch, inputs, H, W)``.
            context: ``(*batch, context)``, or None.

        Returns:
            ``(*batch, outputs, H, W)``.
        """
        images = x.reshape(-1, *x.shape[-3:])  # (rows, inputs, H, W)
        contexts = None if context is None else soften(context).reshape(-1, context.shape[-1])
        with autocast(images):
            h = soften(images)
            if not ops.tracing():  # vmap knows no memory formats
                h = h.contiguous(memory_format=torch.channels_last)
            h = self.first(h)
            for block in self.blocks:
                h = block(h, contexts)
            out: Tensor = self.last(overwriting(self.activation)(h)).to(x.dtype)
        return out.reshape(*x.shape[:-3], *out.shape[1:])


class _Block(nn.Module):
    """Activation and convolution in turns, the context added after the first convolution, the input at the end."""

    def __init__(
        self, inputs: int, outputs: int, context: int, activation: Activation, residual: bool, kernels: Sequence[int]
    ) -> None:
        super().__init__()
        self.activation = activation
        self.convolutions: Any = nn.ModuleList(
            _Convolution(outputs if index else inputs, outputs, size) for index, size in enumerate(kernels)
        )
        self.context = nn.Linear(context, outputs, bias=False) if context else None
        self.residual = residual and inputs == outputs

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Map ``(rows, inputs, H, W)`` given ``(rows, context)`` to ``(rows, outputs, H, W)``."""
        # What came into a residual block is needed once more; everything else may be overwritten.
        h: Tensor = self.convolutions[0]((self.activation if self.residual else overwriting(self.activation))(x))
        if self.context is not None and context is not None:
            h = h + self.context(context)[:, :, None, None]
        for convolution in self.convolutions[1:]:
            h = convolution(overwriting(self.activation)(h))
        return h + x if self.residual else h


class _Convolution(nn.Module):
    """A convolution that keeps the size, with weights g v / |v| of each output channel.

    PyTorch's own parametrization of the same names cannot be pickled.
    """

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = inputs, outputs
        conv = nn.Conv2d(inputs, outputs, size)
        self.bias: Any = conv.bias
        self.parametrizations: Any = nn.ModuleDict({"weight": _Normalized(conv.weight)})
        self.padding = size // 2

    @property
    def normalized(self) -> _Normalized:
        """Gain and direction."""
        normalized: _Normalized = self.parametrizations["weight"]
        return normalized

    @property
    def weight(self) -> Tensor:
        """The weight ``(outputs, inputs, size, size)``."""
        weight: Tensor = self.normalized()
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(rows, inputs, H, W)`` to ``(rows, outputs, H, W)``."""
        return F.conv2d(x, self.weight, self.bias, padding=self.padding)


class _Normalized(nn.Module):
    """g v / |v|; the names of the parameters are those of PyTorch's parametrization, in which runs are stored."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        direction = weight.detach().clone()
        self.original0 = nn.Parameter(torch.norm_except_dim(direction, 2, 0))
        self.original1 = nn.Parameter(direction)

    @property
    def gain(self) -> nn.Parameter:
        """The norm of each output channel's weights, ``(outputs, 1, 1, 1)``."""
        return self.original0

    def forward(self) -> Tensor:
        """The weight ``(outputs, inputs, size, size)``."""
        gain, direction = self.original0, self.original1
        if ops.tracing():  # vmap has no rule for the operation below
            norm: Tensor = direction.flatten(1).norm(dim=1)
            return gain * direction / norm[:, None, None, None]
        return torch._weight_norm(direction, gain, 0)

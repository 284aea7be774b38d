"""WaveNet: dilated causal gated convolutions over time, in one parallel pass or sample by sample."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffeo import ops
from diffeo.arguments import KnowsArguments
from diffeo.nets.activations import rate_for_width, soften, zero_last
from diffeo.ops import reference

__all__ = ["WaveNet"]


class WaveNet(KnowsArguments, nn.Module):
    r"""An autoregressive network over time whose weights are the same at every time (van den Oord et al. 2016).

    Output t sees the samples before t within the receptive field, and the context. With the dilations
    :math:`d_l = 1, 2, 4, \dots`, doubled from layer to layer, repeated ``cycles`` times, and kernels of k taps,

    .. math::
        h_0(t) &= w x_{t-1} + b \\
        (a_l(t), g_l(t)) &= \sum_{j < k} W_{lj} h_l(t - j d_l) + C_l c(t) + b_l \\
        u_l &= \tanh(a_l)\, \sigma(g_l), \qquad h_{l+1} = h_l + R_l u_l + r_l \\
        \text{out} &= L\, \mathrm{relu}\left(M\, \mathrm{relu}\left(\sum_l S_l u_l + s\right) + m\right) + o

    where what lies before the first sample is zero. The outputs are bounded however large x is, for the units are. The
    context c is one column per frame of ``hop`` samples: frame f conditions the samples f hop .. (f + 1) hop - 1,
    through a convolution over three neighbouring frames (a frame may tell of the future: it is no part of x).

    No length is fixed and no state is kept. arXiv:1609.03499.

    Args:
        size: the number of parameters per sample.
        channels: width of the layers.
        layers: layers per cycle; the dilation doubles from each to the next.
        cycles: how often the dilations start again at 1.
        kernel: taps k of each convolution.
        skip: width of the two layers before the output.
        context: channels of the context, 0 for none.
        hop: samples per frame of context.

    Raises:
        ValueError: for sizes that are not positive, or a kernel of fewer than two taps.
    """

    def __init__(
        self,
        size: int,
        channels: int = 32,
        layers: int = 8,
        cycles: int = 2,
        kernel: int = 2,
        skip: int = 64,
        context: int = 0,
        hop: int = 1,
    ) -> None:
        super().__init__()
        if min(size, channels, layers, cycles, skip, hop) < 1 or context < 0:
            raise ValueError(
                f"expected positive sizes, got size={size}, channels={channels}, layers={layers}, cycles={cycles}, "
                f"skip={skip}, hop={hop}, context={context}"
            )
        if kernel < 2:
            raise ValueError(f"expected a kernel of at least 2 taps, got {kernel}")
        self.size, self.channels, self.kernel, self.hop = size, channels, kernel, hop
        self.dilations: list[int] = [2**layer for _ in range(cycles) for layer in range(layers)]
        depth = len(self.dilations)
        self.first = nn.Linear(1, channels)
        self.taps = _uniform(depth, kernel, 2 * channels, channels, fan=kernel * channels)
        self.gate_bias = nn.Parameter(torch.zeros(depth, 2 * channels))
        self.residual = _uniform(depth - 1, channels, channels, fan=channels)  # nothing follows the last layer
        self.residual_bias = nn.Parameter(torch.zeros(depth - 1, channels))
        self.skip: Any = nn.Linear(depth * channels, skip)  # of all layers at once
        self.mid: Any = nn.Linear(skip, skip)
        self.last: Any = nn.Linear(skip, size)
        self.frames: Any = nn.Conv1d(context, channels, 3, padding=1) if context else None
        self.condition: Any = nn.Linear(channels, depth * 2 * channels, bias=False) if context else None
        self.spec = ops.WaveNetSpec(size, channels, self.dilations, kernel, skip, hop)
        self.lr_scale = rate_for_width([channels, skip])
        zero_last(self.last)

    @property
    def receptive_field(self) -> int:
        """How many samples before its own an output sees."""
        return 1 + (self.kernel - 1) * sum(self.dilations)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; memory that was for training alone is given back after it.

        Args:
            mode: whether to train.
        """
        if not mode:
            ops.release(self.spec)
        return super().train(mode)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Give all parameters in one parallel pass.

        Args:
            x: ``(T, rows)``.
            context: ``(rows, context, frames)``, or None.

        Returns:
            ``(size, T, rows)``.

        Raises:
            ValueError: for a context of another number of frames.
        """
        shared = self._shared(context, len(x))
        return ops.wavenet(self.spec, x.mT, shared, self._tensors()).permute(1, 2, 0)

    def mapped(
        self, univariate: ops.Univariate, x: Tensor, value: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Normalize values by the parameters that the network gives at x.

        Args:
            univariate: the map.
            x: what the network sees, ``(T, rows)``.
            value: what is mapped, ``(T, rows)``.
            context: ``(rows, context, frames)``, or None.

        Returns:
            z ``(T, rows)`` and the log-derivatives summed over time, ``(rows,)``.
        """
        z, log_det = ops.map_values(univariate, value, self(x, context), generate=False)
        return z, log_det.sum(0)

    def invert(self, univariate: ops.Univariate, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Solve :math:`x_t = f(z_t; \mathrm{net}(x)_t)` sample by sample, without gradients.

        Args:
            univariate: the map f.
            z: ``(rows, T)``.
            context: ``(rows, context, frames)``, or None.

        Returns:
            x ``(rows, T)`` and log|det dx/dz| ``(rows,)``.
        """
        return ops.invert_wavenet(self.spec, univariate, z, self._shared(context, z.shape[1]), self._tensors())

    def solve_transposed(
        self, x: Tensor, context: Tensor | None, by_params: Tensor, diagonal: Tensor, grad: Tensor
    ) -> Tensor:
        r"""Solve :math:`J^T u = g`, J = dz/dx of an inversion, g ``grad``; see ``reference.solve_transposed_wavenet``.

        Args:
            x: where the network is linearised, ``(rows, T)``.
            context: ``(rows, context, frames)``, or None.
            by_params: dz_t/dparams_t, ``(size, T, rows)``.
            diagonal: dz_t/dx_t at fixed parameters, ``(T, rows)``.
            grad: ``(T, rows)``.

        Returns:
            u ``(T, rows)``.
        """
        return reference.solve_transposed_wavenet(
            self.spec, x.mT, self._shared(context, len(x)), self._tensors(), by_params, diagonal, grad
        )

    def _shared(self, context: Tensor | None, length: int) -> Tensor | None:
        """The context's part of every gate, ``(rows, layers, 2 channels, frames)``."""
        if self.frames is None or context is None:
            return None
        frames = -(-length // self.hop)
        if context.dim() != 3 or context.shape[2] != frames:
            raise ValueError(
                f"expected a context of shape (rows, {self.frames.in_channels}, {frames}) for {length} samples, "
                f"{self.hop} per frame, got {tuple(context.shape)}"
            )
        columns = F.silu(self.frames(soften(context)))  # (rows, channels, frames)
        shared: Tensor = (self.condition.weight @ columns).unflatten(1, (len(self.dilations), 2 * self.channels))
        return shared

    def _tensors(self) -> list[Tensor]:
        """All weights but those of the context, in the order of ``WaveNetSpec``."""
        head = [tensor for layer in (self.skip, self.mid, self.last) for tensor in (layer.weight, layer.bias)]
        stack = [self.taps, self.gate_bias, self.residual, self.residual_bias]
        return [self.first.weight, self.first.bias, *stack, *head]


def _uniform(*shape: int, fan: int) -> nn.Parameter:
    bound = 1 / math.sqrt(fan)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

"""WaveNet: dilated causal gated convolutions over time, read all at once or one sample at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffeo.nets.activations import rate_for_width, soften
from diffeo.ops.cpu.maps import MapSpec
from diffeo.ops.cpu.network import Mapping
from diffeo.ops.cpu.wavenet import Dilated, read, walk

__all__ = ["WaveNet"]


class _Slopes(NamedTuple):
    """Where a reading linearised the network: what the transposed walk multiplies by, ``(rows, ., T)`` each."""

    gates: list[tuple[Tensor, Tensor]]  # of each layer, the derivatives of its units by both halves of the gate
    skip: Tensor  # whether the rectifier behind the skips, and the one behind the layer after them, let pass
    mid: Tensor


class WaveNet(nn.Module):
    """An autoregressive network over time whose weights are the same at every time (van den Oord et al. 2016).

    Output t sees the samples before t within the receptive field, and the context. With the dilations d_l = 1, 2, 4,
    ..., 2^(layers - 1), repeated ``cycles`` times, and kernels of k taps,

        h_0(t) = w x_{t-1} + b
        a_l(t), b_l(t) = sum_{j < k} W_lj h_l(t - j d_l) + C_l c(t) + b_l
        u_l = tanh(a_l) sigmoid(b_l),    h_{l+1} = h_l + R_l u_l + r_l
        output = L relu(M relu(sum_l S_l u_l + s) + m) + o,

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
        self.dilations = [2**layer for _ in range(cycles) for layer in range(layers)]
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
        self.structure = Dilated(size, channels, self.dilations, kernel, skip, hop, self._plain)
        self.lr_scale = rate_for_width([channels, skip])
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    @property
    def receptive_field(self) -> int:
        """How many samples before its own an output sees."""
        return 1 + (self.kernel - 1) * sum(self.dilations)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; memory that was for training alone is given back after it."""
        if not mode:
            self.structure.spare.clear()
        return super().train(mode)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Read all at once: x ``(T, rows)``, context ``(rows, context, frames)`` to ``(size, T, rows)``."""
        shared = self._shared(context, len(x))
        return read(self.structure, x.mT, shared, self._tensors()).permute(1, 2, 0)

    def mapped(self, mapping: Mapping, x: Tensor, value: Tensor, context: Tensor | None = None) -> Any:
        """None: there is no kernel that reads and maps at once."""

    def walk(self, step: Callable[[int, Tensor], Tensor], like: Tensor, context: Tensor | None = None) -> None:
        """Read one sample at a time: ``step(t, params_t)`` gets ``(size, rows)`` and returns sample t, ``(rows,)``.

        Each layer remembers what it has read in a ring of its dilation's length, so a sample costs one multiplication
        by every weight, however long the receptive field (Paine et al. 2016, arXiv:1611.09482). Not differentiable;
        see ``walk_back``.

        Args:
            step: computes sample t from its parameters.
            like: a tensor ``(T, rows)`` that gives length, rows, dtype and device.
            context: ``(rows, context, frames)``.
        """
        shared = self._shared(context, len(like))
        rings = self._rings(like, self.channels)
        value = like.new_zeros(like.shape[1])
        for t in range(len(like)):
            h = torch.addmm(self.first.bias[:, None], self.first.weight, value[None])  # (channels, rows)
            units = []
            for index, (dilation, ring) in enumerate(zip(self.dilations, rings, strict=True)):
                total = torch.addmm(self.gate_bias[index][:, None], self.taps[index, 0], h)
                for tap in range(1, self.kernel):
                    total.addmm_(self.taps[index, tap], ring[(t - tap * dilation) % len(ring)])
                if shared is not None:
                    total += shared[:, index, :, t // self.hop].mT
                ring[t % len(ring)] = h
                units.append(_gated(total, 0))
                if index < len(self.residual):
                    h = h + torch.addmm(self.residual_bias[index][:, None], self.residual[index], units[-1])
            hidden = torch.cat(units)
            for layer in (self.skip, self.mid):
                hidden = F.relu(torch.addmm(layer.bias[:, None], layer.weight, hidden))
            value = step(t, torch.addmm(self.last.bias[:, None], self.last.weight, hidden))

    def walk_fused(
        self, maps: Sequence[MapSpec], z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Walk and map z ``(rows, T)`` in one call, where the kernel for it is at hand; None elsewhere."""
        return walk(self.structure, maps, z, self._shared(context, z.shape[1]), self._tensors())

    def walk_back(self, step: Callable[[int, Tensor], Tensor], x: Tensor, context: Tensor | None = None) -> None:
        """Walk the transposed network from the last sample to the first, at the price of one backward pass.

        ``step(t, total)`` gets d/dx_t ``(rows,)`` of what the gradients fed so far (for later samples) send back
        through the network, and returns the gradient with respect to params_t, ``(size, rows)``. The transposed network
        is a causal one in reversed time, with rings of what the later times' gates send back.

        Args:
            step: computes the gradient of the parameters of sample t.
            x: where the network is linearised, ``(T, rows)``.
            context: ``(rows, context, frames)``.
        """
        slopes = self._linearised(x, self._shared(context, len(x)))
        rings = self._rings(x, 2 * self.channels)
        total = x.new_zeros(x.shape[1])
        for t in reversed(range(len(x))):
            back = self.last.weight.mT @ step(t, total)
            back = self.mid.weight.mT @ (back * slopes.mid[:, :, t].mT)
            back = self.skip.weight.mT @ (back * slopes.skip[:, :, t].mT)
            by_units = back.unflatten(0, (len(self.dilations), self.channels))
            by_h = torch.zeros_like(by_units[0])
            for index in reversed(range(len(self.dilations))):
                dilation, ring = self.dilations[index], rings[index]
                by_unit = by_units[index]
                if index < len(self.residual):
                    by_unit = torch.addmm(by_unit, self.residual[index].mT, by_h)
                by_gate = torch.cat([by_unit * slope[:, :, t].mT for slope in slopes.gates[index]])
                by_h = torch.addmm(by_h, self.taps[index, 0].mT, by_gate)
                for tap in range(1, self.kernel):
                    by_h.addmm_(self.taps[index, tap].mT, ring[(t + tap * dilation) % len(ring)])
                ring[t % len(ring)] = by_gate
            total = (self.first.weight.mT @ by_h)[0]  # with respect to sample t - 1

    def _rings(self, like: Tensor, width: int) -> list[Tensor]:
        """A ring for each layer, as long as its convolution reaches back."""
        spans = [(self.kernel - 1) * dilation for dilation in self.dilations]
        return [like.new_zeros(span, width, like.shape[1]) for span in spans]

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
        return (self.condition.weight @ columns).unflatten(1, (len(self.dilations), 2 * self.channels))

    def _tensors(self) -> list[Tensor]:
        """All weights but those of the context, in the order of the kernel."""
        head = [tensor for layer in (self.skip, self.mid, self.last) for tensor in (layer.weight, layer.bias)]
        stack = [self.taps, self.gate_bias, self.residual, self.residual_bias]
        return [self.first.weight, self.first.bias, *stack, *head]

    def _plain(self, x: Tensor, shared: Tensor | None, *tensors: Tensor, totals: list[Tensor] | None = None) -> Tensor:
        """The network in PyTorch's operations: x ``(rows, T)`` to ``(rows, size, T)``.

        ``totals`` receives every layer's gates ``(rows, 2 channels, T)`` and what each rectifier gets.
        """
        first, first_bias, taps, gate_bias, residual, residual_bias, *head = tensors
        length = x.shape[1]
        h = first * F.pad(x[:, None], (1, -1)) + first_bias[:, None]  # sample t - 1 at t
        units = []
        for index, dilation in enumerate(self.dilations):
            reach = (self.kernel - 1) * dilation
            # the kernel's taps look back from the present, those of conv1d forward from the most distant past
            weight = taps[index].flip(0).permute(1, 2, 0)  # (2 channels, channels, k)
            total = F.conv1d(F.pad(h, (reach, 0)), weight, gate_bias[index], dilation=dilation)
            if shared is not None:
                total = total + shared[:, index].repeat_interleave(self.hop, 2)[:, :, :length]
            if totals is not None:
                totals.append(total)
            units.append(_gated(total, 1))
            if index < len(residual):
                h = h + F.conv1d(units[-1], residual[index][:, :, None], residual_bias[index])
        hidden = torch.cat(units, 1)
        for weight, bias in (head[:2], head[2:4]):
            total = F.conv1d(hidden, weight[:, :, None], bias)
            if totals is not None:
                totals.append(total)
            hidden = F.relu(total)
        return F.conv1d(hidden, head[4][:, :, None], head[5])

    def _linearised(self, x: Tensor, shared: Tensor | None) -> _Slopes:
        totals: list[Tensor] = []
        self._plain(x.mT, shared, *self._tensors(), totals=totals)
        *gates, skip, mid = totals
        slopes = []
        for total in gates:
            a, b = total.chunk(2, 1)
            tanh, sigmoid = torch.tanh(a), torch.sigmoid(b)
            slopes.append(((1 - tanh.square()) * sigmoid, tanh * sigmoid * (1 - sigmoid)))
        return _Slopes(slopes, (skip > 0).to(x.dtype), (mid > 0).to(x.dtype))


def _gated(total: Tensor, dim: int) -> Tensor:
    a, b = total.chunk(2, dim)
    return torch.tanh(a) * torch.sigmoid(b)


def _uniform(*shape: int, fan: int) -> nn.Parameter:
    bound = 1 / math.sqrt(fan)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

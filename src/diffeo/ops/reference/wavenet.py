"""WaveNet: dilated causal gated convolutions over time: a forward pass, incremental inversion, and its transpose.

The tensors are those of ``WaveNetSpec``; ``shared`` is the context's part of every gate, ``(rows, layers, 2 channels,
frames)``, or one row for all, or None.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffeo.ops.specs import Univariate, WaveNetSpec

__all__ = ["invert_wavenet", "solve_transposed_wavenet", "wavenet"]


def wavenet(
    spec: WaveNetSpec,
    x: Tensor,
    shared: Tensor | None,
    tensors: Sequence[Tensor],
    sums: list[Tensor] | None = None,
) -> Tensor:
    """All outputs in one parallel pass: x ``(rows, T)`` to ``(rows, size, T)``.

    ``sums`` receives what every layer's gates get, ``(rows, 2 channels, T)``, then what both rectifiers get.
    """
    first, first_bias, taps, gate_bias, residual, residual_bias, *head = tensors
    length = x.shape[1]
    h = first * F.pad(x[:, None], (1, -1)) + first_bias[:, None]  # sample t - 1 at t
    units = []
    for index, dilation in enumerate(spec.dilations):
        reach = (spec.kernel - 1) * dilation
        # the kernel's taps look back from the present, those of conv1d forward from the most distant past
        weight = taps[index].flip(0).permute(1, 2, 0)  # (2 channels, channels, k)
        total = F.conv1d(F.pad(h, (reach, 0)), weight, gate_bias[index], dilation=dilation)
        if shared is not None:
            total = total + shared[:, index].repeat_interleave(spec.hop, 2)[:, :, :length]
        if sums is not None:
            sums.append(total)
        units.append(_gated(total, 1))
        if index < len(residual):
            h = h + F.conv1d(units[-1], residual[index][:, :, None], residual_bias[index])
    hidden = torch.cat(units, 1)
    for weight, bias in (head[:2], head[2:4]):
        total = F.conv1d(hidden, weight[:, :, None], bias)
        if sums is not None:
            sums.append(total)
        hidden = F.relu(total)
    return F.conv1d(hidden, head[4][:, :, None], head[5])


def invert_wavenet(
    spec: WaveNetSpec, univariate: Univariate, z: Tensor, shared: Tensor | None, tensors: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Solve x_t = f(z_t; net(x_<t)) for all t, sample by sample. Not differentiable.

    Each layer remembers what it has read in a ring of its dilation's length, so a sample costs one multiplication by
    every weight, however long the receptive field (Paine et al. 2016, arXiv:1611.09482).

    Args:
        spec: which network.
        univariate: the map f.
        z: ``(rows, T)``.
        shared: see above.
        tensors: likewise.

    Returns:
        x ``(rows, T)`` and log|det dx/dz| ``(rows,)``.
    """
    first, first_bias, taps, gate_bias, residual, residual_bias, *head = tensors
    noise = z.mT.contiguous()
    x, log_det = torch.empty_like(noise), z.new_zeros(len(z))
    rings = _rings(spec, z, spec.channels)
    value = z.new_zeros(len(z))
    for t in range(len(x)):
        h = torch.addmm(first_bias[:, None], first, value[None])  # (channels, rows)
        units = []
        for index, (dilation, ring) in enumerate(zip(spec.dilations, rings, strict=True)):
            total = torch.addmm(gate_bias[index][:, None], taps[index, 0], h)
            for tap in range(1, spec.kernel):
                total.addmm_(taps[index, tap], ring[(t - tap * dilation) % len(ring)])
            if shared is not None:
                total += shared[:, index, :, t // spec.hop].mT
            ring[t % len(ring)] = h
            units.append(_gated(total, 0))
            if index < len(residual):
                h = h + torch.addmm(residual_bias[index][:, None], residual[index], units[-1])
        hidden = torch.cat(units)
        for weight, bias in (head[:2], head[2:4]):
            hidden = F.relu(torch.addmm(bias[:, None], weight, hidden))
        params = torch.addmm(head[5][:, None], head[4], hidden)
        value, log_derivative = univariate.generate(noise[t], params)
        x[t] = value
        log_det.add_(log_derivative)
    return x.mT, log_det


def solve_transposed_wavenet(
    spec: WaveNetSpec,
    x: Tensor,
    shared: Tensor | None,
    tensors: Sequence[Tensor],
    by_params: Tensor,
    diagonal: Tensor,
    grad: Tensor,
) -> Tensor:
    """Solve J^T u = grad, last sample first, where J = diag(diagonal) + (dz/dparams) (dparams/dx) is dz/dx.

    The transposed network is a causal one in reversed time, with rings of what the later times' gates send back; the
    solve costs one backward pass.

    Args:
        spec: which network.
        x: where it is linearised, ``(rows, T)``.
        shared: see above.
        tensors: likewise.
        by_params: dz_t/dparams_t, ``(size, T, rows)``.
        diagonal: dz_t/dx_t at fixed parameters, ``(T, rows)``.
        grad: ``(T, rows)``.

    Returns:
        u ``(T, rows)``.
    """
    solution = torch.empty_like(grad, memory_format=torch.contiguous_format)
    first, _, taps, _, residual, _, skip, _, mid, _, last, _ = tensors
    sums: list[Tensor] = []
    wavenet(spec, x, shared, tensors, sums)
    *gates, skip_sums, mid_sums = sums
    slopes = []  # of each layer's units by both halves of the gate
    for total in gates:
        a, b = total.chunk(2, 1)
        tanh, sigmoid = torch.tanh(a), torch.sigmoid(b)
        slopes.append(((1 - tanh.square()) * sigmoid, tanh * sigmoid * (1 - sigmoid)))
    passes_skip, passes_mid = (skip_sums > 0).to(x.dtype), (mid_sums > 0).to(x.dtype)
    rings = _rings(spec, x, 2 * spec.channels)
    total = x.new_zeros(len(x))
    for t in reversed(range(x.shape[1])):
        solution[t] = (grad[t] - total) / diagonal[t]
        back = last.mT @ (by_params[:, t] * solution[t])
        back = mid.mT @ (back * passes_mid[:, :, t].mT)
        back = skip.mT @ (back * passes_skip[:, :, t].mT)
        by_units = back.unflatten(0, (len(spec.dilations), spec.channels))
        by_h = torch.zeros_like(by_units[0])
        for index in reversed(range(len(spec.dilations))):
            dilation, ring = spec.dilations[index], rings[index]
            by_unit = by_units[index]
            if index < len(residual):
                by_unit = torch.addmm(by_unit, residual[index].mT, by_h)
            by_gate = torch.cat([by_unit * slope[:, :, t].mT for slope in slopes[index]])
            by_h = torch.addmm(by_h, taps[index, 0].mT, by_gate)
            for tap in range(1, spec.kernel):
                by_h.addmm_(taps[index, tap].mT, ring[(t + tap * dilation) % len(ring)])
            ring[t % len(ring)] = by_gate
        total = (first.mT @ by_h)[0]  # with respect to sample t - 1
    return solution


def _gated(total: Tensor, dim: int) -> Tensor:
    a, b = total.chunk(2, dim)
    return torch.tanh(a) * torch.sigmoid(b)


def _rings(spec: WaveNetSpec, like: Tensor, width: int) -> list[Tensor]:
    """A ring for each layer, as long as its convolution reaches back."""
    spans = [(spec.kernel - 1) * dilation for dilation in spec.dilations]
    return [like.new_zeros(span, width, len(like)) for span in spans]

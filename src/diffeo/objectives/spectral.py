"""Spectral terms for sound."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffeo.spectral import magnitudes

__all__ = ["PowerLoss"]


class PowerLoss(nn.Module):
    r"""Does x have the power of y? The mean over resolutions and segments of squared differences over frequencies.

    .. math:: L(x, y) = \sum_k (P_k(x) - P_k(y))^2

    :math:`P_k` is the root mean square of the short-time spectrum at frequency k over the frames of a segment. A
    likelihood hardly changes where x is too quiet; this does. By Parseval's theorem the loss is in units of mean power
    (squared amplitude), up to the window's constant. Its gradient is finite everywhere, silence included.

    After the power loss of Parallel WaveNet (van den Oord et al. 2017, arXiv:1711.10433, section 4), whose features are
    averaged over time, at several resolutions. Frame by frame two sounds of the same power differ by chance, and the
    distance is least where x is too quiet: of Gaussian noise, at pi / 4 of the amplitude of y.

    Args:
        sizes: samples in the windows (Hann's), one for each resolution; frames overlap by three quarters.
        segment: samples over which power is averaged.

    Raises:
        ValueError: for windows of fewer than 4 samples or empty segments; when called, for sounds of two shapes.
    """

    def __init__(self, sizes: Sequence[int] = (128, 256, 512), segment: int = 1024) -> None:
        super().__init__()
        if not sizes or min(sizes) < 4:
            raise ValueError(f"expected windows of at least 4 samples, got {tuple(sizes)}")
        if segment < 1:
            raise ValueError(f"expected segments of at least a sample, got {segment}")
        self.sizes = tuple(sizes)
        self.segment = segment

    def forward(self, x: Tensor, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the loss of each example; an auxiliary loss of ``Distillation``.

        Args:
            x: sounds ``(N, T)``.
            y: those that x is compared with, ``(N, T)``.
            context: not used.

        Returns:
            ``(N,)``, in units of mean power.

        Raises:
            ValueError: for x and y of different shapes.
        """
        if x.shape != y.shape:
            raise ValueError(f"expected two sounds of the same shape, got {tuple(x.shape)} and {tuple(y.shape)}")
        terms = [(self._power(x, size) - self._power(y, size)).square().sum(-2).mean(-1) for size in self.sizes]
        return sum(terms[1:], terms[0]) / len(terms)

    def _power(self, x: Tensor, size: int) -> Tensor:
        """Return P_k of every segment, ``(N, size // 2 + 1, segments)``; the last one ends in silence."""
        frames = max(1, self.segment // (size // 4))
        spectrum = magnitudes(x, size, size // 4)
        divided = F.pad(spectrum, (0, -spectrum.shape[-1] % frames)).unflatten(-1, (-1, frames))
        power: Tensor = torch.linalg.vector_norm(divided, dim=-1) / frames**0.5
        return power

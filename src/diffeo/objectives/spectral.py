"""Spectral terms for sound."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from diffeo.spectral import magnitudes

__all__ = ["PowerLoss"]


class PowerLoss(nn.Module):
    """L(x, y) = mean over resolutions of ||S(x) - S(y)||^2 / F, S = |STFT|, F frames: does x have the power of y?

    A likelihood hardly hears a whisper; this does. By Parseval's theorem the loss is in units of mean power (squared
    amplitude), up to the window's constant. Its gradient is finite everywhere, silence included. After the power loss
    of Parallel WaveNet (van den Oord et al. 2017, arXiv:1711.10433, section 4), on magnitudes as in ClariNet
    (arXiv:1807.07281) and at several resolutions.

    Args:
        sizes: samples in the windows (Hann's), one for each resolution; frames overlap by three quarters.
    """

    def __init__(self, sizes: Sequence[int] = (128, 256, 512)) -> None:
        super().__init__()
        if not sizes or min(sizes) < 4:
            raise ValueError(f"expected windows of at least 4 samples, got {tuple(sizes)}")
        self.sizes = tuple(sizes)

    def forward(self, x: Tensor, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the loss of each example (N,), for x and y of shape (N, T); an auxiliary loss of ``Distillation``."""
        if x.shape != y.shape:
            raise ValueError(f"expected two sounds of the same shape, got {tuple(x.shape)} and {tuple(y.shape)}")
        terms = [
            (magnitudes(x, size, size // 4) - magnitudes(y, size, size // 4)).square().sum(-2).mean(-1)
            for size in self.sizes
        ]
        return sum(terms[1:], terms[0]) / len(terms)

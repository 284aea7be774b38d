"""Spectra of sound: short-time Fourier magnitudes and log-mel features, differentiable."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["frames_of", "log_mel", "magnitudes", "mel_filters"]

FLOOR = 1e-5  # of filtered magnitudes before their logarithm, lest silence be minus infinity

# Slaney's mel scale: linear up to 1 kHz, then 27 steps for each factor of 6.4
_LINEAR, _KNEE = 200 / 3, 1000.0
_STEP = math.log(6.4) / 27


def frames_of(samples: int, hop: int) -> int:
    """Return how many frames cover so many samples: ceil(samples / hop)."""
    return -(-samples // hop)


def magnitudes(x: Tensor, size: int, hop: int) -> Tensor:
    """Short-time Fourier magnitudes |sum_n w(n) x(n + start_f) exp(-2 pi i k n / size)| / sum_n w(n), w Hann's window.

    Frame f is centred on the samples f hop .. (f + 1) hop - 1, with zeros beyond the ends; divided by the window's sum,
    a tone of amplitude a has a magnitude of a / 2. At exact silence the gradient is 0, as the modulus has it.

    Args:
        x: ``(*batch, T)``.
        size: samples in a window, at least ``hop``.
        hop: samples from frame to frame.

    Returns:
        ``(*batch, size // 2 + 1, ceil(T / hop))``.

    Raises:
        ValueError: for a window smaller than a hop, or no samples.
    """
    if not size >= hop >= 1:
        raise ValueError(f"expected a window of at least a hop, got {size} and {hop}")
    samples = x.shape[-1]
    if not samples:
        raise ValueError(f"expected at least one sample, got shape {tuple(x.shape)}")
    left = (size - hop) // 2
    reach = (frames_of(samples, hop) - 1) * hop + size
    padded = F.pad(x.reshape(-1, samples), (left, reach - left - samples))
    window = torch.hann_window(size, dtype=x.dtype, device=x.device)
    spectrum = torch.stft(padded, size, hop, window=window, center=False, return_complex=True)
    return (spectrum.abs() / window.sum()).reshape(*x.shape[:-1], *spectrum.shape[1:])


@lru_cache(maxsize=8)
def mel_filters(rate: int, size: int, mels: int, low: float = 0.0, high: float | None = None) -> Tensor:
    """Triangular filters, evenly spaced on Slaney's mel scale, each of area 1 in Hz: ``(mels, size // 2 + 1)``.

    These are librosa's ``filters.mel(sr=rate, n_fft=size, n_mels=mels)``. The tensor is shared: do not change it.

    Args:
        rate: samples per second.
        size: samples in a window.
        mels: how many filters.
        low: where the first begins, in Hz.
        high: where the last ends, in Hz; by default half the rate.

    Raises:
        ValueError: for frequencies out of order, or filters so narrow that some hold no frequency of the window.
    """
    high = rate / 2 if high is None else high
    if not 0 <= low < high <= rate / 2:
        raise ValueError(f"expected 0 <= low < high <= {rate / 2:g} Hz, got {low:g} and {high:g}")
    corners = torch.linspace(_to_mel(low), _to_mel(high), mels + 2, dtype=torch.float64)
    edges = torch.where(
        corners < _KNEE / _LINEAR, corners * _LINEAR, _KNEE * torch.exp(_STEP * (corners - _KNEE / _LINEAR))
    )
    bins = torch.arange(size // 2 + 1, dtype=torch.float64) * (rate / size)
    below, centre, above = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = torch.minimum((bins - below) / (centre - below), (above - bins) / (above - centre)).clamp_min(0)
    if not (filters > 0).any(1).all():
        raise ValueError(f"expected fewer than {mels} mel channels or a window longer than {size} samples")
    return (filters * 2 / (above - below)).float()


def _to_mel(hertz: float) -> float:
    return hertz / _LINEAR if hertz < _KNEE else _KNEE / _LINEAR + math.log(hertz / _KNEE) / _STEP


def log_mel(x: Tensor, rate: int, mels: int, size: int, hop: int) -> Tensor:
    """log max(filters |STFT|, 1e-5): natural logarithms of mel-filtered magnitudes, frame by frame.

    The magnitudes are those of ``magnitudes`` times the window's sum, so the features are librosa's
    ``melspectrogram(power=1)`` of the same, zero-padded frames.

    Args:
        x: ``(*batch, T)``.
        rate: samples per second.
        mels: how many filters.
        size: samples in a window.
        hop: samples from frame to frame.

    Returns:
        ``(*batch, mels, ceil(T / hop))``.

    Raises:
        ValueError: as ``magnitudes`` and ``mel_filters``.
    """
    filters = mel_filters(rate, size, mels).to(x) * (size / 2)  # the sum of Hann's periodic window
    return (filters @ magnitudes(x, size, hop)).clamp_min(FLOOR).log()

"""Measures of how sound sounds: spectral distance, loudness, flatness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffeo.spectral import magnitudes

__all__ = ["flatness", "log_spectral_distance", "measures", "rms", "spectral_distance", "voiced_share"]

WINDOW = 0.032  # seconds
QUIET = 40.0  # dB below a sound's loudest frame; what is quieter counts as silence
FLOOR = 1e-5  # of magnitudes: 100 dB below full scale, a third of a 16-bit step
VOICES = (60.0, 400.0)  # Hz, of the fundamental
PERIODIC = 0.5  # correlation with itself a period later from which a frame counts as voiced


def rms(x: Tensor) -> float:
    """Root mean square sqrt(mean x^2) of a sound ``(T,)``."""
    return float(x.double().square().mean().sqrt())


def log_spectral_distance(x: Tensor, y: Tensor, rate: int) -> float:
    """Distance of two aligned sounds ``(T,)`` in dB: mean_f sqrt(mean_k (20 log10 |X_kf| / |Y_kf|)^2).

    X and Y are short-time Fourier magnitudes, at least 1e-5; the mean is over frames f and frequencies k.

    Raises:
        ValueError: for sounds of different lengths.
    """
    if x.shape != y.shape:
        raise ValueError(f"expected two sounds of the same length, got {tuple(x.shape)} and {tuple(y.shape)}")
    difference = _decibels(x, rate) - _decibels(y, rate)  # (frequencies, frames)
    return float(difference.square().mean(0).sqrt().mean())


def spectral_distance(xs: Sequence[Tensor], ys: Sequence[Tensor], rate: int) -> float:
    """Distance of two sets of sounds in dB: sqrt(mean_k (m_k(X) - m_k(Y))^2), m_k = mean 20 log10 |X_kf| over frames f.

    Only frames that are not silent count, in each sound those within 40 dB of its loudest.
    """
    means = [torch.cat([_decibels(x, rate)[:, _loud(x, rate)] for x in sounds], 1).mean(1) for sounds in (xs, ys)]
    return float((means[0] - means[1]).square().mean().sqrt())


def flatness(x: Tensor, rate: int) -> float:
    """Spectral flatness, exp(mean_k log P_k) / mean_k P_k of the power P = |X|^2, averaged over frames not silent.

    0 for a tone, 0.56 (exp of minus Euler's constant) for white noise: unvoiced speech is flatter than voiced speech.
    """
    power = _spectrum(x, rate).clamp_min(FLOOR)[1:-1, _loud(x, rate)].square()  # ends of the spectrum are real: others
    return float((power.log().mean(0).exp() / power.mean(0)).mean())


def voiced_share(x: Tensor, rate: int) -> float:
    """Share of the frames not silent that are periodic: max over lags l of sum x_t x_{t+l} / sum x_t^2 above 0.5.

    Lags are the periods of 60 to 400 Hz; the sums, over windows of two longest periods and those l later, are divided
    by the geometric mean of both windows' energies.
    """
    shortest, longest = int(rate / VOICES[1]), int(rate / VOICES[0])
    window, hop = 2 * longest, longest // 2
    if len(x) < window + longest:
        return float("nan")
    frames = x.double().unfold(0, window + longest, hop)  # (frames, window + longest)
    frames = frames - frames.mean(1, keepdim=True)
    first = frames[:, :window]
    energy = first.square().sum(1)
    best = torch.full_like(energy, -1.0)
    for lag in range(shortest, longest + 1):
        later = frames[:, lag : lag + window]
        scale = (energy * later.square().sum(1)).sqrt().clamp_min(1e-12)
        best = torch.maximum(best, (first * later).sum(1) / scale)
    loud = energy >= energy.max() * 10 ** (-QUIET / 10)
    return float((best[loud] > PERIODIC).double().mean())


def measures(sounds: Sequence[Tensor], rate: int) -> dict[str, Any]:
    """Return means over sounds ``(T,)`` with their standard errors: "rms", "flatness", "voiced_share"."""
    each: dict[str, Callable[[Tensor], float]] = {
        "rms": rms,
        "flatness": lambda x: flatness(x, rate),
        "voiced_share": lambda x: voiced_share(x, rate),
    }
    result: dict[str, Any] = {}
    for name, measure in each.items():
        values = torch.tensor([measure(x) for x in sounds], dtype=torch.float64)
        values = values[values.isfinite()]
        error = values.std() / len(values) ** 0.5 if len(values) > 1 else torch.tensor(torch.nan)
        result[name] = {"mean": float(values.mean()), "stderr": float(error)}
    return result


def _spectrum(x: Tensor, rate: int) -> Tensor:
    size = max(4, round(WINDOW * rate))
    return magnitudes(x.double(), size, size // 4)


def _decibels(x: Tensor, rate: int) -> Tensor:
    return 20 * _spectrum(x, rate).clamp_min(FLOOR).log10()


def _loud(x: Tensor, rate: int) -> Tensor:
    """Which frames are not silent."""
    power = _spectrum(x, rate).square().sum(0)
    return power >= power.max() * 10 ** (-QUIET / 10)

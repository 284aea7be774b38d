"""Figures of a flow of audio."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import Flow, bits_per_dim
from diffeo.report.figures import training
from diffeo.report.style import MODEL, OTHER, REAL, Figures, figure, histogram, legend_above, span
from diffeo.spectral import magnitudes
from diffeo.training.seeding import derive, seed_noise

__all__ = ["likelihoods", "plot", "sounds"]

SHOWN = 3  # sounds of each set
DRAWN = 32  # sounds whose likelihoods are compared
DEPTH = 70.0  # dB below the loudest that a spectrogram shows
_COLOURS = (REAL, MODEL, OTHER)


@torch.no_grad()
def plot(run: Path, flow: Flow, x: Tensor, context: Tensor | None, rate: int, step: float, seed: int) -> list[str]:
    """Write ``run/figures/*.png`` and return their paths.

    The learning curve in bits per sample; waveforms and spectrograms of real and of drawn sounds in the same contexts;
    the likelihoods of both under the model.

    Args:
        run: the run directory.
        flow: the trained flow.
        x: held-out sounds ``(n, T)``.
        context: their contexts, or None.
        rate: samples per second.
        step: the distance of neighbouring values, in which bits are counted.
        seed: of all that is random.
    """
    path = Figures(run)
    training(path, flow, dimensions=x[0].numel(), step=step, unit="bits/sample")
    device = flow.base.device_marker.device
    seed_noise(device, derive(seed, "figures"))
    spaced = torch.linspace(0, len(x) - 1, min(DRAWN, len(x))).long()  # neighbours come from the same recording
    x = x[spaced].to(device).float()
    context = None if context is None else context[spaced].to(device)
    sampled = flow.sample(len(x)) if context is None else flow.sample((), context)
    sounds({"data": x, "samples": sampled}, rate, path("sounds"))
    bits = {
        name: bits_per_dim(flow.log_prob(part, context, nan="propagate"), x.shape[1], step).cpu().numpy()
        for name, part in (("data", x), ("samples", sampled))
    }
    likelihoods(bits, path("likelihoods"))
    return path.plotted


def sounds(parts: Mapping[str, Tensor], rate: int, path: str | Path) -> None:
    """Plot sets of sounds ``(n, T)`` side by side, by name: three of each, evenly spaced, waveforms above spectrograms.

    All spectrograms share one scale of dB, all waveforms one of amplitudes. Up to three sets: real, teacher, student.
    """
    rows = min(SHOWN, *(len(part) for part in parts.values()))
    size = max(4, round(0.032 * rate))
    shown = torch.linspace(0, min(len(part) for part in parts.values()) - 1, rows).long()
    clips = {name: part.detach().cpu()[shown].double().nan_to_num(0.0).clamp(-1, 1) for name, part in parts.items()}
    decibels = {
        name: 20 * magnitudes(part, size, max(1, size // 8)).clamp_min(1e-7).log10() for name, part in clips.items()
    }
    first = next(iter(parts))
    loudest = float(decibels[first].max())
    reach = 1.05 * max(float(part.abs().quantile(0.999)) for part in clips.values()) or 1.0
    with figure(path, (4.2 * len(parts) + 0.6, 2.1 * rows + 0.4)) as fig:
        heights = {"height_ratios": [1, 2] * rows}
        grid = fig.subplots(2 * rows, len(parts), squeeze=False, gridspec_kw=heights, sharex=True, sharey="row")
        for column, (name, colour) in zip(grid.T, _coloured(parts).items(), strict=True):
            column[0].set_title(name)
            column[-1].set_xlabel("seconds")
            for wave, spectrogram, clip, decibel in zip(
                column[::2], column[1::2], clips[name].numpy(), decibels[name].numpy(), strict=True
            ):
                seconds = len(clip) / rate
                wave.plot(np.arange(len(clip)) / rate, clip, color=colour, lw=0.4)
                wave.set(xlim=(0, seconds), ylim=(-reach, reach))
                image = spectrogram.imshow(
                    decibel, origin="lower", aspect="auto", cmap="magma", vmin=loudest - DEPTH, vmax=loudest,
                    extent=(0, seconds, 0, rate / 2000), interpolation="nearest",
                )  # fmt: skip
        for wave, spectrogram in zip(grid[::2, 0], grid[1::2, 0], strict=True):
            wave.set_ylabel("amplitude")
            spectrogram.set_ylabel("kHz")
        fig.align_ylabels(grid[:, 0])
        fig.colorbar(image, ax=grid, label="dB", aspect=40, pad=0.01)


def likelihoods(parts: Mapping[str, np.ndarray], path: str | Path, whose: str = "model") -> None:
    """Plot histograms of bits per sample (n,) under a model, of sets by name; up to three. ``whose`` names the model.

    A model's own samples should look to it as real sound does: fewer bits and they buzz, more and they hiss.
    """
    values = {name: part[np.isfinite(part)] for name, part in parts.items()}
    every = np.concatenate(list(values.values()))
    if not len(every):
        return
    limits = span(every, 0.0, 0.99 if len(every) > 200 else 1.0, margin=0.04)
    edges = np.linspace(*limits, int(np.clip(2.5 * len(every) ** (1 / 3), 8, 40)) + 1)
    with figure(path, (6.4, 3.4)) as fig:
        axes = fig.add_subplot()
        for name, colour in _coloured(parts).items():
            part = values[name]
            mean = f": mean {part.mean():.2f}" if len(part) else ": none is finite"
            histogram(axes, part, edges, colour, filled=True)
            histogram(axes, part, edges, colour, filled=False, label=name + mean)
        axes.set_xlabel(f"bits per sample under the {whose}")
        axes.set_ylabel("share of sounds per bit")
        axes.set_ylim(bottom=0)
        legend_above(axes, len(parts))


def _coloured(parts: Mapping[str, object]) -> dict[str, str]:
    """A colour for each set."""
    if len(parts) > len(_COLOURS):
        raise ValueError(f"expected at most {len(_COLOURS)} sets, got {', '.join(parts)}")
    return dict(zip(parts, _COLOURS, strict=False))

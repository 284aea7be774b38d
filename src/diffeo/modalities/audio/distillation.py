"""What a student of sound loses against its teacher: how both sound beside the recordings, and how fast they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.modalities.audio.measures import log_spectral_distance, measures
from diffeo.report.distillation import FAR, OVER_DISPERSED
from diffeo.report.statistics import mean_and_error

__all__ = ["FLATTER", "LOUDER", "compare_sounds", "generate_end_naively", "quotient", "warnings"]

# Its sound is wrong where its mean spectral flatness is so many times the teacher's, or a fraction of it; where its
# loudness differs from that of the recordings by so much; two standard errors of the difference are granted.
FLATTER = 1.25
LOUDER = 0.1


def compare_sounds(sounds: Mapping[str, Tensor], rate: int) -> dict[str, Any]:
    """Measure how real and drawn sounds sound.

    Args:
        sounds: "real" and drawn ones by name, (n, T) each in [-1, 1), the same contexts in the same order.
        rate: samples per second.

    Returns:
        By name the ``measures`` of each, and for drawn ones the log-spectral distance to the real ones, in dB.
    """
    report: dict[str, Any] = {name: measures(list(part), rate) for name, part in sounds.items()}
    for name in sounds.keys() - {"real"}:
        pairs = zip(sounds[name], sounds["real"], strict=True)
        distances = np.array([log_spectral_distance(sound, real, rate) for sound, real in pairs])
        report[name]["log_spectral_distance"] = mean_and_error(distances)
    return report


def warnings(report: Mapping[str, Any]) -> list[str]:
    """Say in words what a user must know before trusting a student of sound: hissing, buzzing, a wide gap.

    Args:
        report: what ``divergences`` says, and ``compare_sounds`` as "sound".
    """
    texts: list[str] = []
    samples: int = report["dimensions"]
    sound = report["sound"]
    student, teacher = report["entropy"]["student"], report["entropy"]["teacher"]
    wider = (student["mean"] - teacher["mean"]) / samples
    margin = 2 * (student["stderr"] + teacher["stderr"]) / samples
    flat = {name: sound[name]["flatness"]["mean"] for name in ("student", "teacher", "real")}
    ratio, error = quotient(sound["student"]["flatness"], sound["teacher"]["flatness"])
    flatness = (
        f"its spectral flatness is {flat['student']:.3f}, the teacher's {flat['teacher']:.3f}, {flat['real']:.3f} real"
    )
    comparison = f"its entropy is {wider:+.2f} nats per sample beside the teacher's, {flatness}"
    if wider - margin > OVER_DISPERSED or ratio - 2 * error > FLATTER:
        texts.append(f"the student hisses: {comparison}; give more minutes")
    elif wider + margin < -OVER_DISPERSED or ratio + 2 * error < 1 / FLATTER:
        texts.append(f"the student buzzes: {comparison}; give more minutes")
    loud, error = quotient(sound["student"]["rms"], sound["real"]["rms"])
    if abs(loud - 1) - 2 * error > LOUDER:
        texts.append(f"the student has {loud:.0%} of the loudness of the recordings (RMS)")
    for name, text in (("reverse_kl", "KL(student || teacher)"), ("forward_kl", "KL(teacher || student)")):
        part = report[name]
        if part["per_dimension"] - 2 * part["stderr_per_dimension"] > FAR:
            texts.append(
                f"the student is away from its teacher: {text} is {part['per_dimension']:.2f} nats per sample; give "
                "more minutes, or a larger student"
            )
    if report["non_finite"]:
        texts.append(f"{report['non_finite']} sounds or their densities are not finite")
    return texts


def quotient(numerator: Mapping[str, float], denominator: Mapping[str, float]) -> tuple[float, float]:
    """A quotient of two means, and its standard error as if they were independent."""
    ratio = numerator["mean"] / max(denominator["mean"], 1e-12)
    relative = [part["stderr"] / max(part["mean"], 1e-12) for part in (numerator, denominator)]
    return ratio, ratio * math.hypot(*relative)


@torch.no_grad()
def generate_end_naively(flow: Flow, x: Tensor, z: Tensor, context: Tensor | None, steps: int) -> Tensor:
    """Generate the last samples of x = f(z) ``(N, T)``, each by one pass over the receptive field before it.

    For comparison only: this is how WaveNets without a cache do it; sampling from the ``Flow`` gives the same.

    Args:
        flow: one WaveNet, and maps of single samples.
        x: the samples before the end (the end itself is ignored).
        z: the noise of all.
        context: ``(N, channels, frames)``, or None.
        steps: how many samples.
    """
    parts: Any = flow.transform
    layer, *outer = parts
    net, prepared = layer.net, flow.normalize_context(context)
    for part in reversed(outer):
        x = part.inverse(x)
    x = x.mT.contiguous()
    for t in range(len(x) - steps, len(x)):
        first = max(0, (t - net.receptive_field) // net.hop)  # whole frames
        window = x[first * net.hop : t + 1]
        params = net(window, None if prepared is None else prepared[:, :, first : t // net.hop + 1])[:, -1]
        x[t] = layer.univariate.forward_and_log_det(z[:, t], params)[0]
    x = x[-steps:].mT
    for part in outer:
        x = part.forward(x)
    return x

"""Whether a model of sound can be trusted, judged on recordings: its numerics, its latents, and how its draws sound."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import Flow, bits_per_dim
from diffeo.modalities.audio.distillation import FLATTER, LOUDER, compare_sounds, quotient
from diffeo.report.check import Thresholds, judge
from diffeo.report.latents import normal_scores, normality
from diffeo.report.numerics import consistency, continuous_part, log_det_error, off_data, round_trip
from diffeo.report.statistics import mean_and_error
from diffeo.report.verdict import CARE, TRUST, gravest

__all__ = ["check_sound"]

SHORT = 256  # samples of a sound whose Jacobian by autograd does not take minutes
JACOBIANS = 4  # of them
LIMITS = Thresholds(enough=2)  # each has thousands of elements, which are compared as one sample


def check_sound(
    flow: Flow, x: Tensor, context: Tensor | None, rate: int, hop: int, step: float, seed: int = 0
) -> dict[str, Any]:
    """Examine a flow on sounds that it should describe, preferably not those that it was trained on.

    It is ``check`` for what has thousands of elements: the latents of all times are one sample of the base's element,
    and draws are not distinguished from data by a classifier, but by how they sound.

    Args:
        flow: a flow of sounds ``(T,)`` in [-1, 1) that has a density of other lengths too (``Flow.resized``).
        x: sounds ``(n, T)``, at least two.
        context: theirs ``(n, channels, frames)``, or None.
        rate: samples per second.
        hop: samples per frame of context.
        step: of the values, for bits per sample.
        seed: of draws and of noise.

    Returns:
        Plain data: sections as of ``check``, and ``sound`` with the measures of "real" and "drawn" sounds; the
        log-spectral distance is that of draws to the real ones of the same contexts, in dB.
    """
    flow = copy.deepcopy(flow).eval()
    x = x.to(flow.base.device_marker)
    context = None if context is None else context.to(flow.base.device_marker)
    torch.manual_seed(seed)
    bijection, y = continuous_part(flow, x)
    mean, std = (value.expand(y.shape[1:]) for value in (y.mean(), y.std()))
    drawn, density = consistency(bijection, len(y), context)
    trips = {
        "rows": round_trip(bijection, y, context, mean, std),
        "samples": round_trip(bijection, drawn, context, mean, std),
        "off_data": off_data(
            bijection, context, mean, std, (-torch.ones_like(mean), torch.ones_like(mean)), len(y),
            np.random.default_rng(seed),
        ),
    }  # fmt: skip
    samples = min(x.shape[1], max(1, SHORT // hop) * hop)
    short_context = None if context is None else context[:JACOBIANS, :, : -(-samples // hop)]
    short = bijection.resized((samples,), () if short_context is None else short_context.shape[1:])
    with torch.no_grad():
        log_prob = bijection.log_prob(y, context, nan="propagate").double().cpu()
        scores = normal_scores(flow.base, bijection.encode(y, context))
    finite = log_prob.isfinite()
    report: dict[str, Any] = {
        "rows": len(x),
        "round_trip": trips,
        "log_det": log_det_error(short, y[:JACOBIANS, :samples], short_context),
        "density": density,
        "samples": {"rows": len(drawn), "non_finite": int((~drawn.isfinite()).any(1).sum())},
        "likelihood": {"impossible": int((~finite).sum())},
        "sound": _compare(x.cpu(), drawn.cpu(), rate),
    }
    if scores is not None and np.isfinite(scores).all():
        report["latents"] = normality(scores.reshape(-1, 1), ["z"])
    if finite.sum() > 1:
        bits = bits_per_dim(log_prob[finite], x.shape[1], step)
        report["likelihood"] |= {
            "flow": mean_and_error(log_prob[finite].numpy()), "bits_per_sample": mean_and_error(bits.numpy())
        }  # fmt: skip
    report["verdict"], report["reasons"] = _judge(report)
    return report


def _compare(x: Tensor, drawn: Tensor, rate: int) -> dict[str, Any]:
    kept = drawn.isfinite().all(1)
    x, drawn = x[kept], drawn[kept].clamp(-1, 1)
    return {} if len(x) < 2 else compare_sounds({"real": x, "drawn": drawn}, rate)


def _judge(report: dict[str, Any]) -> tuple[str, list[str]]:
    """The verdict of ``judge``; draws that sound wrong call for care, for the numbers are those of a density."""
    heard: list[str] = []
    for name, limit, what in (("rms", LOUDER, "loudness (RMS)"), ("flatness", FLATTER - 1, "spectral flatness")):
        if not report["sound"]:
            continue
        share, error = quotient(report["sound"]["drawn"][name], report["sound"]["real"][name])
        if not abs(share - 1) - 2 * error <= limit:  # also NaN
            heard.append(f"its sounds have {share:.0%} of the {what} of the recordings")
    return gravest(judge(report, LIMITS), (CARE if heard else TRUST, heard))

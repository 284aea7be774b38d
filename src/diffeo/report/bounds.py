"""Whether a VAE can be trusted, which has bounds of its likelihood alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.report.check import IMAGES, Thresholds
from diffeo.report.compare import compare_samples
from diffeo.report.latents import normal_scores, normality
from diffeo.report.numerics import consistency
from diffeo.report.statistics import bound_facts, mean_and_error
from diffeo.report.verdict import Verdict
from diffeo.variational import VAE

__all__ = ["check"]


@torch.no_grad()
def check(vae: VAE, x: Tensor, names: Sequence[str], limits: Thresholds = IMAGES, seed: int = 0) -> dict[str, Any]:
    """Examine a VAE on examples that it should describe, preferably not those that it was trained on.

    Args:
        vae: the model.
        x: examples (n, *event), in the data's units.
        names: of their D elements.
        limits: where care begins and trust ends.
        seed: of the draws.

    Returns:
        Plain data: ``density``, whether the posterior's sampler and its scorer agree; ``likelihood``, the bounds beside
        the exact likelihood of independent elements; ``latents``, whether what the posteriors of all examples draw is
        distributed as the prior; ``samples``, whether they can be told from the examples; ``verdict`` and ``reasons``.
    """
    torch.manual_seed(seed)
    vae = copy.deepcopy(vae).eval()
    x = vae.likelihood.prepare(x.to(vae.base.device_marker))
    z, density = consistency(vae.posterior, len(x), vae.features(x))
    bound = vae.bound(x)
    finite = bound.log_prob.isfinite().cpu()
    log_prob, alone = bound.log_prob.cpu().numpy(), _independent(_array(x), seed)
    report: dict[str, Any] = {"rows": len(x), "density": density, "bound": bound_facts(bound)}
    report["likelihood"] = {
        "flow": mean_and_error(log_prob), "marginals": mean_and_error(alone),
        "gain_over_marginals": mean_and_error(log_prob - alone), "impossible": int((~finite).sum()),
    }  # fmt: skip
    scores = normal_scores(vae.prior.base, vae.prior.encode(z))
    if scores is not None and np.isfinite(scores).all():
        report["latents"] = normality(scores, [f"z{i + 1}" for i in range(scores.shape[1])])
    samples = vae.sample(len(x))
    report["samples"] = {"rows": len(samples), **compare_samples(_array(x), _array(samples), names, seed)}

    verdict = Verdict(limits)
    lost, error = density["non_finite"] / density["rows"], density["p99.9"]
    verdict.weigh(lost, limits.non_finite, f"{density['non_finite']} latents or their densities are not finite")
    verdict.weigh(error, limits.density, f"the posterior's sampler and scorer disagree about densities by {error:.1e}")
    verdict.weigh_rows(len(x), report["likelihood"]["impossible"])
    verdict.weigh_samples(report["samples"])
    verdict.weigh_likelihood(report["likelihood"])
    report["verdict"], report["reasons"] = verdict.of(len(x))
    return report


def _array(x: Tensor) -> np.ndarray:
    array: np.ndarray = x.flatten(1).double().cpu().numpy()
    return array


def _independent(rows: np.ndarray, seed: int) -> np.ndarray:
    """Log-likelihood of each row (n, D) were its elements independent: by counts, plus one, in the other half (n,)."""
    half = np.random.default_rng(seed).permutation(len(rows)) % 2 == 0
    levels = len(np.unique(rows))
    total = np.zeros(len(rows))
    for column in rows.T:
        for part in (half, ~half):
            known, counts = np.unique(column[~part], return_counts=True)
            place = np.searchsorted(known, column[part]).clip(max=len(known) - 1)
            met = np.where(known[place] == column[part], counts[place], 0)
            total[part] += np.log(met + 1) - math.log((~part).sum() + levels)
    return total

"""Are the latents of real rows the noise that the base says they are?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from diffeo.bases import Base, StandardLogistic, StandardNormal, Uniform

__all__ = ["FAR", "normal_scores", "normality"]

FAR = 6.0  # two in a billion draws of the base lie beyond


def normal_scores(base: Base, z: Tensor) -> np.ndarray | None:
    """Return z carried to standard normal scores through the base's own distribution function, (n, D) in float64.

    None for a base whose elements are not independent.
    """
    z = z.detach().flatten(1).double()
    if isinstance(base, StandardNormal):
        scores = z
    elif isinstance(base, StandardLogistic):
        # Phi^-1(sigmoid(z)), through the logarithm of the nearer tail, so that it stays finite far out
        tail = torch.nn.functional.logsigmoid(-z.abs())
        scores = torch.copysign(torch.from_numpy(scipy.special.ndtri_exp(tail.cpu().numpy())).to(z), z)
    elif isinstance(base, Uniform):
        low, high = base.low.flatten().double(), base.high.flatten().double()
        scores = torch.special.ndtri((z - low) / (high - low))
    else:
        return None
    return scores.cpu().numpy()


def normality(scores: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Compare scores (n, D) with independent standard normals.

    Per dimension a Kolmogorov-Smirnov test, its p-values corrected for the D tests (Bonferroni); the largest entry of
    |covariance - identity| with the same correction; and |z|^2 against chi-squared, which sees dependence that no
    single dimension shows. For the covariance scores are cut off at +-6, lest a single row decide.
    """
    n, d = scores.shape
    tests = [scipy.stats.kstest(column, "norm") for column in scores.T]
    distances = np.array([test.statistic for test in tests])
    worst = int(distances.argmax())
    radius = scipy.stats.kstest((scores**2).sum(1), "chi2", args=(d,))
    covariance = np.cov(scores.clip(-FAR, FAR), rowvar=False).reshape(d, d)
    deviation = np.abs(covariance - np.eye(d))
    # the standard errors of an entry: sqrt(2 / n) on the diagonal, sqrt(1 / n) off it
    normed = deviation / np.sqrt((1 + np.eye(d)) / n)
    i, j = np.unravel_index(normed.argmax(), normed.shape)
    entries = d * (d + 1) / 2
    return {
        "rows": n,
        "far": int((np.abs(scores) > FAR).any(1).sum()),
        "distance": float(distances[worst]),
        "column": names[worst],
        "p": float(min(1.0, d * min(test.pvalue for test in tests))),
        "radius_distance": float(radius.statistic),
        "radius_p": float(radius.pvalue),
        "covariance": float(deviation[i, j]),
        "covariance_columns": [names[i], names[j]],
        "covariance_p": float(min(1.0, entries * math.erfc(normed[i, j] / math.sqrt(2)))),
    }

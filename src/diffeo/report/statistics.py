"""Means and their standard errors, in one place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from diffeo.flow import bits_per_dim
from diffeo.variational import Bound

__all__ = ["Moments", "bound_facts", "likelihood_facts", "mean_and_error", "ratio_and_error"]


def mean_and_error(values: np.ndarray) -> dict[str, float]:
    """Return the mean of independent values and its standard error."""
    moments = Moments()
    moments.add(values)
    return {"mean": moments.mean, "stderr": moments.stderr}


def ratio_and_error(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Return the weighted mean of values, sum(w v) / sum(w), and the standard error of that ratio (delta method)."""
    share = weights / weights.mean()
    mean = float((values * share).mean())
    return {"mean": mean, "stderr": mean_and_error(share * (values - mean))["stderr"]}


class Moments:
    """Mean and standard error of independent values that come in parts (Chan et al. 1979)."""

    def __init__(self, count: int = 0, mean: float = math.nan, squares: float = 0.0) -> None:
        self.count, self.mean, self.squares = count, mean, squares

    def add(self, values: np.ndarray) -> None:
        """Take in more values."""
        if len(values):
            mean = float(values.mean(dtype=np.float64))
            self.join(Moments(len(values), mean, float(((values - mean) ** 2).sum(dtype=np.float64))))

    def join(self, other: Moments) -> None:
        """Take in the values of another."""
        if not other.count:
            return
        count = self.count + other.count
        shift = other.mean - self.mean if self.count else 0.0
        self.squares += other.squares
        self.squares += shift**2 * self.count * other.count / count
        self.mean = self.mean + shift * other.count / count if self.count else other.mean
        self.count = count

    @property
    def stderr(self) -> float:
        """sqrt(sum (v - mean)^2 / (n - 1) / n); NaN of fewer than two values."""
        if self.count < 2:
            return math.nan
        return math.sqrt(self.squares / (self.count - 1) / self.count)


def likelihood_facts(
    nll: Tensor, dimensions: int, dimension: str, step: float = 1.0, weights: Tensor | None = None
) -> dict[str, Any]:
    """Return the mean of negative log-likelihoods (n,) in nats with its standard error, and in bits.

    Args:
        nll: of each row.
        dimensions: how many numbers a row has.
        dimension: what one of them is called.
        step: between neighbouring values of a number, for ``bits_per_dim``.
        weights: of each row (n,), where the mean shall be weighted; rows of weight 0 do not count.
    """
    if weights is None:
        mean, stderr = nll.mean(), float(nll.std() / len(nll) ** 0.5) if len(nll) > 1 else math.nan
    else:
        nll, weights = nll[weights > 0], weights[weights > 0]
        weighted = ratio_and_error(nll.numpy(), weights.numpy())
        mean, stderr = nll.new_tensor(weighted["mean"]), weighted["stderr"]
    bits = float(bits_per_dim(-mean, dimensions, step))
    return {
        "nll": float(mean), "stderr": stderr, "bits": bits * dimensions, f"bits_per_{dimension}": bits,
        f"bits_per_{dimension}_stderr": stderr / (dimensions * math.log(2)), "rows": len(nll),
    }  # fmt: skip


def bound_facts(bound: Bound) -> dict[str, Any]:
    """Return what there is to say of bounds beside the importance-weighted one: the mean ELBO, and of how many samples.

    ``sampling_stderr`` is what the samples leave open of the mean importance-weighted bound, beside what the rows do.
    """
    elbo = mean_and_error(bound.elbo.cpu().numpy())
    sampling = bound.stderr.square().sum().sqrt() / max(1, bound.stderr.numel())
    return {
        "elbo": elbo["mean"], "elbo_stderr": elbo["stderr"], "samples": bound.samples,
        "sampling_stderr": float(sampling),
    }  # fmt: skip

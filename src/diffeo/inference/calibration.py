"""Calibration of a posterior: whether true parameters are where it says, as often as it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from diffeo.report.style import GREY, MODEL, REAL, figure
from diffeo.report.verdict import FEWEST
from diffeo.summary import Summarised, Summary

__all__ = ["DRAWS", "Calibration", "calibration_of"]

DRAWS = 200  # of the posterior for each simulation
SIGNIFICANCE = 0.01  # p-values, corrected for the number of tests, above which a deviation counts as chance


@dataclass(frozen=True, repr=False)
class Calibration(Summarised):
    """Ranks of true parameters among draws of the posterior, and the credibility that it takes to cover them.

    Both are uniform if the draws are of the posterior, whatever the model.

    Attributes:
        names: of the parameters.
        ranks: of each parameter among its draws, 0 to ``draws``, ``(n, D)``: simulation-based calibration (Talts et al.
            2018, arXiv:1804.06788).
        credibility: of the smallest ball around a random point that covers the parameters, ``(n,)``: TARP (Lemos et al.
            2023, arXiv:2302.03026).
        draws: how many draws there were for each simulation.
        which: the simulations in words.
    """

    names: list[str]
    ranks: np.ndarray
    credibility: np.ndarray
    draws: int
    which: str = "simulations"
    _seed: int = 0

    def _uniform(self) -> np.ndarray:
        """Ranks spread over their cells, ``(n, D)`` in (0, 1): as uniform as ranks are, without ties."""
        noise = np.random.default_rng(self._seed).random(self.ranks.shape)
        return (self.ranks + noise) / (self.draws + 1)

    def _tested(self) -> list[Any]:
        return [scipy.stats.kstest(column, "uniform") for column in self._uniform().T]

    @property
    def p_values(self) -> dict[str, float]:
        """Of each parameter's ranks, that they are uniform (Kolmogorov and Smirnov)."""
        return {name: float(test.pvalue) for name, test in zip(self.names, self._tested(), strict=True)}

    @property
    def distances(self) -> dict[str, float]:
        """Of each parameter, how far the distribution function of its ranks is from uniform at most."""
        return {name: float(test.statistic) for name, test in zip(self.names, self._tested(), strict=True)}

    @property
    def tarp_p(self) -> float:
        """The p-value of the expected coverage (Kolmogorov and Smirnov)."""
        return float(scipy.stats.kstest(self.credibility, "uniform").pvalue)

    @property
    def tarp_distance(self) -> float:
        """The largest distance between the expected coverage and the credibility."""
        return float(scipy.stats.kstest(self.credibility, "uniform").statistic)

    def coverage(self, credibility: Any) -> np.ndarray:
        """How many of the true parameters are covered by regions of this credibility: as many, if it is calibrated.

        Args:
            credibility: levels in [0, 1], a number or an array.

        Returns:
            Shares, of that shape.
        """
        levels = np.asarray(credibility, dtype=np.float64)
        return np.searchsorted(np.sort(self.credibility), levels, side="right") / len(self.credibility)

    @property
    def worst(self) -> str:
        """The parameter whose ranks are the least uniform."""
        p_values = self.p_values
        return min(p_values, key=lambda name: p_values[name])

    @property
    def calibrated(self) -> bool:
        """Whether chance explains every deviation: no p-value is below 0.01 over the number of tests."""
        limit = SIGNIFICANCE / (len(self.names) + 1)
        return min(*self.p_values.values(), self.tarp_p) >= limit

    @property
    def faults(self) -> list[tuple[float, float, str]]:
        """What may be wrong, in words, with its distance from uniform and its p-value over the number of tests."""
        tests = len(self.names) + 1
        p_values, distances = self.p_values, self.distances
        each = [
            (
                distances[name], min(1.0, tests * p_values[name]),
                f"the posterior of {name!r} is {self._fault(name)}: its ranks are {distances[name]:.2f} from uniform",
            )
            for name in self.names
        ]  # fmt: skip
        off = self.tarp_distance
        return [*each, (off, min(1.0, tests * self.tarp_p), f"regions cover {off:.2f} more or less than they say")]

    def to_json(self) -> dict[str, Any]:
        """Plain data: distances from uniform and p-values of each parameter and of the coverage."""
        p_values, distances = self.p_values, self.distances
        return {
            "simulations": len(self.ranks), "draws": self.draws,
            "sbc": {name: {"distance": distances[name], "p": p_values[name]} for name in self.names},
            "tarp": {"distance": self.tarp_distance, "p": self.tarp_p},
        }  # fmt: skip

    @property
    def verdict(self) -> str:
        """Whether it is calibrated, in words."""
        if self.calibrated:
            return "calibrated, as far as these tell"
        where = f"mostly {self.worst}: {self._fault(self.worst)}" if self._by_parameter else "in coverage"
        return f"not calibrated, {where}"

    def _summary(self) -> Summary:
        count = f"{len(self.ranks):,} {self.which}, {self.draws:,} draws of the posterior for each"
        p_values, distances = self.p_values, self.distances
        facts = {name: f"{distances[name]:.3f} from uniform, p {p_values[name]:.2g}" for name in self.names}
        facts["coverage"] = f"{self.tarp_distance:.3f} from uniform, p {self.tarp_p:.2g}"
        return Summary(f"Calibration: {self.verdict}", {"of": count, **facts})

    def __str__(self) -> str:
        p_values, distances = self.p_values, self.distances
        width = max(9, *(len(name) for name in self.names))
        lines = [
            f"{len(self.ranks):,} {self.which}, {self.draws:,} draws of the posterior for each: {self.verdict}",
            f"{'':{width}}  from uniform  p",
            *(f"{name:{width}}  {distances[name]:<12.3f}  {p_values[name]:.2g}" for name in self.names),
            f"{'coverage':{width}}  {self.tarp_distance:<12.3f}  {self.tarp_p:.2g}",
        ]
        return "\n".join(lines)

    @property
    def _by_parameter(self) -> bool:
        return min(self.p_values.values()) < SIGNIFICANCE / (len(self.names) + 1)

    def _fault(self, name: str) -> str:
        """What is wrong with a parameter's posterior, by the mean and the spread of its ranks."""
        ranks = self._uniform()[:, self.names.index(name)]
        shift = (ranks.mean() - 0.5) * math.sqrt(12 * len(ranks))  # in standard errors
        spread = (ranks.var() - 1 / 12) * math.sqrt(180 * len(ranks))
        if abs(shift) > abs(spread):
            return "too low" if shift > 0 else "too high"
        return "too narrow" if spread > 0 else "too wide"

    def plot(self, path: str | Path) -> Path:
        """Plot both as deviations from uniform, with the band that 95 % of calibrated posteriors stay in.

        Args:
            path: of a PNG.
        """
        n = len(self.ranks)
        band = float(scipy.stats.kstwo.ppf(0.95, n))
        levels = np.linspace(0, 1, 201)
        with figure(path, (7.2, 3.2)) as fig:
            left, right = fig.subplots(1, 2, sharey=True)
            ordered = sorted(range(len(self.names)), key=lambda k: list(self.p_values.values())[k])
            for place, k in reversed([*enumerate(ordered)]):
                ranks = np.sort(self._uniform()[:, k])
                off = np.searchsorted(ranks, levels, side="right") / n - levels
                colour, wide = (MODEL, 1.6) if place == 0 else (GREY, 0.8)
                left.plot(levels, off, color=colour, lw=wide, alpha=1 if place == 0 else 0.6)
            left.set_title(f"ranks of parameters; the worst: {self.names[ordered[0]]}")
            left.set_xlabel("rank, as a share of the draws")
            left.set_ylabel("share of simulations below, beyond uniform")
            right.plot(levels, self.coverage(levels) - levels, color=REAL, lw=1.6)
            right.set_title("expected coverage")
            right.set_xlabel("credibility")
            for axes in (left, right):
                axes.axhspan(-band, band, color=GREY, alpha=0.12, lw=0)
                axes.axhline(0, color=GREY, lw=0.8)
        return Path(path)


def calibration_of(
    theta: Any, draws: Any, names: Sequence[str] | None = None, *, seed: int = 0, which: str = "simulations"
) -> Calibration:
    """Compare true parameters with draws of their posteriors.

    Args:
        theta: of each simulation ``(n, D)``, drawn from the prior.
        draws: of the posterior given each observation ``(L, n, D)``.
        names: of the parameters.
        seed: of the random points of the coverage, and of what breaks ties.
        which: the simulations in words.

    Raises:
        ValueError: for other shapes, values that are not finite, or fewer than 20 simulations.
    """
    truth, drawn = (torch.as_tensor(each).detach().double().cpu().numpy() for each in (theta, draws))
    if truth.ndim != 2 or drawn.ndim != 3 or drawn.shape[1:] != truth.shape or not len(drawn):
        raise ValueError(f"expected theta (n, D) and draws (L, n, D), got {truth.shape} and {drawn.shape}")
    if len(truth) < FEWEST:
        raise ValueError(f"expected at least {FEWEST} simulations, got {len(truth)}: too few to judge calibration by")
    if not (np.isfinite(truth).all() and np.isfinite(drawn).all()):
        raise ValueError("expected finite parameters and draws, got NaN or infinity")
    labels = list(names) if names is not None else [f"theta{k + 1}" for k in range(truth.shape[1])]
    generator = np.random.default_rng(seed)
    count = len(drawn)
    ties = generator.integers(0, (drawn == truth).sum(0) + 1)  # of values on a grid
    ranks = (drawn < truth).sum(0) + ties
    # Distances in units of the range that all parameters have, to points in it that know nothing of the observation.
    low, high = truth.min(0), truth.max(0)
    width = np.where(high > low, high - low, 1)
    points = generator.random(truth.shape)
    near, true = (np.square((each - low) / width - points).sum(-1) for each in (drawn, truth))
    ties = generator.integers(0, (near == true).sum(0) + 1)
    credibility = ((near < true).sum(0) + ties + generator.random(len(truth))) / (count + 1)
    return Calibration(labels, ranks, credibility, count, which, seed)

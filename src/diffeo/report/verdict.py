"""What a check concludes, in words, from all that it has found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["CARE", "DISTRUST", "FEWEST", "IN_SAMPLE", "TOO_FEW", "TRUST", "Limits", "Verdict", "gravest"]

CLEAR = 0.05  # an AUC beyond one half that is worth a comparison
FEWEST = 20  # rows below which statistics say nothing
TRUST, CARE, DISTRUST = "trustworthy", "usable with care", "not trustworthy"
TOO_FEW = "too few rows to tell"
IN_SAMPLE = "in sample: says nothing about new data"
GRADES = (TRUST, CARE, TOO_FEW, IN_SAMPLE, DISTRUST)  # the later, the graver


@dataclass(frozen=True)
class Limits:
    """Where care begins and where trust ends, whatever the rows hold; each pair is (care, distrust).

    Attributes:
        enough: rows below which a model without fault is not called trustworthy: a fault would go unnoticed.
        significance: p-values, corrected for the number of tests, above which a deviation counts as chance.
        errors: standard errors, or the p-value of as many, from which on any deviation calls for care, however small.
        off_grid: fraction of the rows without a finite likelihood, or with a value off its grid.
        auc: of a classifier that tells samples from rows, or one less that; two standard errors are granted.
        dependence: how far such an AUC is above one half, if at all, as a share of how far that of a classifier which
            tells rows of shuffled columns from rows is. Near 1, the model knows nothing of how the columns depend on
            each other; two standard errors of each are granted.
        signs: difference between rows and samples in the mean product of some columns' signs, where significant.
        atoms: share of the rows, beyond that of the samples, at a single value of a column, where significant.
        repeated: share of the rows, beyond that of the samples, that repeat others, or are equal to training rows; two
            standard errors are granted.
        copied: by how much the share of the samples that are nearer to a training row than to a held-out one is above
            a half; two standard errors are granted.
        close: by how much the share of the samples that are as near to a training row as few held-out rows are is above
            that of these; two standard errors are granted.
        simpler: nats per row by which a simple density is better than the flow; two standard errors are granted.
    """

    enough: int = 100
    significance: float = 0.001
    errors: float = 4.0
    off_grid: tuple[float, float] = (0.0, 0.01)
    auc: tuple[float, float] = (0.6, 0.8)
    dependence: tuple[float, float] = (0.4, 0.6)
    signs: tuple[float, float] = (0.1, 0.5)
    atoms: tuple[float, float] = (0.005, 0.2)
    repeated: tuple[float, float] = (0.05, 0.5)
    copied: tuple[float, float] = (0.02, 0.1)
    close: tuple[float, float] = (0.05, 0.3)
    simpler: tuple[float, float] = (0.0, 0.5)


def gravest(*parts: tuple[str, list[str]]) -> tuple[str, list[str]]:
    """Return the gravest of several verdicts, and the reasons of all, those of the gravest first."""
    parts = tuple(sorted(parts, key=lambda part: -GRADES.index(part[0])))
    return parts[0][0], [text for _, reasons in parts for text in reasons]


class Verdict:
    """What speaks against trust: reasons for ``care``, and for ``distrust``."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.care: list[str] = []
        self.distrust: list[str] = []

    def weigh(self, value: float, limit: tuple[float, float], text: str) -> None:
        """Take a text as a reason for care if the value is above the first limit, for distrust above the second."""
        if not value <= limit[1]:  # also NaN
            self.distrust.append(text)
        elif value > limit[0]:
            self.care.append(text)

    def weigh_test(self, distance: float, p: float, limit: tuple[float, float], text: str) -> None:
        """Weigh a distance that chance does not explain; one that is beyond doubt calls for care, however small."""
        certain = p < math.erfc(self.limits.errors / math.sqrt(2)) and limit[0] < math.inf
        if certain or not p >= self.limits.significance:
            self.weigh(distance, (0.0 if certain else limit[0], limit[1]), text)

    def weigh_rows(self, count: int, some: int, what: str = "have no finite likelihood") -> None:
        """Weigh how many of so many rows the model does not cover."""
        self.weigh(some / max(1, count), self.limits.off_grid, f"{some:,} of {count:,} rows {what}")

    def weigh_samples(self, samples: dict[str, Any]) -> None:
        """Weigh what ``compare_samples`` found."""
        if "classifier" not in samples:
            return
        limits, part = self.limits, samples["classifier"]
        auc, stderr, limit = part["auc"], part["stderr"], limits.auc
        text = f"a classifier tells samples from rows with AUC {auc:.2f} (0.5: it cannot)"
        if auc < 0.5:
            text = f"a classifier takes samples for rows, AUC {auc:.2f} ± {stderr:.2f}: rows are not independent"
        if abs(auc - 0.5) > limits.errors * stderr and limit[0] < math.inf:
            limit = (0.0, limit[1])
        self.weigh(0.5 + abs(auc - 0.5) - 2 * stderr, limit, text)
        least = auc - 0.5 - 2 * stderr
        if "shuffled" in samples and least > CLEAR:
            part = samples["shuffled"]
            text = f"shuffled columns are told from rows with AUC {part['auc']:.2f}, samples with {auc:.2f}: little is"
            text += " known of how the columns depend on each other"
            self.weigh(least / max(part["auc"] - 0.5 + 2 * part["stderr"], CLEAR), limits.dependence, text)
        if "signs" in samples:
            part = samples["signs"]
            what = ", ".join(part["columns"])
            text = f"samples and rows differ by {part['difference']:.2f} in the mean product of the signs of {what}"
            self.weigh_test(part["difference"], part["p"], limits.signs, text)
        for part in samples["atoms"]:
            shares = f"{part['rows']:.1%} of the rows and {part['samples']:.1%} of the samples"
            text = f"column {part['column']!r} has a single value in {shares}"
            self.weigh(part["rows"] - part["samples"], limits.atoms, text)
        texts = {
            "repeated": "{} of the rows repeat others ({} of as many samples): they are fewer than they seem",
            "trained": "{} of the rows are equal to training rows ({} of the samples), and say nothing about new data",
        }
        for name, text in texts.items():
            if name in samples:
                part = samples[name]
                excess = part["rows"]["mean"] - part["samples"]["mean"]
                excess -= 2 * math.hypot(part["rows"]["stderr"], part["samples"]["stderr"])
                of_rows, of_samples = (f"{part[key]['mean']:.0%}" for key in ("rows", "samples"))
                self.weigh(excess, limits.repeated, text.format(of_rows, of_samples))

    def weigh_copies(self, privacy: dict[str, Any]) -> None:
        """Weigh what ``nearest_records`` found."""
        share, stderr = privacy["share"], privacy["stderr"]
        text = (
            f"{share:.0%} of the samples are nearer to a training row than to a held-out one (50 %: nothing is copied)"
        )
        self.weigh(share - 0.5 - 2 * stderr, self.limits.copied, text)
        samples, held_out = privacy["close"]["samples"], privacy["close"]["held_out"]
        text = (
            f"{samples['mean']:.0%} of the samples are as near to a training row as {held_out['mean']:.0%} of"
            " held-out rows"
        )
        error = math.hypot(samples["stderr"], held_out["stderr"])
        self.weigh(samples["mean"] - held_out["mean"] - 2 * error, self.limits.close, text)

    def weigh_likelihood(self, likelihood: dict[str, Any]) -> None:
        """Weigh by how much simple densities are better than the flow."""
        if "flow" not in likelihood:
            self.distrust.append("no row has a finite likelihood")
        for name, what in (("gaussian", "a Gaussian"), ("marginals", "independent columns")):
            if f"gain_over_{name}" in likelihood:
                gain = likelihood[f"gain_over_{name}"]
                text = f"{what} would describe the rows better, by {-gain['mean']:.2f} nats per row"
                self.weigh(-gain["mean"] - 2 * gain["stderr"], self.limits.simpler, text)

    def of(self, rows: int) -> tuple[str, list[str]]:
        """Return the verdict in words on a model judged by so many rows, and its reasons, the gravest first."""
        if self.distrust:
            return DISTRUST, self.distrust + self.care
        if rows < self.limits.enough:
            return TOO_FEW, [f"{rows} rows: a fault would go unnoticed; take at least {self.limits.enough}", *self.care]
        return (CARE, self.care) if self.care else (TRUST, [])

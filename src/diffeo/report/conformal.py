"""How strange a row is beside rows that were held out: its score, and the p-value of that."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Conformal", "Scatter"]

TIE = 1e-5  # relative; scores closer than this are equal: float32 and the size of a batch decide the rest
LOWEST = 0.1  # the share of the rows by which it is measured how far they lie below the median
STEADY = 1e-3  # nats; log-likelihoods that scatter by less are as good as equal


class Scatter:
    """How log-likelihoods of rows that were held out scatter, looked at in R ways: the scale of a row's score.

    Of a row with log-likelihoods l_1, ..., l_R, sharp and smoothed (``looks``), and the medians c_r and standard
    deviations s_r, below the median, of those of held-out rows,

        score = c_1 + s_1 min_r (l_r - c_r) / s_r,

    which is l_1, the log-likelihood itself, unless a row is stranger when it is looked at less sharply. A likelihood
    alone takes little interest in how far off a row is where a value that is recorded often, or a direction in which
    rows hardly differ, decides it.

    Args:
        log_prob: of held-out rows ``(N, R)``, in nats.

    Raises:
        ValueError: for no rows.
    """

    def __init__(self, log_prob: Tensor) -> None:
        if log_prob.dim() != 2 or not len(log_prob):
            raise ValueError(f"expected log-likelihoods (rows, looks) of held-out rows, got {tuple(log_prob.shape)}")
        values = log_prob.double().cpu().nan_to_num(neginf=-1e30)
        self.median, low = torch.quantile(values, values.new_tensor([0.5, LOWEST]), 0)
        normal = -float(torch.special.ndtri(torch.tensor(LOWEST, dtype=torch.float64)))
        self.spread = ((self.median - low) / normal).clamp_min(STEADY)

    def score(self, log_prob: Tensor) -> Tensor:
        """How usual rows are, in nats; the lower, the stranger: ``(...)``.

        Args:
            log_prob: in all ways ``(..., R)``.
        """
        away = (log_prob.double().cpu() - self.median) / self.spread
        return self.median[0] + self.spread[0] * away.amin(-1)


class Conformal:
    """p-values of scores, such as log-likelihoods, by those of rows that were held out: the share that are no higher.

    Of a row x that no density has seen, N held-out rows, and densities f_1, ..., f_K that held out a fold of them each,

        p_k = (1 + #{n: o_n <= s_k(x)}) / (N + 1),   p = K / (1 / p_1 + ... + 1 / p_K),

    where s_k is the score by f_k, and o_n that of row n by the density that held it out. With one density, and the rows
    of its validation, this is conformal prediction: for a row like them p is at most u with a probability of at most u.
    With several, each p_k is such a p-value on average over k. Their arithmetic mean, as in cross-conformal prediction
    (Vovk 2015, Annals of Mathematics and Artificial Intelligence 74), is small too seldom where the densities disagree;
    the harmonic mean is small about as often as they are (Wilson 2019, PNAS 116).

    Args:
        scores: o_n ``(N,)``.
        alone: how many of the held-out rows have a level that no other row has.

    Raises:
        ValueError: for no scores, or scores that are NaN.
    """

    def __init__(self, scores: Tensor, alone: int = 0) -> None:
        if not len(scores) or scores.isnan().any():
            raise ValueError("expected scores of held-out rows, none of them NaN")
        self.scores = scores.double().cpu().sort().values
        self.alone = alone

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def least(self) -> float:
        """The least p-value that a new row can have."""
        return 1 / (len(self) + 1)

    @property
    def of_new_level(self) -> float:
        """How often a new row has a level that no row of the training has: the p-value of that alone."""
        return (1 + self.alone) / (len(self) + 1)

    def of_new(self, scores: Tensor) -> Tensor:
        """p-values of rows that no density has seen ``(n,)``.

        Args:
            scores: by each of the densities ``(n, K)``.
        """
        each = (1 + self._no_higher(scores)) / (len(self) + 1)
        return 1 / (1 / each).mean(1)

    def of_held_out(self, scores: Tensor) -> Tensor:
        """p-values of rows among those held out: the rank of each in all of them, itself counted, ``(n,)``.

        The rows of a table come in any order, and folds are drawn at random, so each rank is as probable.

        Args:
            scores: of each by the density of its fold ``(n,)``.
        """
        return self._no_higher(scores).clamp_min(1) / len(self)

    def threshold(self, alpha: float) -> float:
        """The score at and below which held-out rows have p-values of at most alpha, -inf if none has."""
        count = math.floor(alpha * len(self) + 1e-9)
        return float(self.scores[count - 1]) if count else -math.inf

    def _no_higher(self, scores: Tensor) -> Tensor:
        """How many of the held-out rows have a score of at most this, or as good as equal to it."""
        values = scores.double().cpu()
        near = torch.where(torch.isfinite(values), values + TIE * (1 + values.abs()), values)
        return torch.searchsorted(self.scores, near.contiguous(), right=True).double()

"""Log-likelihoods of examples, and what is said of all of them: what every way of scoring shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import BLOCK, Flow
from diffeo.modalities.base import Chunk, OpenRun, Words
from diffeo.report.statistics import Moments
from diffeo.training.folds import out_of_fold

__all__ = ["Tally", "scores"]


@torch.no_grad()
def scores(run: OpenRun, chunk: Chunk, draws: int) -> np.ndarray:
    """Log-likelihoods of examples (n,) in nats, of those that a fold held out by what was not trained on them.

    Args:
        run: what scores them.
        chunk: the examples, as ``chunks_of`` yields them.
        draws: of the noise that discrete values are spread by; see ``Scoring``.
    """
    score_rows = partial(_nats, x=chunk.x, context=chunk.context, known=chunk.known, draws=draws)
    part = torch.full((len(chunk.x),), -1) if chunk.part is None else chunk.part
    block = BLOCK if chunk.x.dim() == 2 else 1  # of images and recordings, whose batches are small, it would cost much
    log_prob = out_of_fold(chunk.flow or run.flow, part, score_rows, block).numpy()
    return log_prob if chunk.log_grid is None else log_prob + chunk.log_grid


def _nats(flow: Flow, rows: Tensor, x: Tensor, context: Tensor | None, known: Tensor | None, draws: int) -> Tensor:
    """Log-likelihoods of some of the rows: of what is not known given what is, or of discrete values at all points."""
    x, context = x[rows], None if context is None else context[rows]
    if known is not None:
        return flow.log_prob_given(x, known[rows], context)
    return flow.log_prob(x, context) if draws == 1 else flow.log_mass(x, context, draws=draws)


@dataclass
class Tally:
    """What is said of many log-likelihoods: how many, the mean of the finite ones, the lowest."""

    rows: int = 0
    impossible: int = 0
    low: float = math.inf
    moments: Moments = field(default_factory=Moments)

    def add(self, log_prob: np.ndarray) -> None:
        """Take in more of them."""
        finite = log_prob[np.isfinite(log_prob)]
        self.moments.add(finite)
        self.impossible += len(log_prob) - len(finite)
        self.low = min(self.low, float(log_prob.min(initial=math.inf)))
        self.rows += len(log_prob)

    def join(self, other: Tally) -> None:
        """Take in those of another."""
        self.moments.join(other.moments)
        self.rows, self.impossible = self.rows + other.rows, self.impossible + other.impossible
        self.low = min(self.low, other.low)

    def summary(self, words: Words) -> dict[str, Any]:
        """What the summary of a command says of examples that are called so."""
        return {
            "rows": self.rows,
            "unit": words.one,
            "units": words.many,
            "mean": self.moments.mean if self.moments.count else -math.inf,
            "stderr": self.moments.stderr,
            "min": self.low,
            "impossible": self.impossible,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data that ``of_json`` reads."""
        low = self.low if math.isfinite(self.low) else None
        moments = [self.moments.count, self.moments.mean if self.moments.count else 0.0, self.moments.squares]
        return {"rows": self.rows, "impossible": self.impossible, "low": low, "moments": moments}

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Tally:
        """Read it again; a number that is missing is that of no rows, or of a row of -inf."""
        low = data["low"] if data["low"] is not None else (-math.inf if data["impossible"] else math.inf)
        return cls(data["rows"], data["impossible"], low, Moments(*data["moments"]))

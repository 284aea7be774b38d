"""How strange rows are beside those that a run held out of its training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.mixture import Mixture
from diffeo.modalities.base import Chunk
from diffeo.modalities.tables.run import TableRun
from diffeo.modalities.tables.seen import VALID, looks
from diffeo.report.conformal import Conformal, Scatter
from diffeo.training.folds import whole_blocks

__all__ = ["HeldOut"]

FEWEST = 20  # rows held out that the scales of smoothed likelihoods are measured by; else the likelihood alone counts


@dataclass(frozen=True)
class HeldOut:
    """What a run knows of the rows that were held out of its training.

    Attributes:
        members: the density of each fold, or of the run.
        noise: that log-likelihoods are smoothed by ``(R, D)``.
        scatter: of log-likelihoods, sharp and smoothed.
        law: of the scores.
        limits: by the column, the largest p-value of a row that has a value off the grid there: the least there is, but
            of a level as often as rows have one that no other row has.
        log_on_grids: of the schema; all likelihoods here have it.
    """

    members: list[Flow]
    noise: Tensor
    scatter: Scatter
    law: Conformal
    limits: Tensor
    log_on_grids: float

    @classmethod
    def of(cls, run: TableRun) -> HeldOut:
        """Take it from a run.

        Raises:
            UserError: if it knows of none, or of other folds than it has, or only of its teacher's.
        """
        teacher = run.provenance.get("distillation", {}).get("teacher", {}).get("run")
        if teacher:
            raise UserError(
                f"{run.path}: was distilled from {teacher}, and has no held-out rows of its own; use that run"
            )
        if run.seen is None:
            raise UserError(
                f"{run.path}: has no rows.safetensors, and so no held-out likelihoods to compare with; train it by"
                " diffeo fit, on a table that fits into memory"
            )
        part, log_prob = torch.from_numpy(run.seen.part).long(), torch.from_numpy(run.seen.log_prob)
        known = torch.from_numpy(run.seen.held_out)
        fold = part[known].clamp_min(0)
        if not len(fold):
            raise UserError(f"{run.path}: no row was held out in its training, so there is nothing to compare with")
        flow = run.flow
        members = list(flow.members) if isinstance(flow, Mixture) and (part >= 0).any() else [flow]
        if sorted(fold.unique().tolist()) != list(range(len(members))):
            raise UserError(f"{run.path}: rows.safetensors does not belong to its model; restore it or train again")
        noise = torch.from_numpy(run.seen.noise)
        if len(fold) < FEWEST:
            log_prob, noise = log_prob[:, :1], noise[:0]
        log_prob = log_prob + run.schema.log_on_grids
        scatter = Scatter(log_prob[known])
        law = Conformal(scatter.score(log_prob[known]), run.seen.alone)
        limits = [law.of_new_level if column.kind == "levels" else law.least for column in run.schema.columns]
        return cls(members, noise, scatter, law, torch.tensor(limits, dtype=torch.float64), run.schema.log_on_grids)

    def judged(self, chunk: Chunk, draws: int) -> tuple[Tensor, Tensor, Tensor]:
        """Log-likelihoods, scores and p-values of rows ``(n,)``, double precision.

        By all densities, or by the one that was not trained on the row. A row with a value off its grid has a score
        that is no higher than its p-value says: below those of all rows held out by what such values cost, or, of a new
        level where these are usual, that of an ordinary row.

        Args:
            chunk: the rows.
            draws: of the noise that discrete values are spread by.
        """
        assert chunk.part is not None
        each = torch.full((len(chunk.x), len(self.members), 1 + len(self.noise)), -torch.inf, dtype=torch.float64)
        for k, member in enumerate(self.members):
            rows = ((chunk.part < 0) | (chunk.part == k)).nonzero()[:, 0]
            if len(rows):
                whole = whole_blocks(rows)
                context = None if chunk.context is None else chunk.context[whole]
                likelihoods = looks(member, chunk.x[whole], context, self.noise, draws)[: len(rows)]
                each[rows, k] = likelihoods + self.log_on_grids
        new = (chunk.part < 0)[:, None]
        log_prob = torch.where(new, torch.logsumexp(each, 1) - math.log(len(self.members)), each.amax(1))
        score = self.scatter.score(log_prob)
        held_out = (chunk.part == VALID) if len(self.members) == 1 else chunk.part >= 0
        p_value = torch.where(held_out, self.law.of_held_out(score), self.law.of_new(self.scatter.score(each)))
        log_prob = log_prob[:, 0]
        assert chunk.off_grid is not None
        assert chunk.log_grid is not None
        beside = torch.from_numpy(chunk.log_grid) - self.log_on_grids  # 0 of a row on all grids
        log_prob = log_prob + beside
        off_grid = torch.from_numpy(chunk.off_grid)
        rows = off_grid.any(1)
        if rows.any():
            limit = torch.where(off_grid[rows], self.limits, 1.0).amin(1)
            usual = score.new_tensor([self.law.threshold(p) for p in limit.tolist()])
            lower = -torch.logaddexp(-score[rows], -self.law.scores[0]) + beside[rows]  # below both, and in order
            p_value[rows] = torch.minimum(p_value[rows], limit)
            score[rows] = torch.where(limit > self.law.least, torch.minimum(score[rows], usual), lower)
        return log_prob, score, p_value

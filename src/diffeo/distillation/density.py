"""Distilling the run of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffeo.distillation.base import Figures, Method, Stage, TrainingData
from diffeo.flow import Flow
from diffeo.modalities.base import Examples
from diffeo.modalities.tables.figures import plot_pairs
from diffeo.modalities.tables.run import TableRun
from diffeo.objectives import Distillation
from diffeo.report.distillation import (
    compare_draws,
    divergence_curve,
    draw_both,
    generate_naively,
    likelihoods,
    pace,
    warnings,
)
from diffeo.report.step_distillation import pick
from diffeo.training import FitResult
from diffeo.training.seeding import derive, seed_noise
from diffeo.transforms import Autoregressive

__all__ = ["DensityMethod", "TableMethod"]

REPORTED = 20_000  # draws of each for the report
TIMED = 1_000  # rows drawn at a time where speed is measured


class TableMethod(Method):
    """The run of a table. The table itself, where there is one, gives contexts, and real rows to judge by."""

    run = TableRun
    options = ("missing",)
    batch_size, batches, validated, epochs = 512, 100, 4_096, 100

    def read(self, source: Any, settings: Mapping[str, Any], seed: int, say: Callable[[str], None]) -> None:
        """Find real rows to judge by, and contexts."""
        missing = (settings if source is not None else self.provenance.get("settings", {})).get("missing", "error")

        def open_data(data: Any) -> Examples:
            examples: Examples = self.opened.examples(data, REPORTED, seed, {"missing": missing})
            return examples

        needed = "it is conditional: give the table that its contexts are to be taken from"
        self.real = self.open_source(source, open_data, say, needed if self.core.context_shape else "")
        self.contexts = None if self.real is None else self.real.contexts

    def facts(self) -> dict[str, Any]:
        """How many columns, and which are the context."""
        return {"columns": self.opened.schema.features, "context": list(self.opened.schema.context)}


class DensityMethod(TableMethod):
    """Students with a density, trained on ever fresh rows of the teacher's, so that none is overfitted."""

    teachers = "tables"
    students = {  # noqa: RUF012 - a constant
        "nsf-inverse": ("nsf", {"structure": "inverse", "affine": True}),
        "iaf": ("iaf", {}),
        "realnvp": ("realnvp", {}),
        "nsf-coupling": ("nsf", {"structure": "coupling", "affine": True}),
    }
    # The reverse KL comes last: far from the teacher its gradients explode, and alone it leaves modes out. The
    # forward KL needs no WarmStart, whose error an unfinished student makes small by shrinking to the mean row.
    stages = (
        Stage("forward", "forward KL", partial(Distillation, forward_share=1.0), 0.65, 1e-2),
        Stage("both", "mean of reverse and forward KL", Distillation, 0.35, 3e-3),
    )

    def read(self, source: Any, settings: Mapping[str, Any], seed: int, say: Callable[[str], None]) -> None:
        """Find real rows and contexts, and warn if the teacher is slow to sample and to score."""
        super().read(source, settings, seed, say)
        if not self.core.fast:
            say("a density learns slowly from a continuous flow, each of whose draws and densities is a solve; give "
                "the minutes that it may take (--minutes), or choose the student few-steps")  # fmt: skip

    def training_data(self, stage: Stage, student: Flow, seed: int) -> TrainingData:
        """Fresh draws of the teacher."""
        return self.streams(self.training_core, stage, seed)

    @torch.no_grad()
    def report(self, student: Flow, seed: int) -> dict[str, Any]:
        """Compare draws of both, and score real rows."""
        seed_noise(self.device, derive(seed, "contexts"))
        context = pick(self.contexts, REPORTED)
        context = None if context is None else context.to(self.device)
        self.draws = draw_both(student, self.core, context, REPORTED, derive(seed, "report"))
        real = self.real
        self.scores = None if real is None else self.score(student, real.x, real.context, seed)
        report = compare_draws(self.draws, seed)
        report["warnings"] = warnings(report)
        report["rows_per_second"] = self._paces(student)
        return {"distillation": report} if real is None else self.judged(report, self.scores, real.which)

    def _paces(self, student: Flow) -> dict[str, float]:
        """Return rows per second of the student, of the teacher, and of the teacher by one full pass per element."""
        context = None if self.draws.context is None else self.draws.context[:TIMED]

        def draw(flow: Flow) -> Callable[[int], Tensor]:
            return lambda rows: flow.sample((rows,) if context is None else (), context)

        count, teacher = TIMED if context is None else len(context), self.core
        paces = {"student": pace(draw(student), count), "teacher": pace(draw(teacher), count)}
        if any(isinstance(part, Autoregressive) for part in teacher.transform.modules()):
            prepared = teacher.normalize_context(context)
            paces["teacher_naive"] = pace(
                lambda rows: generate_naively(teacher.transform, teacher.base.sample((rows,)), prepared), count
            )
        return paces

    def figures(self, results: Mapping[str, FitResult]) -> Figures:
        """KL over the training, pairs of columns, the teacher's likelihood of real rows and of the student's."""
        histories = {stage.says: results[stage.name].history for stage in self.stages}
        teacher, student = (self.outwards(rows)[0] for rows in (self.draws.x, self.draws.s))
        real = None if self.scores is None else self.scores["teacher"].numpy()
        return {
            "kl": partial(divergence_curve, histories),
            "pairs": partial(plot_pairs, self.opened.schema, teacher, student, whose=("teacher", "student")),
            "likelihoods": partial(likelihoods, self.draws, real),
        }

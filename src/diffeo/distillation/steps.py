"""Distilling a continuous flow, of a table or of images, into one that samples in a few steps."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffeo.distillation.base import Figures, Method, Stage, TrainingData
from diffeo.distillation.density import TableMethod
from diffeo.errors import UserError
from diffeo.flow import Flow, expect_ode
from diffeo.modalities.base import Examples, OpenRun
from diffeo.modalities.images import figures as image_figures
from diffeo.modalities.images.dataset import gains_by_bfloat16
from diffeo.modalities.images.run import ImageRun
from diffeo.modalities.tables.figures import plot_pairs
from diffeo.objectives import FlowMatching, StepMatching, reflow_pairs, trajectories
from diffeo.report import trajectories as report_trajectories
from diffeo.report.distillation import pace
from diffeo.report.step_distillation import compare_flows, distance_curve, sample_in, warnings
from diffeo.report.transport import in_steps, paths
from diffeo.training import FitResult
from diffeo.training.seeding import derive, seed_noise

__all__ = ["ImageSteps", "StepMethod", "TableSteps"]

STEPS, MOST_STEPS = 4, 16  # beyond the most, a solver of higher order is better than distillation
REUSED = 32  # epochs that learn from the same trajectories: solving then takes less time than learning
PARTICLES = 300  # whose paths are plotted
SHOWN = 64  # images in a grid

DROPOUT = 0.1  # of a teacher that can be guided: the share of contexts that is withheld from the student, too
_STRAIGHT: dict[str, Any] = {"path": "linear"}


class StepMethod(Method):
    """First the trajectories of a continuous flow are straightened, then followed in a few Euler steps.

    The student begins as the teacher, weights and all. ``FlowMatching`` on pairs of noise and where the teacher carries
    it (reflow) makes its trajectories straighter; it still has a likelihood, and may stay so: the student "reflow".
    ``StepMatching`` on the trajectories of that flow makes "few-steps", which has samples alone. No data are needed.

    Attributes:
        scored: real rows whose likelihood is compared.
        reported: rows of a set that is compared with others, or drawn at a time where speed is measured.
        lr: of both stages.
        real: rows that the teacher was not trained on, or None.
    """

    teachers = "continuous flows"
    students = {  # noqa: RUF012 - a constant
        "few-steps": ("flow_matching", {**_STRAIGHT, "solver": "euler", "steps": STEPS}),
        "reflow": ("flow_matching", _STRAIGHT),
    }
    scored: int
    reported: int
    lr: float
    real: Examples | None

    def __init__(self, opened: OpenRun, student: str) -> None:
        super().__init__(opened, student)
        dropout = DROPOUT if self.arguments["droppable"] else 0.0
        stages = [
            Stage(
                "reflow", "straighter trajectories",
                lambda flow, _: FlowMatching(flow, dropout=dropout), 0.5, self.lr,
            ),
            Stage(
                "steps", "the straight trajectories in few steps",
                lambda flow, _: StepMatching(flow, dropout=dropout), 0.5, self.lr,
            ),
        ]  # fmt: skip
        self.stages = stages if student == "few-steps" else [replace(stages[0], share=1.0)]

    @classmethod
    def suits(cls, flow: Flow) -> bool:
        """Whether the flow is continuous."""
        return flow.ode is not None

    def shared(self) -> dict[str, Any]:
        """All arguments but those of the path and of the solver."""
        changed = self.students[self.student][1]
        return {name: value for name, value in self.arguments.items() if name not in changed}

    def inherited(self, flow: Flow) -> list[nn.Module]:
        """The whole flow."""
        return [flow]

    def check(self, flow: Flow) -> None:
        """Refuse too many steps, and paths or solvers other than those that the student is trained for."""
        assert flow.recipe is not None  # it was built from one
        arguments = flow.recipe["arguments"]
        for name, value in self.students[self.student][1].items():
            if name != "steps" and arguments[name] != value:
                raise UserError(f"student {self.student!r} has {name} {value!r}, got {arguments[name]!r}; leave it out")
        if self.student == "few-steps" and arguments["steps"] not in range(1, MOST_STEPS + 1):
            raise UserError(
                f"student 'few-steps' takes 1 to {MOST_STEPS} steps (--set steps), got {arguments['steps']}"
            )

    def training_data(self, stage: Stage, student: Flow, seed: int) -> TrainingData:
        """Pairs that the teacher makes of noise, or trajectories of the student as it is, solved exactly."""
        source = self.training_core
        draw: Callable[..., Tensor] = reflow_pairs
        if stage.name == "steps":
            straight = copy.deepcopy(expect_ode(student).velocity).requires_grad_(False).eval()
            self.straight = self.core.with_ode(straight).eval()
            source = self.loosened(self.straight)
            draw = partial(trajectories, steps=expect_ode(student).steps or STEPS)
        return self.streams(source, stage, seed, draw=draw, reused=REUSED)

    @torch.no_grad()
    def report(self, student: Flow, seed: int) -> dict[str, Any]:
        """Compare draws by the number of steps; of a student that has a likelihood, score real rows."""
        straight = {"reflowed": self.straight} if self.student == "few-steps" else {}
        self.flows, self.seed = {"teacher": self.core, **straight, "student": student}, seed
        self.contexts = None if self.contexts is None else self.contexts.to(self.device)
        self.compared = report = compare_flows(self.flows, self.contexts, self.reported, seed)
        report["warnings"] = warnings(report)
        report["rows_per_second"] = {
            name: pace(partial(sample_in, self.flows[name], self.contexts), self.reported)
            for name in ("student", "teacher")
        }
        if self.student == "few-steps" or self.real is None:
            return {"distillation": report}
        x, context = self.real.x[: self.scored], self.real.context
        scores = self.score(student, x, None if context is None else context[: self.scored], seed)
        return self.judged(report, scores, self.real.which)

    @torch.no_grad()
    def figures(self, results: Mapping[str, FitResult]) -> Figures:
        """The distance from the teacher by the number of steps, and what this kind of data has to show."""
        seed_noise(self.device, derive(self.seed, "figures"))
        return {"distances": partial(distance_curve, self.compared), **self.shown()}

    @abstractmethod
    def shown(self) -> Figures:
        """Return figures of what teacher and student make."""


class TableSteps(StepMethod, TableMethod):
    """Students of a table's flow."""

    scored, reported = 1_000, 1_000
    lr = 3e-3
    plotted = 5_000

    def shown(self) -> Figures:
        """Pairs of columns; of two without a context, particles on their way."""
        teacher, student = (self.flows[name] for name in ("teacher", "student"))
        real, fake = (self.outwards(sample_in(flow, self.contexts, self.plotted)[0])[0] for flow in (teacher, student))
        pairs = partial(plot_pairs, self.opened.schema, real, fake, whose=("teacher", "student"))
        if tuple(teacher.event_shape) != (2,) or self.contexts is not None:
            return {"pairs": pairs}
        z = teacher.base.sample((PARTICLES,))
        moved = {name: paths(flow, z) for name, flow in self.flows.items()}
        return {"pairs": pairs, "trajectories": partial(report_trajectories.compare, moved)}


class ImageSteps(StepMethod):
    """Students of a flow of images."""

    run = ImageRun
    tolerance = 1e-3
    options = ()
    batch_size, batches, validated, epochs = 64, 32, 512, 150
    scored, reported = 256, 500
    lr = 1e-3

    def read(self, source: Any, settings: Mapping[str, Any], seed: int, say: Callable[[str], None]) -> None:
        """Find real images to judge by; all classes are drawn alike."""
        classes, self.bfloat16 = len(self.opened.classes), gains_by_bfloat16(self.opened.flow)
        self.contexts = torch.eye(classes, device=self.device) if classes else None
        self.real = self.open_source(source, lambda data: self.opened.examples(data, self.scored, seed, {}), say)

    def facts(self) -> dict[str, Any]:
        """Shape, levels and classes."""
        opened = self.opened
        return {"shape": list(opened.shape), "levels": opened.levels, "context": ["label"] * bool(opened.classes)}

    def shown(self) -> Figures:
        """What teacher and student make of the same noise."""
        teacher, student = (self.flows[name] for name in ("teacher", "student"))
        steps = expect_ode(student).steps or STEPS
        shown = {"teacher": teacher} if self.student == "few-steps" else dict(self.flows)
        for name, flow in (("teacher", teacher), ("student", student)):
            shown[f"{name} in {steps} steps"] = in_steps(flow, steps)
        z = teacher.base.sample((SHOWN,))
        context = None if self.contexts is None else self.contexts[torch.arange(SHOWN) % len(self.contexts)]
        grids = {name: self.outwards(flow.decode(z, context))[0] for name, flow in shown.items()}
        return {"samples": partial(image_figures.boards, grids, self.opened.levels - 1)}

"""What distillation needs from a teacher, whatever it models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from diffeo.errors import UserError
from diffeo.flow import Flow, bits_per_dim
from diffeo.modalities.base import OpenRun
from diffeo.objectives import Objective
from diffeo.report.statistics import likelihood_facts, mean_and_error
from diffeo.training import FitResult
from diffeo.training.sampled import SampleStream
from diffeo.training.seeding import derive, seed_noise
from diffeo.transforms import Chain

__all__ = ["Figures", "Method", "Stage", "TrainingData"]

T = TypeVar("T")
TrainingData: TypeAlias = tuple[Any, tuple[Tensor, Tensor | None]]  # a stream of (rows, contexts); both for validation
Figures: TypeAlias = dict[str, Callable[[Path], Any]]  # by name, what plots each into a file


@dataclass(frozen=True)
class Stage:
    """A part of the training: what is minimised, its share of the budget, and its learning rate."""

    name: str
    says: str
    objective: Callable[[Flow, Flow], Objective]
    share: float
    lr: float


class Method(ABC):
    """A teacher, the data that it is distilled on, and how a kind of student is trained: its stages and the report.

    What student and teacher share, the preprocessing, cancels in every log-ratio: all flows here are those of the
    layers alone, and rows are in their units.

    Attributes:
        run: the kind of run that can be distilled in this way.
        teachers: the flows that can be distilled in this way, in words.
        options: settings of a distillation that this kind of data alone has.
        students: what a student may be, as a recipe and arguments of it, the default first.
        epochs: the default budget.
        bfloat16: whether networks may multiply in bfloat16 in training.
        student: the name of the one to train.
        opened: the teacher's run; ``path``, ``flow``, ``provenance``, ``device``: its own; ``description``: its data,
            as a run directory has them.
        model, arguments: the teacher's recipe.
        core, preprocessing: the two parts of the teacher's flow; ``training_core`` is the core as used in training,
            solved no closer than to ``tolerance`` where it is continuous.
        stages: of the training, once the data are read; the last one ends at the student to keep.
        batch_size, batches, validated: of draws that a student learns from, rows per step, steps per epoch, and rows
            for validation; ``contexts``: to draw in, or None.
    """

    run: ClassVar[type[OpenRun]]
    teachers: str
    options: tuple[str, ...]
    students: Mapping[str, tuple[str, Mapping[str, Any]]]
    epochs: int
    bfloat16: bool = False
    tolerance: float = 1e-4
    stages: Sequence[Stage]
    batch_size: int
    batches: int
    validated: int
    contexts: Tensor | None

    def __init__(self, opened: OpenRun, student: str) -> None:
        self.opened: Any = opened
        self.student = student
        self.path, self.flow, self.provenance, self.device = opened.path, opened.flow, opened.provenance, opened.device
        self.description: Mapping[str, Any] = opened.description
        if self.flow.transform.branches > 1:
            raise UserError(f"{self.path}: has angles, and a density that is a sum over their turns is not distilled")
        assert self.flow.recipe is not None  # it was built from one
        self.model, self.arguments = self.flow.recipe["name"], self.flow.recipe["arguments"]
        self.core, self.preprocessing = opened.flow.core, opened.flow.preprocessing
        self.training_core = self.loosened(self.core)

    def loosened(self, flow: Flow) -> Flow:
        """The same flow, solved only as accurately as training needs; weights are shared."""
        ode = flow.ode
        if ode is None or ode.steps is not None:
            return flow
        return flow.with_ode(rtol=max(ode.rtol, self.tolerance), atol=max(ode.atol, self.tolerance))

    @classmethod
    def suits(cls, flow: Flow) -> bool:
        """Whether a flow can be distilled in this way."""
        return True

    def shared(self) -> dict[str, Any]:
        """Return the arguments of the recipe that the student takes over from its teacher."""
        return {name: self.arguments[name] for name in ("features", "context", "preprocess")}

    def inherited(self, flow: Flow) -> list[nn.Module]:
        """Return the parts of either flow whose state the student takes over from its teacher."""
        return [*flow.preprocessing, *([] if flow.context_transform is None else [flow.context_transform])]

    def check(self, flow: Flow) -> None:
        """Refuse an unsuitable student: by default, one that does not sample in one pass.

        Raises:
            UserError: for such a student.
        """
        if "sample" not in flow.fast:
            raise UserError(f"student {self.student!r} with these arguments does not sample in one pass")

    @abstractmethod
    def read(self, source: Any, settings: Mapping[str, Any], seed: int, say: Callable[[str], None]) -> None:
        """Open the data that were given, or else those that the run names, and decide on the stages."""

    @abstractmethod
    def training_data(self, stage: Stage, student: Flow, seed: int) -> TrainingData:
        """Return the data that a stage is trained on, given the student from the stages before."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what the metrics say of the data."""

    @abstractmethod
    def report(self, student: Flow, seed: int) -> dict[str, Any]:
        """Say what the student lost: "distillation", and "validation", the student's likelihood, where data are."""

    @abstractmethod
    def figures(self, results: Mapping[str, FitResult]) -> Figures:
        """Return figures of what was reported."""

    def plot(self, folder: Path, results: Mapping[str, FitResult]) -> list[str]:
        """Plot ``folder/figures/*.png`` of what was reported, and return their paths."""
        (folder / "figures").mkdir(exist_ok=True)
        figures = {folder / "figures" / f"{name}.png": plot for name, plot in self.figures(results).items()}
        for path, plot in figures.items():
            plot(path)
        return list(map(str, figures))

    def open_source(
        self, source: Any, open_data: Callable[[Any], T], say: Callable[[str], None], needed: str = ""
    ) -> T | None:
        """Open the data that were given, or else those that the run names; None, and a note, if these are gone.

        Raises:
            UserError: if they are gone and ``needed``, as this says.
        """
        if source is not None:
            return open_data(source)
        recorded, reason = (self.provenance.get("data") or {}).get("name"), ""
        if isinstance(recorded, str):
            try:
                return open_data(recorded)
            except (UserError, OSError) as error:
                reason = str(error)
        if needed:
            raise UserError(f"{self.path}: {needed} (--data)" + f": {reason}" * bool(reason))
        if reason:
            words = self.run.words
            say(f"no real {words.many} to judge by, only the teacher's own: {reason}; give the {words.data} (--data)")
        return None

    def streams(self, flow: Flow, stage: Stage, seed: int, **options: Any) -> TrainingData:
        """Return fresh draws of a flow for training, and some for validation, as ``training_data`` does."""
        held_out = SampleStream(
            flow, self.contexts, batch_size=self.validated, batches=1, seed=derive(seed, "validation"), **options
        )
        stream = SampleStream(
            flow, self.contexts, batch_size=self.batch_size, batches=self.batches, seed=derive(seed, stage.name),
            **options,
        )  # fmt: skip
        return stream, next(iter(held_out))

    @torch.no_grad()
    def inwards(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Bring data ``(n, *event)`` into the units of the layers; also the log-determinants ``(n,)`` of that."""
        x = x.to(self.core.base.device_marker)
        if not self.preprocessing:
            return x, x.new_zeros(len(x))
        z, log_det = Chain(self.preprocessing).eval().inverse_and_log_det(x)
        return z, log_det.reshape(len(x), -1).sum(1)  # maps of single elements leave it theirs

    @torch.no_grad()
    def outwards(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Bring rows back into the units of the data; also the log-determinants (n,) of that."""
        if not self.preprocessing:
            return x, x.new_zeros(len(x))
        x, log_det = Chain(self.preprocessing).eval().forward_and_log_det(x)
        return x, log_det.reshape(len(x), -1).sum(1)

    @torch.no_grad()
    def score(self, student: Flow, x: Tensor, context: Tensor | None, seed: int) -> dict[str, Tensor] | None:
        """Score data ``(n, *event)``: log-likelihoods (n,) within the preprocessing, and the log-det of that.

        The seed decides the noise of dequantisation. Data that one of them gives no finite density are left out; None
        where fewer than two are left.
        """
        seed_noise(self.device, derive(seed, "real rows"))
        x, log_det = self.inwards(x)
        context = None if context is None else context.to(self.device)
        scores = {
            "student": student.log_prob(x, context, nan="propagate"),
            "teacher": self.core.log_prob(x, context, nan="propagate"),
            "log_det": log_det,
        }
        good = torch.stack(list(scores.values())).isfinite().all(0)
        if good.sum() < 2:
            return None
        return {name: values[good].double().cpu() for name, values in scores.items()}

    def judged(
        self, report: dict[str, Any], scores: Mapping[str, Tensor] | None, which: str, step: float | None = None
    ) -> dict[str, Any]:
        """Add to a report what ``score`` found, and the student's likelihood.

        Args:
            report: on draws.
            scores: what ``score`` found.
            which: says of what data.
            step: between neighbouring values of sound, whose differences are in bits per sample instead of nats.
        """
        if scores is None:
            return {"distillation": report}
        difference, dimensions = scores["student"] - scores["teacher"], report["dimensions"]
        if step is not None:
            difference = bits_per_dim(difference, dimensions)
        report["real_rows"] = {**mean_and_error(difference.numpy()), "rows": len(difference), "which": which}
        nll = -(scores["student"] + scores["log_det"])
        facts = likelihood_facts(nll, dimensions, self.run.words.dimension, step or 1.0)
        return {"distillation": report, "validation": facts}

"""What a distillation must know of a teacher, whatever it models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.objectives import Objective
from diffeo.recipes.assembly import take_apart
from diffeo.training import FitResult
from diffeo.transforms import Chain

__all__ = ["Stage", "Teaching"]


@dataclass(frozen=True)
class Stage:
    """A part of the training: what is minimised, the share of the budget that it has, and its learning rate."""

    name: str
    says: str
    objective: Callable[[Flow, Flow], Objective]
    share: float
    lr: float


class Teaching(ABC):
    """A teacher, the data that it is distilled by, and what their kind decides: students, stages, the report.

    What student and teacher share, the preprocessing, cancels in every log-ratio: all flows here are those of the
    layers alone, and rows are in their units.

    Attributes:
        what: the data are called.
        options: settings of a distillation that this kind alone has.
        students: what a student may be, as a recipe and arguments of it, the default first; all sample in one pass.
        epochs: the budget for who does not choose.
        path, flow, provenance, device: of the teacher's run; ``description``: its data, as a run directory has them.
        core, preprocessing: the teacher's flow taken apart.
        stages: of the training; the last one ends at the student to keep.
    """

    what: str
    options: tuple[str, ...]
    students: Mapping[str, tuple[str, Mapping[str, Any]]]
    epochs: int
    description: Mapping[str, Any]
    stages: Sequence[Stage]

    def __init__(self, path: str, flow: Flow, provenance: Mapping[str, Any], device: torch.device) -> None:
        self.path, self.flow, self.provenance, self.device = path, flow, provenance, device
        self.core, self.preprocessing = take_apart(flow)

    def shared(self) -> dict[str, Any]:
        """Return the arguments of its recipe that a student has from its teacher."""
        assert self.flow.recipe is not None  # it was built from one
        return {name: self.flow.recipe["arguments"][name] for name in ("features", "context", "preprocess")}

    @abstractmethod
    def read(self, source: Any, settings: Mapping[str, Any], seed: int, say: Callable[[str], None]) -> None:
        """Open the data that were given, or else those that the run names, and decide on the stages."""

    @abstractmethod
    def rows(self, stage: Stage, seed: int) -> Any:
        """Return the stream of (rows, contexts) that a stage is trained on."""

    @abstractmethod
    def validation(self, seed: int) -> tuple[Tensor, Tensor | None]:
        """Return the rows, with their contexts, that tell which weights to keep."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what the metrics say of the data."""

    @abstractmethod
    def report(self, student: Flow, seed: int) -> dict[str, Any]:
        """Say what the student lost: "distillation", and "validation", the student's likelihood, where data are."""

    @abstractmethod
    def draw(self, folder: Path, results: Mapping[str, FitResult]) -> list[str]:
        """Draw ``folder/figures/*.png`` of what was reported, and return their paths."""

    @torch.no_grad()
    def inwards(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Bring data ``(n, *event)`` into the units of the layers; also the log-determinants ``(n,)`` of that."""
        x = x.to(self.device)
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
    def score(self, student: Flow, x: Tensor, context: Tensor | None) -> dict[str, Tensor] | None:
        """Score data ``(n, *event)``: log-likelihoods (n,) within the preprocessing, and the log-det of that.

        Data that one of them gives no finite density are left out; None where fewer than two are left.
        """
        x, log_det = self.inwards(x)
        context = None if context is None else context.to(self.device)
        found = {
            "student": student.log_prob(x, context, nan="propagate"),
            "teacher": self.core.log_prob(x, context, nan="propagate"),
            "log_det": log_det,
        }
        good = torch.stack(list(found.values())).isfinite().all(0)
        if good.sum() < 2:
            return None
        return {name: values[good].double().cpu() for name, values in found.items()}

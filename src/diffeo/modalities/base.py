"""What a training needs to know of data, whatever they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from diffeo.flow import Flow

__all__ = ["Material"]


class Material(ABC):
    """Data to learn: rows to train on and rows held out, what they are called, and which model suits them.

    Attributes:
        options: settings of a training that this kind of data alone has.
        unit: what one example is called, ``dimension`` what one of its numbers is.
        step: bits are those of values this far apart: 1 in the data's own units, 2^-15 of 16-bit sound in [-1, 1).
        name: the data's own.
        hash: identifies all of the data.
        total: how many examples there are; ``rows``: how many of them to train on; ``tested``: how many of them neither
            training nor early stopping ever sees, besides a test part that the data bring along.
        notes: what a user should know about how the data were read.
        description: plain data from which a run directory knows what it was trained on.
        features, context_size: what a recipe is told, with ``sizes`` for what else the data decide.
        batch_size: examples per step.
        x, context: examples to train on, tensors or a stream; ``valid_x``, ``valid_context``: those held out.
    """

    options: tuple[str, ...]
    unit: str
    dimension: str
    step: float = 1.0
    name: str
    hash: str
    total: int
    rows: int
    tested: int = 0
    notes: list[str]
    description: Mapping[str, Any]
    features: int | Sequence[int]
    context_size: int
    sizes: Mapping[str, Any] = MappingProxyType({})
    batch_size: int
    x: Any
    context: Tensor | None
    valid_x: Tensor
    valid_context: Tensor | None

    @abstractmethod
    def __init__(self, source: Any, settings: Mapping[str, Any], seed: int) -> None:
        """Open the data."""

    @abstractmethod
    def read(self) -> None:
        """Read them, and set the attributes."""

    @abstractmethod
    def default_model(self) -> tuple[str, dict[str, Any]]:
        """Return the recipe, and its arguments but for the preprocessing, for who does not choose."""

    @abstractmethod
    def preprocessing(self, model: str) -> list[Any]:
        """Return what stands between the data and this model, from the data inwards."""

    @abstractmethod
    def training(self, flow: Flow) -> dict[str, Any]:
        """Return arguments of ``diffeo.fit`` that suit the data and the model."""

    @abstractmethod
    def judged(self, most: int) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Return the parts whose likelihood is reported, by name; of the training rows at most so many."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what the metrics say of the data."""

    @abstractmethod
    def draw(self, run: Path, flow: Flow) -> list[str]:
        """Draw ``run/figures/*.png`` and return their paths."""

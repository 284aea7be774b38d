"""What a kind of data gives to the commands, whatever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.report.figures import training
from diffeo.report.page import Block, Picture
from diffeo.report.style import Figures
from diffeo.training.folds import FoldsResult
from diffeo.training.run import Run as StoredRun
from diffeo.training.seeding import derive, seed_noise

__all__ = [
    "Chunk",
    "Dataset",
    "Draw",
    "Examples",
    "Modality",
    "OpenRun",
    "Plain",
    "Scoring",
    "Words",
    "choose",
    "chunks_of",
    "held_out",
]

ENOUGH = 100  # held-out examples to judge by; where there are fewer, those of training are looked at


@dataclass(frozen=True)
class Words:
    """What an example is called, many of them, one of an example's numbers, and the data in general."""

    one: str
    many: str
    dimension: str
    data: str


class Dataset(ABC):
    """Examples to train on and examples held out, and which model suits them.

    Attributes:
        name: the data's own.
        hash: identifies all of the data.
        total: how many examples there are; ``rows``: how many of them to train on; ``tested``: how many of them neither
            training nor early stopping ever sees, besides a test part that the data bring along.
        notes: what a user should know about how the data were read.
        description: plain data from which a run directory knows what it was trained on.
        features, context_size: what a recipe takes, with ``sizes`` for what else the data decide.
        batch_size: examples per step.
        folds: how many parts of the examples are held out in turn, each of another model (``fit_folds``); 1 for one
            model and one part. Then no examples are held out besides, and ``x`` are all but those of the test.
        together: whether equal examples come into one fold.
        draws: of the noise that discrete values are spread by, where likelihoods are reported.
        log_grid: is added to the log-likelihood of every example where likelihoods are reported.
        step: bits are those of values this far apart: 1 in the data's own units, 2^-15 of 16-bit sound in [-1, 1).
        x, context: examples to train on, tensors or a stream; ``valid_x``, ``valid_context``: those held out.
        weights, valid_weights: how much each of them counts, or None where all count alike.
    """

    step: float = 1.0
    log_grid: float = 0.0
    folds: int = 1
    together: bool = True
    draws: int = 1
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
    weights: Tensor | None = None
    valid_weights: Tensor | None = None

    @abstractmethod
    def __init__(self, source: Any, settings: Mapping[str, Any], seed: int) -> None:
        """Open and read the data, and divide them by the seed."""

    @abstractmethod
    def default_model(self) -> tuple[str, dict[str, Any]]:
        """Return the default recipe, and its arguments but for the preprocessing."""

    def stacked_models(self) -> dict[str, dict[str, Any]]:
        """What stands beside the model where it is trained by folds: the settings that differ, by name.

        ``epochs`` are the most that it is trained for.
        """
        return {}

    @abstractmethod
    def preprocessing(self, model: str) -> list[Any]:
        """Return what stands between the data and this model, from the data inwards."""

    @abstractmethod
    def training(self, flow: Flow) -> dict[str, Any]:
        """Return arguments of ``diffeo.fit`` that suit the data and the model."""

    @abstractmethod
    def judged(self, most: int) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Return the parts whose likelihood is reported, by name; of the training examples at most so many."""

    def judged_weights(self) -> dict[str, Tensor]:
        """Return the weights of all examples of these parts, by name, where they have any."""
        return {}

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what the metrics say of the data."""

    def remember(self, run: Path, flow: Flow, stacked: FoldsResult | None) -> None:
        """Write into a run directory which examples were trained on, if each can be recognised again.

        Raises:
            UserError: if it cannot be written.
        """
        return

    @abstractmethod
    def plot(self, run: Path, flow: Flow, seconds: float) -> list[str]:
        """Plot ``run/figures/*.png``, but what takes longer than so many seconds, and return their paths."""


@dataclass(frozen=True)
class Chunk:
    """Examples that are scored together.

    Attributes:
        key: decides, with the seed, the noise that they are dequantised with.
        x, context: as the flow takes them.
        cells: what is written before the scores, ``(n, columns)``.
        log_grid: what values on and off their columns' grids add to the log-likelihoods of x ``(n,)``, or None.
        known: elements that the density is conditional on, or None; for flows of any order.
        part: the fold that each was in, negative for none ``(n,)``; None where it does not matter.
        flow: the density of these, where it is another one than the run's: of another length, say.
        off_grid: which values are off their columns' grids ``(n, columns of the data)``, or None.
    """

    key: int
    x: Tensor
    context: Tensor | None
    cells: np.ndarray
    log_grid: np.ndarray | None = None
    flow: Flow | None = None
    known: Tensor | None = None
    part: Tensor | None = None
    off_grid: np.ndarray | None = None


@dataclass(frozen=True)
class Scoring:
    """Data to score.

    Attributes:
        total: how many examples, if known.
        chunks: all of them, in order.
        columns, types: of the cells.
        facts: what else the summary says, once all chunks were taken.
        bits: the step between neighbouring values, where bits per dimension are asked for, or None.
        draws: of the noise that discrete values are spread by: the same for all; 1 for one that the seed decides.
        files: of data in several files, the name and the number of examples of each; else empty. No chunk has examples
            of two of them, and each file's are scored as if there were no other.
    """

    total: int | None
    chunks: Iterable[Chunk]
    columns: Sequence[str] = ()
    types: Sequence[str] = ()
    facts: Callable[[], dict[str, Any]] = dict
    bits: float | None = None
    draws: int = 1
    files: Sequence[tuple[Path, int]] = ()


@dataclass(frozen=True)
class Draw:
    """Samples that are drawn together: how many, given what (as the flow takes it), and by which flow if not the run's.

    ``key`` decides, with the seed, the noise; ``about`` is whatever ``OpenRun.save`` wants to know of them. A flow of
    any order completes ``x``, of which the elements in ``known`` stay as they are.
    """

    key: int
    count: int
    context: Tensor | None = None
    flow: Flow | None = None
    about: Any = None
    x: Tensor | None = None
    known: Tensor | None = None


@dataclass(frozen=True)
class Examples:
    """Examples to judge a run by, as its flow takes them.

    Attributes:
        name: of the data.
        x, context: the examples.
        which: says which of the data these are; ``in_sample`` whether the run was trained on them.
        contexts: those of all other examples, or of all where none were set aside.
        read: how many examples x were chosen from, ``off_grid``: how many of these have a value off its grid, which are
            not in x, and ``reasons``: the same by column.
        train: those that the run was trained on, where x were held out of them and both are at hand.
        part: the fold that each of x was in, negative for one that no part of the run was trained on; or None.
    """

    name: str
    x: Tensor
    context: Tensor | None
    which: str
    in_sample: bool = False
    contexts: Tensor | None = None
    read: int = field(default=0, kw_only=True)
    off_grid: int = field(default=0, kw_only=True)
    reasons: Mapping[str, int] = field(default_factory=dict)
    train: Tensor | None = None
    part: Tensor | None = None


class Plain(ABC):
    """Examples as plain numbers in the data's own units, and as a flow takes them: what a program has of diffeo.

    All in PyTorch's operations, of any number of rows, so that it can be traced.

    Attributes:
        shape: of one example in the data's own units; ``context_shape``: of one context, ``()`` for none.
        dtype: of both.
        draws: of the noise that discrete values are spread by, the same for all; 0 where a program takes it as input.
        described: what the numbers mean, plain data for a file.
    """

    shape: tuple[int, ...]
    context_shape: tuple[int, ...]
    dtype: torch.dtype
    draws: int
    described: Mapping[str, Any]

    @abstractmethod
    def inwards(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the flow takes of examples ``(n, *shape)``, and what their log-likelihoods have on top ``(n,)``."""

    @abstractmethod
    def context_inwards(self, context: Tensor) -> Tensor:
        """What the flow takes of contexts ``(n, *context_shape)``."""

    @abstractmethod
    def outwards(self, x: Tensor, context: Tensor | None, exact: bool = False) -> Tensor:
        """Samples in the data's own units ``(n, *shape)``; ``exact`` moves none into the range of the data."""

    @abstractmethod
    def context_outwards(self, context: Tensor) -> Tensor:
        """The inverse of ``context_inwards``."""


@dataclass(frozen=True)
class OpenRun(ABC):
    """A run directory, opened for use: its flow on a device, in evaluation mode, and what its data are like.

    Attributes:
        words: what its data are called.
        options: which other arguments a command takes for this kind of data, by the command's name.
    """

    words: ClassVar[Words]
    options: ClassVar[Mapping[str, Sequence[str]]] = MappingProxyType({})

    path: str
    flow: Flow
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    device: torch.device

    @classmethod
    @abstractmethod
    def restore(cls, stored: StoredRun, path: str, device: torch.device) -> Self:
        """Open a stored run whose data are of this kind.

        Raises:
            UserError: if its description is damaged.
        """

    @property
    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What the run directory says of its data."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What ``diffeo info`` says of the data, ``rows`` among it."""

    @abstractmethod
    def scoring(self, source: Any, options: Mapping[str, Any]) -> Scoring:
        """Open data to score.

        Raises:
            UserError: if they are not of this run's kind.
        """

    @abstractmethod
    def draws(self, n: int | None, options: Mapping[str, Any]) -> tuple[Iterable[Draw], int | None]:
        """Return what to draw, and how many in all, if known.

        Raises:
            UserError: for a number, or a context, that makes no sense.
        """

    @abstractmethod
    def save(self, out: Any, drawn: Iterator[tuple[Tensor, Draw]], force: bool) -> dict[str, Any]:
        """Write samples as the data were, and return what the summary says of them.

        Raises:
            UserError: if they cannot be written there.
        """

    def check_target(self, out: Any, force: bool) -> None:
        """Refuse, before any work, a place that samples cannot be written to.

        Raises:
            UserError: for such a place.
        """
        return

    @abstractmethod
    def examples(self, source: Any, most: int, seed: int, options: Mapping[str, Any]) -> Examples:
        """Return at most so many examples; of the data that the run was trained on, those held out if they suffice.

        Raises:
            UserError: for bad data, or too few.
        """

    @abstractmethod
    def examine(self, examples: Examples, seed: int) -> dict[str, Any]:
        """Return what a check finds, with a verdict."""

    def plain(self) -> Plain:
        """Return what an exported program has to know of the data.

        Raises:
            UserError: for data of no fixed shape.
        """
        raise UserError(f"{self.path}: {self.words.data} have no fixed shape, and cannot be exported")

    def hand_on(self, run: Path) -> None:
        """Write into the run directory of a student what is known of the examples that this one was trained on."""
        return

    def trained_on(self) -> str | None:
        """The hash of the data that it was trained on, where they could be divided again."""
        data = self.provenance.get("data")
        if not isinstance(data, dict) or not isinstance(self.provenance.get("seed"), int):
            return None
        return data.get("sha256")

    def tested(self) -> int:
        """How many examples were kept for the test."""
        count = self.provenance["data"].get("test", 0)
        if not isinstance(count, int) or count < 0:
            raise UserError(f"{self.path}: model.json is damaged: its number of test rows is {count!r}; train again")
        return count


@dataclass(frozen=True)
class Kept:
    """A figure that a run directory may hold.

    Attributes:
        part: of a report, where it stands: "samples", "calibration", "training" or "distillation".
        caption: what it shows.
        photo: whether its colours are those of the data.
        student: what it shows of a student, where that is something else.
    """

    part: str
    caption: str
    photo: bool = False
    student: str = ""


class RunReport(ABC):
    """What a report says and shows of a run of one kind of data.

    Args:
        run: that was opened.
        folder: for figures that are plotted anew.
        examples: to judge it by, or None.
        source: what they were chosen from, or None.
        options: how it is read.
        seed: of all that is random.

    Attributes:
        kept: figures that a run directory may hold, by name, in the order of a report.
        tag: what a model hub calls the kind of data.
        example: what likelihoods are reported of, one and many.
        simplest: what the density is called that has no dependence.
    """

    kept: ClassVar[Mapping[str, Kept]]
    example: ClassVar[tuple[str, str]]
    simplest: ClassVar[str] = ""
    tag: ClassVar[str]

    def __init__(
        self,
        run: OpenRun,
        folder: Path,
        examples: Examples | None,
        source: Any,
        options: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.examples, self.source, self.options, self.seed = examples, source, options, seed
        self.figures = Figures(folder)
        self.stored = Path(run.path) / "figures"
        self.student = "distillation" in run.provenance

    @property
    def units(self) -> dict[str, Any]:
        """In which a learning curve is plotted, as ``learning_curve`` takes them."""
        return {}

    @abstractmethod
    def data(self) -> list[Block]:
        """What the data of the training are like."""

    @abstractmethod
    def samples(self) -> list[Block]:
        """Real examples beside samples."""

    @abstractmethod
    def calibration(self) -> list[Block]:
        """Whether what the model says is as probable as it says happens as often."""

    @abstractmethod
    def unlikely(self) -> list[Block]:
        """The examples that the model finds least likely."""

    @abstractmethod
    def limits(self) -> list[str]:
        """What the model cannot know, of this kind of data, in sentences."""

    @abstractmethod
    def use(self) -> list[str]:
        """Lines for a shell that use the run, which is called so."""

    def training(self, run: OpenRun) -> list[Block]:
        """The learning curve, stored or plotted anew."""
        if not (self.stored / "learning_curve.png").is_file():
            training(self.figures, run.flow, Path(run.path), **self.units)
        return self.pictures("training")

    def pictures(self, part: str) -> list[Block]:
        """The figures of a part of the report: those plotted anew, or else those that the run directory holds."""
        pictures: list[Block] = []
        for name, figure in self.kept.items():
            if figure.part != part:
                continue
            caption = figure.student if self.student and figure.student else figure.caption
            for suffix in (".png", ".gif"):
                fresh = self.figures.run / "figures" / f"{name}{suffix}"
                if fresh.is_file():
                    pictures.append(Picture.read(fresh, self.captions.get(name, caption), figure.photo))
                elif (self.stored / fresh.name).is_file():
                    pictures.append(Picture.read(self.stored / fresh.name, caption, figure.photo))
        return pictures

    @property
    def captions(self) -> Mapping[str, str]:
        """Of figures plotted anew, where they show something else than those that the run directory holds."""
        return {}

    @property
    def judged(self) -> str:
        """The examples in words; that the model was trained on them, if it was."""
        assert self.examples is not None
        return self.some(len(self.examples.x))

    def some(self, count: int) -> str:
        """So many of the examples in words, as ``judged``.

        Args:
            count: how many.
        """
        assert self.examples is not None
        total = len(self.examples.x)
        seen = ", which the model was trained on: they look better than new ones would" * self.examples.in_sample
        return f"{self.examples.which}; {f'{count:,} of ' * (count < total)}{total:,} in all{seen}"

    def drawn(self, most: int) -> Tensor:
        """At most so many of the examples, drawn by the seed: their numbers, in any order.

        Args:
            most: how many.
        """
        assert self.examples is not None
        order = np.random.default_rng(derive(self.seed, "report", "examples")).permutation(len(self.examples.x))
        return torch.from_numpy(order[:most])


@dataclass(frozen=True)
class Modality:
    """A kind of data.

    Attributes:
        name: what a run directory calls it.
        recognizes: tells whether data are of this kind.
        dataset: opens data to learn.
        run: opens runs.
        options: settings of a training that not all kinds of data have.
        suffixes: of files that are of this kind, whatever they hold.
        recipes: those that are for this kind alone.
        report: shows runs; without it ``diffeo report`` refuses them.
    """

    name: str
    recognizes: Callable[[Any], bool]
    dataset: type[Dataset]
    run: type[OpenRun]
    options: Sequence[str] = ()
    suffixes: Collection[str] = ()
    recipes: Collection[str] = ()
    report: type[RunReport] | None = None


def chunks_of(
    run: OpenRun, scoring: Scoring, seed: int, progress: Callable[[int, int | None], None]
) -> Iterator[Chunk]:
    """Yield what is to be scored on the run's device, in order, the noise seeded for each; say how far it is after it.

    Args:
        run: a run that was opened.
        scoring: the data.
        seed: of the dequantisation noise.
        progress: called with the number of examples done and the number of all, if known.
    """

    def there(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.to(run.device)

    rows = 0
    progress(rows, scoring.total)
    for chunk in scoring.chunks:
        seed_noise(run.device, derive(seed, "score", chunk.key))
        yield replace(chunk, x=chunk.x.to(run.device), context=there(chunk.context), known=there(chunk.known))
        rows += len(chunk.x)
        progress(rows, scoring.total)


def held_out(valid: int, test: int, many: str) -> tuple[str | None, str]:
    """Which part of the data of a training to judge by, "test", "valid" or None if neither is enough, and in words."""
    if test:
        return "test", f"test {many}, held out of training and of early stopping"
    if valid >= ENOUGH:
        return "valid", f"{many} held out of training"
    return None, f"the {many} of training"


def choose(count: int, most: int, which: str, seed: int) -> tuple[Tensor, str]:
    """Draw at most so many of so many examples: their numbers, in order, and which they are in words."""
    if count <= most:
        return torch.arange(count), which
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:most])
    return torch.from_numpy(chosen), f"{most:,} of {which}"

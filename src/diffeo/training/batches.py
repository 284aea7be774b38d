"""Where batches come from: tables of rows in memory, or streams that are larger."""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffeo.arguments import expect_whole
from diffeo.training.parallel import Share
from diffeo.training.seeding import derive
from diffeo.training.splitting import divide
from diffeo.training.stream import BatchStream, Item
from diffeo.training.weights import hash_tensor

__all__ = [
    "Batch",
    "Iterated",
    "Nothing",
    "Rows",
    "Stream",
    "default_epochs",
    "default_patience",
    "fingerprint",
    "split",
]

RESIDENT_BYTES = 2**31  # data up to this size is moved to the device once; more is moved batch by batch
HASHED_BYTES = 2**30  # of larger data, evenly spaced rows are hashed
EXAMPLES = 2**14  # rows from which layers set their statistics: as many as a flow takes in one piece
STEPS_PER_EPOCH = 100  # of a training without data
EXAMPLE_ELEMENTS = 2**20  # numbers in them at most, unless a batch has more


everything = Share()  # of a batch: that of a process that is alone


class Batch(NamedTuple):
    """This process's share of a batch: x (n, *event), context (n, *context) or None, and their place in the data.

    ``total`` counts the rows over all processes; ``rows`` are the indices of x in the data, or None in a stream.
    ``weights`` (n,) are those of the rows, or None where all count alike.
    """

    x: Tensor
    context: Tensor | None
    total: int
    rows: Tensor | None
    weights: Tensor | None = None

    @property
    def weight(self) -> float:
        """What these rows add to the mean weight of all ``total`` rows; of all of them it is this mean."""
        return (len(self.x) if self.weights is None else self.weights.double().sum().item()) / self.total

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with a function applied to each tensor of rows; ``total`` stays."""
        mapped: dict[str, Any] = {
            name: function(part) for name, part in self._asdict().items() if isinstance(part, Tensor)
        }
        return self._replace(**mapped)

    def take(self, rows: slice | Tensor) -> "Batch":
        """Return some of its rows."""
        return self.map(lambda part: part[rows])

    def micro_batches(self, count: int) -> "Iterator[Batch]":
        """Yield the batch in so many parts of about the same size, fewer if it has fewer rows."""
        ends = [len(self.x) * part // count for part in range(count + 1)]
        return (self.take(slice(start, end)) for start, end in pairwise(ends) if start < end)


class Rows:
    """Rows of tensors in memory: an epoch is a seeded permutation of them and one ``index_select`` per batch.

    Rows of weight 0 are left out, and the weights of the others are divided by their mean.
    """

    def __init__(
        self,
        x: Any,
        context: Any,
        rows: Tensor | None,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype | None,
        weights: Any = None,
    ) -> None:
        self.x, self.context = as_tensor(x, "x"), None if context is None else as_tensor(context, "context")
        if self.x.ndim == 0 or len(self.x) == 0:
            raise ValueError(f"expected at least one row of data, got shape {tuple(self.x.shape)}")
        if self.context is not None and len(self.context) != len(self.x):
            raise ValueError(f"expected a context for each of {len(self.x)} rows, got {len(self.context)}")
        self.rows = torch.arange(len(self.x)) if rows is None else rows
        self.weights: Tensor | None = None
        if weights is not None:
            weights = check_weights(as_tensor(weights, "weights"), len(self.x)).cpu()
            self.rows = self.rows[weights[self.rows] > 0]
            if not len(self.rows):
                raise ValueError("expected weights that are not all zero")
            weights = weights / weights.max()  # so that equal ones are exactly 1, and large ones have a sum
            self.weights = weights / weights[self.rows].mean()
        self.size = len(self.rows)
        self.batch_size = min(batch_size, self.size)
        # The last, smaller batch is dropped: its noisier gradient would count as much as the others'.
        self.batches: int | None = self.size // self.batch_size
        self._place = partial(place, device=device, dtype=dtype)
        if sum(t.nbytes for t in (self.x, self.context) if t is not None) <= RESIDENT_BYTES:
            self.x = self._place(self.x)
            self.context = None if self.context is None else self._place(self.context)
        self.rows = self.rows.to(self.x.device)
        self.weights = None if self.weights is None else self.weights.to(self.x.device)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of all the data."""
        return fingerprint(self.x, self.context, self.weights)

    def shuffled(self, seed: int, epoch: int, start: int = 0, share: Share = everything) -> Iterator[Batch]:
        """Yield the batches of an epoch from number ``start`` on; seed and epoch decide the order."""
        assert self.batches is not None
        order = self._order(seed, epoch)
        for batch in range(start, self.batches):
            yield self.select(order[batch * self.batch_size : (batch + 1) * self.batch_size], share)

    def in_order(self, share: Share = everything) -> Iterator[Batch]:
        """Yield all rows once, in larger batches: without gradients they need less memory."""
        for places in torch.arange(self.size, device=self.x.device).split(4 * self.batch_size):
            yield self.select(places, share)

    def examples(self, seed: int) -> Iterator[Batch]:
        """Yield chunks of the rows, in random order, as large as statistics need and memory allows."""
        for places in self._order(seed, 0).split(_chunk_size(self.x, self.batch_size)):
            yield self.select(places, everything)

    def select(self, places: Tensor, share: Share = everything) -> Batch:
        """Return the rows in these places (or this process's share of them) as a batch."""
        rows = self.rows[places]
        mine = rows[share(len(rows))]
        context = None if self.context is None else self._pick(self.context, mine)
        batch = Batch(self._pick(self.x, mine), context, len(rows), mine)
        if self.weights is None:
            return batch
        return batch._replace(weights=self._pick(self.weights, mine))

    def _order(self, seed: int, epoch: int) -> Tensor:
        """The places of the rows, as seed and epoch shuffle them."""
        generator = torch.Generator().manual_seed(derive(seed, "shuffle", epoch))
        return torch.randperm(self.size, generator=generator).to(self.x.device)

    def _pick(self, data: Tensor, rows: Tensor) -> Tensor:
        return self._place(data.index_select(0, rows))


class Iterated(BatchStream):
    """Any object that can be iterated over once an epoch, as a stream: what it lacks, this adds.

    Its items are tensors or arrays x, (x, context) pairs, or (x, context, weights) triples. Its ``set_epoch``, ``len``
    and ``fingerprint`` are used if it has them. Without a length the learning rate does not fall within the first
    epoch; without a fingerprint the first batch's is taken. A list of batches will do, or a ``DataLoader``.

    Raises:
        TypeError: for an iterator, which is used up after an epoch, and from ``len`` where the length is unknown.
        ValueError: if there is no batch.
    """

    def __init__(self, batches: Any) -> None:
        if hasattr(batches, "__next__"):
            raise TypeError("expected data that can be iterated over once per epoch, got an iterator")
        self.batches = batches
        self.set_epoch(0)
        first = next(iter(self), None)
        if first is None:
            raise ValueError("expected a stream of batches, got an empty one")
        self._fingerprint = str(getattr(batches, "fingerprint", fingerprint(*first)))

    def __iter__(self) -> Iterator[Item]:
        for item in self.batches:
            parts = item if isinstance(item, tuple | list) else (item, None)
            x, context, weights = parts if len(parts) == 3 else (*parts, None)
            pair = as_tensor(x, "x"), None if context is None else as_tensor(context, "context")
            yield pair if weights is None else (*pair, as_tensor(weights, "weights"))

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, to an object that wants to know."""
        super().set_epoch(epoch)
        if hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(epoch)

    @property
    def fingerprint(self) -> str:
        """The object's, or the SHA-256 of its first batch."""
        return self._fingerprint


class Stream:
    """A source of batches that come from a stream, in its order and in its sizes.

    Rows of weight 0 are left out. The weights of the others are divided by the mean of those of the first batch ever
    given, which a training asks for before it begins (``initialise``): that of all rows is not known.

    Args:
        stream: a ``BatchStream``, or what ``Iterated`` makes one of.
        device: where the batches go.
        dtype: the model's type, of floating-point data.
    """

    def __init__(self, stream: Any, device: torch.device, dtype: torch.dtype | None) -> None:
        self.stream = stream if isinstance(stream, BatchStream) else Iterated(stream)
        self._place = partial(place, device=device, dtype=dtype)
        self.fingerprint = self.stream.fingerprint
        self.unit = 0.0  # of weights
        self.batches: int | None = None
        with suppress(TypeError):  # as len has it of what is without one
            self.batches = len(self.stream)
        if self.batches == 0:
            raise ValueError("expected a stream of batches, got an empty one")

    def shuffled(self, seed: int, epoch: int, start: int = 0, share: Share = everything) -> Iterator[Batch]:
        """Yield the batches of an epoch from number ``start`` on, in the stream's own order."""
        self.stream.set_epoch(epoch)
        parts = self.stream.part(start, share.rank, share.size)
        if parts is None:
            for batch in islice(self._batches(), start, None):
                yield batch.take(share(batch.total)).map(self._place)
            return
        for (x, context, *rest), total in parts:
            batch = Batch(x, context, total, None)
            if rest and rest[0] is not None:
                if not self.unit and share.size == 1:
                    self.unit = check_weights(rest[0], len(x)).mean().item()
                elif not self.unit:
                    next(self._batches())  # as one process would
                batch = batch._replace(weights=check_weights(rest[0], len(x)) / self.unit)
            yield batch.map(self._place)

    def _batches(self) -> Iterator[Batch]:
        """Yield the epoch's batches, without rows of weight 0.

        Raises:
            ValueError: for bad weights, or none above 0.
        """
        yielded = left_out = False
        for x, context, *rest in self.stream:
            batch = Batch(x, context, len(x), None)
            if rest and rest[0] is not None:
                weights = check_weights(rest[0], len(x))
                batch, weights = batch.take(weights > 0), weights[weights > 0]
                if not len(weights):
                    left_out = True
                    continue
                self.unit = self.unit or weights.mean().item()
                batch = batch._replace(total=len(weights), weights=weights / self.unit)
            yielded = True
            yield batch
        if left_out and not yielded:
            raise ValueError("expected weights that are not all zero")

    def in_order(self, share: Share = everything) -> Iterator[Batch]:
        """Yield the batches of the first epoch."""
        return self.shuffled(0, 0, share=share)

    def examples(self, seed: int) -> Iterator[Batch]:
        """Yield the rows of the first epoch, batches joined to chunks of that size."""
        held: list[Batch] = []
        rows = 0
        for batch in self.shuffled(seed, 0):
            held.append(batch)
            rows += batch.total
            if rows >= _chunk_size(batch.x, batch.total):
                yield _join(held)
                held, rows = [], 0
        if held:
            yield _join(held)


class Nothing:
    """A source of batches without data, for an objective that draws its own: x is ``(n, 0)``.

    Args:
        steps: how many batches there are, over all epochs.
        batch_size: the number n of rows.
        device: where they are.
        dtype: of them.

    Raises:
        ValueError: for less than one step or row.
    """

    fingerprint = "none"

    def __init__(self, steps: int, batch_size: int, device: torch.device, dtype: torch.dtype | None) -> None:
        expect_whole(1, steps=steps)
        _expect_batch(batch_size)
        self.x = torch.empty(batch_size, 0, device=device, dtype=dtype)
        self.epochs = max(1, round(steps / STEPS_PER_EPOCH))
        self.ends = [steps * epoch // self.epochs for epoch in range(self.epochs + 1)]
        self.batches: int | None = -(-steps // self.epochs)

    def shuffled(self, seed: int, epoch: int, start: int = 0, share: Share = everything) -> Iterator[Batch]:
        """Yield the batches of an epoch from number ``start`` on."""
        for _ in range(start, self.ends[epoch + 1] - self.ends[epoch]):
            yield Batch(self.x[share(len(self.x))], None, len(self.x), None)

    def examples(self, seed: int) -> Iterator[Batch]:
        """Yield batches, which are all alike."""
        return self.shuffled(seed, 0)

    def in_order(self, share: Share = everything) -> Iterator[Batch]:
        """Yield nothing: there is nothing to hold out."""
        return iter(())


def _expect_batch(size: int) -> None:
    if not hasattr(type(size), "__index__") or size < 1:
        raise ValueError(f"expected a batch size of at least 1, a whole number, got {size}")


def _chunk_size(x: Tensor, batch_size: int) -> int:
    """Return the number of rows like those of x to show at once to layers that set their statistics."""
    return min(EXAMPLES, max(batch_size, EXAMPLE_ELEMENTS // max(1, x.shape[1:].numel())))


def _join(batches: list[Batch]) -> Batch:
    """Return the first rows of the batches as one, no more of them than are taken in one piece."""
    x = torch.cat([batch.x for batch in batches])[:EXAMPLES]
    contexts = [batch.context for batch in batches if batch.context is not None]
    weights = [batch.weights for batch in batches if batch.weights is not None]
    context, weight = (torch.cat(parts)[:EXAMPLES] if parts else None for parts in (contexts, weights))
    return Batch(x, context, len(x), None, weight)


def split(
    x: Any,
    context: Any,
    validation: Any,
    *,
    weights: Any = None,
    batch_size: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> tuple[Rows | Stream, Rows | Stream | None]:
    """Return the sources of training and of validation batches.

    ``validation`` is a fraction of the rows, drawn by the seed, or data of its own (rows, an (x, context) pair, an
    (x, context, weights) triple, or a stream); 0 or None means none.
    """
    _expect_batch(batch_size)
    fraction = isinstance(validation, float | int)
    if fraction and not 0 <= validation < 1:
        raise ValueError(f"expected a fraction of validation rows in [0, 1), got {validation}")
    rows = partial(Rows, batch_size=batch_size, device=device, dtype=dtype)
    stream = partial(Stream, device=device, dtype=dtype)
    if fraction and validation and is_array(x):
        whole = rows(x, context, None, weights=weights)
        order = torch.randperm(whole.size, generator=torch.Generator().manual_seed(derive(seed, "split")))
        parts = divide(whole.rows.cpu()[order], validation)
        if not len(parts.train):
            raise ValueError(f"expected enough rows to hold some out for validation, got {whole.size}")
        held = (rows(whole.x, whole.context, part, weights=whole.weights) for part in (parts.train, parts.valid))
        return next(held), next(held)
    if is_array(x):
        train: Rows | Stream = rows(x, context, None, weights=weights)
    elif context is not None or weights is not None:
        what = "(x, context) pairs, got a context" if weights is None else "(x, context, weights) triples, got weights"
        raise ValueError(f"expected a stream that gives {what} of its own")
    else:
        train = stream(x)
    if validation is None or fraction:
        if validation:
            raise ValueError("expected validation data or validation=0 with a stream, which cannot be split")
        return train, None
    if is_array(validation):
        validation = validation, None
    if not (isinstance(validation, tuple) and len(validation) in (2, 3)):
        return train, stream(validation)
    x, context, *rest = validation
    return train, rows(x, context, None, weights=rest[0] if rest else None)


def default_epochs(batches: int | None) -> int:
    """Return the default budget: about 10,000 steps, at most 1,000 epochs, and one epoch at least (10 of a stream)."""
    return 10 if batches is None else min(1000, max(1, round(10_000 / batches)))


def default_patience(batches: int | None, epochs: int | None) -> int:
    """Return how many epochs without improvement end a run: a tenth of the budget, at least 10 and 300 steps."""
    return max(10, (epochs or 0) // 10, round(300 / (batches or 300)))


def fingerprint(x: Tensor, context: Tensor | None = None, weights: Tensor | None = None) -> str:
    """Return a SHA-256 of the data: shapes, types and contents (of more than 1 GiB, of evenly spaced rows).

    Args:
        x: ``(N, *event)``.
        context: ``(N, *context)``, or None.
        weights: ``(N,)``, or None.
    """
    sha = hashlib.sha256()
    for name, data in (("x", x), ("context", context), ("weights", weights)):
        if data is not None:
            sha.update(f"{name} {tuple(data.shape)}".encode())
            hash_tensor(sha, name, data[:: max(1, -(-data.nbytes // HASHED_BYTES))])
    return sha.hexdigest()


def is_array(data: Any) -> bool:
    """Return whether this is data itself, not a stream of it."""
    return isinstance(data, Tensor) or hasattr(data, "__array__")


def check_weights(weights: Tensor, rows: int) -> Tensor:
    """Return weights (rows,) in double precision.

    Raises:
        ValueError: unless there is a finite number of at least 0 for each row.
    """
    if weights.shape != (rows,):
        raise ValueError(f"expected a weight for each of {rows} rows, got shape {tuple(weights.shape)}")
    weights = weights.double()
    bad = (~weights.isfinite() | (weights < 0)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise ValueError(f"expected finite weights of at least 0, got {weights[row]:g} in row {row}")
    return weights


def in_proportion(weights: Tensor, offset: float = 0.5) -> Tensor:
    """Return n of n places, each as often as its weight says, n w / sum(w), up to one; ascending.

    Systematic resampling (Kitagawa 1996): of equal weights each once.

    Args:
        weights: ``(n,)``, at least 0.
        offset: in [0, 1); where it is drawn uniformly, a place comes n w / sum(w) times on average.
    """
    ends = weights.double().cumsum(0)
    ends = ends * (len(ends) / ends[-1:])
    ends[-1:] = len(ends)  # whatever was rounded
    counts = (ends + offset).floor().diff(prepend=ends.new_zeros(1))
    return torch.arange(len(ends), device=ends.device).repeat_interleave(counts.long())


def as_tensor(data: Any, name: str) -> Tensor:
    """Return the data as a tensor that shares its memory where it can."""
    if isinstance(data, Tensor):
        return data.detach()
    array = np.asarray(data)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"expected numbers in {name}, got an array of type {array.dtype}")
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):  # which tensors cannot have
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        return torch.from_numpy(array)


def place(data: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    """Return the data on the device, floating-point data in the model's type."""
    return data.to(device, dtype if data.is_floating_point() and dtype is not None else data.dtype, non_blocking=True)

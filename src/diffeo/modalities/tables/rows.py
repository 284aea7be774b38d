"""Rows for training and for judging: in memory where they fit, else a stream from the file."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.modalities.tables.schema import Schema, load_weighted, naming_rows
from diffeo.modalities.tables.table import Table
from diffeo.training.batches import fingerprint, in_proportion
from diffeo.training.splitting import Parts, count_test, held_out_of_block, split_rows
from diffeo.training.stream import BatchStream, Item

__all__ = ["LARGE", "Split", "TableStream", "draw_rows", "split_table", "too_large"]

LARGE = 2**31  # bytes of encoded rows; beyond it they are streamed
POOL = 2**20  # rows of a stream that are shuffled together


@dataclass(frozen=True)
class Split:
    """Rows to train on, in memory or as a stream, rows for validation, and rows for a test, all of them tensors.

    ``x`` is (n, features); a context is (n, context_size) or None; weights are (n,) or None, and a stream's in the
    stream. ``test_x`` may be empty. ``hash`` identifies the whole table, but for the weights.
    """

    x: Tensor | TableStream
    context: Tensor | None
    valid_x: Tensor
    valid_context: Tensor | None
    test_x: Tensor
    test_context: Tensor | None
    rows: int
    hash: str
    weights: Tensor | None = None
    valid_weights: Tensor | None = None
    test_weights: Tensor | None = None

    def in_proportion(self) -> Split:
        """Return as many rows, to train on and for validation, each as often as its weight says."""
        chosen = self
        if self.weights is not None and isinstance(self.x, Tensor):
            rows = in_proportion(self.weights)
            chosen = replace(chosen, x=self.x[rows], context=_take(self.context, rows), weights=None)
        if self.valid_weights is not None:
            rows = in_proportion(self.valid_weights)
            x, context = self.valid_x[rows], _take(self.valid_context, rows)
            chosen = replace(chosen, valid_x=x, valid_context=context, valid_weights=None)
        return chosen


def split_table(
    table: Table, schema: Schema, batch_size: int, seed: int, test: float = 0.0, validates: bool = True
) -> Split:
    """Read a table and hold out a fraction of its rows for a test, a tenth of the others for validation or nothing.

    Raises:
        UserError: for bad input, or test rows asked of a table that does not fit into memory.
    """
    if too_large(schema):
        if test:
            raise UserError(
                f"{table.name}: test rows (--test) are taken from tables that fit into memory, and this one is read "
                "in parts; put some of its rows into a file of their own instead"
            )
        stream = TableStream(table, schema, batch_size, seed)
        valid, none = (stream.valid_x, stream.valid_context), stream.valid_x[:0]
        return Split(stream, None, *valid, none, None, stream.rows, stream.fingerprint, None, stream.valid_weights)
    x, context, weights = (None if part is None else torch.from_numpy(part) for part in load_weighted(table, schema))
    assert x is not None
    divided = split_rows(len(x), seed, count_test(len(x), test))
    if not validates:
        divided = Parts(torch.cat([divided.valid, divided.train]), divided.valid[:0], divided.test)
    parts = [(x[chosen], _take(context, chosen)) for chosen in divided]
    weighted = [_take(weights, chosen) for chosen in divided]
    for which, part in zip(("to train on", "for validation", "for the test"), weighted, strict=True):
        if part is not None and len(part) and not part.any():
            raise UserError(
                f"{table.name}: column {schema.weights!r}: every row {which} has weight 0; leave out such rows"
            )
    return Split(*parts[0], *parts[1], *parts[2], len(parts[0][0]), fingerprint(x, context), *weighted)


def too_large(schema: Schema) -> bool:
    """Whether the rows of a table do not fit into memory, and are streamed."""
    return 4 * schema.rows * (schema.features + schema.context_size) > LARGE


class TableStream(BatchStream):
    """The training rows of a table that is too large for memory.

    Every epoch reads the file again; rows are shuffled within pools of a million, so a file that is sorted should be
    shuffled once by its owner. About a tenth of the rows, drawn by the seed, are held out.
    """

    def __init__(self, table: Table, schema: Schema, batch_size: int, seed: int) -> None:
        self.table, self.schema, self.batch_size, self.seed = table, schema, batch_size, seed
        self.rows = 0
        held: list[_Block] = []
        for block, out in self._blocks():
            held.append(_choose(block, out))
            self.rows += int((~out).sum())
        self.valid_x, self.valid_context, self.valid_weights = _tensors(_join(held))

    def __len__(self) -> int:
        return self.rows // self.batch_size

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 of the schema, the number of rows, the size of a batch and the rows held out."""
        held = fingerprint(self.valid_x, self.valid_context, self.valid_weights)
        return hashlib.sha256(f"{self.schema.to_json()} {self.rows} {self.batch_size} {held}".encode()).hexdigest()

    def __iter__(self) -> Iterator[Item]:
        generator = np.random.default_rng((self.seed, self.epoch, 1))
        pool: list[_Block] = []
        held = 0
        for block, out in self._blocks():
            pool.append(_choose(block, ~out))
            held += len(pool[-1].x)
            if held >= POOL:
                # What does not fill a batch waits for the next pool.
                pool = [(yield from self._batches(pool, generator))]
                held = len(pool[0].x)
        yield from self._batches(pool, generator)

    def _batches(self, pool: list[_Block], generator: np.random.Generator) -> Generator[Item, None, _Block]:
        rows = _join(pool)
        order = generator.permutation(len(rows.x))
        whole = len(order) - len(order) % self.batch_size
        for start in range(0, whole, self.batch_size):
            x, context, weights = _tensors(_choose(rows, order[start : start + self.batch_size]))
            yield (x, context) if weights is None else (x, context, weights)
        return _choose(rows, order[whole:])

    def _blocks(self) -> Iterator[tuple[_Block, np.ndarray]]:
        """Yield the possible rows of the table that count, block by block, and which of them are held out."""
        for number, (encoded, weights) in enumerate(self.schema.weighted(self.table)):
            out = held_out_of_block(len(encoded.x), self.schema.rows, self.seed, number)
            used = ~encoded.impossible if weights is None else ~encoded.impossible & (weights > 0)
            yield _choose(_Block(encoded.x, encoded.context, weights), used), out[used]


def draw_rows(
    table: Table, schema: Schema, limit: int, seed: int, gaps: bool | None = None
) -> tuple[Tensor, Tensor | None, dict[str, int], int]:
    """Return at most ``limit`` rows of a table, drawn at random, without those that the schema calls impossible.

    ``gaps`` says whether the model knows missing cells, as ``Schema.encode`` takes it.

    Returns:
        x, context, the number of impossible rows by column, and the number of rows read.

    Raises:
        UserError: for bad input.
    """
    generator = np.random.default_rng((seed, 2))
    parts: list[_Block] = []
    keys = np.empty(0)
    reasons: dict[str, int] = {}
    rows = 0

    def thin() -> None:
        # The rows with the smallest of independent uniform keys are a uniform draw, whatever the table's length.
        nonlocal keys
        if len(keys) > limit:
            chosen = np.sort(np.argpartition(keys, limit)[:limit])
            keys, parts[:] = keys[chosen], [_choose(_join(parts), chosen)]

    context = [schema.names.index(name) for name in schema.context]
    for numbers, values in table.numbered(schema.names):
        with naming_rows(table):
            if context:
                schema.check_context(values[:, context], table, numbers)
            encoded = schema.encode(values, table.dictionaries, gaps)
        for column, count in encoded.reasons.items():
            reasons[column] = reasons.get(column, 0) + count
        rows += len(values)
        parts.append(_choose(_Block(encoded.x, encoded.context), ~encoded.impossible))
        keys = np.concatenate([keys, generator.random(len(parts[-1].x))])
        if len(keys) > 2 * limit:  # not every time: joining copies
            thin()
    thin()
    return *_tensors(_join(parts))[:2], reasons, rows


class _Block(NamedTuple):
    """Rows in arrays: x (n, features), context (n, context_size) or None, weights (n,) or None."""

    x: np.ndarray
    context: np.ndarray | None
    weights: np.ndarray | None = None


def _choose(block: _Block, rows: np.ndarray) -> _Block:
    return _Block(block.x[rows], *(None if part is None else part[rows] for part in block[1:]))


def _join(blocks: list[_Block]) -> _Block:
    x, *others = (None if parts[0] is None else np.concatenate(parts) for parts in zip(*blocks, strict=True))
    assert x is not None
    return _Block(x, *others)


def _tensors(block: _Block) -> tuple[Tensor, Tensor | None, Tensor | None]:
    context, weights = (None if part is None else torch.from_numpy(part) for part in block[1:])
    return torch.from_numpy(block.x), context, weights


def _take(part: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if part is None else part[rows]

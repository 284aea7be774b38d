"""Rows for training and for judging: in memory where they fit, else a stream from the file."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.modalities.tables.schema import Encoded, Schema, load, naming_rows
from diffeo.modalities.tables.table import Table
from diffeo.training.batches import fingerprint
from diffeo.training.splitting import count_test, held_out_of_block, split_rows
from diffeo.training.stream import BatchStream

__all__ = ["LARGE", "Split", "TableStream", "draw_rows", "split_table"]

LARGE = 2**31  # bytes of encoded rows; beyond it they are streamed
POOL = 2**20  # rows of a stream that are shuffled together


@dataclass(frozen=True)
class Split:
    """Rows to train on, in memory or as a stream, rows for validation, and rows for a test, all of them tensors.

    ``x`` is (n, features); a context is (n, context_size) or None. ``test_x`` may be empty. ``hash`` identifies the
    whole table.
    """

    x: Tensor | TableStream
    context: Tensor | None
    valid_x: Tensor
    valid_context: Tensor | None
    test_x: Tensor
    test_context: Tensor | None
    rows: int
    hash: str


def split_table(table: Table, schema: Schema, batch_size: int, seed: int, test: float = 0.0) -> Split:
    """Read a table and hold out a fraction of its rows for a test, a tenth of the others for validation.

    Raises:
        UserError: for bad input, or test rows asked of a table that does not fit into memory.
    """
    if 4 * schema.rows * (schema.features + schema.context_size) > LARGE:
        if test:
            raise UserError(
                f"{table.name}: test rows (--test) are taken from tables that fit into memory, and this one is read "
                "in parts; put some of its rows into a file of their own instead"
            )
        stream = TableStream(table, schema, batch_size, seed)
        none = stream.valid_x[:0]
        return Split(stream, None, stream.valid_x, stream.valid_context, none, None, stream.rows, stream.fingerprint)
    x, context = (None if part is None else torch.from_numpy(part) for part in load(table, schema))
    assert x is not None
    parts = [
        (x[chosen], None if context is None else context[chosen])
        for chosen in split_rows(len(x), seed, count_test(len(x), test))
    ]
    return Split(*parts[0], *parts[1], *parts[2], len(parts[0][0]), fingerprint(x, context))


class TableStream(BatchStream):
    """The training rows of a table that is too large for memory.

    Every epoch reads the file again; rows are shuffled within pools of a million, so a file that is sorted should be
    shuffled once by its owner. About a tenth of the rows, drawn by the seed, are held out.
    """

    def __init__(self, table: Table, schema: Schema, batch_size: int, seed: int) -> None:
        self.table, self.schema, self.batch_size, self.seed = table, schema, batch_size, seed
        self.rows = 0
        held: list[Encoded] = []
        for encoded, out in self._blocks():
            held.append(_choose(encoded, out))
            self.rows += int((~out).sum())
        self.valid_x, self.valid_context = _tensors(_join(held))

    def __len__(self) -> int:
        return self.rows // self.batch_size

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 of the schema, the number of rows, the size of a batch and the rows held out."""
        held = fingerprint(self.valid_x, self.valid_context)
        return hashlib.sha256(f"{self.schema.to_json()} {self.rows} {self.batch_size} {held}".encode()).hexdigest()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        generator = np.random.default_rng((self.seed, self.epoch, 1))
        pool: list[Encoded] = []
        held = 0
        for encoded, out in self._blocks():
            pool.append(_choose(encoded, ~out))
            held += len(pool[-1].x)
            if held >= POOL:
                # What does not fill a batch waits for the next pool.
                pool = [(yield from self._batches(pool, generator))]
                held = len(pool[0].x)
        yield from self._batches(pool, generator)

    def _batches(
        self, pool: list[Encoded], generator: np.random.Generator
    ) -> Generator[tuple[Tensor, Tensor | None], None, Encoded]:
        rows = _join(pool)
        order = generator.permutation(len(rows.x))
        whole = len(order) - len(order) % self.batch_size
        for start in range(0, whole, self.batch_size):
            yield _tensors(_choose(rows, order[start : start + self.batch_size]))
        return _choose(rows, order[whole:])

    def _blocks(self) -> Iterator[tuple[Encoded, np.ndarray]]:
        """Yield the possible rows of the table, block by block, and which of them are held out."""
        for number, values in enumerate(self.table.batches(self.schema.names)):
            encoded = self.schema.encode(values, self.table.dictionaries)
            out = held_out_of_block(len(values), self.schema.rows, self.seed, number)
            yield _choose(encoded, ~encoded.impossible), out[~encoded.impossible]


def draw_rows(
    table: Table, schema: Schema, limit: int, seed: int, gaps: bool | None = None
) -> tuple[Tensor, Tensor | None, dict[str, int], int, int]:
    """Return at most ``limit`` rows of a table, drawn at random, without those that the schema calls impossible.

    ``gaps`` says whether the model knows missing cells, as ``Schema.encode`` takes it.

    Returns:
        x, context, the number of impossible rows by column and in all, and the number of rows read.

    Raises:
        UserError: for bad input.
    """
    generator = np.random.default_rng((seed, 2))
    parts: list[Encoded] = []
    keys = np.empty(0)
    reasons: dict[str, int] = {}
    rows = impossible = 0

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
        impossible += int(encoded.impossible.sum())
        parts.append(_choose(encoded, ~encoded.impossible))
        keys = np.concatenate([keys, generator.random(len(parts[-1].x))])
        if len(keys) > 2 * limit:  # not every time: joining copies
            thin()
    thin()
    return *_tensors(_join(parts)), reasons, impossible, rows


def _choose(encoded: Encoded, rows: np.ndarray) -> Encoded:
    context = None if encoded.context is None else encoded.context[rows]
    return Encoded(encoded.x[rows], context, encoded.impossible[rows], {})


def _join(parts: list[Encoded]) -> Encoded:
    contexts = [part.context for part in parts if part.context is not None]
    return Encoded(
        np.concatenate([part.x for part in parts]),
        np.concatenate(contexts) if contexts else None,
        np.concatenate([part.impossible for part in parts]),
        {},
    )


def _tensors(encoded: Encoded) -> tuple[Tensor, Tensor | None]:
    return torch.from_numpy(encoded.x), None if encoded.context is None else torch.from_numpy(encoded.context)

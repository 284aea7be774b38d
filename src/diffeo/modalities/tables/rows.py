"""Rows for training and for judging: in memory where they fit, else a stream from the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.modalities.tables.block import Block
from diffeo.modalities.tables.schema import Schema, load_weighted, naming_rows
from diffeo.modalities.tables.stream import TableStream
from diffeo.modalities.tables.table import Table
from diffeo.training.batches import fingerprint, in_proportion
from diffeo.training.splitting import Parts, count_test, split_rows

__all__ = ["LARGE", "Sample", "Split", "TableStream", "draw_rows", "limit_of", "split_table", "too_large"]

LARGE = 2**31  # bytes of encoded rows; beyond it, or what the setting "memory" says, they are streamed
SAMPLED = 64  # row groups of such a table that are looked at


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
    table: Table,
    schema: Schema,
    batch_size: int,
    seed: int,
    test: float = 0.0,
    validates: bool = True,
    limit: int | None = None,
) -> Split:
    """Read a table and hold out a fraction of its rows for a test, a tenth of the others for validation or nothing.

    ``limit`` is that of bytes in memory, ``LARGE`` by default.

    Raises:
        UserError: for bad input.
    """
    if too_large(schema, limit=limit):
        stream = TableStream(table, schema, batch_size, seed, test)
        valid, tested = (stream.valid_x, stream.valid_context), (stream.test_x, stream.test_context)
        known = table.identity or stream.fingerprint
        return Split(stream, None, *valid, *tested, stream.rows, known, None, stream.valid_weights, stream.test_weights)
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


def limit_of(settings: Mapping[str, Any]) -> int:
    """Return how many bytes of encoded rows a training with these settings keeps in memory."""
    return LARGE if "memory" not in settings else round(settings["memory"] * 2**30)


def too_large(schema: Schema, rows: int | None = None, limit: int | None = None) -> bool:
    """Whether so many rows of a table, by default all, do not fit into memory, and are streamed."""
    size = 4 * (schema.rows if rows is None else rows) * (schema.features + schema.context_size)
    return size > (LARGE if limit is None else limit)


@dataclass(frozen=True)
class Sample:
    """Some row groups of a table that is larger than memory, in the order in which they are read.

    Attributes:
        groups: their numbers.
        total: how many the table has.
        wanted: which of a group's rows, given the number of the group and theirs within it, from 1 ``(n,)``; or None
            for all. Groups are then read until there are enough.
    """

    groups: list[int]
    total: int
    wanted: Callable[[int, np.ndarray], np.ndarray] | None = None

    @classmethod
    def of(
        cls, table: Table, schema: Schema, seed: int, wanted: Callable[[int, np.ndarray], np.ndarray] | None = None
    ) -> Sample | None:
        """Draw it; None of a table that is not so large unless some rows are wanted, or that has no row groups."""
        groups = table.row_groups
        if not groups or not (wanted or too_large(schema, table.num_rows)):
            return None
        order = np.random.default_rng((seed, 3)).permutation(np.flatnonzero(groups)).tolist()
        return cls(order if wanted is not None else sorted(order[:SAMPLED]), len(groups), wanted)

    def read(self, table: Table, names: Sequence[str]) -> Iterator[tuple[Table, np.ndarray, np.ndarray]]:
        """Yield each row group, the numbers of its rows in it, and their values, batch by batch."""
        for group in self.groups:
            part = table.row_group(group)
            for numbers, values in part.numbered(names):
                chosen = slice(None) if self.wanted is None else self.wanted(group, numbers)
                yield part, numbers[chosen], values[chosen]


def draw_rows(
    table: Table, schema: Schema, limit: int, seed: int, gaps: bool | None = None, sample: Sample | None = None
) -> tuple[Tensor, Tensor | None, dict[str, int], int, int]:
    """Return at most ``limit`` rows of a table, drawn at random, without those that have a value off its grid.

    ``gaps`` says whether the model knows missing cells, as ``Schema.encode`` takes it; the ``sample`` which row groups
    to draw from.

    Returns:
        x, context, the number of rows with a value off its grid by column and in all, and the number of rows read.

    Raises:
        UserError: for bad input.
    """
    generator = np.random.default_rng((seed, 2))
    parts: list[Block] = []
    keys = np.empty(0)
    reasons: dict[str, int] = {}
    rows = off_grid = 0

    def thin() -> None:
        # The rows with the smallest of independent uniform keys are a uniform draw, whatever the table's length.
        nonlocal keys
        if len(keys) > limit:
            chosen = np.sort(np.argpartition(keys, limit)[:limit])
            keys, parts[:] = keys[chosen], [Block.join(parts).choose(chosen)]

    context = [schema.names.index(name) for name in schema.context]
    everything = ((table, *each) for each in table.numbered(schema.names))
    for part, numbers, values in everything if sample is None else sample.read(table, schema.names):
        with naming_rows(part):
            if context:
                schema.check_context(values[:, context], part, numbers)
            encoded = schema.encode(values, part.dictionaries, gaps)
        for column, count in encoded.reasons.items():
            reasons[column] = reasons.get(column, 0) + count
        rows += len(values)
        off_grid += int(encoded.off.sum())
        parts.append(Block(encoded.x, encoded.context).choose(~encoded.off))
        keys = np.concatenate([keys, generator.random(len(parts[-1]))])
        if sample is not None and sample.wanted is not None and len(keys) >= limit:
            break
        if len(keys) > 2 * limit:  # not every time: joining copies
            thin()
    thin()
    return *Block.join(parts).tensors()[:2], reasons, off_grid, rows


def _take(part: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if part is None else part[rows]

"""Rows for training and for judging: in memory where they fit, else a stream from the file."""

from __future__ import annotations

from dataclasses import dataclass, replace

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

__all__ = ["LARGE", "Split", "TableStream", "draw_rows", "split_table", "too_large"]

LARGE = 2**31  # bytes of encoded rows; beyond it they are streamed


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
        UserError: for bad input.
    """
    if too_large(schema):
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


def too_large(schema: Schema) -> bool:
    """Whether the rows of a table do not fit into memory, and are streamed."""
    return 4 * schema.rows * (schema.features + schema.context_size) > LARGE


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
    parts: list[Block] = []
    keys = np.empty(0)
    reasons: dict[str, int] = {}
    rows = impossible = 0

    def thin() -> None:
        # The rows with the smallest of independent uniform keys are a uniform draw, whatever the table's length.
        nonlocal keys
        if len(keys) > limit:
            chosen = np.sort(np.argpartition(keys, limit)[:limit])
            keys, parts[:] = keys[chosen], [Block.join(parts).choose(chosen)]

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
        parts.append(Block(encoded.x, encoded.context).choose(~encoded.impossible))
        keys = np.concatenate([keys, generator.random(len(parts[-1].x))])
        if len(keys) > 2 * limit:  # not every time: joining copies
            thin()
    thin()
    return *Block.join(parts).tensors()[:2], reasons, impossible, rows


def _take(part: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if part is None else part[rows]

"""The training rows of a table that is larger than memory.

A table has *units*, which can be read alone: the row groups of its Parquet files; other formats are one unit each.
Units are dealt into *lanes*, up to sixteen of about as many rows each. An epoch goes through each lane's units in an
order that the seed decides, through its rows in shuffled pools, and takes from each lane the same share of every batch.
So a batch holds rows of as many places of the table as there are lanes, and one of several processes reads the units of
its lanes alone; which batches there are depends on the data and the seed, never on the number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np

from diffeo.errors import UserError
from diffeo.modalities.tables.block import Block
from diffeo.modalities.tables.schema import Schema
from diffeo.modalities.tables.seen import TEST, TRAIN, VALID
from diffeo.modalities.tables.table import ROWS, Table
from diffeo.training.batches import EXAMPLES, fingerprint
from diffeo.training.seeding import derive
from diffeo.training.splitting import MOST_HELD_OUT, held_out_of_stream
from diffeo.training.stream import BatchStream, Item

__all__ = ["TableStream", "parts_of"]

LANES = 16
POOL = 2**21  # rows in the pools of all lanes together, and bytes of them at most
POOL_BYTES = 2**28
READERS, PAGE = 2**30, 2**20  # bytes that reading all lanes at once may take; of a page, which a column is decoded by
FEWEST = 1024  # rows that are decoded at a time, of a table of thousands of columns
HELD_OUT_BYTES = 2**28  # of the rows held out for validation, and of those for the test


class Planned(NamedTuple):
    """A block of an epoch: in which unit, the number within it, and in which of the lane's pools its rows are."""

    unit: int
    number: int
    pool: int


class TableStream(BatchStream):
    """The training rows of a table that is too large for memory, read anew in every epoch.

    Rows are held out by a hash of the seed and of their place in the table: a tenth for validation, a fraction for a
    test, but of each 200,000 or 256 MiB at most.

    Args:
        table: the table, which is read once to begin with.
        schema: says how to encode.
        batch_size: rows of a batch.
        seed: decides what is held out, and the order of the rest.
        test: the fraction of rows for the test.

    Attributes:
        rows: how many to train on.
        valid_x, valid_context, valid_weights: those held out for validation; ``test_x`` ... for the test.

    Raises:
        UserError: for bad input.
    """

    def __init__(self, table: Table, schema: Schema, batch_size: int, seed: int, test: float = 0.0) -> None:
        self.table, self.schema, self.batch_size, self.seed, self.test = table, schema, batch_size, seed, test
        width = 4 * max(1, schema.features + schema.context_size)
        self.pool = max(FEWEST, min(POOL, POOL_BYTES // width))
        self.block = max(FEWEST, min(ROWS, self.pool // LANES // 4))
        self._grouped = bool(table.row_groups)
        self.units = len(table.row_groups) or 1
        self.counts: list[np.ndarray] = []  # training rows of each unit, block by block
        held: dict[int, list[Block]] = {VALID: [], TEST: []}
        dropped = 0
        for unit in range(self.units):
            counts = []
            part_of_table = self._unit(unit)
            for block, part in self._blocks(part_of_table, unit):
                counts.append(int((part == TRAIN).sum()))
                for which, blocks in held.items():
                    if (part == which).any() or not blocks:
                        blocks.append(block.choose(part == which))
            self.counts.append(np.array(counts, dtype=np.int64))
            dropped += part_of_table.dropped
        table.dropped = dropped
        self.rows = int(sum(counts.sum() for counts in self.counts))
        if not self.rows:
            raise UserError(f"{table.name}: no row is left to train on; give a table with more data")
        self.valid_x, self.valid_context, self.valid_weights = Block.join(held[VALID]).tensors()
        self.test_x, self.test_context, self.test_weights = Block.join(held[TEST]).tensors()

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def note(self, limit: int) -> str:
        """Say how the rows are read, of which those beyond a limit of so many bytes are not kept in memory."""
        size = 4 * self.schema.rows * (self.schema.features + self.schema.context_size)
        order = (
            f"{self.units:,} row groups in an order that the seed decides, {len(self.lanes)} of them at a time"
            if self._grouped
            else f"in their order, shuffled {self.pool:,} at a time, so shuffle a file that is sorted once yourself"
        )
        seen = f"described from all rows, standardised by {min(EXAMPLES, self.rows):,} of them"
        held = f"{len(self.valid_x):,} rows are held out for validation"
        tested = f" and {len(self.test_x):,} for the test" if len(self.test_x) else ""
        return (
            f"{self.schema.rows:,} rows take {_size(size)}, more than {_size(limit)}, and are read in every epoch:"
            f" {order}; columns are {seen}; {held}{tested}"
        )

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 of the schema, what Parquet files say of themselves, the validation rows, and how all are read."""
        held = fingerprint(self.valid_x, self.valid_context, self.valid_weights)
        reading = self.rows, self.batch_size, self.seed, self.test, self.pool, self.block, LANES
        text = f"{self.schema.to_json()} {self.table.identity} {held} {reading}"
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def lanes(self) -> list[list[int]]:
        """The units of each lane, dealt so that lanes have about as many rows: the largest first, to the emptiest."""
        rows = [int(counts.sum()) for counts in self.counts]
        page = min(PAGE, 8 * max(self.table.row_groups, default=1))
        readers = max(2, READERS // (2 * page * len(self.schema.names)))
        lanes = 1 << (min(LANES, readers, max(1, sum(count > 0 for count in rows))).bit_length() - 1)
        while True:
            dealt: list[list[int]] = [[] for _ in range(lanes)]
            total = [0] * lanes
            for unit in sorted(range(self.units), key=lambda unit: -rows[unit]):
                lane = total.index(min(total))
                dealt[lane].append(unit)
                total[lane] += rows[unit]
            even = 2 * min(total) >= max(total) and 2 * self.rows <= min(total) * self.batch_size
            if lanes == 1 or even:
                return dealt
            lanes //= 2

    def __iter__(self) -> Iterator[Item]:
        return (item for item, _ in self.part(0, 0, 1))

    def part(self, start: int, rank: int, size: int) -> Iterator[tuple[Item, int]]:
        """Yield one process's rows of the batches from number ``start`` on, read from its own lanes.

        Where there are more processes than lanes, a lane's rows are divided among several.
        """
        lanes, epoch = len(self.lanes), self.epoch
        if size <= lanes:
            chosen = [(lane, 0, 1) for lane in range(rank * lanes // size, (rank + 1) * lanes // size)]
        else:
            lane = rank * lanes // size
            sharing = [other for other in range(size) if other * lanes // size == lane]
            chosen = [(lane, sharing.index(rank), len(sharing))]
        taps = [_Tap(self._pools(lane, epoch, self._taken(lane, start)), part, of) for lane, part, of in chosen]
        for batch in range(start, len(self)):
            blocks = [
                tap.take(self._taken(lane, batch + 1) - self._taken(lane, batch))
                for tap, (lane, _, _) in zip(taps, chosen, strict=True)
            ]
            x, context, weights = Block.join(blocks).tensors()
            yield ((x, context) if weights is None else (x, context, weights)), self.batch_size

    @cached_property
    def _starts(self) -> list[int]:
        """How many rows come before those of each lane; of all lanes at the end."""
        return np.cumsum([0, *(sum(int(self.counts[unit].sum()) for unit in lane) for lane in self.lanes)]).tolist()

    def _taken(self, lane: int, batches: int) -> int:
        """How many rows of a lane are in so many batches: its share of them, which differs by a row from the exact one.

        Over all lanes these are whole batches, and over the epoch no more than the lane has.
        """
        before, after = self._starts[lane], self._starts[lane + 1]
        total = batches * self.batch_size
        return total * after // self.rows - total * before // self.rows

    def _pools(self, lane: int, epoch: int, skip: int) -> Iterator[Block]:
        """Yield a lane's rows in an epoch in shuffled pools, but for the first so many, whose units are not read."""
        order = np.random.default_rng(derive(self.seed, "units", epoch, lane)).permutation(self.lanes[lane]).tolist()
        limit = max(1, self.pool // len(self.lanes))
        plan: list[Planned] = []
        sizes = [0]
        for unit in order:
            for number, count in enumerate(self.counts[unit].tolist()):
                if sizes[-1] >= limit:
                    sizes.append(0)
                sizes[-1] += count
                plan.append(Planned(unit, number, len(sizes) - 1))
        first = int(np.searchsorted(np.cumsum(sizes), skip, side="right"))
        skip -= sum(sizes[:first])
        pending: list[Block] = []
        number = first
        for unit, group in groupby(plan, key=lambda planned: planned.unit):
            blocks = list(group)
            if blocks[-1].pool < first:
                continue
            for planned, block in zip(blocks, self._train(unit), strict=True):
                if planned.pool > number:
                    rows, pending = pending, []
                    if rows:
                        yield self._shuffled(rows, lane, epoch, number).choose(slice(skip, None))
                    number, skip = planned.pool, 0
                if planned.pool >= first:
                    pending.append(block)
        if pending:
            yield self._shuffled(pending, lane, epoch, number).choose(slice(skip, None))

    def _shuffled(self, blocks: list[Block], lane: int, epoch: int, pool: int) -> Block:
        rows = Block.join(blocks)
        blocks.clear()  # memory that whoever asked holds on to
        return rows.choose(np.random.default_rng(derive(self.seed, "rows", epoch, lane, pool)).permutation(len(rows)))

    def _train(self, unit: int) -> Iterator[Block]:
        """Yield a unit's training rows block by block, as many as they were at first."""
        number = 0
        for number, (block, part) in enumerate(self._blocks(self._unit(unit), unit), start=1):
            rows = block.choose(part == TRAIN)
            if number > len(self.counts[unit]) or len(rows) != self.counts[unit][number - 1]:
                raise self._changed()
            yield rows
        if number != len(self.counts[unit]):
            raise self._changed()

    def _changed(self) -> UserError:
        return UserError(f"{self.table.name}: has changed while it was trained on; start again with --force")

    def _unit(self, unit: int) -> Table:
        return self.table.row_group(unit) if self._grouped else self.table

    def _blocks(self, table: Table, unit: int) -> Iterator[tuple[Block, np.ndarray]]:
        """Yield a unit's rows on all grids that count, block by block, and which part each is in."""
        for numbers, encoded, weights in self.schema.weighted(table, self.block):
            part = parts_of(self.schema, numbers, self.seed, unit, self.test)
            used = ~encoded.off if weights is None else ~encoded.off & (weights > 0)
            yield Block(encoded.x, encoded.context, weights).choose(used), part[used]


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def parts_of(schema: Schema, numbers: np.ndarray, seed: int, unit: int, test: float) -> np.ndarray:
    """Return which part of a table that is streamed these rows are in: ``TRAIN``, ``VALID`` or ``TEST`` ``(n,)``.

    Args:
        schema: of the table.
        numbers: of the rows within their unit, from 1 ``(n,)``.
        seed: of the training.
        unit: the number of the row group, 0 of what has none.
        test: the fraction for the test.
    """
    width = 4 * max(1, schema.features + schema.context_size)
    most = max(1, min(MOST_HELD_OUT, HELD_OUT_BYTES // width))
    valid, tested = held_out_of_stream(numbers, schema.rows, derive(seed, "held out", unit), test, most)
    return np.where(tested, TEST, np.where(valid, VALID, TRAIN))


class _Tap:
    """Rows that come in pools, taken in any number; of several processes every one takes its part of them.

    Args:
        pools: of rows.
        part: which of the processes this is.
        of: how many there are.
    """

    def __init__(self, pools: Iterator[Block], part: int, of: int) -> None:
        self._pools, self._part, self._of = pools, part, of
        self._rows: Block | None = None
        self._at = 0

    def take(self, count: int) -> Block:
        """Return the process's part of the next rows."""
        blocks = []
        left = count
        while self._rows is None or left > len(self._rows) - self._at:
            if self._rows is not None:
                blocks.append(self._rows.choose(slice(self._at, None)))
                left -= len(blocks[-1])
            self._rows, self._at = next(self._pools), 0
        blocks.append(self._rows.choose(slice(self._at, self._at + left)))
        self._at += left
        rows = Block.join(blocks)
        blocks.clear()  # memory that whoever asked holds on to
        return rows.choose(slice(count * self._part // self._of, count * (self._part + 1) // self._of))

"""One scorer and one sampler for every engine: Ray Data, Spark, Dask, Daft, or a loop of one's own.

Both are small objects that can be sent anywhere: a path and options. Each process opens the run once. What they say of
a row depends on the row alone, not on the rows beside it, the partition, or the engine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from diffeo.commands.processes import Kept, digest_of, kept, place_of
from diffeo.commands.runs import with_likelihood
from diffeo.commands.scoring import scores
from diffeo.errors import UserError
from diffeo.modalities.base import Chunk, Scoring, chunks_of
from diffeo.modalities.tables.anomalies import by_column
from diffeo.modalities.tables.run import TableRun
from diffeo.modalities.tables.schema import NUMBERS, Schema
from diffeo.modalities.tables.table import Table
from diffeo.modalities.tables.write import arrow_columns
from diffeo.report.anomalies import ColumnShares
from diffeo.training.seeding import derive, fork_rng, seed_noise

__all__ = ["Sampler", "Scorer"]

DRAWN = 1024  # rows that are drawn together: those whose number has the same quotient by it
MISSING = ("error", "drop")


class Scorer:
    r"""Add the log-likelihood of every row, and how rare it is, to a batch of rows, whatever holds them.

    .. math:: \log p(x), \quad p\text{-value}, \quad p \le \alpha, \quad \text{shares of the columns}

    A batch is a dict of arrays, a ``RecordBatch`` or ``Table`` of pyarrow, or a data frame of pandas; the result is
    what was given, with columns added at the end, and the batch itself stays as it is. Columns are matched by name, and
    others pass through. The columns added are those that the commands ``score`` and ``anomalies`` write:
    ``log_likelihood``, in nats; with ``p_values`` also ``score`` and ``p_value``; with ``flags`` ``anomaly``; with
    ``shares`` ``share_`` of every column and ``column``, the one with the largest, of rows that are flagged.

    It pickles in less than a kilobyte. A process opens the run when it is first called there, once for all scorers, and
    refuses one whose files differ from those that the scorer was made with. A row gets the same score to the last bit
    in whatever batch it comes.

    Args:
        run: a run directory of a table, or its URI (``s3://bucket/run``).
        columns: which columns of a batch are the run's: names in the run's order, or by the run's names; or the name of
            one column whose cells are whole rows, vectors in the run's order. By default those of the same names.
        p_values: how rare the likelihood is among those of held-out rows.
        flags: whether the p-value is at most ``alpha``.
        shares: what each column adds, in nats above what is usual, where the p-value is at most ``alpha``.
        alpha: the p-value up to which rows are flagged.
        drop: columns that a mixed density leaves out.
        conditions: columns that the likelihood of the others is conditional on, of a mixed density.
        missing: what becomes of rows with missing or infinite values, where the model does not know them: ``"error"``,
            or ``"drop"``, and they are left out of the result.
        seed: of the samples that shares are measured by.
        device: where to compute; a GPU if there is one.
        threads: to compute with; by default what the engine grants.

    Raises:
        UserError: for a bad run directory, one that is not of a table or has no likelihood, or (with p-values) no
            held-out rows.

    Example:
        >>> _ = diffeo.commands.fit(torch.randn(200, 2).numpy(), "run", folds=1, epochs=1, figures=False)
        >>> scorer = diffeo.Scorer("run", columns="vector")
        >>> batch = scorer({"id": [7, 8], "vector": torch.zeros(2, 2)})
        >>> list(batch), batch["log_likelihood"].shape
        (['id', 'vector', 'log_likelihood'], (2,))
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        columns: str | Sequence[str] | Mapping[str, str] | None = None,
        *,
        p_values: bool = False,
        flags: bool = False,
        shares: bool = False,
        alpha: float = 0.01,
        drop: Sequence[str] = (),
        conditions: Sequence[str] = (),
        missing: str = "error",
        seed: int = 0,
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        if missing not in MISSING:
            raise ValueError(f"expected missing to be one of {', '.join(MISSING)}, got {missing!r}")
        if not 0 < alpha < 1:
            raise ValueError(f"expected alpha in (0, 1), got {alpha}")
        self.run, self.columns = place_of(run), columns if isinstance(columns, str | Mapping | None) else [*columns]
        self.p_values, self.flags, self.shares, self.alpha = p_values, flags, shares, alpha
        self.options = {
            "drop": [*drop],
            "conditions": [*conditions],
            **({"missing": missing} if missing != "error" else {}),
        }
        self.seed, self.device, self.threads = seed, device, threads
        self.digest = digest_of(self.run)
        opened = self._opened()
        with_likelihood(opened.run)
        if self._judges and (drop or conditions):
            raise ValueError("expected p-values of whole rows, got columns to drop, or that others are conditional on")
        if self._judges:
            _ = opened.held_out
        _matched(self.columns, opened.run.schema)

    def __repr__(self) -> str:
        """Return the run and what is added."""
        return f"Scorer({self.run!r}: {', '.join(self.added)})"

    @property
    def added(self) -> dict[str, str]:
        """The columns that are added to a batch, by name their Arrow types."""
        names = self._opened().run.schema.places
        return {
            "log_likelihood": "double",
            **({"score": "double", "p_value": "double"} if self.p_values else {}),
            **({"anomaly": "bool"} if self.flags else {}),
            **({**{f"share_{name}": "double" for name in names}, "column": "string"} if self.shares else {}),
        }

    def __call__(self, batch: Any) -> Any:
        """Return a batch with the columns added.

        Args:
            batch: rows; see above. It may be empty, as partitions are.

        Raises:
            UserError: for missing columns, columns of another kind or of the names that are added, or missing values.
            TypeError: for what is no batch.
        """
        opened, rows = self._opened(), _holder(batch)
        added = self.added
        _refuse_taken(added, rows.names)
        with opened.in_use(self.threads) as run, fork_rng(run.device):
            source = _source(rows, _matched(self.columns, run.schema), run.schema)
            scoring = run.scoring(source, self.options, "anomalies" if self._judges else "score", Table.as_part)
            chunks = chunks_of(run, scoring, self.seed, _silent) if rows.count else ()
            parts = [(chunk.cells[:, 0], self._scored(opened, scoring, chunk)) for chunk in chunks]
        which = np.concatenate([np.empty(0), *(numbers for numbers, _ in parts)]).astype(np.int64) - 1
        new = {
            name: pa.chunked_array(
                [pa.array(values[name], _TYPES[kind], from_pandas=name.startswith("share_")) for _, values in parts],
                _TYPES[kind],
            ).combine_chunks()
            for name, kind in added.items()
        }
        return rows.extended(new, which if len(which) < rows.count else None)

    @property
    def _judges(self) -> bool:
        return self.p_values or self.flags or self.shares

    def _opened(self) -> Kept:
        return kept(self.run, self.digest, self.device)

    def _scored(self, opened: Kept, scoring: Scoring, chunk: Chunk) -> dict[str, Any]:
        """The columns to add to a chunk of rows, by name."""
        if not self._judges:
            return {"log_likelihood": scores(opened.run, chunk, scoring.draws)}
        log_prob, score, p_value = (each.numpy() for each in opened.held_out.judged(chunk, scoring.draws))
        flagged = p_value <= self.alpha
        values: dict[str, Any] = {
            "log_likelihood": log_prob, "score": score, "p_value": p_value, "anomaly": flagged,
        }  # fmt: skip
        if self.shares:
            names = list(opened.run.schema.places)
            strange, largest = np.full((len(flagged), len(names)), np.nan), np.full(len(flagged), None, dtype=object)
            for row in np.flatnonzero(flagged):
                strange[row], largest[row] = self._shares_of(opened, chunk, slice(row, row + 1))
            values |= {f"share_{name}": strange[:, i] for i, name in enumerate(names)} | {"column": largest}
        return values

    def _shares_of(self, opened: Kept, chunk: Chunk, row: slice) -> tuple[np.ndarray, str]:
        """The shares of one row, alone: what they are measured by is drawn anew for its context, if it has one."""
        assert chunk.part is not None
        assert chunk.off_grid is not None
        if chunk.context is None:
            shares = opened.shares(self.seed)
        else:
            seed_noise(opened.run.device, derive(self.seed, "anomalies"))
            shares = ColumnShares(opened.run.flow, chunk.context[row])
        strange, largest = by_column(opened.run, shares.of(chunk.x[row], chunk.part[row]), chunk.off_grid[row])
        return strange[0], largest[0]


class Sampler:
    r"""Draw a row for every row number of a batch, whatever holds them.

    Row i of the result depends on the seed and on i alone: however the numbers are divided, it is the same. The
    columns drawn are added to those of the batch; those that the model is conditional on are taken from it.

    It pickles in less than a kilobyte, and opens the run once in each process, as ``Scorer`` does. Batches of
    consecutive numbers are fast: rows are drawn 1,024 at a time, i from the same draw as all with the same quotient.

    Args:
        run: a run directory of a table, or its URI.
        row: the column of row numbers, whole and not negative, each once in a batch: ``id`` of ``ray.data.range``,
            ``spark.range`` and ``daft.range``.
        seed: the same seed draws the same rows.
        device: where to compute; a GPU if there is one.
        threads: to compute with; by default what the engine grants.

    Raises:
        UserError: for a bad run directory, or one that is not of a table.

    Example:
        >>> _ = diffeo.commands.fit(torch.randn(200, 2).numpy(), "rows", folds=1, epochs=1, figures=False)
        >>> sampler = diffeo.Sampler("rows", seed=1)
        >>> rows, again = sampler({"id": torch.arange(5)}), sampler({"id": [3]})
        >>> list(rows), bool(rows["c0"][3] == again["c0"][0])
        (['id', 'c0', 'c1'], True)
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        *,
        row: str = "id",
        seed: int = 0,
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.run, self.row, self.seed = place_of(run), row, seed
        self.device, self.threads = device, threads
        self.digest = digest_of(self.run)
        self._opened()

    def __repr__(self) -> str:
        """Return the run and the seed."""
        return f"Sampler({self.run!r}, seed={self.seed})"

    def __call__(self, batch: Any) -> Any:
        """Return a batch with the columns that were drawn.

        Args:
            batch: row numbers, and the columns that the model is conditional on; see above. It may be empty.

        Raises:
            UserError: for a column that is missing, or that has the name of one to draw, or for bad row numbers.
            TypeError: for what is no batch.
        """
        opened, rows = self._opened(), _holder(batch)
        schema = opened.run.schema
        _refuse_taken([name for name in schema.names if name not in schema.context], rows.names)
        numbers = self._numbers(rows)
        with opened.in_use(self.threads) as run, fork_rng(run.device):
            context, about = self._contexts(run, rows)
            x = np.empty((rows.count, schema.features))
            for block in np.unique(numbers // DRAWN).tolist():
                here = np.flatnonzero(numbers // DRAWN == block)
                places = numbers[here] % DRAWN
                seed_noise(run.device, derive(self.seed, "sampler", block))
                if context is None:
                    drawn = run.flow.sample(DRAWN)
                else:  # whatever the contexts of the others are, the noise of these is the same
                    whole = context[here[:1]].repeat(DRAWN, 1)
                    whole[places] = context[here]
                    drawn = run.flow.sample((), whole.to(run.device))
                x[here] = drawn[places].double().cpu().numpy()
        cells = schema.decode(x, about)
        categories = {name: pa.array(texts, pa.string()) for name, texts in schema.categories.items()}
        arrays = dict(zip(schema.names, arrow_columns(cells, schema.names, schema.dtypes, categories), strict=True))
        return rows.extended({name: each for name, each in arrays.items() if name not in schema.context}, None)

    def _opened(self) -> Kept:
        return kept(self.run, self.digest, self.device)

    def _numbers(self, rows: _Holder) -> np.ndarray:
        if self.row not in rows.names:
            raise UserError(f"the batch lacks column {self.row!r}, of row numbers; it has {', '.join(rows.names)}")
        numbers = np.asarray(rows.array(self.row))
        if numbers.dtype.kind not in "iu" or (numbers < 0).any() or len(np.unique(numbers)) < len(numbers):
            raise UserError(f"column {self.row!r}: expected row numbers, whole, not negative, and each once in a batch")
        return numbers.astype(np.int64)

    @staticmethod
    def _contexts(run: TableRun, rows: _Holder) -> tuple[torch.Tensor | None, np.ndarray | None]:
        """The contexts of all rows as the flow takes them, and the context columns' own values."""
        names = run.schema.context
        if not names:
            return None, None
        if not rows.count:
            return None, np.empty((0, len(names)))
        draws, _ = run.draws(None, {"given_from": _source(rows, {name: name for name in names}, run.schema)})
        parts = list(draws)
        contexts = [part.context for part in parts if part.context is not None]
        return torch.cat(contexts) if contexts else None, np.concatenate([part.about for part in parts])


_TYPES = {"double": pa.float64(), "bool": pa.bool_(), "string": pa.string()}


class _Holder(Protocol):
    """What holds rows."""

    names: list[str]
    count: int

    def array(self, name: str) -> Any:
        """Return a column as Arrow or numpy has it; of vectors (n, D)."""

    def extended(self, new: Mapping[str, pa.Array], rows: np.ndarray | None) -> Any:
        """Return the same kind of thing with more columns, of these rows alone."""


class _Arrays:
    """A dict of arrays."""

    def __init__(self, batch: Mapping[str, Any]) -> None:
        self._batch = {name: np.asarray(values) for name, values in batch.items()}
        self.names = [*self._batch]
        lengths = {len(values) for values in self._batch.values()}
        if len(lengths) != 1:
            raise UserError(f"expected columns of one length, got {', '.join(map(str, sorted(lengths))) or 'none'}")
        (self.count,) = lengths

    def array(self, name: str) -> np.ndarray:
        values = self._batch[name]
        return np.stack([*values]) if values.dtype == object and values.ndim == 1 and _vectors(values) else values

    def extended(self, new: Mapping[str, pa.Array], rows: np.ndarray | None) -> dict[str, np.ndarray]:
        old = self._batch if rows is None else {name: values[rows] for name, values in self._batch.items()}
        return {**old, **{name: _numpy(values) for name, values in new.items()}}


class _Arrow:
    """A record batch or a table of pyarrow."""

    def __init__(self, batch: pa.RecordBatch | pa.Table) -> None:
        self._batch = batch
        self.names, self.count = batch.schema.names, batch.num_rows

    def array(self, name: str) -> Any:
        column = self._batch.column(self.names.index(name))
        if isinstance(column.type, pa.BaseExtensionType) and hasattr(pa.lib, "FixedShapeTensorType"):
            column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            return column.to_numpy_ndarray() if hasattr(column, "to_numpy_ndarray") else column.storage
        return column

    def extended(self, new: Mapping[str, pa.Array], rows: np.ndarray | None) -> Any:
        batch = self._batch if rows is None else self._batch.take(pa.array(rows))
        schema = batch.schema
        for name, values in new.items():
            schema = schema.append(pa.field(name, values.type))
        return type(batch).from_arrays([*batch.columns, *new.values()], schema=schema)


class _Frame:
    """A data frame of pandas."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self.names, self.count = [str(name) for name in batch.columns], len(batch)

    def array(self, name: str) -> Any:
        column = self._batch.iloc[:, self.names.index(name)]
        return (
            np.stack([*column]) if column.dtype == object and _vectors(column) else pa.array(column, from_pandas=True)
        )

    def extended(self, new: Mapping[str, pa.Array], rows: np.ndarray | None) -> Any:
        batch = self._batch.copy(deep=False) if rows is None else self._batch.iloc[rows]
        return batch.assign(**{name: values.to_pandas().array for name, values in new.items()})


def _holder(batch: Any) -> _Holder:
    if isinstance(batch, Mapping):
        return _Arrays(batch)
    if isinstance(batch, pa.RecordBatch | pa.Table):
        return _Arrow(batch)
    if hasattr(batch, "iloc") and hasattr(batch, "columns"):
        return _Frame(batch)
    raise TypeError(f"expected a dict of arrays, an Arrow batch or a data frame of pandas, got {type(batch).__name__}")


def _vectors(values: Any) -> bool:
    return len(values) > 0 and isinstance(next(iter(values)), np.ndarray | list)


def _numpy(values: pa.Array) -> np.ndarray:
    return (
        np.array(values.to_pandas())
        if pa.types.is_string(values.type)
        else values.to_numpy(zero_copy_only=False).copy()
    )


def _matched(columns: str | Sequence[str] | Mapping[str, str] | None, schema: Schema) -> str | dict[str, str]:
    """The names that a batch has for the run's columns; or the one of the column that holds them all.

    Raises:
        UserError: for another number of names than the run has columns, or columns that it has not.
    """
    if isinstance(columns, str):
        return columns
    same = {name: name for name in schema.names}
    if isinstance(columns, Mapping):
        unknown = [name for name in columns if name not in same]
        if unknown:
            raise UserError(f"the run has no column {unknown[0]!r}; it has {', '.join(map(repr, same))}")
        return same | dict(columns)
    if columns is not None and len(columns) != len(same):
        raise UserError(f"expected a name for each of the columns {', '.join(map(repr, same))}, got {len(columns)}")
    return same if columns is None else dict(zip(same, columns, strict=True))


def _source(rows: _Holder, match: str | Mapping[str, str], schema: Schema) -> Any:
    """The run's columns of a batch as a table is opened from; others are there in name alone.

    Of an empty batch they have a row, which nobody reads: a table without rows is refused.
    """
    if isinstance(match, str):
        if match not in rows.names:
            raise UserError(f"the batch lacks column {match!r}, of vectors; it has {', '.join(map(repr, rows.names))}")
        if not rows.count:
            return np.zeros((1, len(schema.names)))
        vectors = rows.array(match)
        if not isinstance(vectors, np.ndarray):
            vectors = np.array(vectors.to_pylist(), dtype=np.float64)
        return vectors.reshape(rows.count, -1)
    ours = {theirs: name for name, theirs in match.items()}
    texts = {column.name for column in schema.columns if column.dtype not in NUMBERS}
    arrays, names = [], []
    for name in rows.names:
        if name not in ours and name in match:  # the run's name, but another column
            continue
        values: Any = pa.nulls(max(1, rows.count))
        try:
            if name in ours and rows.count:
                values = rows.array(name)
                values = (
                    values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, from_pandas=True)
                )
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise UserError(f"column {name!r} cannot be read ({str(error).splitlines()[0][:200]})") from error
        if pa.types.is_null(values.type) and ours.get(name) in texts:
            values = values.cast(pa.string())
        arrays.append(values)
        names.append(ours.get(name, name))
    return pa.Table.from_arrays(arrays, names)


def _refuse_taken(names: Iterable[str], there: Sequence[str]) -> None:
    taken = [name for name in names if name in there]
    if taken:
        raise UserError(f"column {taken[0]!r} is in the batch, and would be added; rename it")


def _silent(done: int, total: int | None) -> None:
    return

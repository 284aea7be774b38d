"""Predictions of a table's columns by a conditional run: quantiles of each target given the context of each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.modalities.tables.run import ROW, TableRun
from diffeo.modalities.tables.schema import Column, Schema, naming_rows
from diffeo.modalities.tables.seen import TRAIN
from diffeo.modalities.tables.table import Table, open_table
from diffeo.report.prediction import crps, ensemble, has_cdf, pit, quantiles
from diffeo.training.folds import out_of_fold
from diffeo.training.seeding import derive

__all__ = ["Predicted", "Prediction", "check_targets", "in_units", "predicted_points", "predicted_quantiles"]

NUMBERS = ("continuous", "integer", "levels")


@dataclass(frozen=True)
class Predicted:
    """Rows that were predicted together.

    Attributes:
        cells: their numbers, and the columns to keep ``(n, columns)``.
        quantiles: ``(n, T, Q)``, in the units of the table.
        y: what happened ``(n, T)``, or None of a table without targets.
        pit: F(y) ``(n, T)``, uniform if the model is right; None without targets.
        crps: ``(n, T)``, or None where it is not asked for.
        trained: how many of the rows were trained on, by any part of the model.
    """

    cells: np.ndarray
    quantiles: np.ndarray
    y: np.ndarray | None
    pit: np.ndarray | None
    crps: np.ndarray | None
    trained: int


def check_targets(run: TableRun) -> tuple[Column, ...]:
    """Return the columns that a run predicts.

    Raises:
        UserError: for a run without a context, or one of columns that are no numbers.
    """
    columns = run.schema.feature_columns
    if not run.schema.context:
        raise UserError(f"{run.path}: is not conditional, so it predicts nothing; train it with --context COLS")
    if not run.schema.context_size:
        raise UserError(f"{run.path}: every column of the context is constant, so it predicts nothing")
    wrong = [column for column in columns if column.kind not in NUMBERS]
    if wrong:
        raise UserError(
            f"{run.path}: column {wrong[0].name!r} holds {wrong[0].kind} values, which have no quantiles; train with it"
            " among --context, or --drop it"
        )
    return columns


def in_units(schema: Schema, x: np.ndarray) -> np.ndarray:
    """Return features (..., D) in the units of the table; discrete ones anywhere in their cell become its value."""
    columns = schema.feature_columns
    parts = []
    for column, values in zip(columns, np.moveaxis(x, -1, 0), strict=True):
        if column.kind == "continuous":
            parts.append(values + column.origin)
            continue
        grid = column.grid()
        cell = grid.low + np.floor((values - grid.low) / grid.step + 1e-6) * grid.step
        parts.append(column.decode(cell.reshape(-1)).reshape(cell.shape))
    return np.stack(parts, -1)


def predicted_quantiles(run: TableRun, flow: Flow, context: Tensor, levels: Sequence[float]) -> np.ndarray:
    """Quantiles of each target given a context (n, context): ``(n, T, Q)``, exact of a single target, else of draws."""
    if has_cdf(flow):
        features = quantiles(flow, levels, context)[:, :, None]  # (n, Q, 1)
        return np.moveaxis(in_units(run.schema, features.double().cpu().numpy()), 1, 2)
    points, _ = predicted_points(run, flow, context)
    return np.moveaxis(np.quantile(points, levels, axis=1), 0, 2)


def predicted_points(run: TableRun, flow: Flow, context: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, M, T) that stand for the density of the targets given a context, and their weights (M,)."""
    values, weights = ensemble(flow, context)
    return in_units(run.schema, values.double().cpu().numpy()), weights.double().cpu().numpy()


class Prediction:
    """A table to predict, row by row.

    Args:
        run: conditional; its flow in double precision.
        source: a table with the columns of the context; with those of the targets, too, predictions are judged. A row
            that was trained on is then predicted by the part of the model that it was held out of.
        levels: of the quantiles.
        options: of the command: ``keep``, and how the table is read.
        crps: whether to compute the score of each row.
        seed: of the spread of discrete values.

    Attributes:
        total: how many rows, if known.
        columns, types: of the cells that rows begin with.
        targets: the names of the columns that are predicted.
        judged: whether the table has them.

    Raises:
        UserError: for a run that predicts nothing, bad input, or scores asked of a table without targets.
    """

    def __init__(
        self,
        run: TableRun,
        source: Any,
        levels: Sequence[float],
        options: Mapping[str, Any],
        crps: bool = False,
        seed: int = 0,
    ) -> None:
        self.run, self.levels, self.with_crps, self.seed = run, levels, crps, seed
        schema = run.schema
        self.targets = [column.name for column in check_targets(run)]
        self._keep = list(options.get("keep", ()))
        table = open_table(source, missing=options.get("missing", "error"), **run.reading(options))
        self.judged = (
            set(self.targets) <= set(table.all_names)
            if table.has_names
            else len(table.all_names) == len(schema.all_names or schema.names)
        )
        if crps and not self.judged:
            lacking = next(name for name in self.targets if name not in table.all_names)
            raise UserError(f"{table.name}: lacks column {lacking!r}, without which there is no --crps; leave it out")
        unknown = [name for name in self._keep if name not in table.all_names]
        if unknown:
            listed = ", ".join(map(repr, table.all_names))
            raise UserError(f"{table.name}: has no column {unknown[0]!r} to keep; it has {listed}")
        names = [name for name in schema.names if name in schema.context or (self.judged and name in self.targets)]
        table = run._open("predict", table, options, names)
        self._names = list(dict.fromkeys([*names, *self._keep]))
        self._table: Table = table.select(self._names, schema.all_names) if self._keep else table
        self.total = self._table.num_rows
        self.columns = [ROW, *self._keep]
        self.types = ["int64", *run._passed(self._table, self._keep)]

    @property
    def dropped(self) -> int:
        """Rows that were left out, once all were taken."""
        return self._table.dropped

    @torch.no_grad()
    def __iter__(self) -> Iterator[Predicted]:
        run, schema, table = self.run, self.run.schema, self._table
        kept = [self._names.index(name) for name in self._keep]
        for number, (rows, values) in enumerate(table.numbered(self._names)):
            with naming_rows(table):
                schema.check_context(values[:, [self._names.index(name) for name in schema.context]], table, rows)
                encoded = schema.encode(run._whole(values, self._names), table.dictionaries, gaps=False)
            assert encoded.context is not None
            x, context = torch.from_numpy(encoded.x), torch.from_numpy(encoded.context)
            cells = np.column_stack([rows, table.cells(values[:, kept], self._keep)])
            yield self._predicted(x, context, cells, values, number)

    def _predicted(self, x: Tensor, context: Tensor, cells: np.ndarray, values: np.ndarray, number: int) -> Predicted:
        run, context = self.run, context.to(self.run.device)
        if not self.judged:
            result = predicted_quantiles(run, run.flow, context, self.levels)
            return Predicted(cells, result, None, None, None, 0)
        y = values[:, [self._names.index(name) for name in self.targets]]
        part = torch.full((len(x),), -1) if run.seen is None else run.seen.parts(x, context)
        steps = [grid.step for grid in run.schema.discrete]

        def judged(flow: Flow, mine: Tensor) -> Tensor:
            """Quantiles, F(y) and the score of these rows, (m, T, Q + 2)."""
            chosen, seed = context[mine], derive(self.seed, "predict", number, int(part[mine[0]]))
            columns = [
                predicted_quantiles(run, flow, chosen, self.levels),
                pit(flow, x[mine], chosen, steps, seed)[..., None],
            ]
            if self.with_crps:
                points, weights = predicted_points(run, flow, chosen)
                scores = [crps(points[..., t], weights, y[mine, t]) for t in range(len(self.targets))]
                columns.append(np.stack(scores, 1)[..., None])
            return torch.from_numpy(np.concatenate(columns, -1))

        each = out_of_fold(run.flow, part, judged).numpy()
        trained = int((part >= TRAIN).sum()) if run.seen is not None else 0
        scores = each[..., -1] if self.with_crps else None
        count = len(self.levels)
        return Predicted(cells, each[..., :count], y, each[..., count], scores, trained)

"""A run of a table, opened for use."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.flow import DRAWS, Flow
from diffeo.inference.calibration import Calibration, calibration_of
from diffeo.mixture import Mixture
from diffeo.modalities.base import ENOUGH, Chunk, Draw, Examples, OpenRun, Scoring, Words, choose
from diffeo.modalities.tables.dataset import READING
from diffeo.modalities.tables.plain import PlainRows
from diffeo.modalities.tables.rows import Sample, draw_rows, limit_of, too_large
from diffeo.modalities.tables.schema import Column, Schema, naming_rows
from diffeo.modalities.tables.seen import NEW, TEST, TRAIN, VALID, SeenRows
from diffeo.modalities.tables.stream import parts_of
from diffeo.modalities.tables.table import Table, open_table
from diffeo.modalities.tables.write import TableWriter
from diffeo.report.check import FEWEST, by_fold, check
from diffeo.report.mixed import check_mixed
from diffeo.report.verdict import Limits, Verdict, gravest
from diffeo.training.run import Run as StoredRun
from diffeo.training.seeding import derive, seeded
from diffeo.transforms.mixed import Mixed

__all__ = ["TableRun"]

CHUNK = 65536  # rows drawn at a time
CATEGORIES = 8  # that ``facts`` names
ROW, SCORE = "row", "log_likelihood"  # columns of a file of scores
LARGEST = 1e30  # of a value that is given
SIMULATIONS, PER_SIMULATION = 1000, 200  # that a posterior's calibration is judged by at most, and draws for each
UNIFORM = (0.05, 0.25)  # distances of ranks from uniform from which on to care, and to distrust, where significant
BOOLEANS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Gappy:
    """A table with gaps to fill.

    Attributes:
        total: how many rows, if known.
        names, types, categories: of all its columns, as ``TableWriter`` takes them.
        chunks: encoded rows ``(n, features)``, NaN where a cell is missing, and all their cells ``(n, columns)``.
    """

    total: int | None
    names: Sequence[str]
    types: Sequence[str]
    categories: Mapping[str, Sequence[str]]
    chunks: Iterable[tuple[Tensor, np.ndarray]]


@dataclass(frozen=True)
class TableRun(OpenRun):
    """A flow of a table's rows, and the table's schema.

    Attributes:
        remembered: the rows that it was trained on, of a run that is in no folder.
    """

    words = Words("row", "rows", "column", "tables")
    options = {  # noqa: RUF012 - a constant
        "score": ("keep", "drop", "conditions", "missing", *READING),
        "anomalies": ("keep", "missing", *READING),
        "sample": ("given", "given_from", "guidance"),
        "check": ("missing",),
        "impute": (),
        "predict": ("keep", "missing", *READING),
    }  # fmt: skip

    schema: Schema
    remembered: SeenRows | None = None

    @classmethod
    def restore(cls, stored: StoredRun, path: str, device: torch.device) -> Self:
        """Read the schema, and prove that the flow fits it."""
        try:
            schema = Schema.from_json(stored.schema)
        except UserError as error:
            raise UserError(f"{stored.path}: model.json is damaged: {error}; restore it or train again") from error
        context = (schema.context_size,) if schema.context_size else ()
        if stored.flow.event_shape != (schema.features,) or stored.flow.context_shape != context:
            raise UserError(f"{stored.path}: model.json is damaged: its model does not fit its columns; train again")
        return cls(path, stored.flow, stored.metrics, stored.provenance, device, schema)

    @property
    def description(self) -> dict[str, Any]:
        """The schema."""
        return self.schema.to_json()

    def facts(self) -> dict[str, Any]:
        """How many rows, by what they were weighted, and every column; of a mixed density what has a mass in it."""
        return {
            "rows": self.schema.rows,
            **({"weighted_by": self.schema.weights} if self.schema.weights else {}),
            "columns": [
                {
                    "name": column.name,
                    "kind": column.kind,
                    "role": "context" if column.name in self.schema.context else "modelled",
                    "low": column.low,
                    "high": column.high,
                    "step": column.step,
                    "levels": len(column.categories or (column.values if column.kind == "levels" else ())),
                    **self._masses(column),
                }
                for column in self.schema.columns
            ],
        }

    def _masses(self, column: Column) -> dict[str, Any]:
        """The range in words, where that of numbers does not say it; of a column of a mixed density what has a mass.

        That are gaps, single values, and copies of other columns.
        """
        ends = column.categories or column.cells(np.array([column.low, column.high]))
        words = [str(end) for end in (ends[:CATEGORIES] if column.categories else dict.fromkeys(ends))]
        if not isinstance(self.flow.transform, Mixed):
            return {} if column.plain else {"range": words}
        place = self.schema.places.get(column.name)
        factors = self.flow.transform.factors[place] if place is not None else []
        names = self.schema.feature_names
        return {
            "range": words,
            "missing": column.missing,
            "masses": sum(len(factor.values) for factor in factors if factor.steps),
            "copies": [
                {"column": names[j], "times": times, "plus": plus}
                for factor in factors
                for j, times, plus in factor.copies
            ],
        }

    def plain(self) -> PlainRows:
        """Rows of numbers, one for each column."""
        return PlainRows(self.schema, self._mixed or self.schema.mixed)

    @cached_property
    def seen(self) -> SeenRows | None:
        """The rows that it was trained on, where they are known."""
        return self.remembered or SeenRows.load(Path(self.path))

    def hand_on(self, run: Path) -> None:
        """Write the rows that are known into the run directory of a student."""
        if self.seen is not None:
            self.seen.save(run)

    # ---- Scoring ----------------------------------------------------------------------------------------------------

    def scoring(
        self,
        source: Any,
        options: Mapping[str, Any],
        command: str = "score",
        part: Callable[[Table], Table] = lambda table: table,
    ) -> Scoring:
        """Open a table, its columns matched by name: a line for each row, its number and the columns to ``keep``.

        ``command`` is the one at hand, whose options messages may recommend; ``part`` makes of the table what is to be
        scored of it.
        """
        keep, drop, conditions = (options.get(name, ()) for name in ("keep", "drop", "conditions"))
        schema = self.schema
        names = [name for name in schema.names if name not in drop]
        flow = self._without([name for name in schema.names if name in drop])
        table = part(self._open(command, source, options, names))
        known = self._known(conditions, drop)
        extra = [name for name in table.extra if name not in (*keep, *drop)]
        for name in (*keep, *drop):
            if name not in (*table.all_names, *schema.names):
                what, listed = "keep" if name in keep else "drop", ", ".join(map(repr, table.all_names))
                raise UserError(f"{table.name}: has no column {name!r} to {what}; it has {listed}")
            if name in drop and name in (*keep, *conditions):
                other = "kept" if name in keep else "given"
                raise UserError(f"{table.name}: column {name!r} is both {other} and dropped; choose one")
            if name in keep and name in (ROW, SCORE):
                raise UserError(f"{table.name}: column {name!r} cannot be kept, the result has that name; rename it")
        names = list(dict.fromkeys([*names, *keep]))
        table = table.select(names, schema.all_names) if keep else table
        types = ["int64", *self._passed(table, keep)]
        met = _Met()

        def facts() -> dict[str, Any]:
            counts = {"off_grid": met.off_grid, "off_grid_by_column": met.off_grid_by_column}
            counts |= {"dropped": table.dropped, "ignored_columns": extra, "notes": table.notes}
            if self.seen is not None:
                held_out = sum(n for k, n in met.parts.items() if k >= 0)
                counts |= {"in_training": _trained_on(met.parts), "out_of_fold": held_out}
            return counts | ({"unseen_by_column": met.unseen_by_column} if schema.mixed else {})

        kept = [names.index(name) for name in keep]
        chunks = self._chunks(table, names, kept, known, flow, {*drop, *conditions}, met)
        files = [(file, part.num_rows or 0) for file, part in zip(table.files, table.by_file(), strict=False)]
        return Scoring(table.num_rows, chunks, [ROW, *keep], types, facts, draws=DRAWS, files=files)

    def _chunks(
        self,
        table: Table,
        names: Sequence[str],
        kept: list[int],
        known: Tensor | None,
        flow: Flow | None,
        without: set[str],
        met: _Met,
    ) -> Iterator[Chunk]:
        for number, before, part, rows, values in _by_file(table, names):
            context_cells = values[:, [names.index(name) for name in self.schema.context]]
            with naming_rows(part):
                self.schema.check_context(context_cells, part, rows)
                encoded = self.schema.encode(self._whole(values, names), part.dictionaries, self._gaps, without)
            met.off_grid += int(encoded.off.sum())
            _count(met.off_grid_by_column, encoded.reasons)
            _count(met.unseen_by_column, encoded.unseen)
            context = None if encoded.context is None else torch.from_numpy(encoded.context)
            cells = np.column_stack([before + rows, part.cells(values[:, kept], [names[i] for i in kept])])
            x = torch.from_numpy(encoded.x)
            self._refuse_unknown_gaps(x, part, rows)
            each = None if known is None else known.expand(x.shape)
            seen = None
            if self.seen is not None and flow is None:
                seen = self.seen.parts(x, context)
                codes, counts = np.unique(seen, return_counts=True)
                _count(met.parts, dict(zip(codes.tolist(), counts.tolist(), strict=True)))
            yield Chunk(number, x, context, cells, encoded.log_grid, flow, each, seen, encoded.off_grid)

    def _whole(self, values: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Rows (n, columns) of all columns of values of some of these; the others are NaN, or what is constant."""
        if tuple(names[: len(self.schema.names)]) == self.schema.names:
            return values[:, : len(self.schema.names)]
        whole = np.empty((len(values), len(self.schema.names)))
        for place, column in enumerate(self.schema.columns):
            filler = column.low if column.kind == "constant" else np.nan
            whole[:, place] = values[:, names.index(column.name)] if column.name in names else filler
        return whole

    def _without(self, names: Sequence[str]) -> Flow | None:
        """The density of all columns but these, which are left out of every condition, too; None for no columns.

        Raises:
            UserError: for context columns, all of them, or a flow of one order.
        """
        places = self.schema.places
        given = [name for name in names if name in self.schema.context]
        if given:
            raise UserError(f"{self.path}: is conditional on {given[0]!r}, which cannot be dropped; train without it")
        dropped = [place for name in names if name in places for place in range(self.schema.features)[places[name]]]
        if not dropped:
            return None
        if not self.flow.any_order:
            remedy = "without any_order=false" if self._mixed else "with --model mixed"
            raise UserError(
                f"{self.path}: the model has no density of fewer columns; train {remedy}, or with --drop"
                f" {','.join(names)}"
            )
        if len(dropped) == self.schema.features:
            raise UserError(f"{self.path}: every column is dropped, none is left to score")
        flow = copy.deepcopy(self.flow)
        for part in flow.modules():
            if isinstance(part, Mixed):
                part.leave_out(dropped)
        return flow

    def _passed(self, table: Table, names: Sequence[str]) -> list[str]:
        """Return the types in which columns are passed through; not a digit of an identifier may change."""
        known = table.types
        whole = {name: _type(table, name) for name in names if known[name] == "integer"}
        if table.has_texts:
            numbers = [name for name in names if known[name] in ("number", "integer")]
            table.declare({name: "text" for name in numbers if name in self.schema.identifiers})
        return [whole.get(name) or _type(table, name) for name in names]

    @property
    def _gaps(self) -> bool | None:
        """Whether a missing cell is a value, or what the schema says."""
        return True if self._mixed else None

    @property
    def _mixed(self) -> bool:
        """Whether a missing cell is a value of the flow."""
        return self.flow.transform.takes_missing

    def _want_any_order(self, otherwise: str) -> None:
        if not self.flow.any_order:
            remedy = "without any_order=false" if self._mixed else "with --model mixed"
            raise UserError(f"{self.path}: the model {otherwise}; train {remedy} for one that does")

    def _refuse_unknown_gaps(self, x: Tensor, table: Table, rows: np.ndarray) -> None:
        """Refuse gaps, of rows of these numbers, that a flow of one order cannot leave out of a density."""
        if not self._mixed or self.flow.any_order:
            return
        seen = torch.tensor([column.missing for column in self.schema.feature_columns for _ in range(column.features)])
        bad = (x.isnan() & ~seen).nonzero()
        if len(bad):
            row, place = bad[0].tolist()
            raise UserError(
                f"{table.name}: {table.where(int(rows[row]))}: column {self.schema.feature_names[place]!r} is missing,"
                " where training saw no gap; a model of one order cannot leave it out: leave such rows out with "
                "--drop-missing, or train with any_order"
            )

    def _open(self, command: str, source: Any, options: Mapping[str, Any], names: Sequence[str] | None = None) -> Table:
        """Open a table for a command as the run's own was read; the flow decides whether missing cells are an error."""
        missing = options.get("missing", "keep" if self._mixed else "error")
        remedies = [name for name in self.options[command] if name != "drop" or self.flow.any_order]
        return self.schema.open(source, names, missing=missing, remedies=remedies, **self.reading(options))

    def reading(self, options: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """How a csv is read: as that of the training, where these options say nothing else."""
        settings = self.provenance.get("settings")
        settings = {**(settings if isinstance(settings, dict) else {}), **options}
        return {name: settings[name] for name in READING if name in settings}

    def _known(self, names: Sequence[str], dropped: Sequence[str] = ()) -> Tensor | None:
        """Which features are those of these columns ``(features,)``, None for no columns.

        Raises:
            UserError: for unknown columns, all of them that are not dropped, or a flow of one order.
        """
        if not names:
            return None
        places = self.schema.places
        self._want_any_order("is not conditional on any columns")
        unknown = [name for name in names if name not in places]
        if unknown:
            raise UserError(f"{self.path}: {unknown[0]!r} is no modelled column; they are {_listed([*places])}")
        known = torch.zeros(self.schema.features, dtype=torch.bool)
        for name in names:
            known[places[name]] = True
        if all(name in (*names, *dropped) for name in places):
            raise UserError(f"{self.path}: every column is given, none is left to score or to draw")
        return known

    # ---- Sampling ---------------------------------------------------------------------------------------------------

    def draws(self, n: int | None, options: Mapping[str, Any]) -> tuple[Iterable[Draw], int | None]:
        """Draw n rows, given a value of every context column; or n for each row of a table of these."""
        schema, given, given_from = self.schema, options.get("given"), options.get("given_from")
        if self.flow.any_order and not schema.context:
            if not given and given_from is None:
                assert n is not None
                return (Draw(number, count) for number, count in enumerate(_counts(n))), n
            return self._completions(n, given, given_from)
        if not schema.context:
            if given or given_from is not None:
                self._want_any_order("takes no context (--given)")
            assert n is not None
            return (Draw(number, count) for number, count in enumerate(_counts(n))), n
        if given and given_from is not None:
            raise UserError("context given twice, as values and as a table; choose one (--given or --given-file)")
        if given_from is not None:
            table = schema.open(given_from, schema.context, remedies=self.options["sample"], **self.reading())
            each = n or 1
            repeated = _repeated(self._contexts(table), each)
            return self._draws(repeated), table.num_rows and table.num_rows * each
        values = self._context_row(given or {})
        assert n is not None
        return self._draws(values.repeat(count, 0) for count in _counts(n)), n

    def _completions(self, n: int | None, given: Any, given_from: Any) -> tuple[Iterable[Draw], int | None]:
        """Rows of which some columns are given, as values or by a table, in which missing cells are drawn."""
        if given and given_from is not None:
            raise UserError("columns given twice, as values and as a table; choose one (--given or --given-file)")
        schema = self.schema
        if given_from is None:
            assert n is not None
            self._known([*given])
            batches = [self._read_given(given)]
            self._refuse_unlikely(*batches[0])
            return self._completed(((row.repeat(count, 0), texts) for row, texts in batches for count in _counts(n))), n
        table = open_table(given_from, missing="keep", **self.reading())
        table.recommend(self.options["sample"])
        names = [name for name in schema.names if name in table.all_names] if table.has_names else [*schema.names]
        if not names:
            raise UserError(
                f"{table.name}: has none of the columns {_few(schema.names)}; give a table with some of them"
            )
        table = schema.declared(table.select(names, schema.all_names or names))
        places, each = [schema.names.index(name) for name in names], n or 1

        def rows() -> Iterator[tuple[np.ndarray, Mapping[str, Sequence[str]]]]:
            start = 0
            for values in table.batches(names):
                whole = np.full((len(values), len(schema.names)), np.nan)
                whole[:, places] = values
                with naming_rows(table):
                    self._refuse_unlikely(whole, table.dictionaries, table, start)
                start += len(values)
                for part in _repeated(iter([whole]), each):
                    yield part, table.dictionaries

        return self._completed(rows()), table.num_rows and table.num_rows * each

    def _completed(self, rows: Iterable[tuple[np.ndarray, Mapping[str, Sequence[str]]]]) -> Iterator[Draw]:
        """Draws of rows (n, columns) as a table reads them, NaN where cells are to be drawn."""
        for number, (values, texts) in enumerate(rows):
            x = torch.from_numpy(self.schema.encode(values, texts, gaps=True).x)
            columns = zip(self.schema.columns, values.T, strict=True)
            about = np.stack([column.read(cells, texts.get(column.name)) for column, cells in columns], axis=1)
            yield Draw(number, len(x), x=x, known=~x.isnan(), about=about)

    def _read_given(self, given: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, list[str]]]:
        """Values by column as a table reads them: a row ``(1, columns)``, NaN elsewhere, and its texts.

        Raises:
            UserError: for what is no number, in a column of numbers.
        """
        schema = self.schema
        row = np.full((1, len(schema.names)), np.nan)
        texts: dict[str, list[str]] = {}
        for name, value in given.items():
            place = schema.names.index(name)
            column = schema.columns[place]
            what = f"context column {name!r}" if name in schema.context else f"column {name!r}"
            if column.format or (column.categories and not column.values):
                texts[name], row[0, place] = [str(value)], 0
                continue
            word = str(value).strip().lower()
            try:
                row[0, place] = BOOLEANS[word] if column.dtype == "bool" and word in BOOLEANS else float(value)
            except (TypeError, ValueError) as error:
                raise UserError(f"expected a number for {what}, got {value!r}") from error
            if not abs(row[0, place]) < LARGEST:
                raise UserError(f"expected a finite value of {what}, got {value}")
        return row, texts

    def _refuse_unlikely(
        self, values: np.ndarray, texts: Mapping[str, Sequence[str]], table: Table | None = None, start: int = 0
    ) -> None:
        """Refuse values that no column has: nothing can be drawn given what has no density.

        Args:
            values: rows (n, columns) as a table reads them.
            texts: by column, those that their numbers stand for.
            table: where they come from.
            start: how many of its rows came before these.

        Raises:
            UserError: for a category that training did not see, or a value off a column's grid.
        """
        for column, cells in zip(self.schema.columns, values.T, strict=True):
            known = column.read(cells, texts.get(column.name))
            if column.kind == "categorical":
                wrong, remedy = known == len(column.categories), f"they are {_few(column.categories)}"
            else:
                with np.errstate(all="ignore"):
                    wrong = (column.encode(known)[1] & ~np.isnan(known)) | (np.abs(known) >= LARGEST)
                if column.dtype in ("int64", "bool"):  # what is written is whole
                    wrong |= ((known != np.rint(known)) & ~np.isnan(known)) | (np.abs(known) >= 2.0**53)
                if column.dtype == "bool":
                    wrong |= (known < 0) | (known > 1)
                remedy = f"they lie between {' and '.join(map(str, column.cells(np.array([column.low, column.high]))))}"
                if column.kind == "levels":
                    remedy = f"they are {_few([f'{value:g}' for value in column.values])}"
            if not wrong.any():
                continue
            row = int(wrong.argmax())
            value = texts[column.name][int(cells[row])] if column.name in texts else f"{cells[row]:g}"
            where = f"{table.name}: {table.where(start + row + 1)}, " if table is not None else ""
            raise UserError(f"{where}column {column.name!r}: training saw no values such as {value!r}; {remedy}")

    def _draws(self, contexts: Iterable[np.ndarray]) -> Iterator[Draw]:
        for number, context in enumerate(contexts):
            encoded = self.schema.encode_context(context)
            yield Draw(number, len(context), None if encoded is None else torch.from_numpy(encoded), about=context)

    def _contexts(self, table: Table) -> Iterator[np.ndarray]:
        """The context columns' own values (n, columns) of a table of these."""
        for rows, cells in table.numbered(self.schema.context):
            with naming_rows(table):
                self.schema.check_context(cells, table, rows)
            yield self.schema.read_context(cells, table.dictionaries)

    def _context_row(self, given: Mapping[str, Any]) -> np.ndarray:
        """The context columns' own values ``(1, columns)``, given by the name of each that varies."""
        schema = self.schema
        unknown = [name for name in given if name not in schema.context]
        if unknown:
            raise UserError(f"{self.path}: {unknown[0]!r} is no context column; they are {_listed(schema.context)}")
        constants = {c.name: c.low for c in schema.columns if c.kind == "constant" and c.name not in given}
        missing = [name for name in schema.context if name not in given and name not in constants]
        if missing:
            remedy = " ".join(f"--given {name}=VALUE" for name in missing[:4]) + (" ..." if len(missing) > 4 else "")
            raise UserError(f"{self.path}: the model is conditional on {_listed(schema.context)}; give {remedy}")
        row, texts = self._read_given(given)
        for name, value in constants.items():
            row[0, schema.names.index(name)] = value
        cells = row[:, [schema.names.index(name) for name in schema.context]]
        schema.check_context(cells, texts)
        return schema.read_context(cells, texts)

    def save(self, out: Any, drawn: Iterator[tuple[Tensor, Draw]], force: bool) -> dict[str, Any]:
        """Write rows as they are drawn; count those that are not finite, 0 in a sane model."""
        bad = 0
        schema = self.schema
        with TableWriter(out, schema.names, schema.dtypes, force=force, categories=schema.categories) as writer:
            for samples, draw in drawn:
                x = samples.double().cpu().numpy()
                finite = np.isfinite(x) | (np.isnan(x) & self._mixed)  # a gap is a value of a mixed density
                bad += int((~finite.all(1)).sum())
                if draw.known is None or draw.about is None:
                    writer.write(schema.decode(x, draw.about))
                else:
                    writer.write(self._kept(x, draw.about))
        return {"non_finite": bad}

    def _kept(self, x: np.ndarray, about: np.ndarray) -> np.ndarray:
        """The cells of features that were completed, those that were given as they were."""
        cells = self.schema.decode(x).astype(object)
        for i, column in enumerate(self.schema.columns):
            there = ~np.isnan(about[:, i])
            if there.any():
                shown = column.cells(about[there, i])
                cells[there, i] = np.fromiter(shown, dtype=object, count=len(shown))
        return cells

    # ---- Imputing ---------------------------------------------------------------------------------------------------

    def gaps(self, source: Any, options: Mapping[str, Any]) -> Gappy:
        """Open a table whose missing cells are to be drawn; columns that are not the model's stay as they are.

        Raises:
            UserError: for a flow of one order, or a table that lacks columns.
        """
        schema = self.schema
        self._want_any_order("does not fill gaps")
        if schema.context:
            raise UserError(f"{self.path}: is conditional on {_listed(schema.context)}; train without --context")
        table = self._open("impute", source, {})
        names = list(dict.fromkeys([*table.all_names, *schema.names])) if table.has_names else list(schema.names)
        table = table.select(names, schema.all_names or schema.names)
        aside = [name for name in names if name not in schema.names]
        types = dict(zip([*schema.names, *aside], [*schema.dtypes, *self._passed(table, aside)], strict=True))
        categories = {name: each for name, each in schema.categories.items() if name in names}
        order = [names.index(name) for name in schema.names]

        def chunks() -> Iterator[tuple[Tensor, np.ndarray]]:
            start = 0
            for values in table.batches(names):
                self._refuse_impossible(values[:, order], table, start)
                start += len(values)
                with naming_rows(table):
                    encoded = schema.encode(values[:, order], table.dictionaries, gaps=True)
                yield torch.from_numpy(encoded.x), table.cells(values, names).astype(object)

        return Gappy(table.num_rows, names, [types[name] for name in names], categories, chunks())

    def _refuse_impossible(self, values: np.ndarray, table: Table, start: int) -> None:
        """Refuse what is infinite, or as good as that, and fractions of a whole number: given them nothing is drawn."""
        whole = np.array([dtype.startswith(("int", "uint")) for dtype in self.schema.dtypes])
        fractions = whole & np.isfinite(values) & (values != np.rint(values))
        for row, place in np.argwhere(fractions)[:1].tolist():
            raise UserError(
                f"{table.name}: {table.where(start + row + 1)}, column {self.schema.names[place]!r}: holds"
                f" {values[row, place]:g}, where the model knows whole numbers; correct it, or leave the cell empty"
            )
        for row, place in np.argwhere(np.abs(values) >= LARGEST)[:1].tolist():
            raise UserError(
                f"{table.name}: {table.where(start + row + 1)}, column {self.schema.names[place]!r}: holds"
                f" {values[row, place]:g}, given which nothing can be drawn; correct it, or leave the cell empty"
            )

    def filled(self, x: Tensor, known: Tensor, cells: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """The cells of rows, those of the model's columns that were missing taken from completed features."""
        schema = self.schema
        drawn = schema.decode(x.double().cpu().numpy()).astype(object)
        whole = cells.copy()
        for k, name in enumerate(schema.names):
            place = names.index(name)
            if name in schema.places:
                missing = ~known[:, schema.places[name]].all(1).cpu().numpy()
                whole[missing, place] = drawn[missing, k]
            else:
                missing = np.array([cell is None or cell != cell for cell in whole[:, place]], dtype=bool)
                whole[missing, place] = drawn[missing, k]  # a constant
        return whole

    # ---- Checking ---------------------------------------------------------------------------------------------------

    def examples(self, source: Any, most: int, seed: int, options: Mapping[str, Any]) -> Examples:
        """Rows, without those that have a value off its grid."""
        schema, table = self.schema, self._open("check", source, options)
        # Of a small table take all rows, for those that are known from the training may not be the ones to judge by.
        limit = most if too_large(schema) else max(most, schema.rows)
        held_out = self._held_out_of(table)
        sample = Sample.of(table, schema, seed, held_out)
        x, context, reasons, off_grid, read = draw_rows(table, schema, limit, seed, self._gaps, sample)
        part = torch.full((len(x),), NEW) if self.seen is None else self.seen.parts(x, context)
        if sample is not None and held_out is not None:
            part[:] = TEST if self.tested() else VALID
        judged, which, in_sample = _judged(part)
        whole = read if sample is None else table.num_rows
        if self.seen is None and held_out is None and whole == schema.rows:
            # nothing is known of the rows, but that these are as many
            which, in_sample = "rows of a table as long as that of training", True
        if sample is not None:
            among = "" if sample.wanted else f" {len(sample.groups):,} of"
            which += f", from a seeded sample of{among} its {sample.total:,} row groups"
        rows, which = choose(len(judged), most, which, seed)
        rows = judged[rows]
        if len(rows) < FEWEST:
            ruled_out = f" ({off_grid:,} more have a value off its grid)" if off_grid else ""
            raise UserError(
                f"{table.name}: has {len(rows)} usable rows{ruled_out}, expected at least {FEWEST} to check by"
            )
        known = part == TRAIN
        return Examples(
            table.name, x[rows], None if context is None else context[rows], which, in_sample,
            None if context is None else context[known] if known.any() else context, reasons,
            x[known] if known.any() and not in_sample else None, part[rows], read=read, off_grid=off_grid,
        )  # fmt: skip

    def _held_out_of(self, table: Table) -> Callable[[int, np.ndarray], np.ndarray] | None:
        """Which rows of the large table that the run was trained on, by row group and number, were held out of it.

        None of another table, or one that was in memory.
        """
        settings, seed = self.provenance.get("settings"), self.provenance.get("seed")
        if not isinstance(seed, int) or not isinstance(settings, dict) or "distillation" in self.provenance:
            return None
        streamed = too_large(self.schema, limit=limit_of(settings))
        if not streamed or not table.identity or table.identity != self.trained_on():
            return None
        test, which = settings.get("test", 0.0), TEST if self.tested() else VALID
        return lambda group, numbers: parts_of(self.schema, numbers, seed, group, test) == which

    def examine(self, examples: Examples, seed: int) -> dict[str, Any]:
        """Numerics, latents, samples and likelihood, beside a Gaussian and independent columns."""
        grids = self.schema.discrete
        bounds = np.array([grid.low for grid in grids]), np.array([grid.high for grid in grids])
        examined = check_mixed if self._mixed else check
        report = examined(
            self.flow, examples.x, examples.context, fold=examples.part, train=examples.train, bounds=bounds,
            names=self.schema.feature_names, seed=seed,
        )  # fmt: skip
        for name, part in report["likelihood"].items():  # those of rows on all grids, as fit and score have them
            if isinstance(part, dict) and not name.startswith("gain_over"):
                part["mean"] += self.schema.log_on_grids
        if self.method is not None:
            calibration = self.calibration(examples, seed)
            report["calibration"] = calibration.to_json()
            judged = Verdict(Limits())
            for distance, p, text in calibration.faults:
                judged.weigh_test(distance, p, UNIFORM, text)
            report["verdict"], report["reasons"] = gravest(
                (report["verdict"], report["reasons"]), judged.of(len(examples.x))
            )
        if self.schema.weights:
            alike = f"rows were weighted by {self.schema.weights!r} in training, and here they count alike"
            report["reasons"] = [*report["reasons"], f"{alike}: they differ from samples of a good model"]
        return report

    @property
    def method(self) -> str | None:
        """How it was trained as a posterior from simulations, "npe" or "fmpe"; None of other runs."""
        settings = self.provenance.get("settings")
        return settings.get("method") if isinstance(settings, dict) else None

    @torch.no_grad()
    def calibration(self, examples: Examples, seed: int) -> Calibration:
        """Ranks and expected coverage of parameters, each simulation judged by the member that had not seen it."""
        assert examples.context is not None
        some = torch.randperm(len(examples.x), generator=torch.Generator().manual_seed(seed))[:SIMULATIONS]
        x, context = examples.x[some], examples.context[some].to(self.flow.base.device_marker)
        flow = self.flow
        if isinstance(flow, Mixture) and examples.part is not None:
            flow, context = by_fold(flow, examples.part[some], context)
        with seeded(self.device, derive(seed, "calibration")):
            drawn = flow.sample(PER_SIMULATION, context)
        return calibration_of(x, drawn, self.schema.feature_names, seed=seed, which="simulations")


def _judged(part: Tensor) -> tuple[Tensor, str, bool]:
    """Which rows of these parts to judge by: their numbers, which they are in words, and whether it is in sample.

    Rows that nothing was trained on are the first choice, rows out of fold the second; then those that training was
    stopped by, if they are enough.
    """
    everything = torch.arange(len(part))
    fresh, folded = part <= TEST, part >= 0
    tested = bool((part == TEST).any())
    if fresh.sum() >= ENOUGH or fresh.all() or (tested and not folded.any()):
        if tested:
            which = "test rows, held out of training and of early stopping"
        else:
            which = "all rows" if fresh.all() else "rows that were not in training"
        return everything[fresh], which, False
    if folded.any():
        return (
            everything,
            f"all rows, those of training ({int(folded.sum()):,}) by members that had not seen them",
            False,
        )
    valid = part == VALID
    if valid.sum() >= ENOUGH:
        return everything[valid], "rows held out of training", False
    return everything, "the rows of training", True


def _by_file(table: Table, names: Sequence[str]) -> Iterator[tuple[int, int, Table, np.ndarray, np.ndarray]]:
    """Yield batches of a table: its number in its file, how many rows are before the file, the file, rows, values.

    Each file is read as it would be alone, so that its rows get the same scores. ``table.dropped`` is that of all.
    """
    before = dropped = 0
    for part in table.by_file():
        for number, (rows, values) in enumerate(part.numbered(names)):
            yield number, before, part, rows, values
        before += part.num_rows or 0
        dropped += part.dropped
    table.dropped = dropped


def _trained_on(parts: Mapping[int, int]) -> int:
    """How many rows were trained on, by any part of the model."""
    return sum(count for part, count in parts.items() if part >= TRAIN)


def _type(table: Table, name: str) -> str:
    """Return the type in which a column is passed through."""
    if table.types[name] == "date":
        return table.declared[name]
    if table.narrow[name]:
        return table.narrow[name]
    return {"text": "string", "integer": "int64", "bool": "bool"}.get(table.types[name], "float64")


@dataclass
class _Met:
    """What was met in rows that are scored.

    Attributes:
        off_grid: rows with a value off its grid, and ``off_grid_by_column``.
        unseen_by_column: rows with a category that training did not see.
        parts: rows by what they were for in the training.
    """

    off_grid: int = 0
    off_grid_by_column: dict[str, int] = field(default_factory=dict)
    unseen_by_column: dict[str, int] = field(default_factory=dict)
    parts: dict[int, int] = field(default_factory=dict)


def _count(totals: dict[Any, int], more: Mapping[Any, int]) -> None:
    for name, count in more.items():
        totals[name] = totals.get(name, 0) + count


def _counts(n: int) -> Iterator[int]:
    for start in range(0, n, CHUNK):
        yield min(CHUNK, n - start)


def _repeated(batches: Iterator[np.ndarray], each: int) -> Iterator[np.ndarray]:
    """Yield every context ``each`` times, one after the other, in chunks."""
    step = max(1, CHUNK // each)  # contexts in a chunk; more than one only if all their rows fit
    for batch in batches:
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            for times in _counts(each):
                yield part.repeat(times, 0)


def _few(names: Sequence[str], most: int = 8) -> str:
    return _listed(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))

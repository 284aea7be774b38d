"""A run of a table, opened for use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.modalities.base import Chunk, Draw, Examples, OpenRun, Scoring, Words, choose, held_out
from diffeo.modalities.tables.rows import LARGE, draw_rows, split_rows
from diffeo.modalities.tables.schema import Schema
from diffeo.modalities.tables.table import Table
from diffeo.modalities.tables.write import TableWriter
from diffeo.report.check import FEWEST, check
from diffeo.training.batches import fingerprint
from diffeo.training.run import Run as StoredRun

__all__ = ["TableRun"]

CHUNK = 65536  # rows drawn at a time
SCORE = "log_likelihood"


@dataclass(frozen=True)
class TableRun(OpenRun):
    """A flow of a table's rows, and the table's schema."""

    words = Words("row", "rows", "column", "tables")
    options = {  # noqa: RUF012 - a constant
        "score": ("keep", "missing"), "sample": ("given", "given_from", "guidance"), "check": ("missing",),
    }  # fmt: skip

    schema: Schema

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
        """How many rows, and every column."""
        return {
            "rows": self.schema.rows,
            "columns": [
                {
                    "name": column.name,
                    "kind": column.kind,
                    "role": "context" if column.name in self.schema.context else "modelled",
                    "low": column.low,
                    "high": column.high,
                    "step": column.step,
                    "levels": len(column.values),
                }
                for column in self.schema.columns
            ],
        }

    # ---- Scoring ----------------------------------------------------------------------------------------------------

    def scoring(self, source: Any, options: Mapping[str, Any]) -> Scoring:
        """Open a table, its columns matched by name; ``keep`` names columns to pass through."""
        keep, missing = options.get("keep", ()), options.get("missing", "error")
        table = self.schema.open(source, missing=missing)
        extra = [name for name in table.extra if name not in keep]
        for name in keep:
            if name not in table.all_names:
                listed = ", ".join(map(repr, table.all_names))
                raise UserError(f"{table.name}: has no column {name!r} to keep; it has {listed}")
            if name == SCORE:
                raise UserError(f"{table.name}: column {name!r} cannot be kept, the result has that name; rename it")
        names = list(dict.fromkeys([*self.schema.names, *keep]))
        table = table.select(names, self.schema.all_names) if keep else table
        # Not a digit of an identifier may change.
        if table.has_texts:
            numbers = [name for name in keep if table.types[name] in ("number", "integer")]
            table.declare({name: "text" for name in numbers if name in self.schema.identifiers})
        types = [_type(table, name) for name in keep]
        reasons: dict[str, int] = {}
        unseen: dict[str, int] = {}

        def facts() -> dict[str, Any]:
            more = {"unseen_by_column": unseen} if self.schema.mixed else {}
            return {"impossible_by_column": reasons, **more, "dropped": table.dropped, "ignored_columns": extra}

        chunks = self._chunks(table, names, [names.index(name) for name in keep], reasons, unseen)
        return Scoring(table.num_rows, chunks, keep, types, facts)

    def _chunks(
        self, table: Table, names: Sequence[str], kept: list[int], reasons: dict[str, int], unseen: dict[str, int]
    ) -> Iterator[Chunk]:
        for number, values in enumerate(table.batches(names)):
            encoded = self.schema.encode(values[:, : len(self.schema.names)], table.dictionaries)
            _count(reasons, encoded.reasons)
            _count(unseen, encoded.unseen)
            context = None if encoded.context is None else torch.from_numpy(encoded.context)
            cells = table.cells(values[:, kept], [names[i] for i in kept])
            yield Chunk(number, torch.from_numpy(encoded.x), context, cells, encoded.impossible)

    # ---- Sampling ---------------------------------------------------------------------------------------------------

    def draws(self, n: int | None, options: Mapping[str, Any]) -> tuple[Iterable[Draw], int | None]:
        """Draw n rows, given a value of every context column; or n for each row of a table of these."""
        schema, given, given_from = self.schema, options.get("given"), options.get("given_from")
        if not schema.context:
            if given or given_from is not None:
                raise UserError(f"{self.path}: the model takes no context; leave it out (--given)")
            assert n is not None
            return (Draw(number, count) for number, count in enumerate(_counts(n))), n
        if given and given_from is not None:
            raise UserError("context given twice, as values and as a table; choose one (--given or --given-file)")
        if given_from is not None:
            table = schema.open_context(given_from)
            each = n or 1
            repeated = _repeated(table.batches(schema.context), each)
            return self._draws(repeated), table.num_rows and table.num_rows * each
        values = np.array([self._values(given or {})])
        assert n is not None
        return self._draws(values.repeat(count, 0) for count in _counts(n)), n

    def _draws(self, contexts: Iterable[np.ndarray]) -> Iterator[Draw]:
        for number, context in enumerate(contexts):
            encoded = torch.from_numpy(self.schema.encode_context(context))
            yield Draw(number, len(context), encoded, about=context)

    def _values(self, given: Mapping[str, float]) -> list[float]:
        schema = self.schema
        unknown = [name for name in given if name not in schema.context]
        if unknown:
            raise UserError(f"{self.path}: {unknown[0]!r} is no context column; they are {_listed(schema.context)}")
        constants = {c.name: c.low for c in schema.columns if c.kind == "constant"}
        missing = [name for name in schema.context if name not in given and name not in constants]
        if missing:
            remedy = " ".join(f"--given {name}=VALUE" for name in missing[:4]) + (" ..." if len(missing) > 4 else "")
            raise UserError(f"{self.path}: the model is conditional on {_listed(schema.context)}; give {remedy}")
        values = []
        for name in schema.context:
            value = given.get(name, constants.get(name, 0.0))
            try:
                values.append(float(value))
            except (TypeError, ValueError) as error:
                raise UserError(f"expected a number for context column {name!r}, got {value!r}") from error
            if not np.isfinite(values[-1]):
                raise UserError(f"expected a finite value of context column {name!r}, got {value}")
        return values

    def save(self, out: Any, drawn: Iterator[tuple[Tensor, Draw]], force: bool) -> dict[str, Any]:
        """Write rows as they are drawn; count those that are not finite, 0 in a sane model."""
        bad = 0
        schema = self.schema
        with TableWriter(out, schema.names, schema.dtypes, force=force, categories=schema.categories) as writer:
            for samples, draw in drawn:
                x = samples.double().cpu().numpy()
                bad += int((~np.isfinite(x).all(1)).sum())
                writer.write(schema.decode(x, draw.about))
        return {"non_finite": bad}

    # ---- Checking ---------------------------------------------------------------------------------------------------

    def examples(self, source: Any, most: int, seed: int, options: Mapping[str, Any]) -> Examples:
        """Rows, without those that the schema calls impossible."""
        schema, table = self.schema, self.schema.open(source, missing=options.get("missing", "error"))
        # To find out whether these are the rows of training takes all of them.
        small = 4 * schema.rows * (schema.features + schema.context_size) <= LARGE
        x, context, reasons, read = draw_rows(table, schema, max(most, schema.rows) if small else most, seed)
        contexts, which, in_sample = context, "all rows", False
        if small and read == schema.rows and fingerprint(x, context) == self.trained_on():
            train, valid, test = split_rows(len(x), self.provenance["seed"], self.tested())
            part, which = held_out(len(valid), len(test), "rows")
            in_sample = part is None
            if part is not None:
                chosen = test if part == "test" else valid
                rest = torch.cat([train, valid]) if part == "test" else train
                contexts = None if context is None else context[rest]
                x, context = x[chosen], None if context is None else context[chosen]
        elif not small and read == schema.rows:  # too many to compare, but as many
            which, in_sample = "rows of a table as long as that of training", True
        rows, which = choose(len(x), most, which, seed)
        if len(rows) < FEWEST:
            raise UserError(f"{table.name}: has {len(rows)} usable rows, expected at least {FEWEST} to check by")
        return Examples(
            table.name, x[rows], None if context is None else context[rows], which, in_sample, contexts, reasons
        )

    def examine(self, examples: Examples, seed: int) -> dict[str, Any]:
        """Numerics, latents, samples and likelihood, beside a Gaussian and independent columns."""
        grids = self.schema.discrete
        bounds = np.array([grid.low for grid in grids]), np.array([grid.high for grid in grids])
        names = self.schema.feature_names
        return check(self.flow, examples.x, examples.context, bounds=bounds, names=names, seed=seed)


def _type(table: Table, name: str) -> str:
    """Return the type in which a column is passed through."""
    if table.types[name] == "date":
        return table.declared[name]
    return {"text": "string", "integer": "int64", "bool": "int64"}.get(table.types[name], "float64")


def _count(totals: dict[str, int], more: Mapping[str, int]) -> None:
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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))

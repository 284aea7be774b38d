"""What a table's columns are, and the way from their values to a model's numbers and back."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from diffeo.errors import UserError
from diffeo.modalities.tables.table import Table, open_table

__all__ = ["Column", "Encoded", "Grid", "Schema", "decimals", "load"]

KINDS = ("continuous", "integer", "levels", "constant")
DTYPES = ("float64", "int64", "bool")
_LARGEST = 3e38  # just inside float32
_ROUNDING = 2.0**-21  # relative; what a value may have lost in a float32 file


class Grid(NamedTuple):
    """The cells of a quantised feature in encoded units, at low, low + step, ..., high; step 0 if there are none."""

    step: float
    low: float
    high: float


class Encoded(NamedTuple):
    """What a model sees of a batch of rows.

    Attributes:
        x: float32 (n, features).
        context: float32 (n, context_size), or None without context columns.
        impossible: bool (n,), true for rows that hold a value to which the model gives no mass: their log-likelihood is
            -inf, whatever the model says of ``x``.
        reasons: column name -> number of rows that it makes impossible.
    """

    x: np.ndarray
    context: np.ndarray | None
    impossible: np.ndarray
    reasons: dict[str, int]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: as in the file.
        dtype: what samples are written as: float64, int64 or bool.
        kind: "continuous"; "integer", values low + k step; "levels", few irregular values, coded 0, 1, ...;
            "constant", no part of the model.
        low: the smallest value seen (for "integer": the grid's).
        high: the largest.
        step: distance of the grid's points, 0 for other kinds.
        slack: how far from its grid point a value may lie, in steps; 0.5 if every value moves to the nearest.
        origin: is subtracted before rounding to float32; a shift, so densities are unaffected.
        values: the levels, ascending.
    """

    name: str
    dtype: str
    kind: str
    low: float
    high: float
    step: float = 0.0
    slack: float = 0.0
    origin: float = 0.0
    values: tuple[float, ...] = ()

    def grid(self) -> Grid:
        """Return the cells in encoded units."""
        if self.kind == "integer":
            return Grid(self.step, self.low - self.origin, self.high - self.origin)
        if self.kind == "levels":
            return Grid(1.0, 0.0, len(self.values) - 1.0)
        return Grid(0.0, self.low - self.origin, self.high - self.origin)

    def encode(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the encoded values (n,) in float64 and which of them are impossible (n,)."""
        if self.kind == "constant":
            return values, np.abs(values - self.low) > _ROUNDING * abs(self.low)
        if self.kind == "integer":
            k = np.rint((values - self.low) / self.step)
            nearest = self.low + k * self.step
            off = np.abs(values - nearest) > self.slack * self.step + _ROUNDING * np.abs(values)
            # A whole number of steps from the origin, so that equal values stay equal after rounding.
            return (self.low - self.origin) + k * self.step, off
        if self.kind == "levels":
            levels = np.array(self.values)
            code = np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
            gap = np.diff(levels).min()
            tolerance = np.minimum(1e-6 * gap + _ROUNDING * np.abs(values), gap / 4)
            return code.astype(np.float64), np.abs(values - levels[code]) > tolerance
        return values - self.origin, np.zeros(len(values), dtype=bool)

    def decode(self, encoded: np.ndarray) -> np.ndarray:
        """Return values (n,) of the column, inside the observed range, discrete ones on their grid.

        A density has no walls: a little of its mass lies where no value can be (a length of -0.01, a fraction of 1.002)
        or none was seen. As with whole numbers, such a sample becomes the nearest value seen. That falsifies little: of
        n rows, one holds the smallest value, and about one in n samples of a good model comes to hold it.
        """
        if self.kind == "integer":
            k = np.rint((encoded - (self.low - self.origin)) / self.step)
            last = round((self.high - self.low) / self.step)
            values = self.low + np.clip(k, 0, last) * self.step
            places = max(decimals(self.low), decimals(self.step))
            return np.round(values, places) + 0.0 if places <= 12 else values  # + 0: never -0
        if self.kind == "levels":
            last = len(self.values) - 1
            code = np.rint(np.clip(np.nan_to_num(encoded, nan=0.0, posinf=last, neginf=0), 0, last)).astype(int)
            return np.where(np.isnan(encoded), np.nan, np.array(self.values)[code])
        return np.where(np.isfinite(encoded), np.clip(encoded + self.origin, self.low, self.high), encoded)


@dataclass(frozen=True)
class Schema:
    """The columns of a table in their order, and how they are encoded for a model.

    Features are the columns that are neither context nor constant. Encoding, per feature:
    continuous x - origin; integer the nearest point of its grid - origin; levels their position 0, 1, ... Context
    columns are only shifted. All are volume preserving, so a density of ``x`` is one in the units of the file; the
    probability of a value on a grid is that of its cell, [value, value + step) once the model has dequantised it.

    Attributes:
        columns: all columns that belong to the model, in the file's order.
        context: names of those that the density is conditional on, in the order of the context.
        all_names: all columns of the file, those left out included.
        rows: how many rows the schema was inferred from.
    """

    columns: tuple[Column, ...]
    context: tuple[str, ...] = ()
    all_names: tuple[str, ...] = ()
    rows: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Columns that ``encode`` takes and ``decode`` returns."""
        return tuple(column.name for column in self.columns)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Types of these columns, for writing."""
        return tuple(column.dtype for column in self.columns)

    @property
    def feature_columns(self) -> tuple[Column, ...]:
        """Columns that the model describes."""
        return tuple(c for c in self.columns if c.kind != "constant" and c.name not in self.context)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns that the model describes."""
        return tuple(column.name for column in self.feature_columns)

    @property
    def features(self) -> int:
        """How many columns the model describes."""
        return len(self.feature_columns)

    @property
    def context_columns(self) -> tuple[Column, ...]:
        """Columns that the model sees as context, constant ones left out."""
        by_name = {column.name: column for column in self.columns}
        return tuple(by_name[name] for name in self.context if by_name[name].kind != "constant")

    @property
    def context_size(self) -> int:
        """How many numbers the model sees as context."""
        return len(self.context_columns)

    @property
    def discrete(self) -> tuple[Grid, ...]:
        """For each feature its cells, in encoded units; step 0 for a continuous one."""
        return tuple(column.grid() for column in self.feature_columns)

    def notes(self) -> list[str]:
        """Return lines that tell a user how columns were read, where it is not obvious."""
        notes = []
        for c in self.columns:
            if c.kind == "constant" and c.name in self.context:
                notes.append(f"context column {c.name!r} is always {c.low:g}: it tells nothing and is ignored")
        constant = [c for c in self.columns if c.kind == "constant" and c.name not in self.context]
        if constant:
            notes.append(f"always the same value, set aside, samples carry it back: {_listed(constant)}")
        grids: dict[float, list[Column]] = {}
        for c in self.feature_columns:
            if c.kind == "integer":
                grids.setdefault(c.step, []).append(c)
        notes.extend(f"quantised, step {step:g}: {_listed(columns)}" for step, columns in grids.items())
        levels = [c for c in self.feature_columns if c.kind == "levels"]
        if levels:
            notes.append(f"few irregular values, coded as ordered levels: {_listed(levels)}")
        return notes

    def open(self, source: Any, missing: str | None = None, key: str | None = None) -> Table:
        """Open a table that has this schema's columns, in any order; without names, by position.

        Raises:
            UserError: if columns are missing.
        """
        return open_table(source, missing=missing, key=key).select(self.names, self.all_names or self.names)

    def open_context(self, source: Any, missing: str | None = None, key: str | None = None) -> Table:
        """Open a table that has (at least) the context columns, as sampling needs it.

        Raises:
            UserError: if columns are missing.
        """
        return open_table(source, missing=missing, key=key).select(self.context, self.context)

    def encode(self, values: np.ndarray) -> Encoded:
        """Return what the model sees of rows (n, len(names)), columns in the order of ``names``.

        Rows with NaN or infinity anywhere become NaN throughout.
        """
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.columns):
            raise ValueError(f"expected values of shape (n, {len(self.columns)}), got {values.shape}")
        place = {name: i for i, name in enumerate(self.names)}
        impossible = np.zeros(len(values), dtype=bool)
        reasons: dict[str, int] = {}
        x = np.empty((len(values), self.features), dtype=np.float32)
        at = 0
        for column in self.columns:
            if column.name in self.context:
                continue
            with np.errstate(all="ignore"):  # what overflows is off the grid
                encoded, off = column.encode(values[:, place[column.name]])
            off &= np.isfinite(values[:, place[column.name]])
            if off.any():
                impossible |= off
                reasons[column.name] = int(off.sum())
            if column.kind != "constant":
                x[:, at] = np.clip(encoded, -_LARGEST, _LARGEST)
                at += 1
        context = None
        if self.context:
            context = self.encode_context(values[:, [place[name] for name in self.context]])
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            x[bad] = np.nan
            impossible &= ~bad
        return Encoded(x, context, impossible, reasons)

    def encode_context(self, values: np.ndarray) -> np.ndarray | None:
        """Return float32 (n, context_size) from values (n, len(context)), or None if nothing is left of it."""
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.context):
            raise ValueError(f"expected context of shape (n, {len(self.context)}), got {values.shape}")
        if not self.context_size:
            return None
        places = [self.context.index(column.name) for column in self.context_columns]
        origins = np.array([column.origin for column in self.context_columns])
        return np.clip(values[:, places] - origins, -_LARGEST, _LARGEST).astype(np.float32)

    def decode(self, x: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
        """Return rows (n, len(names)) from features (n, features).

        Nothing leaves the observed range, integers are rounded to their grid, levels and constants come back.

        Args:
            x: features as ``encode`` returns them, for quantised ones the lower end of the cell (what the model's
                dequantisation emits), up to half a step more or less.
            context: the context columns' own values (n, len(context)), not encoded; needed if there are any.
        """
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"expected x of shape (n, {self.features}), got {x.shape}")
        if (context is None) == bool(self.context):
            raise ValueError(f"expected {'context values' if self.context else 'no context'} for {self.context}")
        values = np.empty((len(x), len(self.columns)))
        at = 0
        for i, column in enumerate(self.columns):
            if column.name in self.context and context is not None:
                values[:, i] = np.asarray(context)[:, self.context.index(column.name)]
            elif column.kind == "constant":
                values[:, i] = column.low
            else:
                values[:, i] = column.decode(x[:, at])
                at += 1
        return values

    def to_json(self) -> dict[str, Any]:
        """Return plain data that ``json.dumps`` takes and ``from_json`` reads."""
        data = asdict(self)
        data["columns"] = [{**column, "values": list(column["values"])} for column in data["columns"]]
        return {**data, "context": list(self.context), "all_names": list(self.all_names)}

    @staticmethod
    def from_json(data: Any) -> "Schema":
        """Return the schema that ``to_json`` described, after checking all of it.

        Raises:
            UserError: for anything else.
        """
        keys = {field.name for field in fields(Schema)}
        _expect(isinstance(data, dict) and set(data) == keys, f"an object with {sorted(keys)}", data)
        _expect(isinstance(data["columns"], list) and data["columns"], "a list of columns", data["columns"])
        columns = tuple(_column(item) for item in data["columns"])
        for key in ("context", "all_names"):
            _expect(isinstance(data[key], list) and all(isinstance(n, str) for n in data[key]), "names", data[key])
            _expect(len(set(data[key])) == len(data[key]), f"{key} without repetition", data[key])
        _expect(type(data["rows"]) is int and data["rows"] >= 0, "rows >= 0", data["rows"])
        schema = Schema(columns, tuple(data["context"]), tuple(data["all_names"]), data["rows"])
        names = set(schema.names)
        _expect(len(names) == len(columns), "columns with names of their own", sorted(schema.names))
        _expect(set(schema.context) <= names, "context among the columns", data["context"])
        _expect(not schema.all_names or names <= set(schema.all_names), "all_names with all columns", data["all_names"])
        _expect(schema.features > 0, "at least one feature", schema.names)
        return schema


def load(table: Table, schema: Schema) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a table's features (n, features) and context (n, context_size), float32, in the file's order.

    Args:
        table: has the schema's columns.
        schema: says how to encode.

    Raises:
        UserError: for bad input, or rows that hold a value which the schema excludes.
    """
    parts: list[Encoded] = []
    for batch in table.batches(schema.names):
        encoded = schema.encode(batch)
        if encoded.impossible.any():
            column, count = next(iter(encoded.reasons.items()))
            rows_hold = "1 row holds" if count == 1 else f"{count} rows hold"
            raise UserError(
                f"{table.name}: column {column!r}: {rows_hold} a value that the model excludes; leave such rows out"
            )
        parts.append(encoded)
    contexts = [part.context for part in parts if part.context is not None]
    return np.concatenate([part.x for part in parts]), np.concatenate(contexts) if contexts else None


def _column(data: Any) -> Column:
    keys = {field.name for field in fields(Column)}
    _expect(isinstance(data, dict) and set(data) == keys, f"a column with {sorted(keys)}", data)
    _expect(isinstance(data["name"], str) and data["name"], "a name", data["name"])
    _expect(data["kind"] in KINDS, f"kind to be one of {KINDS}", data["kind"])
    _expect(data["dtype"] in DTYPES, f"dtype to be one of {DTYPES}", data["dtype"])
    for key in ("low", "high", "step", "slack", "origin"):
        _expect(_is_number(data[key]), f"{key} to be a finite number", data[key])
    _expect(isinstance(data["values"], list) and all(map(_is_number, data["values"])), "numbers", data["values"])
    numbers = {key: float(data[key]) for key in ("low", "high", "step", "slack", "origin")}
    values = tuple(float(value) for value in data["values"])
    _expect(numbers["low"] <= numbers["high"], "low <= high", numbers)
    _expect((numbers["step"] > 0) == (data["kind"] == "integer"), "a step > 0 for integer, 0 for others", numbers)
    _expect(0 <= numbers["slack"] <= 0.5, "slack in [0, 0.5]", numbers["slack"])
    if data["kind"] == "levels":
        _expect(len(values) >= 2 and all(np.diff(values) > 0), "two or more ascending values", data["values"])
    else:
        _expect(not values, "values for levels only", data["values"])
    return Column(name=data["name"], dtype=data["dtype"], kind=data["kind"], values=values, **numbers)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer beyond every float
        return False


def _expect(condition: Any, expected: str, got: Any) -> None:
    if not condition:
        shown = " ".join(repr(got).split())
        raise UserError(f"schema: expected {expected}, got {shown[:80]}{'...' if len(shown) > 80 else ''}")


def _listed(columns: Sequence[Column]) -> str:
    more = f" and {len(columns) - 8} more" if len(columns) > 8 else ""
    return ", ".join(repr(column.name) for column in columns[:8]) + more


def decimals(value: float) -> int:
    """Return the decimals of a float's shortest form."""
    mantissa, _, exponent = repr(float(value)).partition("e")
    fraction = mantissa.partition(".")[2]
    places = 0 if fraction in ("", "0") else len(fraction)
    return max(0, places - int(exponent or 0))

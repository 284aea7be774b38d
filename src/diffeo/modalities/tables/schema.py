"""What a table's columns are, and the way from their values to a model's numbers and back."""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from diffeo.errors import UserError
from diffeo.fields import Fields, ListOf, Nothing, Number, Text, problem
from diffeo.modalities.tables.dates import (
    DAY,
    arrow_type,
    find_formats,
    is_number_type,
    parse_dates,
    show_dates,
    to_temporal,
)
from diffeo.modalities.tables.numbers import Numbers, below, entries, floats, numbers_of
from diffeo.modalities.tables.table import ROWS, Table, open_table

__all__ = [
    "NUMBERS",
    "Column",
    "Encoded",
    "Grid",
    "NoDate",
    "Schema",
    "decimals",
    "load",
    "load_weighted",
    "naming_rows",
]

KINDS = ("continuous", "integer", "levels", "categorical", "date", "constant")
NUMBERS = ("float64", "int64", "bool")
DTYPES = (*NUMBERS, "string", "category", "ordered", "date")
_LARGEST = 3e38  # just inside float32
_BEYOND = 1e30  # of cells of a model that knows gaps: the largest with room for arithmetic
_SHOWN = 8  # categories named in a message
_ROUNDING = 2.0**-21  # relative; what a value may have lost in a float32 file


class NoDate(UserError):
    """A text, of which its number is known, is no date of its column's format."""

    def __init__(self, message: str, column: str, code: int) -> None:
        super().__init__(message)
        self.column, self.code = column, code


@contextmanager
def naming_rows(table: Table) -> Iterator[None]:
    """Say of a text that is no date in which file and row of a table it is."""
    try:
        yield
    except NoDate as error:
        ((where, _),) = table.find(error.column, [error.code])
        raise UserError(f"{table.name}: {where}, {error}") from error


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
        log_grid: float64 (n,), what its values on and off their grids (``Schema.log_grid``) add to the log-likelihood
            of ``x``, where a value off its grid is the nearest one on it.
        off_grid: bool (n, columns), which values are off their grids.
        reasons: column name -> number of rows with a value off its grid.
        unseen: column name -> number of rows with a category that training did not see; these have a mass in the model.
    """

    x: np.ndarray
    context: np.ndarray | None
    log_grid: np.ndarray
    off_grid: np.ndarray
    reasons: dict[str, int]
    unseen: Mapping[str, int]

    @property
    def off(self) -> np.ndarray:
        """Which rows have a value off its grid (n,)."""
        return np.asarray(self.off_grid.any(axis=1))


@dataclass(frozen=True)
class Column:
    """One column of a table.

    ``encode`` and ``decode`` compute with NumPy's arrays, or with PyTorch's tensors for a program that is exported.

    Its values are numbers: those of the table, categories as codes 0, 1, ..., dates and times as seconds since 1970 or
    midnight; missing ones are NaN. A date becomes up to two features: the day, counted from the first, and the second
    of the day, each where it varies. Any other column is one feature, a constant none.

    Attributes:
        name: as in the file.
        dtype: what samples are written as: float64, int64, bool, string, category or ordered (texts of a dictionary
            type), date (an Arrow type, which ``format`` names).
        kind: "continuous"; "integer", values low + k step; "levels", few irregular values, coded 0, 1, ...;
            "categorical"; "date"; "constant", no part of the model.
        low: the smallest value seen (for "integer": the grid's).
        high: the largest.
        step: distance of the grid's points, of a date that of the seconds of the day; 0 for other kinds.
        slack: how far from its grid point a value may lie, in steps; 0.5 if every value moves to the nearest.
        origin: is subtracted before rounding to float32; a shift, so densities are unaffected.
        values: the levels, ascending; the numbers of categories, if they are numbers; of a date whose second of the day
            varies, the first and the last.
        missing: whether some cells were missing.
        categories: the categories, in the order of their codes.
        steps: of the grids on which more values lie than chance explains, ascending; empty if there is but one.
        unit: of the last digit of a continuous column, to which samples are rounded; 0 if they have too many.
        format: how dates and times are written: for ``show_dates``, or an Arrow type.
        type: the Arrow type of numbers that are written as neither int64 nor float64.
        once: how many of the levels were seen once.
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
    missing: bool = False
    categories: tuple[str, ...] = ()
    steps: tuple[float, ...] = ()
    unit: float = 0.0
    format: str = ""
    type: str = ""
    once: int = 0

    @property
    def plain(self) -> bool:
        """Whether it consists of complete numbers."""
        return not self.missing and self.kind not in ("categorical", "date") and self.dtype in NUMBERS

    @property
    def features(self) -> int:
        """How many features the column has."""
        return len(self.grids)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The cells of each feature in encoded units."""
        if self.kind == "constant":
            return ()
        if self.kind == "integer":
            return (Grid(self.step, self.low - self.origin, self.high - self.origin),)
        if self.kind in ("levels", "categorical"):
            return (Grid(1.0, 0.0, len(self.categories or self.values) - 1.0),)
        if self.kind == "date":
            last = self.high // DAY - self.low // DAY
            days = (Grid(1.0, 0.0, last),) if last else ()
            return (*days, Grid(self.step, *self.values)) if self.values else days
        return (Grid(0.0, self.low - self.origin, self.high - self.origin),)

    @property
    def strict(self) -> bool:
        """Whether there are finite values off its grid, which ``encode`` moves to it: a constant's has one point."""
        if self.kind == "date":
            return self.step > 0 or not self.values or self.low // DAY == self.high // DAY
        return self.kind in ("constant", "levels") or (self.kind == "integer" and self.slack < 0.5)

    @property
    def context_size(self) -> int:
        """How many numbers the column is in a context: one for each category, else its features."""
        return len(self.categories) if self.kind == "categorical" else self.features

    def grid(self) -> Grid:
        """Return the cells of the only feature in encoded units."""
        (grid,) = self.grids
        return grid

    def read(self, cells: np.ndarray, texts: Sequence[str] | None = None) -> np.ndarray:
        """Return the column's values (n,) of what a table reads: numbers, or the numbers of ``texts``.

        A category that is none of the column's is ``len(categories)``.

        Raises:
            NoDate: for a text that is no date.
        """
        if texts is None:
            if self.kind != "categorical" or not self.values:
                return cells
            known = np.searchsorted(self.values, np.nan_to_num(cells)).clip(0, len(self.values) - 1)
            codes = np.where(np.array(self.values)[known] == cells, known, len(self.values))
            return np.where(np.isnan(cells), np.nan, codes)
        codes, place = np.unique(cells[~np.isnan(cells)].astype(int), return_inverse=True)
        met = [texts[code] for code in codes]
        if self.format:
            meant = self._seconds(met, codes)
        else:
            order = {category: i for i, category in enumerate(self.categories)}
            meant = np.array([order.get(text, len(order)) for text in met], dtype=np.float64)
        values = np.full(len(cells), np.nan)
        values[~np.isnan(cells)] = meant[place] if len(met) else 0
        return values

    def _seconds(self, texts: list[str], codes: np.ndarray) -> np.ndarray:
        form = self.format if "%" in self.format else next(iter(find_formats(texts)), "%Y-%m-%d")
        seconds = parse_dates(texts, form)
        wrong = np.flatnonzero(np.isnan(seconds))
        if len(wrong):
            example = show_dates(np.array([self.low]), form)[0]
            raise NoDate(
                f"column {self.name!r}: {texts[wrong[0]]!r} is no date or time of the form {example!r} ({form});"
                " correct it or leave out such rows",
                self.name,
                int(codes[wrong[0]]),
            )
        return seconds

    def encode(self, values: Numbers) -> tuple[Numbers, Numbers]:
        """Return the encoded values in float64, (n,) or of a date (n, features), and which are off the grid (n,)."""
        xp = numbers_of(values)
        if self.kind == "constant":
            return values, xp.abs(values - self.low) > (1e-6 if self.format else _ROUNDING * abs(self.low))
        if self.kind == "integer":
            k = xp.round((values - self.low) / self.step)
            nearest = self.low + k * self.step
            off = xp.abs(values - nearest) > self.slack * self.step + _ROUNDING * xp.abs(values)
            # A whole number of steps from the origin, so that equal values stay equal after rounding.
            return (self.low - self.origin) + k * self.step, off
        if self.kind == "levels":
            levels = np.array(self.values)
            code = below((levels[1:] + levels[:-1]) / 2, values)
            gap = float(np.diff(levels).min())
            tolerance = xp.clip(1e-6 * gap + _ROUNDING * xp.abs(values), None, gap / 4)
            off = xp.abs(values - entries(levels, code)) > tolerance
            return xp.where(xp.isnan(values), np.nan, floats(code)), off
        if self.kind == "date":
            day, second = xp.floor_divide(values, DAY), xp.remainder(values, DAY)
            first, last = self.values or (self.low % DAY,) * 2
            nearest = second
            if self.step:
                nearest = first + xp.round((second - first) / self.step) * self.step
            elif first == last:
                nearest = xp.full_like(second, first)
            off = xp.abs(second - nearest) > 1e-3 * self.step + 1e-6
            varying = [day - self.low // DAY] if self.low // DAY != self.high // DAY else []
            if not varying:
                off = off | (day != self.low // DAY)
            return xp.stack([*varying, *([nearest] if self.values else [])], 1), off
        if self.kind == "categorical":
            return values, xp.zeros_like(values) > 0
        return values - self.origin, xp.zeros_like(values) > 0

    def features_of(self, values: Numbers, gaps: bool) -> tuple[Numbers, Numbers]:
        """Return the features (n, features) that a model sees of values (n,), and which are off the grid (n,).

        Args:
            values: as ``read`` returns them.
            gaps: whether the model knows missing cells; see ``Schema.encode``.
        """
        xp = numbers_of(values)
        encoded, off = self.encode(values)
        off = off & xp.isfinite(values)
        if gaps:
            huge = xp.abs(values) > _BEYOND
            off = off | huge
            encoded = xp.where(huge if encoded.ndim == 1 else huge[:, None], np.nan, encoded)
        largest = _BEYOND if gaps else _LARGEST
        return xp.clip(encoded[:, None] if encoded.ndim == 1 else encoded, -largest, largest), off

    def log_grid(self, values: Numbers, off: Numbers, log_on: float, log_off: float) -> Numbers:
        """Return what values add to log-likelihoods (n,), being on or off the grid (``Schema.log_grid``).

        A missing cell is on the grid; where none was seen, it is marginalised, and adds nothing. What is infinite or
        beyond 1e30 has no mass.
        """
        xp = numbers_of(values)
        marginalised = xp.isnan(values) & (not self.missing)
        finite = xp.where(off, log_off, xp.where(marginalised, 0.0, log_on))
        return xp.where(off & (xp.abs(values) > _BEYOND), -math.inf, finite)

    def encode_context(self, values: Numbers) -> Numbers:
        """Return the numbers (n, context_size) of values in a context: categories one-hot, numbers only shifted."""
        if self.kind == "categorical":
            xp = numbers_of(values)
            one_hot = values[:, None] == xp.arange(len(self.categories))
            return xp.where(xp.isnan(values)[:, None], np.nan, floats(one_hot))
        if self.kind == "date":
            return self.encode(values)[0]
        return values[:, None] - self.origin

    def decode(self, encoded: Numbers, clip: bool = True) -> Numbers:
        """Return values (n,) of the column, inside the observed range, discrete ones on their grid.

        A density has no walls: a little of its mass lies where no value can be (a length of -0.01, a fraction of 1.002)
        or none was seen. As with whole numbers, such a sample becomes the nearest value seen. That falsifies little: of
        n rows, one holds the smallest value, and about one in n samples of a good model comes to hold it. Without
        ``clip`` continuous columns keep what the density says.
        """
        xp = numbers_of(encoded)
        if self.kind == "integer":
            k = xp.round((encoded - (self.low - self.origin)) / self.step)
            last = round((self.high - self.low) / self.step)
            values = self.low + xp.clip(k, 0, last) * self.step
            for wider in self.steps[1:]:  # thirds and whole numbers, say: these are exact
                point = xp.round(values / wider) * wider
                values = xp.where(xp.abs(values - point) < 1e-6 * wider, point, values)
            places = max(decimals(self.low), decimals(self.step))
            return xp.round(values, decimals=places) + 0.0 if places <= 12 else values  # + 0: never -0
        if self.kind == "levels":
            last = len(self.values) - 1
            code = xp.round(xp.clip(xp.nan_to_num(encoded, nan=0.0, posinf=last, neginf=0), 0, last))
            return xp.where(xp.isnan(encoded), np.nan, entries(np.array(self.values), code))
        if self.kind == "categorical":
            return xp.round(xp.clip(encoded, 0, len(self.categories) - 1))
        if self.kind == "date":
            parts = [xp.clip(part, grid.low, grid.high) for part, grid in zip(encoded.T, self.grids, strict=True)]
            day = xp.round(parts[0]) if self.low // DAY != self.high // DAY else xp.zeros_like(parts[0])
            second = parts[-1] if self.values else xp.full_like(parts[0], self.low % DAY)
            if self.values and self.step:
                second = self.values[0] + xp.round((second - self.values[0]) / self.step) * self.step
            values = (self.low // DAY + day) * DAY + second
            return xp.clip(xp.round(values * 1e6) / 1e6, self.low, self.high)  # to the microsecond
        if not clip:
            return encoded + self.origin
        values = xp.where(xp.isfinite(encoded), xp.clip(encoded + self.origin, self.low, self.high), encoded)
        return xp.round(values, decimals=decimals(self.unit)) if self.unit else values

    def cells(self, values: np.ndarray) -> list[Any]:
        """Return the column's values as Python has them: numbers, texts, dates and times; None for missing ones."""
        known = ~np.isnan(values)
        if self.categories:
            choice: Sequence[Any] = self.values or self.categories
            met = [choice[int(code)] for code in values[known]]
        elif "%" in self.format:
            met = show_dates(values[known], self.format)
        elif self.format:
            met = to_temporal(values[known], self.format).to_pylist()
        else:
            met = values[known].tolist()
        if self.dtype in ("int64", "bool"):
            met = [int(value) if self.dtype == "int64" else bool(value) for value in met]
        cells = np.full(len(values), None, dtype=object)
        cells[known] = met
        return cells.tolist()


@dataclass(frozen=True)
class Schema:
    """The columns of a table in their order, and how they are encoded for a model.

    Features come from the columns that are neither context nor constant. Encoding, per feature:
    continuous x - origin; integer the nearest point of its grid - origin; levels and categories their position 0, 1,
    ...; dates and times the day and the second of the day. In the context, categories are one-hot, dates and times as
    elsewhere, and numbers only shifted, so that they may have any value. All are volume preserving, so a density of
    ``x`` is one in the units of the file; the probability of a value on a grid is that of its cell, [value, value +
    step) once the model has dequantised it.

    Attributes:
        columns: all columns that belong to the model, in the file's order.
        context: names of those that the density is conditional on, in the order of the context.
        all_names: all columns of the file, those left out included.
        rows: how many rows the schema was inferred from.
        identifiers: names of columns that were set aside because nearly all their values differ.
        weights: name of the column that held the weights of the training rows, which is not modelled; empty if none.
    """

    columns: tuple[Column, ...]
    context: tuple[str, ...] = ()
    all_names: tuple[str, ...] = ()
    rows: int = 0
    identifiers: tuple[str, ...] = ()
    weights: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Columns that ``encode`` takes and ``decode`` returns."""
        return tuple(column.name for column in self.columns)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Types of these columns, for writing."""
        return tuple(c.type or (c.format if c.dtype == "date" else c.dtype) for c in self.columns)

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """The texts of columns of a dictionary type, for writing."""
        return {c.name: c.categories for c in self.columns if c.dtype in ("category", "ordered")}

    @property
    def mixed(self) -> bool:
        """Whether there are categories, dates or missing cells beside complete numbers, the context aside."""
        return any(not c.plain for c in self.columns if c.name not in self.context)

    @property
    def feature_columns(self) -> tuple[Column, ...]:
        """Columns that the model describes."""
        return tuple(c for c in self.columns if c.kind != "constant" and c.name not in self.context)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features: of their columns, and what part of it where there are two."""
        parts = (("",), ("", " (time of day)"))
        return tuple(c.name + part for c in self.feature_columns for part in parts[c.features - 1])

    @property
    def places(self) -> dict[str, slice]:
        """Column that the model describes -> where its features are."""
        ends = np.cumsum([column.features for column in self.feature_columns]).tolist()
        return {c.name: slice(end - c.features, end) for c, end in zip(self.feature_columns, ends, strict=True)}

    @property
    def features(self) -> int:
        """How many numbers the model describes in a row."""
        return sum(column.features for column in self.feature_columns)

    @property
    def context_columns(self) -> tuple[Column, ...]:
        """Columns that the model sees as context, constant ones left out."""
        by_name = {column.name: column for column in self.columns}
        return tuple(by_name[name] for name in self.context if by_name[name].kind != "constant")

    @property
    def context_size(self) -> int:
        """How many numbers the model sees as context."""
        return sum(column.context_size for column in self.context_columns)

    @property
    def discrete(self) -> tuple[Grid, ...]:
        """For each feature its cells, in encoded units; step 0 for a continuous one."""
        return tuple(grid for column in self.feature_columns for grid in column.grids)

    def log_grid(self, column: Column) -> tuple[float, float]:
        r"""Return the log-probability that a value of a column is on its grid, and that it is off it.

        The next row has a value off the grid with a probability of

        .. math:: (1 / S + m) / (N + 2)

        by N rows, in which none was, so that a row has one in any of the S columns that are ``strict`` once in N + 2
        (the rule of succession: Laplace 1774); and by the m levels that were seen once, for new ones are about as
        frequent (Good 1953). All values off a column's grid are one event, as are all categories that training did not
        see. So the masses of a column still sum to one, and a row off a grid has a finite log-likelihood: that of the
        nearest row on it and the logarithm of this. Columns that are not strict have 0 and -inf.
        """
        if not column.strict:
            return 0.0, -math.inf
        off = (1 / self._strict + column.once) / (self.rows + 2)
        return math.log1p(-off), math.log(off)

    @cached_property
    def _strict(self) -> int:
        return sum(column.strict for column in self.columns if column.name not in self.context)

    @cached_property
    def log_on_grids(self) -> float:
        """Log-probability that all values of a row are on their columns' grids."""
        return math.fsum(self.log_grid(column)[0] for column in self.columns if column.name not in self.context)

    def notes(self) -> list[str]:
        """Return lines that tell a user how columns were read, where it is not obvious."""
        notes = []
        for c in self.columns:
            if c.kind == "constant" and c.name in self.context:
                (value,) = c.cells(np.array([c.low])) if c.categories or c.format else [f"{c.low:g}"]
                notes.append(f"context column {c.name!r} is always {value}: it tells nothing and is ignored")
        constant = [c for c in self.columns if c.kind == "constant" and c.name not in self.context]
        if constant:
            notes.append(f"always the same value, set aside, samples carry it back: {_listed(constant)}")
        grids: dict[float, list[Column]] = {}
        for c in self.feature_columns:
            if c.kind == "integer":
                grids.setdefault(c.step, []).append(c)
        notes.extend(f"quantised, step {step:g}: {_listed(columns)}" for step, columns in grids.items())
        stepped = [c for c in self.feature_columns if c.steps]
        if stepped:
            widths = _listed(stepped, lambda c: f" ({', '.join(f'{step:g}' for step in c.steps)})")
            notes.append(f"on steps of several widths: {widths}")
        levels = [c for c in self.feature_columns if c.kind == "levels"]
        if levels:
            notes.append(f"few irregular values, coded as ordered levels: {_listed(levels)}")
        chosen = [c for c in self.feature_columns if c.kind == "categorical"]
        if chosen:
            notes.append(f"categories (else --drop): {_listed(chosen, lambda c: f' ({len(c.categories)})')}")
        one_hot = [c for c in self.context_columns if c.kind == "categorical"]
        if one_hot:
            notes.append(f"categories in the context, one-hot: {_listed(one_hot, lambda c: f' ({len(c.categories)})')}")
        dated = [c for c in (*self.feature_columns, *self.context_columns) if c.kind == "date"]
        if dated:
            notes.append(f"dates and times (else --categorical): {_listed(dated, lambda c: f' ({c.format})')}")
        gaps = [c for c in self.columns if c.missing]
        if gaps:
            notes.append(f"some cells are missing, which is modelled (else --drop-missing): {_listed(gaps)}")
        if self.identifiers:
            aside = ", ".join(map(repr, self.identifiers))
            notes.append(f"nearly all values differ, set aside as identifiers (else --categorical): {aside}")
        return notes

    def open(
        self,
        source: Any,
        names: Sequence[str] | None = None,
        *,
        remedies: Collection[str] = ("na", "decimal", "missing"),
        **reading: Any,
    ) -> Table:
        """Open a table that has this schema's columns, in any order; without names, by position.

        Args:
            source: a table, as ``open_table`` takes it.
            names: those of its columns that are needed; all by default.
            remedies: arguments that messages may recommend; by default those that say how a table is read.
            **reading: how ``open_table`` reads it.

        Raises:
            UserError: if columns are missing, or of another kind.
        """
        table = open_table(source, **reading)
        table.recommend(remedies)
        names = self.names if names is None else names
        return self.declared(table.select(names, self.all_names or self.names))

    def declared(self, table: Table) -> Table:
        """Say of a table with some of the columns what they hold; return it.

        Raises:
            UserError: if a column is of another kind.
        """
        table.declare({column.name: _declared(column) for column in self.columns if column.name in table.names})
        return table

    def encode(
        self,
        values: np.ndarray,
        dictionaries: Mapping[str, Sequence[str]] | None = None,
        gaps: bool | None = None,
        without: Collection[str] = (),
    ) -> Encoded:
        """Return what the model sees of rows (n, len(names)), columns in the order of ``names``.

        Args:
            values: rows as ``Table.batches`` yields them, missing cells NaN.
            dictionaries: the table's.
            gaps: whether the model knows missing cells: then these are NaN, and so is what is infinite or beyond 1e30,
                which is off any grid. Else rows with NaN or infinity anywhere become NaN throughout. By default,
                whether the table is ``mixed``.
            without: names of columns that the likelihood is not of, for they are dropped or given.

        Raises:
            NoDate: for a text that is no date.
        """
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.columns):
            raise ValueError(f"expected values of shape (n, {len(self.columns)}), got {values.shape}")
        gaps = self.mixed if gaps is None else gaps
        off_grid = np.zeros(values.shape, dtype=bool)
        unseen: dict[str, int] = {}
        places = self.places
        x = np.empty((len(values), self.features), dtype=np.float32)
        log_grid = np.zeros(len(values))
        for i, column in enumerate(self.columns):
            if column.name in self.context:
                continue
            cells = column.read(values[:, i], (dictionaries or {}).get(column.name))
            with np.errstate(all="ignore"):  # what overflows is off the grid
                features, off = column.features_of(cells, gaps)
            off_grid[:, i] = off
            log_grid += column.log_grid(cells, off, *((0.0, 0.0) if column.name in without else self.log_grid(column)))
            if column.kind == "categorical" and (cells == len(column.categories)).any():
                unseen[column.name] = int((cells == len(column.categories)).sum())
            if column.name in places:
                x[:, places[column.name]] = features
        context = None
        if self.context:
            cells = values[:, [self.names.index(name) for name in self.context]]
            context = self.encode_context(self.read_context(cells, dictionaries))
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any() and not gaps:
            x[bad] = np.nan
            off_grid[bad] = False
        off = {name: int(count) for name, count in zip(self.names, off_grid.sum(0), strict=True) if count}
        return Encoded(x, context, log_grid, off_grid, off, unseen)

    def weighted(self, table: Table, rows: int = ROWS) -> Iterator[tuple[np.ndarray, Encoded, np.ndarray | None]]:
        """Yield the rows of a table to train on, batch by batch.

        They come with their numbers in the table, from 1 (n,), and their weights (n,), or None where all count alike.

        Args:
            table: has the schema's columns, and that of the weights.
            rows: of a batch.

        Raises:
            UserError: for bad input.
        """
        count = len(self.names)
        for numbers, values in table.numbered([*self.names, *([self.weights] if self.weights else [])], rows):
            with naming_rows(table):
                encoded = self.encode(values[:, :count], table.dictionaries)
            yield numbers, encoded, values[:, count] if self.weights else None

    def read_context(self, cells: np.ndarray, dictionaries: Mapping[str, Sequence[str]] | None = None) -> np.ndarray:
        """Return the context columns' own values (n, len(context)), as ``Column.read`` does, of what a table yields."""
        names, texts = self.context, dictionaries or {}
        columns = [self.columns[self.names.index(name)] for name in names]
        read = [column.read(part, texts.get(column.name)) for column, part in zip(columns, cells.T, strict=True)]
        return np.stack(read, axis=1)

    def check_context(
        self, cells: np.ndarray, table: Table | Mapping[str, Sequence[str]], rows: Sequence[int] | np.ndarray = ()
    ) -> None:
        """Refuse contexts given which the density is not known.

        Args:
            cells: what a table yields of the context columns (n, len(context)).
            table: the table; or, of values that no table holds, their texts by column.
            rows: their numbers in the table (n,), as ``Table.numbered`` counts them.

        Raises:
            UserError: for a missing cell, infinity, or a category that training did not see.
        """
        dictionaries = table.dictionaries if isinstance(table, Table) else table
        for name, part in zip(self.context, cells.T, strict=True):
            column = self.columns[self.names.index(name)]
            values = column.read(part, dictionaries.get(name))
            absent, unseen = ~np.isfinite(values), np.zeros(len(values), dtype=bool)
            if column.categories:
                unseen = values == len(column.categories)
            elif column.dtype == "bool":
                unseen = ~absent & (values != 0) & (values != 1)
            if not (absent | unseen).any():
                continue
            row = int((absent | unseen).argmax())
            if absent[row]:
                remedy = table.remedy if isinstance(table, Table) else ""
                what = f"the density is conditional on what is missing or infinite here; fill it{remedy}"
            else:
                value = dictionaries[name][int(part[row])] if name in dictionaries else f"{part[row]:g}"
                known = [*map(repr, column.categories[:_SHOWN])] or ["false", "true"]
                more = f" and {len(column.categories) - _SHOWN} more" if len(column.categories) > _SHOWN else ""
                what = f"training saw no values such as {value!r}; they are {', '.join(known)}{more}"
            where = f"{table.name}: {table.where(int(rows[row]))}, " if isinstance(table, Table) else ""
            raise UserError(f"{where}column {name!r}: {what}")

    def encode_context(self, values: np.ndarray) -> np.ndarray | None:
        """Return float32 (n, context_size) from values (n, len(context)), or None if nothing is left of it.

        Args:
            values: the columns' own values, as ``read_context`` returns them; a category that is none is all zeros.
        """
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.context):
            raise ValueError(f"expected context of shape (n, {len(self.context)}), got {values.shape}")
        if not self.context_size:
            return None
        parts = [column.encode_context(values[:, self.context.index(column.name)]) for column in self.context_columns]
        return np.clip(np.concatenate(parts, axis=1), -_LARGEST, _LARGEST).astype(np.float32)

    def decode(self, x: np.ndarray, context: np.ndarray | None = None, clip: bool = True) -> np.ndarray:
        """Return rows (n, len(names)) from features (n, features).

        Nothing leaves the observed range, integers are rounded to their grid, levels and constants come back. They are
        float64, or, where not all columns are complete numbers, objects: numbers, texts, dates and times, None for
        missing cells.

        Args:
            x: features as ``encode`` returns them, for quantised ones the lower end of the cell (what the model's
                dequantisation emits), up to half a step more or less.
            context: the context columns' own values (n, len(context)), as ``read_context`` returns them; needed if
                there are any.
            clip: whether continuous columns stay in the observed range, rounded to their unit.
        """
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"expected x of shape (n, {self.features}), got {x.shape}")
        if (context is None) == bool(self.context):
            raise ValueError(f"expected {'context values' if self.context else 'no context'} for {self.context}")
        places = self.places
        values = np.empty((len(x), len(self.columns)))
        for i, column in enumerate(self.columns):
            if column.name in self.context and context is not None:
                values[:, i] = np.asarray(context)[:, self.context.index(column.name)]
            elif column.kind == "constant":
                values[:, i] = column.low
            else:
                part = x[:, places[column.name]]
                values[:, i] = column.decode(part if column.kind == "date" else part[:, 0], clip)
        if all(column.plain for column in self.columns):
            return values
        cells = np.empty(values.shape, dtype=object)
        for i, column in enumerate(self.columns):
            cells[:, i] = column.cells(values[:, i])
        return cells

    def to_json(self) -> dict[str, Any]:
        """Return plain data that ``json.dumps`` takes and ``from_json`` reads."""
        columns = [
            {
                field.name: list(value) if isinstance(value, tuple) else value
                for field in fields(Column)
                if (value := getattr(column, field.name)) != field.default or field.name in _STORED
            }
            for column in self.columns
        ]
        data = {"columns": columns, "context": list(self.context), "all_names": list(self.all_names), "rows": self.rows}
        others = {"identifiers": list(self.identifiers), "weights": self.weights}
        return data | {name: value for name, value in others.items() if value}

    @staticmethod
    def from_json(data: Any) -> "Schema":
        """Return the schema that ``to_json`` described, after checking all of it.

        Raises:
            UserError: for anything else.
        """
        if fault := problem(data, _SCHEMA):
            raise UserError(f"schema: {fault}")
        data = {"identifiers": [], "weights": "", **data}
        columns = tuple(_column(item) for item in data["columns"])
        for key in ("context", "all_names", "identifiers"):
            _expect(len(set(data[key])) == len(data[key]), f"{key} without repetition", data[key])
        context, all_names, identifiers = (tuple(data[key]) for key in ("context", "all_names", "identifiers"))
        schema = Schema(columns, context, all_names, data["rows"], identifiers, data["weights"])
        names = set(schema.names)
        _expect(schema.weights not in names, "weights that are not modelled", schema.weights)
        once = max((column.once for column in columns), default=0)
        _expect(once <= data["rows"], "at most as many levels that were seen once as rows", once)
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
        UserError: for bad input, or a value off its column's grid.
    """
    return load_weighted(table, replace(schema, weights=""))[:2]


def load_weighted(table: Table, schema: Schema) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return what ``load`` does, and the weights (n,) of the rows, float64, or None where all count alike.

    Args:
        table: has the schema's columns, and that of the weights.
        schema: says how to encode.

    Raises:
        UserError: for bad input, or a value off its column's grid.
    """
    parts: list[Encoded] = []
    weights: list[np.ndarray] = []
    for _, encoded, their in schema.weighted(table):
        if encoded.off.any():
            column, count = next(iter(encoded.reasons.items()))
            rows_hold = "1 row holds" if count == 1 else f"{count} rows hold"
            raise UserError(f"{table.name}: column {column!r}: {rows_hold} a value off its grid; leave such rows out")
        parts.append(encoded)
        weights += [] if their is None else [their]
    contexts = [part.context for part in parts if part.context is not None]
    context, weight = (np.concatenate(each) if each else None for each in (contexts, weights))
    return np.concatenate([part.x for part in parts]), context, weight


def _declared(column: Column) -> str:
    """Return what the column of a table must be for it to be this one: "number", "text" or "date"."""
    if column.format:
        return "date"
    return "text" if column.dtype not in NUMBERS else "number"


_STORED = {"name", "dtype", "kind", "low", "high", "step", "slack", "origin", "values"}  # others if they say anything


_NUMBER = Number()
_NUMBERS = ListOf(_NUMBER)
_COLUMN = Fields(
    required={
        "name": Text(), "dtype": Text(DTYPES), "kind": Text(KINDS), "low": _NUMBER, "high": _NUMBER,
        "step": Number(0, 1e300), "slack": Number(0, 0.5), "origin": _NUMBER, "values": _NUMBERS,
    },
    optional={
        "missing": Nothing(flag=True), "categories": ListOf(Text()), "steps": _NUMBERS, "unit": Number(0, 1),
        "format": Text(), "type": Text(), "once": Number(0, 64, whole=True),
    },
)  # fmt: skip
_SCHEMA = Fields(
    required={
        "columns": ListOf(_COLUMN, 1), "context": ListOf(Text()), "all_names": ListOf(Text()),
        "rows": Number(0, 2**53, whole=True),
    },
    optional={"identifiers": ListOf(Text()), "weights": Text()},
)  # fmt: skip
_FORMAT = re.compile("(%-?[YymdbBHIMSp]|%f|%L|%_f|[ -$&-~])*")  # of texts
_FINEST = 1e-12  # unit, and step in comparison with the range


def _column(data: Mapping[str, Any]) -> Column:
    """Return a column of which every entry is of its kind, after checking that they fit each other."""
    data = {"missing": False, "categories": [], "steps": [], "unit": 0.0, "format": "", "type": "", "once": 0, **data}
    _expect(data["name"], "a name", data["name"])
    for key in ("values", "steps"):
        _expect(all(np.diff(data[key]) > 0), f"ascending {key}", data[key])
    _expect(data["type"] == "" or is_number_type(data["type"]), "a type of numbers", data["type"])
    texts = data["categories"]
    _expect(len(set(texts)) == len(texts), "categories without repetition", texts)
    numbers = {key: float(data[key]) for key in ("low", "high", "step", "slack", "origin", "unit")}
    values, steps = (tuple(float(value) for value in data[key]) for key in ("values", "steps"))
    kind, width = data["kind"], numbers["high"] - numbers["low"]
    _expect(width >= 0, "low <= high", numbers)
    _expect(
        kind == "date" or (numbers["step"] > 0) == (kind == "integer"), "a step > 0 for integer, 0 for others", numbers
    )
    if kind == "integer":
        _expect(0 < width <= 2**53 * numbers["step"], "a step of which at most 2^53 fit into the range", numbers)
        _expect(numbers["step"] <= 2 * width, "a step that fits into the range", numbers)
    _expect(numbers["unit"] == 0 or numbers["unit"] >= _FINEST, f"a unit from {_FINEST:g} on", numbers["unit"])
    lengths = {"levels": range(2, len(values) + 1), "categorical": (0, len(texts)), "date": (0, 2)}
    _expect(len(values) in lengths.get(kind, (0,)), "values for levels, categories and dates only", data["values"])
    _expect(data["once"] <= len(values), "at most as many levels that were seen once as levels", data["once"])
    textual = data["dtype"] in ("string", "category", "ordered") and not data["format"]
    _expect(bool(texts) == (kind == "categorical" or textual), "categories where they belong", texts)
    _expect(bool(data["format"]) or (kind != "date" and data["dtype"] != "date"), "a format of dates", data["format"])
    tuples = {"values": values, "categories": tuple(texts), "steps": steps}
    column = Column(**{**data, **numbers, **tuples})
    if column.format or column.type:
        _check_format(column)
    return column


def _check_format(column: Column) -> None:
    """Prove that values of a column can be written in its format, or as its type."""
    textual = "%" in column.format
    known = not textual or (_FORMAT.fullmatch(column.format) and len(column.format) <= 100)
    _expect(known, "a format of dates or times", column.format)
    try:
        if column.type:
            arrow_type(column.type)
        if column.format:
            if not textual:
                arrow_type(column.format)
            column.cells(np.array([column.low, column.high]))
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise UserError(
            f"schema: expected a format in which dates can be written, got {column.format or column.type!r}"
        ) from error


def _expect(condition: Any, expected: str, got: Any) -> None:
    if not condition:
        shown = " ".join(repr(got).split())
        raise UserError(f"schema: expected {expected}, got {shown[:80]}{'...' if len(shown) > 80 else ''}")


def _listed(columns: Sequence[Column], detail: Callable[[Column], str] = lambda column: "") -> str:
    more = f" and {len(columns) - 8} more" if len(columns) > 8 else ""
    return ", ".join(f"{column.name!r}{detail(column)}" for column in columns[:8]) + more


def decimals(value: float) -> int:
    """Return the decimals of a float's shortest form."""
    mantissa, _, exponent = repr(float(value)).partition("e")
    fraction = mantissa.partition(".")[2]
    places = 0 if fraction in ("", "0") else len(fraction)
    return max(0, places - int(exponent or 0))

"""What kind of column a column is, decided from all its values in one reading.

The rules, in order, for n rows and d distinct values (up to 65536 of them are remembered):

1. d = 1: constant.
2. All values whole numbers below 2**53: integer, with the greatest common divisor of their differences as the step (1
   if there are fewer than 100 rows, where a divisor may be chance). But if at most 64 distinct values, each seen five
   times or more, fill less than a tenth of their grid (codes such as 0, 1, 999): levels.
3. Few-valued (n >= 10, d <= max(2, n / 10)) and on a regular grid low + k step of at most a million cells: integer.
   A value counts as on the grid if it differs from it by no more than its printing explains: 254.02 in a column of
   five significant digits stands for anything in [254.015, 254.025].
   For d <= 64 the grid must hold all values exactly and be filled to a tenth, because rule 4 serves others better.
   For d > 64 it must hold 99.5 % of the rows and 75 % of the distinct values; the others move to the nearest point.
4. Few-valued and d <= 64: levels.
5. Anything else is continuous, also if one value of it is frequent (30 % zeros, say).

Missing cells do not count: n are the others. Columns of texts are
- dates or times, if all texts have one format and come back in it as they are;
- an identifier, set aside, if there are more than 20 texts and half of the cells or more differ, or if they are too
  many to remember;
- else categorical.
Whole numbers beyond 2**53, which no float holds, are texts (in a csv if more than 1 % of a column are so large); in an
array, which has none, an identifier. Digits with a leading zero are texts in a csv. Texts that are up to 1 % of a
column of numbers are mistakes, and so are more of them where the numbers are too many for categories.

A value off the grid that turns up later has but the small mass of all such values (``Schema.log_grid``) if the grid is
of whole numbers of step 1 or coarse (d <= 64). On a fine grid, which is a matter of rounding, it moves to the nearest
point.

Of more grids than one, wider ones of which more values are multiples than chance explains are noted (``steps``): of a
column of whole numbers with rare tenths, 0.1 and 1; of amounts, 1, 10, 100 and 1000.

Numbers in the context are never coded as levels: a model takes any number as context.
"""

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import chain

import numpy as np

from diffeo.errors import UserError
from diffeo.limits import limits
from diffeo.modalities.tables.dates import DAY, find_formats, parse_dates
from diffeo.modalities.tables.delimited import (
    RARE,
    REMEDIES,
    Retyped,
    complaint,
    is_decorated,
    is_number,
    mixed_types,
)
from diffeo.modalities.tables.delimited import drop as drop_advice
from diffeo.modalities.tables.schema import NUMBERS, Column, Schema, decimals
from diffeo.modalities.tables.table import ROWS, Table, open_table

__all__ = ["find_grid", "infer_schema"]

CAP = 65536  # distinct values remembered
CELLS = 1e6  # of a grid
LEVELS = 64
FEW = 20  # texts that are categories even if all of them differ
OUTLIER = 1e12  # times the quartiles' distance: beyond it float32 sees but one value beside it
SEVERAL = 50  # values that are enough to find steps in
MIN_EXCESS = 0.05
RESOLVED = 2000.0  # steps of a grid within the bulk of a column; finer ones are as good as none
MOST_PLACES = 6  # decimals of a column whose samples are rounded to as many
SAMPLE = 4096  # rows kept for medians
WHOLE = 2.0**53
FAR = 16.0  # times the spread: beyond it float32 loses what a table tells apart, such as hours of days since 1970
EXTREME = 1e30  # float32 ends at 3e38, and squares are taken of standardised values only


class _Tally:
    """Exact facts about a column, gathered batch by batch."""

    def __init__(self) -> None:
        self.rows = 0  # that hold a number
        self.missing = 0
        self.low, self.high = math.inf, -math.inf
        self.integral = True
        self.large = 0  # values that float64 does not tell from their neighbours, if they are whole
        self.divisor = 0
        self.first = 0.0
        self.clock = _Clock()  # if these are dates
        self.distinct: np.ndarray | None = np.empty(0)
        self.counts = np.empty(0, dtype=np.int64)

    @property
    def beyond(self) -> bool:
        """Whether float64 cannot hold these values if they are whole."""
        return max(-self.low, self.high) >= WHOLE

    @property
    def whole(self) -> bool:
        """Whether all values are whole numbers that float64 can hold."""
        return self.integral and not self.beyond

    def add(self, values: np.ndarray) -> None:
        known = np.isfinite(values)
        if not known.all():
            self.missing += int((~known).sum())
            values = values[known]
            if not len(values):
                return
        if not self.rows:
            self.first = float(values[0])
        self.rows += len(values)
        # Adding 0 turns -0 into 0.
        self.low, self.high = min(self.low, float(values.min()) + 0.0), max(self.high, float(values.max()) + 0.0)
        if self.integral:
            self.integral = bool((values == np.rint(values)).all())
        if self.beyond:
            self.large += int((np.abs(values) >= WHOLE).sum())
        if self.whole and self.divisor != 1:
            steps = values.astype(np.int64) - int(self.first)
            self.divisor = math.gcd(self.divisor, int(np.gcd.reduce(steps)))
        if self.distinct is not None:
            values, counts = np.unique(values, return_counts=True)
            merged, place = np.unique(np.concatenate([self.distinct, values]), return_inverse=True)
            both = np.concatenate([self.counts, counts])
            self.counts = np.bincount(place, weights=both, minlength=len(merged)).astype(np.int64)
            self.distinct = merged if len(merged) <= CAP else None


class _Clock:
    """Exact facts about dates and times: their range, and the seconds of the day, in microseconds."""

    def __init__(self, seconds: np.ndarray | None = None) -> None:
        self.low, self.high = math.inf, -math.inf
        self.first, self.last, self.divisor = 2**63, -1, 0
        if seconds is not None:
            self.add(seconds)

    def add(self, seconds: np.ndarray) -> None:
        seconds = seconds[np.isfinite(seconds)]
        if not len(seconds):
            return
        self.low, self.high = min(self.low, float(seconds.min())), max(self.high, float(seconds.max()))
        micro = np.rint(seconds % DAY * 1e6).astype(np.int64)
        differences = [int(np.gcd.reduce(micro - micro[0])), int(micro[0]) - self.first if self.last >= 0 else 0]
        self.divisor = math.gcd(self.divisor, *differences)
        self.first, self.last = min(self.first, int(micro.min())), max(self.last, int(micro.max()))


class _Sample:
    """A uniform draw of rows, the same whatever the size of the batches."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(0)
        self._keys = np.empty(0)
        self.rows = np.empty((0, 0))

    def add(self, batch: np.ndarray) -> None:
        keys = np.concatenate([self._keys, self._generator.random(len(batch))])
        rows = np.concatenate([self.rows, batch]) if len(self.rows) else batch
        kept = np.argpartition(keys, SAMPLE)[:SAMPLE] if len(keys) > SAMPLE else slice(None)
        self._keys, self.rows = keys[kept], rows[kept].copy()


def infer_schema(
    table: Table,
    context: Sequence[str] = (),
    drop: Sequence[str] = (),
    continuous: Sequence[str] = (),
    rows: int = ROWS,
    *,
    categorical: Sequence[str] = (),
    integer: Sequence[str] = (),
    dates: Sequence[str] = (),
    weights: str | None = None,
    numbers: bool = False,
) -> Schema:
    """Read the whole table and decide what every column is.

    It is read once, and again from the start where text turns up late in a column of numbers.

    Args:
        table: what ``open_table`` returns.
        context: columns that the density shall be conditional on, without gaps.
        drop: columns to leave out.
        continuous: columns that are continuous whatever they look like.
        rows: rows read at a time; the result does not depend on it.
        categorical: columns whose values are categories, whatever they look like.
        integer: columns of whole numbers that are no levels.
        dates: columns of dates or times, also in formats that numbers have too, 20240531 say.
        weights: the column that holds the weights of the rows, which is not modelled.
        numbers: whether the model takes complete numbers alone; text, dates and gaps are errors then.

    Raises:
        UserError: for bad input, all of it at once; for unknown column names, fewer than two rows, or nothing left to
            model.
    """
    kinds = {"continuous": continuous, "categorical": categorical, "integer": integer, "date": dates}
    wanted = _wanted(table, context, drop, kinds, weights)
    context = tuple(dict.fromkeys(context))
    names = [name for name in table.names if name not in (*drop, weights)]
    if len(names) <= len(context):
        raise UserError(f"{table.name}: no column is left to model; keep one that is neither dropped nor context")
    most = limits().columns
    if len(names) > most:
        raise UserError(
            f"{table.name}: has {len(names)} columns, at most {most} can be modelled at once, as weights grow with"
            f" their square; choose some of them (--drop leaves columns out), or raise it by --max-columns {len(names)}"
        )

    if table.better_separator:
        raise UserError(
            f"{table.name}: has one column, {names[0]!r}, where {table.better_separator!r} would make several of it;"
            f" use --sep {shlex.quote(table.better_separator)}"
        )
    problems: list[str] = []
    types = table.types
    for name in [name for name in names if types[name] == "other"]:
        problems += _complaints(table, name)
        names.remove(name)
    if not names:
        raise UserError(f"{table.name}: {'; '.join(problems)}")
    if weights is not None:
        _check_weights(table, weights)
    # What shall be an error is still read to the end, so that all errors are said.
    everything = open_table(table, missing="keep" if table.missing == "error" else table.missing)
    everything = everything.select(table.names, table.all_names)
    read = names if weights is None else [*names, weights]
    tallies, sample = _survey(everything, read, wanted, rows)
    if everything.missing == "drop":
        table.dropped = everything.dropped
    total = tallies[0].rows + tallies[0].missing
    if total < 2:
        raise UserError(f"{table.name}: has 1 row, expected at least 2; a density needs more data")

    columns, identifiers = [], []
    for name, tally, values in zip(read, tallies, sample.T, strict=True):
        if name == weights:
            continue
        try:
            column = _decide(everything, name, tally, name in context, wanted.get(name))
            if column is None and name in context:
                raise UserError(
                    f"column {name!r}: nearly all of its values differ, which tells a context nothing; leave it out of"
                    f" --context, or use --categorical {shlex.quote(name)}"
                )
            if column is None:
                identifiers.append(name)
                continue
            values = values[np.isfinite(values)]
            column = _with_unit(_with_steps(_shifted(column, values, everything), values), values)
            wide = name in context or (wanted.get(name) == "continuous" and types[name] == "integer")
            type_ = "" if wide else table.narrow[name]
            columns.append(replace(column, missing=tally.missing > 0, type=type_))
            if numbers and name not in context and (column.dtype not in NUMBERS or wanted.get(name) == "categorical"):
                digits = column.dtype == "string" and all(map(str.isdecimal, column.categories))
                kind = (
                    f"column {name!r} holds {'codes of digits' if digits else f'{column.kind} values'}, the model takes"
                    f" numbers; use {f'--integer {shlex.quote(name)} or ' * digits}--drop {shlex.quote(name)}"
                )
                problems += _complaints(everything, name) or [kind]
        except UserError as error:
            problems.append(_gist(table, error))
    gaps = everything.gaps
    if gaps is not None and (numbers or table.missing == "error" or gaps.inf.any() or set(gaps.columns) & set(context)):
        problems.append(everything.complaint(gaps))
    if problems:
        raise UserError(f"{table.name}: {'; '.join(problems)}")
    schema = Schema(tuple(columns), context, table.all_names, total, tuple(identifiers), weights or "")
    if schema.context_size > most:
        widest = max(schema.context_columns, key=lambda column: column.context_size)
        raise UserError(
            f"{table.name}: the context has {schema.context_size} numbers, {widest.context_size} of them the categories"
            f" of {widest.name!r}, at most {most} are possible; leave it out of --context"
        )
    if not schema.features:
        what = "an identifier or constant" if identifiers else "constant"
        aside = f" (identifiers, nearly all of whose values differ: {_some(identifiers)})" if identifiers else ""
        raise UserError(f"{table.name}: every column is {what}{aside}; give columns that vary")
    return schema


def _wanted(
    table: Table,
    context: Sequence[str],
    drop: Sequence[str],
    kinds: Mapping[str, Sequence[str]],
    weights: str | None = None,
) -> dict[str, str]:
    """Return column -> the kind that it shall have, after checking what is asked for."""
    for name in chain(context, drop, *kinds.values(), () if weights is None else (weights,)):
        if name not in table.names:
            table.select([name])  # raises the error that lists the columns there are
    for role, names in {"context": context, "dropped": drop, **kinds}.items():
        if weights in names:
            raise UserError(f"{table.name}: column {weights!r} holds the weights and is said to be {role}; choose one")
    both = [name for name in context if name in drop]
    if both:
        raise UserError(f"{table.name}: column {both[0]!r} is both context and dropped; choose one")
    wanted: dict[str, str] = {}
    for kind, names in kinds.items():
        for name in names:
            if name in drop:
                raise UserError(f"{table.name}: column {name!r} is said to be {kind} and is dropped; choose one")
            if wanted.setdefault(name, kind) != kind:
                raise UserError(f"{table.name}: column {name!r} is said to be {wanted[name]} and {kind}; choose one")
    return wanted


def _check_weights(table: Table, name: str) -> None:
    """Refuse weights that are no finite numbers of at least 0, or all 0.

    Raises:
        UserError: naming the first of them.
    """
    table.recommend(())  # to leave the column out is no remedy
    table.declare({name: "number"})
    dropped = table.missing == "drop"
    bad = table.find(name, lambda values: (values < 0) | ~(np.isfinite(values) | dropped))
    for where, value in bad:
        what = "is missing" if np.isnan(value) else f"is {value:g}"
        how = " with --drop-missing" * (not np.isfinite(value))
        raise UserError(
            f"{table.name}: {where}, column {name!r}: the weight {what}, expected a finite number of at least 0;"
            f" correct it or leave such rows out{how}"
        )
    if not table.find(name, lambda values: values > 0):
        raise UserError(f"{table.name}: column {name!r}: every weight is 0; give some rows a larger one")
    table.recommend(REMEDIES)


def _survey(
    table: Table, names: Sequence[str], wanted: Mapping[str, str], rows: int
) -> tuple[list[_Tally], np.ndarray]:
    """Read all rows; return what was counted of each column, and some rows (n, columns)."""
    types = table.types
    as_text = {("number", "categorical"), ("number", "date"), ("integer", "date")}
    texts = [name for name, kind in wanted.items() if (types[name], kind) in as_text and table.has_texts]
    table.declare(dict.fromkeys(texts, "text"))
    numbers = [name for name, kind in wanted.items() if kind in ("continuous", "integer") and types[name] == "text"]
    table.declare(dict.fromkeys(numbers, "number"))  # codes such as 007, if that is what they are
    while True:
        tallies, sample = [_Tally() for _ in names], _Sample()
        try:
            for batch in table.batches(names, rows):
                sample.add(batch)
                for name, tally, values in zip(names, tallies, batch.T, strict=True):
                    tally.add(np.ascontiguousarray(values))
                    if table.types[name] == "date":
                        tally.clock.add(values)
        except Retyped:
            continue
        types = table.types
        beyond = [
            name
            for name, tally in zip(names, tallies, strict=True)
            if tally.beyond and wanted.get(name, "categorical") == "categorical"
        ]
        if not table.has_texts:
            return tallies, sample.rows
        large = {name: tally.large > RARE * tally.rows for name, tally in zip(names, tallies, strict=True)}
        texts = [
            name
            for name in beyond
            if types[name] == "integer" or (types[name] == "number" and large[name] and table.has_digits(name))
        ]
        if not texts:
            return tallies, sample.rows
        table.declare(dict.fromkeys(texts, "text"))  # digits that float64 would change are names


def _complaints(table: Table, name: str) -> list[str]:
    """Return what is wrong with a column as one of numbers, if anything is."""
    try:
        table.declare({name: "number"})
    except UserError as error:
        return [_gist(table, error)]
    return []


def _gist(table: Table, error: UserError) -> str:
    return str(error).removeprefix(f"{table.name}: ")


def _decide(table: Table, name: str, tally: _Tally, in_context: bool, wanted: str | None) -> Column | None:
    """Return the column, without an origin, or None for an identifier."""
    if not tally.rows:
        raise UserError(f"column {name!r} has no values, all its cells are missing; {drop_advice(name)}")
    source, declared = table.types[name], table.declared[name]
    if wanted in ("continuous", "integer") and source == "date":
        raise UserError(f"column {name!r} holds dates or times; it cannot be {wanted}, leave out --{wanted} for it")
    if source == "text":
        return _decide_text(table, name, tally, wanted)
    if source == "date" and wanted != "categorical":
        return _decide_date(name, tally.clock, "date", declared)
    if wanted == "date":
        raise UserError(
            f"column {name!r} holds no dates or times ({_where(table, name, [tally.first])}: {tally.first:g}); leave"
            " out --date for it"
        )
    low, high, n = tally.low, tally.high, tally.rows
    # Text does not tell 1 from 1.0; a file that declares floats gets floats back.
    dtype = "bool" if source == "bool" else "int64" if tally.whole and source != "float" else "float64"
    distinct = tally.distinct
    if wanted == "categorical" or (low == high and tally.missing and not in_context):
        if distinct is None:
            raise UserError(f"column {name!r} has more than {CAP} values, too many for categories; {drop_advice(name)}")
        values = tuple(distinct.tolist())
        texts = tuple(f"{value:g}" if float(f"{value:g}") == value else repr(value) for value in values)
        return Column(name, dtype, "categorical", low, high, values=values, categories=texts)
    if in_context and dtype == "int64":
        dtype = "float64"  # a context may be given any value, between whole numbers too
    if low == high:
        return Column(name, dtype, "constant", low, high)
    plain = Column(name, "float64" if wanted == "continuous" else dtype, "continuous", low, high)
    if wanted == "continuous" or in_context or max(-low, high) > EXTREME:  # the last is refused below
        return plain
    if source == "integer" and tally.beyond:
        return None
    few = distinct is not None and n >= 10 and len(distinct) <= max(2, n / 10)
    if wanted == "integer" and not tally.whole:
        what = "whole numbers beyond 2**53, which are no numbers in float64" if tally.beyond else "fractions"
        known = [] if distinct is None else distinct.tolist()
        value = next((value for value in known if value % 1 or abs(value) >= WHOLE), tally.first)
        where = _where(table, name, [value])
        raise UserError(
            f"column {name!r} holds {what} ({where}: {value:.17g}), it cannot be integer; leave out --integer for it"
        )
    if tally.whole:
        step = float(tally.divisor if n >= 100 else 1)
        cells = (high - low) / step + 1
        sparse = distinct is not None and len(distinct) < cells / 10 and tally.counts.min() >= 5
        if few and sparse and distinct is not None and len(distinct) <= LEVELS and wanted != "integer":
            return Column(name, dtype, "levels", low, high, values=tuple(distinct.tolist()))
        fine = step > 1 and cells > LEVELS
        return Column(name, dtype, "integer", low, high, step, slack=0.5 if fine else 1e-3)
    if not few or distinct is None:
        return plain
    merged = _merge(distinct)
    if len(merged) == 1:
        return plain
    coarse = len(merged) <= LEVELS
    counts = np.add.reduceat(tally.counts, np.searchsorted(distinct, merged))
    grid = find_grid(merged, counts, exact=coarse)
    if grid is not None and not (coarse and (grid[2] - grid[1]) / grid[0] > 10 * len(merged)):
        step, low, high = grid
        return Column(name, dtype, "integer", low, high, step, slack=1e-3 if coarse else 0.5)
    if coarse:
        once = int((counts == 1).sum())
        return Column(name, dtype, "levels", low, high, values=tuple(merged.tolist()), once=once)
    return plain


def _decide_text(table: Table, name: str, tally: _Tally, wanted: str | None) -> Column | None:
    texts, declared = table.dictionaries[name], table.declared[name]
    distinct = tally.distinct
    met = texts if distinct is None else [texts[int(code)] for code in distinct]
    if wanted == "date" or (wanted is None and not declared):
        formats = find_formats(met, compact=wanted == "date")
        if formats:
            if len(formats) > 1:
                table.note(f"{name!r} could be {formats[1]} as well, all its dates were read as {formats[0]}")
            return _decide_date(name, _Clock(parse_dates(met, formats[0])), "string", formats[0])
        parsed = [(form, parse_dates(met, form)) for text in met[:3] for form in find_formats([text], wanted == "date")]
        for form, seconds in parsed:
            if not np.isnan(seconds).any():  # some with leading zeros, some without
                return _decide_date(name, _Clock(seconds), "string", form)
        if parsed:
            form, seconds = min(parsed, key=lambda each: np.isnan(each[1]).sum())
            wrong = np.flatnonzero(np.isnan(seconds))
            if wanted == "date" or (len(wrong) <= len(met) / 10 and len(met) >= FEW / 2):
                right = met[int(np.argmin(np.isnan(seconds)))]
                where = _where(table, name, [texts.index(met[wrong[0]])])
                raise UserError(
                    f"column {name!r} holds dates or times as {right!r}, but {met[wrong[0]]!r} is none ({where});"
                    f" correct it, or use --categorical {shlex.quote(name)}"
                )
    if wanted == "date":
        raise UserError(
            f"column {name!r} holds no dates or times ({_where(table, name, [texts.index(met[0])])}: {met[0]!r}); leave"
            " out --date for it"
        )
    if wanted is None and not declared:
        _refuse_mistakes(table, name, tally)
    if distinct is None or (wanted is None and not declared and len(distinct) > max(FEW, tally.rows / 2)):
        if wanted == "categorical":
            raise UserError(f"column {name!r} has more than {CAP} values, too many for categories; {drop_advice(name)}")
        return None
    categories = tuple(met if declared == "ordered" else sorted(met, key=_by_number))
    kind = "constant" if len(met) == 1 and not tally.missing else "categorical"
    return Column(name, declared or "string", kind, 0.0, len(met) - 1.0, categories=categories)


def _refuse_mistakes(table: Table, name: str, tally: _Tally) -> None:
    """Refuse a column of texts that are numbers but for some of them, or for how they are written.

    Raises:
        UserError: if there are a few texts among numbers, or more but too many numbers for categories; if there are
            decimal commas where points are expected, or the reverse; if all have currency signs and the like.
    """
    texts = table.dictionaries[name]
    met = np.arange(len(texts)) if tally.distinct is None else tally.distinct.astype(int)
    met = met[:: 1 + len(met) // CAP]
    counts = tally.counts if len(tally.counts) == len(met) else np.ones(len(met), dtype=np.int64)
    other = "." if table.decimal == "," else ","
    numbers = np.array([is_number(texts[code], table.decimal) for code in met])
    strange = met[~numbers]
    if all(re.fullmatch(r"[+-]?[0-9]+", texts[code]) for code in met):
        return  # names of digits
    if len(strange) and all(is_number(texts[code], other) for code in strange):
        raise UserError(_complaint(table, name, strange))
    many = tally.distinct is None or len(met) > max(FEW, tally.rows / 2)
    wrong, total = int(counts[~numbers].sum()), int(counts.sum())
    if 0 < wrong < total and (wrong <= RARE * total or (many and 2 * wrong < total)):
        places = table.find(name, strange.tolist(), most=3)
        raise UserError(mixed_types(name, [(where, texts[int(code)]) for where, code in places], wrong, total))
    if many and (2 * numbers.sum() >= len(met) or all(is_decorated(texts[code]) for code in strange)):
        raise UserError(_complaint(table, name, strange if len(strange) else met))


def _complaint(table: Table, name: str, codes: np.ndarray) -> str:
    ((where, code),) = table.find(name, codes.tolist())
    return complaint(name, where, table.dictionaries[name][int(code)], decimal=table.decimal)


def _where(table: Table, name: str, values: Sequence[float]) -> str:
    """Return "row 3 (line 4)", where a column first holds one of these values."""
    ((where, _),) = table.find(name, values)
    return where


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _by_number(text: str) -> tuple[float, str]:
    """Sort numbers by their value, and before texts."""
    try:
        return float(text), text
    except ValueError:
        return math.inf, text


def _decide_date(name: str, clock: _Clock, dtype: str, form: str) -> Column:
    if clock.low == clock.high:
        return Column(name, dtype, "constant", clock.low, clock.high, format=form)
    if clock.first == clock.last:
        return Column(name, dtype, "date", clock.low, clock.high, format=form)
    # A day in units that float32 can distinguish; finer ones are continuous.
    step = clock.divisor / 1e6 if DAY * 1e6 / clock.divisor < 2**24 else 0.0
    values = clock.first / 1e6, clock.last / 1e6
    return Column(name, dtype, "date", clock.low, clock.high, step, values=values, format=form)


def _with_steps(column: Column, sample: np.ndarray) -> Column:
    """Return the column with the steps of all grids on which its values lie more often than by chance.

    Of values on steps of s a share s / t would be multiples of t by chance; zeros, which all grids share, are left out.
    A wider grid counts if MIN_EXCESS of the other values are on it beyond chance, by five standard errors, at five
    points or more, and if its steps are not below what a density resolves.
    """
    values = sample[sample != 0]
    if column.kind not in ("continuous", "integer") or len(values) < SEVERAL:
        return column
    fraction = max(map(decimals, np.unique(values)[:SEVERAL].tolist()))
    steps = [column.step or 10.0**-fraction]
    if fraction > 4 or not _multiples(values, steps[0]).all():
        return column
    finest = float(np.ptp(np.quantile(values, [0.01, 0.99]))) / RESOLVED
    power = 10.0 ** math.floor(math.log10(steps[0]) + 1e-9)
    for wider in (power * factor for factor in (5, 10, 50, 100, 500, 1000, 5000, 10_000, 100_000, 1e6)):
        ratio = wider / steps[-1]
        if len(np.unique(values[_multiples(values, wider)])) < 5:
            break
        if wider >= finest and abs(ratio - max(2, round(ratio))) < 1e-9 and _exceeds(values, steps[-1], wider):
            steps.append(wider)
    for k in range(len(steps) - 2, 0, -1):  # what only a wider one explains
        if not _exceeds(values[~_multiples(values, steps[k + 1])], steps[k - 1], steps[k]):
            del steps[k]
    return replace(column, steps=tuple(steps)) if len(steps) > 1 else column


def _with_unit(column: Column, sample: np.ndarray) -> Column:
    """Return a continuous column with the unit of its last digit, if that is one of few."""
    if column.kind != "continuous" or not len(sample):
        return column
    most = 0
    for value in np.unique(sample).tolist():
        most = max(most, decimals(value))
        if most > MOST_PLACES:
            return column
    return replace(column, unit=10.0**-most)


def _exceeds(values: np.ndarray, step: float, wider: float) -> bool:
    """Tell whether more of the values on steps lie on wider ones than chance explains."""
    chance, within = step / wider, max(1, int(_multiples(values, step).sum()))
    excess = (_multiples(values, wider).sum() / within - chance) / (1 - chance)
    return bool(excess > max(MIN_EXCESS, 5 * math.sqrt(chance / (1 - chance) / within)))


def _multiples(values: np.ndarray, step: float) -> np.ndarray:
    return np.abs(values - np.rint(values / step) * step) <= 1e-6 * step + 2.0**-21 * np.abs(values) * (step < 1)


def _shifted(column: Column, sample: np.ndarray, table: Table) -> Column:
    """Return the column with an origin, if its values lie so far from 0 that float32 would blur them."""
    if column.kind not in ("continuous", "integer"):
        return column
    with np.errstate(all="ignore"):
        lower, centre, upper = map(float, np.quantile(sample, [0.25, 0.5, 0.75]))
        distances = np.abs(sample - centre)
        width = upper - lower or (float(np.median(distances[distances > 0])) if distances.any() else math.inf)
    spread = (upper - lower) / 1.349 or column.high - column.low
    origin = float(centre) if abs(centre) > FAR * spread else 0.0
    if origin and column.kind == "integer":
        origin = column.low + round((origin - column.low) / column.step) * column.step
    outer = column.low if centre - column.low > column.high - centre else column.high
    if len(sample) >= 10 and abs(outer - centre) > OUTLIER * width:
        where = _where(table, column.name, [outer])
        raise UserError(
            f"column {column.name!r} holds {outer:g} in {where}, where half of its values lie between {lower:g} and"
            f" {upper:g}; correct or leave out that row, or {drop_advice(column.name)}"
        )
    size = max(abs(column.low - origin), abs(column.high - origin))
    if size > EXTREME or size < 1 / EXTREME:
        raise UserError(
            f"column {column.name!r} reaches from {column.low:g} to {column.high:g}, outside of what single"
            " precision can hold; rescale it"
        )
    return replace(column, origin=origin)


def find_grid(
    values: np.ndarray, counts: np.ndarray | None = None, exact: bool = False
) -> tuple[float, float, float] | None:
    """Return (step, low, high) of the coarsest regular grid that explains ascending values, or None.

    A value v_i is explained if |v_i - low - k_i step| <= tol_i for a whole k_i, with tol_i half a unit of the last
    digit that the column is printed with, and what float arithmetic blurs.

    Args:
        values: ascending, distinct.
        counts: how often each occurs.
        exact: whether the grid must meet all values, to a millionth of a step or the rounding noise.
    """
    counts = np.ones(len(values)) if counts is None else counts
    unit, noise = _printed(values)
    tolerance = 0.5 * unit + noise
    gaps = np.diff(values)
    smallest = float(np.median(gaps[gaps <= 1.5 * gaps.min()]))
    _, place, frequency = np.unique([float(f"{gap:.2g}") for gap in gaps], return_inverse=True, return_counts=True)
    usual = [float(np.median(gaps[place == i])) for i in np.argsort(-frequency, kind="stable")[:6]]
    span = values[-1] - values[0]
    grids = (
        grid
        for guess in sorted({*usual, *(smallest / parts for parts in range(1, 13))}, reverse=True)
        if guess > 4 * tolerance.min() and span / guess < CELLS
        for grid in _aligned(values, tolerance, counts, guess)
    )
    # The last resort: with so many decimals, whatever is printed lies on this one.
    decimal = (float(unit.min()), float(values[0])) if span / unit.min() < CELLS else None
    for step, start in chain(grids, [decimal] if decimal else []):
        k = np.rint((values - start) / step)
        error = np.abs(values - start - k * step)
        explained = error <= (np.minimum(tolerance, max(1e-6 * step, noise)) if exact else tolerance)
        share = 1.0 if exact else 0.995
        if counts[explained].sum() >= share * counts.sum() and explained.mean() >= (1.0 if exact else 0.75):
            low = start + float(k[0]) * step
            places = max(decimals(start), decimals(step))
            if abs(low - values[0]) <= noise:
                low = float(values[0])
            elif places <= 12:
                low = round(low, places)
            high = low + float(k[-1] - k[0]) * step
            return step, low, round(high, places) if places <= 12 else high
    return None


def _aligned(
    values: np.ndarray, tolerance: np.ndarray, counts: np.ndarray, step: float
) -> Iterator[tuple[float, float]]:
    """Yield (step, start) of grids near a guessed step that runs through the most frequent value, roundest first."""
    start = float(values[np.argmax(counts)])
    reach = 8.0
    span = (values[-1] - values[0]) / step
    while True:  # each round knows the step well enough to count the steps of the next
        k = np.rint((values - start) / step)
        fits = (np.abs(k) <= reach) & (np.abs(values - start - k * step) <= 0.05 * step + 2 * tolerance)
        if np.ptp(k[fits]) == 0:
            return
        # Weighted: in a column of so many significant digits, small values are known best.
        weight = 1 / tolerance[fits] ** 2
        weight /= weight.sum()
        spread = weight * (k[fits] - weight @ k[fits])
        step = float(spread @ values[fits] / (spread @ k[fits]))
        start = float(weight @ (values[fits] - k[fits] * step))
        if step <= 0:
            return
        if reach > span:
            break
        reach *= 4
    k = np.rint((values - start) / step)
    near = np.abs(values - start - k * step) <= 2 * tolerance
    if not near.any():
        return
    for digits in range(1, 17):
        rounded = float(f"{step:.{digits}g}")
        rest = values - k * rounded
        lower, upper = float((rest - tolerance)[near].max()), float((rest + tolerance)[near].min())
        usual = float(rest[near][np.argmax(counts[near])])
        middle = (round((lower + upper) / 2, places) + 0.0 for places in range(17))
        usual = next((m for m in middle if lower <= m <= upper), usual)
        if rounded > 0:
            yield rounded, usual


def _merge(distinct: np.ndarray) -> np.ndarray:
    """Return ascending values without those that differ from the one before by rounding noise only."""
    noise = (2.0**-21 if _is_single(distinct) else 2.0**-44) * np.abs(distinct).max()
    return distinct[np.concatenate([[True], np.diff(distinct) > noise])]


def _printed(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a unit of the last digit that each value is printed with, and what float arithmetic may have blurred."""
    single = _is_single(values)
    fraction = significant = 0
    for value in values:
        _, digits, exponent = Decimal(str(np.float32(value) if single else float(value))).normalize().as_tuple()
        fraction = max(fraction, -int(exponent))
        significant = max(significant, len(digits))
    sizes = np.abs(values)
    place = np.floor(np.log10(np.where(sizes > 0, sizes, 1.0))) + 1 - significant
    unit = np.maximum(10.0**place, float(f"1e-{fraction}"))
    return unit, float((2.0**-22 if single else 2.0**-46) * sizes.max())


def _is_single(values: np.ndarray) -> bool:
    """Tell whether the values come from a float32 column: exact there, but not round numbers of few digits."""
    if np.abs(values).max() > EXTREME:
        return False
    return bool((values == values.astype(np.float32)).all())

"""New rows from a model, in a stream."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from diffeo.errors import UserError
from diffeo.modalities.runs import OpenRun, open_run, with_guidance
from diffeo.modalities.tables.schema import Schema
from diffeo.modalities.tables.write import TableWriter
from diffeo.training.seeding import derive, seed_noise

__all__ = ["sample_table"]

PORTION = 65536  # rows drawn at a time


def sample_table(
    run: str | os.PathLike[str],
    n: int | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    given: Mapping[str, float] | None = None,
    given_from: Any = None,
    guidance: float | None = None,
    seed: int = 0,
    device: str | None = None,
    force: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Write new rows with the columns, types and order of the training table, and nothing outside its range.

    Args:
        run: a run directory.
        n: how many rows; with ``given_from``, how many for each of its rows (1 by default).
        out: a file whose name decides the format; None or ``-`` is csv on standard output.
        given: for a conditional model, a value for every context column.
        given_from: instead of ``given``, a table with the context columns.
        guidance: of a continuous flow, how much more typical of their context rows shall be than the data (1: just as).
        seed: the same seed gives the same rows.
        device: where to compute; a GPU if there is one.
        force: replace ``out`` if it exists.
        progress: called with the number of rows done and the number of all, if known.

    Returns:
        rows, the number of non-finite ones (0 in a sane model), seconds and rows per second.

    Raises:
        UserError: for a number below 1, a context that is missing, superfluous or incomplete, a bad run directory or an
            output that cannot be written, or a model that cannot be guided.
    """
    if n is None and given_from is None:
        raise UserError("how many rows? give a number of samples (-n)")
    if n is not None and n < 1:
        raise UserError(f"expected a number of samples of at least 1 (-n), got {n}")
    model: OpenRun = with_guidance(open_run(run, device), guidance)
    contexts, total = _contexts(model, n, given, given_from)
    started = time.monotonic()
    rows = bad = 0
    tell = progress or (lambda done, total: None)
    tell(0, total)
    with TableWriter(out, model.schema.names, model.schema.dtypes, force=force) as writer:
        for number, (count, context) in enumerate(contexts):
            seed_noise(model.device, derive(seed, "sample", number))
            x = _draw(model, count, context)
            bad += int((~np.isfinite(x).all(1)).sum())
            writer.write(model.schema.decode(x, context))
            rows += count
            tell(rows, total)
    seconds = time.monotonic() - started
    return {
        "rows": rows,
        "non_finite": bad,
        "seconds": seconds,
        "rows_per_second": rows / seconds if seconds else float("inf"),
    }


def _draw(model: OpenRun, count: int, context: np.ndarray | None) -> np.ndarray:
    """Return encoded rows (count, features), given the context columns' own values (count, contexts)."""
    encoded = None if context is None else model.schema.encode_context(context)
    if encoded is None:
        x = model.flow.sample(count)
    else:
        x = model.flow.sample((), torch.from_numpy(encoded).to(model.device))
    return x.double().cpu().numpy()


def _contexts(
    model: OpenRun, n: int | None, given: Mapping[str, float] | None, source: Any
) -> tuple[Iterator[tuple[int, np.ndarray | None]], int | None]:
    """Return portions, as their size and contexts (size, contexts) or None, and how many rows they have in all."""
    schema = model.schema
    if not schema.context:
        if given or source is not None:
            raise UserError(f"{model.path}: the model takes no context; leave it out (--given)")
        assert n is not None
        return ((count, None) for count in _portions(n)), n
    if given and source is not None:
        raise UserError("context given twice, as values and as a table; choose one (--given or --given-file)")
    if source is not None:
        table = schema.open_context(source)
        each = n or 1
        return _repeated(table.batches(schema.context), each), table.num_rows and table.num_rows * each
    values = np.array([_values(schema, given or {}, model.path)])
    assert n is not None
    return ((count, values.repeat(count, 0)) for count in _portions(n)), n


def _values(schema: Schema, given: Mapping[str, float], path: str) -> list[float]:
    unknown = [name for name in given if name not in schema.context]
    if unknown:
        raise UserError(f"{path}: {unknown[0]!r} is no context column; they are {_listed(schema.context)}")
    constants = {c.name: c.low for c in schema.columns if c.kind == "constant"}
    missing = [name for name in schema.context if name not in given and name not in constants]
    if missing:
        remedy = " ".join(f"--given {name}=VALUE" for name in missing[:4]) + (" ..." if len(missing) > 4 else "")
        raise UserError(f"{path}: the model is conditional on {_listed(schema.context)}; give {remedy}")
    values = [float(given.get(name, constants.get(name, 0.0))) for name in schema.context]
    for name, value in zip(schema.context, values, strict=True):
        if not np.isfinite(value):
            raise UserError(f"expected a finite value of context column {name!r}, got {value}")
    return values


def _portions(n: int) -> Iterator[int]:
    for start in range(0, n, PORTION):
        yield min(PORTION, n - start)


def _repeated(batches: Iterator[np.ndarray], each: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield every context ``each`` times, one after the other, in portions."""
    step = max(1, PORTION // each)  # contexts in a portion; more than one only if all their rows fit
    for batch in batches:
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            for times in _portions(each):
                yield times * len(part), part.repeat(times, 0)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))

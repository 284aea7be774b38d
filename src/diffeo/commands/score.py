"""Log-likelihoods of data, in a stream."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from diffeo.commands.runs import open_for, with_likelihood
from diffeo.commands.score_files import score_files
from diffeo.commands.scoring import Tally, scores
from diffeo.errors import UserError
from diffeo.flow import bits_per_dim
from diffeo.modalities.base import chunks_of
from diffeo.modalities.tables.write_files import writer_for
from diffeo.report.statistics import bound_facts, ratio_and_error
from diffeo.transforms.ode import watched_solves
from diffeo.variational import SAMPLES, VAE, Bound

__all__ = ["score"]


@torch.no_grad()
def score(
    run: str | os.PathLike[str],
    source: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    keep: Sequence[str] = (),
    drop: Sequence[str] = (),
    conditions: Sequence[str] = (),
    missing: str = "error",
    na: Sequence[str] = (),
    sep: str | None = None,
    decimal: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    device: str | None = None,
    engine: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write the log-likelihood of every row, image or recording, in nats and in the data's own units, in order.

    Each has its number before it, counted from 1 (``row``, ``image``), or its file; rows that are left out are counted.
    A value off its column's grid counts as the nearest on it, and as rare (``Schema.log_grid``). Whole numbers, pixels
    and 16-bit sound are dequantised by uniform noise u from the seed: the same call gives the same numbers, and the
    mean of log p(x + u) over u bounds the log-probability of x from below (Theis et al. 2016, arXiv:1511.01844). Of
    images and recordings bits per number are written, too: -log2 p(x) / D, in units of the step between neighbouring
    values.

    A VAE has no likelihood but bounds of it, and says so: ``elbo``, and ``bound``, the importance-weighted one of so
    many samples, with ``bound_stderr``, its standard error over these; bits are those of ``bound``.

    Args:
        run: a run directory.
        source: data of the run's kind: what ``open_table``, ``open_images`` or ``open_audio`` takes.
        out: a table to write, whose name decides the format; None or ``-`` is csv on standard output. Of a table of
            several files (a folder, a pattern, a list of paths) also a folder: it gets a file for each of them, of its
            name, with as many rows, numbered from 1 in each; all of them, or none if the command does not end well.
        keep: of a table, columns of numbers to pass through, an identifier for instance.
        drop: of a table, columns to ignore, which it may lack. A mixed density then scores the others alone: what is
            dropped is left out of every condition, and of the sum.
        conditions: of a table and a mixed density, columns that the likelihood of the others is conditional on.
        missing: of a table, what becomes of rows with NaN, infinity or an empty cell: "error" or "drop". To a mixed
            density a gap is a value like any other where training saw some, and is left out of the likelihood (the
            exact marginal, in the order that it goes by) where not.
        na: texts and numbers that stand for a missing cell, beside NA, NaN, null and the like; as in the training by
            default, as the next two are.
        sep: what separates the columns of a csv.
        decimal: the decimal mark of a csv, a point or a comma.
        samples: of a VAE, the draws of its posterior for each image, 100 by default.
        seed: of the dequantisation noise, and of a VAE's draws.
        device: where to compute; a GPU if there is one.
        engine: of tables, who computes: "local" (processes of this machine), "ray", "spark" or "dask"; by default this
            process. ``out`` is then a folder that gets a file for each file of the data, of the same name.
        workers: of an engine, how many parts are scored at once; by default as many as it has cores.
        resume: of an engine, keep the files that are finished, of the same run, options and data.
        force: replace ``out`` if it exists.
        progress: called with the number of examples done and the number of all, if known.

    Returns:
        rows, their ``unit``, mean and stderr of the finite log-likelihoods, min, impossible (rows of -inf), off_grid
        (rows with a value off its grid), seconds and rows per second; bits per dimension, over all dimensions, with the
        standard error that the examples' differences give them; of a VAE, whose mean is that of ``bound``, also
        ``elbo``, ``elbo_stderr``, ``samples``, and ``sampling_stderr``, what the samples leave open of the mean; of a
        continuous flow what its solver took; and what the kind of data has to say.

    Raises:
        UserError: for bad input, a bad run directory or an output that cannot be written.
    """
    if engine is None and (workers is not None or resume):
        raise UserError(f"{'--workers' if workers is not None else '--resume'} is for an engine; give --engine local")
    opened, options = open_for(
        "score", run, device, keep=list(keep) or None, drop=list(drop) or None, conditions=list(conditions) or None,
        missing=missing, na=list(na) or None, sep=sep, decimal=decimal, samples=samples,
    )  # fmt: skip
    with_likelihood(opened, or_bound=True)
    if samples is not None and not opened.flow.has_bound:
        raise UserError(f"{opened.path}: has an exact likelihood, which takes no samples (--samples); leave them out")
    if samples is not None and samples < 1:
        raise UserError(f"expected a number of samples of at least 1 (--samples), got {samples}")
    if engine is not None:
        return score_files(
            opened, source, out, options, engine=engine, workers=workers, device=device, resume=resume, force=force,
            progress=progress,
        )  # fmt: skip
    draws = samples or SAMPLES
    scoring = opened.scoring(source, options)
    started = time.monotonic()
    tally = Tally()
    sizes: list[np.ndarray] = []
    bits: list[np.ndarray] = []
    name = f"bits_per_{opened.words.dimension}"
    bounds: list[Bound] = []
    scored = ["elbo", "bound", "bound_stderr"] if opened.flow.has_bound else ["log_likelihood"]
    columns = [*scoring.columns, *scored, *([] if scoring.bits is None else [name])]
    types = [*scoring.types, *["float64"] * (len(columns) - len(scoring.columns))]
    writer_of = writer_for(out, source, scoring.files, columns, types, force=force)
    with writer_of as writer, watched_solves() as solves:
        for chunk in chunks_of(opened, scoring, seed, progress):
            if isinstance(opened.flow, VAE):
                bounds.append(opened.flow.bound(chunk.x, draws))
                elbo, log_prob, stderr = (
                    each.cpu().numpy() for each in (bounds[-1].elbo, bounds[-1].log_prob, bounds[-1].stderr)
                )
                written = [elbo, log_prob, stderr]
            else:
                log_prob = scores(opened, chunk, scoring.draws)
                written = [log_prob]
            if scoring.bits is not None:
                size = chunk.x[0].numel()
                written.append(bits_per_dim(torch.from_numpy(log_prob), size, scoring.bits).numpy())
                sizes.append(np.full(len(chunk.x), size))
                bits.append(written[-1])
            writer.write(np.concatenate([chunk.cells, np.stack(written, axis=1)], axis=1))
            tally.add(log_prob)
    seconds = time.monotonic() - started
    summary = tally.summary(opened.words)
    if bits:
        ratio = ratio_and_error(np.concatenate(bits), np.concatenate(sizes))
        summary |= {name: ratio["mean"], f"{name}_stderr": ratio["stderr"]}
    if bounds:
        summary |= bound_facts(Bound.joined(bounds))
    return {
        **summary,
        **scoring.facts(),
        "seconds": seconds,
        "rows_per_second": tally.rows / seconds if seconds else math.inf,
        **solves.summary(),
    }

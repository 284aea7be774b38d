"""New rows, images or sounds."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from diffeo.commands.runs import open_for, with_guidance
from diffeo.errors import UserError
from diffeo.modalities.base import Draw
from diffeo.training.seeding import derive, seed_noise

__all__ = ["sample"]


@torch.no_grad()
def sample(
    run: str | os.PathLike[str],
    n: int | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    given: Mapping[str, Any] | None = None,
    given_from: Any = None,
    guidance: float | None = None,
    length: float | None = None,
    means: bool = False,
    seed: int = 0,
    device: str | None = None,
    force: bool = False,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write new data as those of the training were.

    Rows have the columns, types and order of the training table, and nothing is outside its range. Images become a grid
    (.png), an array (.npz) or a folder of pngs; sounds a folder of 16-bit wavs.

    Args:
        run: a run directory.
        n: how many; with ``given_from``, how many for each of its examples (1 by default).
        out: where to; of a table, None or ``-`` is csv on standard output.
        given: for a conditional model, a value for every context column; for a mixed one, values of any columns;
            {"label": class} of images and sounds, whose classes otherwise take turns.
        given_from: instead of ``given``, a table with these columns; recordings, for their log-mel features.
        guidance: of a continuous flow, how much more typical of their context samples shall be than the data (1: just
            as).
        length: of sounds, in seconds; by default that of the crops of the training, or of the recordings.
        means: of a VAE, write the mean of each image given its latents, and not a draw.
        seed: the same seed gives the same samples.
        device: where to compute; a GPU if there is one.
        force: replace ``out`` if it exists.
        progress: called with the number of samples done and the number of all, if known.

    Returns:
        rows, their ``unit``, seconds and rows per second, and what the kind of data has to say.

    Raises:
        UserError: for a number below 1, a context that is missing, superfluous or incomplete, a bad run directory, an
            output that cannot be written, or a model that cannot be guided.
    """
    opened, options = open_for(
        "sample", run, device, given=given, given_from=given_from, guidance=guidance, length=length,
        means=means or None,
    )  # fmt: skip
    one, many = opened.words.one, opened.words.many
    if n is None and given_from is None:
        raise UserError(f"how many {many}? give a number of samples (-n)")
    if n is not None and n < 1:
        raise UserError(f"expected a number of samples of at least 1 (-n), got {n}")
    opened.check_target(out, force)
    opened = with_guidance(opened, guidance)
    how: dict[str, Any] = {}
    if means:
        if not opened.flow.has_bound:
            raise UserError(f"{opened.path}: is no VAE, and has no means (--means); leave it out")
        how["means"] = True
    draws, total = opened.draws(n, options)
    started = time.monotonic()
    progress(0, total)
    rows = 0

    def drawn() -> Iterator[tuple[Tensor, Draw]]:
        nonlocal rows
        for draw in draws:
            flow = draw.flow or opened.flow
            seed_noise(opened.device, derive(seed, "sample", draw.key))
            context = None if draw.context is None else draw.context.to(opened.device)
            if draw.x is not None and draw.known is not None:
                yield flow.complete(draw.x.to(opened.device), draw.known.to(opened.device), context), draw
            else:
                yield flow.sample(draw.count, **how) if context is None else flow.sample((), context), draw
            rows += draw.count
            progress(rows, total)

    facts = opened.save(out, drawn(), force)
    seconds = time.monotonic() - started
    return {
        "rows": rows, "unit": one, "units": many, "out": None if out is None else str(out), **facts,
        "seconds": seconds, "rows_per_second": rows / seconds if seconds else math.inf,
    }  # fmt: skip

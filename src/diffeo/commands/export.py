"""A run as a file that runs without diffeo."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffeo
from diffeo.atomic import atomic_write
from diffeo.errors import UserError
from diffeo.exporting.formats import FORMATS, Format
from diffeo.exporting.graph import traced
from diffeo.exporting.parity import compared, describe, inputs_like, reference_of
from diffeo.exporting.program import UNROLLED, WHAT, Program
from diffeo.flow import Flow
from diffeo.mixture import Mixture
from diffeo.modalities import open_run
from diffeo.modalities.base import OpenRun
from diffeo.report.distillation import pace
from diffeo.training.seeding import derive, seeded

__all__ = ["export"]

ROWS = 1000  # to compare by, beside those made of them that lie further out
TAILS = (3.0, 10.0)  # how many times further from the mean row
STEPS = (32, 64, 128, 256, 512)  # tried of a continuous flow, until on some rows it is as close as
TRIED, CLOSE = 96, 0.2  # of what is allowed
SLOW = 60  # the same of a continuous flow, whose solves take long
TIMED = 1000  # rows at a time where speed is measured


@torch.no_grad()
def export(
    run: str | os.PathLike[str] | Flow,
    out: str | os.PathLike[str],
    source: Any = None,
    *,
    to: str | None = None,
    what: str = "log-prob",
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Write one of a run's functions as a file that needs no diffeo, if it computes the same there.

    The file holds the preprocessing, too: it takes the data's own numbers, any number of rows, and all that is random
    is an input. It says in its metadata, as JSON under "diffeo", what its inputs and columns are. It is written if the
    program in it, loaded by its own runtime, agrees with diffeo on held-out rows, on rows made of them that lie further
    out, and in batches of 1, 7 and 1000: log-likelihoods within 1e-5 of one and their size. A continuous flow is solved
    in equal steps there, as many as are within 1e-3 of its own solver.

    Args:
        run: a run directory; or a flow, whose numbers are then those that it takes itself.
        out: the file to write.
        source: data of the run's kind to compare by, of which those held out are taken; by default the data that the
            run names, or else samples. Of a flow a tensor, or a pair with contexts.
        to: "onnx" or "pt2", what ``torch.export`` makes; by default what the name of the file says.
        what: "log-prob", "sample", "encode" or "decode".
        seed: of the rows and the noise to compare by.
        force: replace ``out`` if it exists.

    Returns:
        What was written, ``parity`` (and ``solver_parity`` of a continuous flow), ``bytes``, ``load_seconds``,
        ``rows_per_second`` of the file and ``own_rows_per_second`` of diffeo.

    Raises:
        UserError: for a run that cannot be exported, a package that is not installed, a file that exists or cannot be
            written, or a program that does not agree; then nothing is written.

    Example:
        >>> flow = diffeo.nice(features=2, transforms=2, hidden=(8,))
        >>> written = diffeo.export(flow, "flow.pt2", torch.randn(50, 2))
        >>> list(written["inputs"]), written["output"]
        (['x'], 'log_likelihood')
    """
    form = _format(out, to)
    if what not in WHAT:
        raise UserError(f"expected one of {', '.join(WHAT)} (--what), got {what!r}")
    if os.path.exists(out) and not force:
        raise UserError(f"{os.fspath(out)}: exists already; choose another name or replace it with --force")
    form.check()
    opened = None if isinstance(run, Flow) else open_run(run, "cpu")
    flow = run if isinstance(run, Flow) else opened.flow  # type: ignore[union-attr]
    name = "the flow" if opened is None else opened.path
    steps: int | None = None
    with atomic_write(out) as file:
        try:
            plain = None if opened is None else opened.plain()
            program = Program(flow, what, plain).eval()
            inputs, which = _inputs(program, opened, source, seed)
            _check_length(program)
            if program.solves:
                program, steps = _in_steps(program, inputs)
            started = time.monotonic()
            graph = traced(program, {key: value[:3].contiguous() for key, value in inputs.items()})
            described = {**program.described(), "diffeo": diffeo.__version__, **({"steps": steps} if steps else {})}
            content = form.content(graph, program.output, described)
        except ValueError as error:
            raise UserError(f"{name}: cannot be exported: {error}") from error
        seconds = time.monotonic() - started
        file.write_bytes(content)
        started = time.monotonic()
        loaded = form.loaded(file.read_bytes(), torch.get_num_threads())
        load_seconds = time.monotonic() - started
        parity = compared(program, loaded, inputs)
        solver = compared(program, loaded, inputs, own_solver=True) if program.solves else None
        for each in filter(None, (parity, solver)):
            if not each.passed:
                raise UserError(
                    f"{name}: {form.runtime} and diffeo disagree on {what}, in row {each.row + 1} of {which} by "
                    f"{each.worst:.3g} times what is allowed, {each.allowed}; nothing was written"
                )
    timed = SLOW if program.solves else TIMED
    few = {key: _cycled(value, timed) for key, value in inputs.items()}
    return {
        "steps": steps, "run": name, "out": os.fspath(out), "to": form.name, "what": what, "runtime": form.runtime,
        "inputs": described["inputs"], "output": program.output, "which": which,
        "parity": describe(parity), "solver_parity": None if solver is None else describe(solver),
        "bytes": len(content), "seconds": seconds, "load_seconds": load_seconds, "rows": timed,
        "rows_per_second": pace(lambda rows: loaded(few), timed),
        "own_rows_per_second": pace(lambda rows: reference_of(program, few), timed),
    }  # fmt: skip


def _format(out: str | os.PathLike[str], to: str | None) -> Format:
    asked = Path(out).suffix.removeprefix(".") if to is None else to
    if asked not in FORMATS:
        raise UserError(f"expected a format among {', '.join(FORMATS)} (--to), got {asked!r}")
    return FORMATS[asked]


def _inputs(program: Program, opened: OpenRun | None, source: Any, seed: int) -> tuple[dict[str, Tensor], str]:
    """Inputs to compare by: rows with their tails, noise for each of them; and which rows these are, in words."""
    flow, plain = program.flow, program.plain
    x, context, which = _rows(program, opened, source, seed)
    if program.what in ("log-prob", "encode"):
        middle = x.nan_to_num(0.0).mean(0)
        x = torch.cat([x, *(middle + factor * (x - middle) for factor in TAILS)])
        context = None if context is None else context.repeat(1 + len(TAILS), *[1] * (context.dim() - 1))
        which = f"{which}, and as many {' and '.join(f'{factor:g}' for factor in TAILS)} times further out"
    inputs = inputs_like(program, len(x), derive(seed, "export", "noise") % 2**32)
    if "x" in program.inputs:
        inputs["x"] = plain.outwards(x, None, exact=True)
    if "z" in program.inputs:
        with seeded(torch.device("cpu"), derive(seed, "export", "z")):
            inputs["z"] = flow.base.sample((len(x),))
    if context is not None:
        inputs["context"] = plain.context_outwards(context)
    return {name: inputs[name].contiguous() for name in program.inputs}, which


def _check_length(program: Program) -> None:
    """Refuse what would take too many operations, also as a loop.

    Raises:
        ValueError: for more than ``UNROLLED``.
    """
    count = program.operations()
    if count > UNROLLED:
        raise ValueError(
            f"its {program.what} goes over columns of many kinds one by one, in about {count:,} operations, more than "
            f"the {UNROLLED:,} that are exported; train it with --folds 1, or on fewer columns"
        )


def _in_steps(program: Program, inputs: Mapping[str, Tensor]) -> tuple[Program, int]:
    """The same program solved in equal steps, as few as agree with diffeo's own on some of the rows; and how many.

    Raises:
        ValueError: if too many were needed.
    """
    places = torch.linspace(0, len(next(iter(inputs.values()))) - 1, TRIED).long()
    some = {name: value[places] for name, value in inputs.items()}
    for steps in STEPS:
        stepped = Program(program.flow, program.what, program.plain, steps).eval()

        def run(few: Mapping[str, Tensor], stepped: Program = stepped) -> Tensor:
            result: Tensor = stepped(**few)
            return result

        if compared(stepped, run, some, own_solver=True).worst < CLOSE:
            return stepped, steps
    raise ValueError(f"expected a flow that can be solved in {STEPS[-1]} equal steps, got one that takes more")


def _rows(program: Program, opened: OpenRun | None, source: Any, seed: int) -> tuple[Tensor, Tensor | None, str]:
    """At most so many examples and contexts, as the flow takes them, and which they are in words."""
    flow, most = program.flow, SLOW if program.solves else ROWS
    if opened is None and source is not None:
        x, context = source if isinstance(source, tuple) else (source, None)
        return torch.as_tensor(x)[:most].to(flow.base.device_marker), context, "the rows given"
    if opened is not None:
        named = (opened.provenance.get("data") or {}).get("name") if source is None else source
        reading: Mapping[str, Any] = opened.provenance.get("settings") or {}
        options = {name: reading[name] for name in ("missing",) if name in reading}
        try:
            if named is not None:
                examples = opened.examples(named, most, seed, options)
                # Each row of a stack's training has a member that has not seen it; the whole of them is exported.
                which = "rows of the data" if isinstance(flow, Mixture) else examples.which
                return examples.x.to(flow.base.device_marker), examples.context, which
        except (UserError, OSError):
            if source is not None:
                raise
    if flow.context_shape:
        raise UserError(f"{'the flow' if opened is None else opened.path}: is conditional; give data to compare by")
    with seeded(torch.device("cpu"), derive(seed, "export", "rows")):
        return flow.sample(most), None, "samples"


def _cycled(value: Tensor, rows: int) -> Tensor:
    """So many rows, the same again where there are fewer."""
    return value[torch.arange(rows) % len(value)].contiguous()

"""From a table to a run directory."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffeo.data import Schema, Table, open_table
from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.jobs.defaults import default_model, preprocessing
from diffeo.jobs.pictures import draw_figures
from diffeo.jobs.plain import plain
from diffeo.jobs.rows import Split, TableStream, split_table
from diffeo.jobs.settings import check_settings, earlier_settings
from diffeo.objectives import MaximumLikelihood
from diffeo.recipes import build
from diffeo.training import FitResult, create_run, fit, provenance, read_model, save_metrics, save_weights
from diffeo.training.device import choose_device
from diffeo.training.parallel import World
from diffeo.training.run import claim_folder
from diffeo.training.seeding import derive, seed_noise

__all__ = ["fit_table"]

EVALUATED = 50_000  # training rows whose likelihood is reported
BATCH_SIZE = 512


def fit_table(
    source: Any,
    out: str | os.PathLike[str],
    *,
    model: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    context: Sequence[str] = (),
    drop: Sequence[str] = (),
    missing: str = "error",
    epochs: int | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    resume: bool = False,
    force: bool = False,
    figures: bool = True,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Learn the density of a table and write a run directory.

    A tenth of the rows, drawn by the seed, is held out: it decides when to stop and which weights to keep.

    Args:
        source: what ``open_table`` takes: a path, the name of a built-in set, an array or a data frame.
        out: the run directory to make.
        model: a recipe's name; by default ``default_model`` chooses.
        arguments: arguments of the recipe that replace the default ones.
        context: columns that the density shall be conditional on.
        drop: columns to leave out.
        missing: what becomes of rows with NaN, infinity or an empty cell: "error" or "drop".
        epochs: the budget in epochs.
        minutes: the budget in minutes.
        batch_size: rows per step, 512 by default.
        lr: the highest learning rate.
        seed: decides the split, the initial weights, the order and the noise; 0 by default.
        device: where to train; a GPU if there is one.
        resume: continue a run that was interrupted, with its own settings where none are given here.
        force: replace an earlier run.
        figures: draw the figures.
        progress: show a bar on stderr.
        say: called with every note on how the table was read.

    Returns:
        What ``metrics`` of the run directory says, and its path.

    Raises:
        UserError: for bad input, an unknown model or argument, or a folder that cannot be written.
    """
    given = {
        "model": model, "arguments": dict(arguments or {}) or None, "context": list(context) or None,
        "drop": list(drop) or None, "missing": missing if missing != "error" else None, "epochs": epochs,
        "minutes": minutes, "batch_size": batch_size, "lr": lr, "seed": seed,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    earlier = read_model(out) if resume else None
    settings = {**(earlier_settings(out, earlier) if earlier else {}), **given}
    check_settings(settings)
    world = World(choose_device(device))
    seed, batch_size = settings.get("seed", 0), settings.get("batch_size", BATCH_SIZE)

    table = open_table(source, missing=settings.get("missing", "error"))
    # Under torchrun one process claims the folder: another, later, would find that a run is there already.
    with _claimed(Path(out), earlier is not None or force) if world.leads else nullcontext():
        schema = Schema.infer(table, settings.get("context", ()), settings.get("drop", ()))
        if earlier is not None and earlier["schema"] != plain(schema.to_json()):
            folder = os.fspath(out)
            raise UserError(f"{folder} was trained on another table; give the same one or start again (--force)")
        rows = split_table(table, schema, batch_size, seed)
        notes = _notes(schema, table, rows, batch_size)
        for note in notes if world.leads else ():
            say(note)
        flow = _flow(schema, rows, settings, earlier, seed)
        if earlier is None and world.leads:
            data = {"name": table.name, "sha256": rows.hash, "rows": schema.rows}
            origin = provenance(data=data, seed=seed, settings=settings)
            create_run(out, flow, plain(schema.to_json()), plain(origin), force)
            shutil.rmtree(Path(out) / "figures", ignore_errors=True)
    world.wait()  # under torchrun, until the first process has made the run directory

    result = fit(
        MaximumLikelihood(flow), rows.x, rows.context,
        validation=(rows.valid_x, rows.valid_context) if rows.valid_context is not None else rows.valid_x,
        batch_size=batch_size, seed=seed, device=world.device, out=out, resume=resume, progress=progress,
        **{name: settings[name] for name in ("epochs", "minutes", "lr") if name in settings},
    )  # fmt: skip
    metrics = plain({**_metrics(flow, rows, seed), **_facts(flow, schema, result), "notes": notes})
    drawn: list[str] = []
    if world.leads:
        save_weights(out, flow)
        save_metrics(out, metrics)
        if figures and result.stopped != "interrupted":
            drawn = draw_figures(Path(out), flow, schema, rows, table.name, seed)
    return {"run": os.fspath(out), **metrics, "figures": drawn}


@contextmanager
def _claimed(folder: Path, may_exist: bool) -> Iterator[None]:
    """Prove that a run directory can be made here before any work; remove a new one again if the block fails."""
    new = not folder.exists()
    claim_folder(folder, may_exist)
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):  # something is in it
                folder.rmdir()
        raise


def _notes(schema: Schema, table: Table, rows: Split, batch_size: int) -> list[str]:
    """Return what a user should know about how the table was read."""
    notes = schema.notes()
    if rows.rows < batch_size:
        notes.append(f"a batch of {batch_size} is larger than the {rows.rows} training rows: all of them make one")
    if table.dropped:
        notes.append(f"{table.dropped} rows with missing or infinite values were left out")
    return notes


def _flow(
    schema: Schema, rows: Split, settings: Mapping[str, Any], earlier: Mapping[str, Any] | None, seed: int
) -> Flow:
    """Build the model; its initial weights follow from the seed."""
    x = rows.valid_x if isinstance(rows.x, TableStream) else rows.x
    if earlier is not None:
        name, arguments = earlier["recipe"]["name"], earlier["recipe"]["arguments"]
    else:
        name, arguments = default_model(schema, rows.rows, x)
    if settings.get("model", name) != name:
        name, arguments = settings["model"], {"preprocess": preprocessing(schema, x)}
    sizes = {"features": schema.features, "context": schema.context_size}
    seed_noise(torch.device("cpu"), derive(seed, "weights"))
    try:
        return build(name, {**arguments, **settings.get("arguments", {}), **sizes})
    except ValueError as error:
        raise UserError(f"model {name!r}: {error}") from error


@torch.no_grad()
def _metrics(flow: Flow, rows: Split, seed: int) -> dict[str, Any]:
    """Return negative log-likelihoods in the data's own units: nats per row with standard errors, and bits."""
    result: dict[str, Any] = {}
    parts: dict[str, tuple[Tensor, Tensor | None]] = {"validation": (rows.valid_x, rows.valid_context)}
    if not isinstance(rows.x, TableStream):
        context = None if rows.context is None else rows.context[:EVALUATED]
        parts["train"] = (rows.x[:EVALUATED], context)
    device = flow.base.device_marker.device
    for name, (x, context) in parts.items():
        seed_noise(device, derive(seed, "metrics", name))
        nll = -flow.log_prob(x.to(device), None if context is None else context.to(device)).double().cpu()
        mean = float(nll.mean())
        stderr = float(nll.std() / len(nll) ** 0.5) if len(nll) > 1 else math.nan
        bits = mean / math.log(2)
        result[name] = {
            "nll": mean, "stderr": stderr, "bits": bits, "bits_per_column": bits / x.shape[1], "rows": len(x),
        }  # fmt: skip
    result["rows"] = {"train": rows.rows, "validation": len(rows.valid_x)}
    return result


def _facts(flow: Flow, schema: Schema, result: FitResult) -> dict[str, Any]:
    assert flow.recipe is not None
    return {
        "model": flow.recipe["name"],
        "parameters": sum(parameter.numel() for parameter in flow.parameters()),
        "columns": schema.features,
        "context": list(schema.context),
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "steps": result.steps,
        "skipped_batches": result.skipped,
        "seconds": result.seconds,
        "stopped": result.stopped,
    }

"""From a table to a run directory."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffeo.atomic import check_writable
from diffeo.data import Schema, open_table
from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.jobs.defaults import default_model, preprocessing
from diffeo.jobs.pictures import draw_figures
from diffeo.jobs.plain import plain
from diffeo.jobs.rows import Split, TableStream, split_table
from diffeo.jobs.runs import choose_device
from diffeo.objectives import MaximumLikelihood
from diffeo.recipes import RECIPES, build
from diffeo.training import FitResult, fit
from diffeo.training.run import create_run, provenance, read_model, save_metrics, save_weights
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
    settings = {**_settings_of(earlier), **given}
    _check(settings)
    place = choose_device(device)
    seed = settings.get("seed", 0)
    batch_size = settings.get("batch_size", BATCH_SIZE)

    table = open_table(source, missing=settings.get("missing", "error"))
    if earlier is None:
        _refuse_occupied(Path(out), force)
    with _folder(Path(out)):
        schema = Schema.infer(table, settings.get("context", ()), settings.get("drop", ()))
        if earlier is not None and earlier["schema"] != plain(schema.to_json()):
            raise UserError(
                f"{os.fspath(out)} was trained on another table; give the same one or start again (--force)"
            )
        notes = schema.notes()
        rows = split_table(table, schema, batch_size, seed)
        if rows.rows < batch_size:
            notes.append(f"a batch of {batch_size} is larger than the {rows.rows} training rows: all of them make one")
        if table.dropped:
            notes.append(f"{table.dropped} rows with missing or infinite values were left out")
        for note in notes:
            say(note)
        flow = _flow(schema, rows, settings, seed)
        if earlier is None:
            origin = provenance(
                data={"name": table.name, "sha256": rows.hash, "rows": schema.rows}, seed=seed, settings=settings
            )
            create_run(out, flow, plain(schema.to_json()), plain(origin), force)
            shutil.rmtree(Path(out) / "figures", ignore_errors=True)

    _show_data(flow, rows, place, seed)
    result = fit(
        MaximumLikelihood(flow), rows.x, rows.context,
        validation=(rows.valid_x, rows.valid_context) if rows.valid_context is not None else rows.valid_x,
        batch_size=batch_size, seed=seed, device=place, out=out, resume=resume, progress=progress,
        **{name: settings[name] for name in ("epochs", "minutes", "lr") if name in settings},
    )  # fmt: skip
    save_weights(out, flow)
    metrics = plain({**_metrics(flow, rows, seed), **_facts(flow, schema, result), "notes": notes})
    save_metrics(out, metrics)
    drawn: list[str] = []
    if figures and result.stopped != "interrupted":
        drawn = draw_figures(Path(out), flow, schema, rows, table.name, seed)
    return {"run": os.fspath(out), **metrics, "figures": drawn}


def _settings_of(model: dict[str, Any] | None) -> dict[str, Any]:
    settings = {} if model is None else model["provenance"].get("settings", {})
    return settings if isinstance(settings, dict) else {}


def _check(settings: Mapping[str, Any]) -> None:
    """Refuse what can be refused before any work."""
    model = settings.get("model")
    if model is not None and model not in RECIPES:
        raise UserError(f"unknown model {model!r}; expected one of {', '.join(RECIPES)}")
    numbers = {**settings, **{name: n for name, n in settings.get("arguments", {}).items() if name == "transforms"}}
    for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("transforms", 1)):
        if isinstance(numbers.get(name), int) and numbers[name] < least:
            raise UserError(f"expected {name.replace('_', ' ')} of at least {least}, got {numbers[name]}")
    for name in ("minutes", "lr"):
        if name in settings and not 0 < settings[name] < math.inf:
            raise UserError(f"expected {name} above 0, got {settings[name]}")


def _refuse_occupied(folder: Path, force: bool) -> None:
    """Say at once, before the data are read, what ``create_run`` would say afterwards."""
    if not force and folder.is_dir() and (folder / "model.json").exists():
        remedy = "choose another folder, resume it (--resume) or replace it (--force)"
        raise UserError(f"{folder} holds a run already: {remedy}")


class _folder:
    """Prove that a folder can be written, and remove it again, if it was made here, when the block fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made = not path.exists()

    def __enter__(self) -> None:
        check_writable(self.path)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and self.made:
            with suppress(OSError):  # something is in it
                self.path.rmdir()


def _flow(schema: Schema, rows: Split, settings: Mapping[str, Any], seed: int) -> Flow:
    """Build the model; its initial weights follow from the seed."""
    name, arguments = default_model(schema, rows.rows)
    if settings.get("model", name) != name:
        name, arguments = settings["model"], {"preprocess": preprocessing(schema)}
    sizes = {"features": schema.features, "context": schema.context_size}
    seed_noise(torch.device("cpu"), derive(seed, "weights"))
    try:
        return build(name, {**arguments, **settings.get("arguments", {}), **sizes})
    except ValueError as error:
        raise UserError(f"model {name!r}: {error}") from error


@torch.no_grad()
def _show_data(flow: Flow, rows: Split, device: torch.device, seed: int) -> None:
    """Let standardisation and the like set themselves from many rows, not from one batch."""
    x, context = (rows.valid_x, rows.valid_context) if isinstance(rows.x, TableStream) else (rows.x, rows.context)
    flow.to(device).train()
    seed_noise(device, derive(seed, "first sight"))
    flow.log_prob(x[:EVALUATED].to(device), None if context is None else context[:EVALUATED].to(device))


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

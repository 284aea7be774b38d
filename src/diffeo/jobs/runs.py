"""A run directory: of a table, opened for use; claimed for a new run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffeo.data import Schema
from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.training.device import choose_device
from diffeo.training.run import claim_folder, load_run, read_model

__all__ = ["OpenRun", "claimed", "open_run", "run_kind"]


@dataclass(frozen=True)
class OpenRun:
    """A flow on its device, in evaluation mode, with the schema of the table that it describes."""

    path: str
    flow: Flow
    schema: Schema
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    device: torch.device


def run_kind(run: str | os.PathLike[str]) -> str:
    """Return what a run directory was trained on: "table", "images" or "audio".

    Raises:
        UserError: if it is none, or damaged.
    """
    return (read_model(run)["schema"] or {}).get("kind", "table")


def open_run(path: str | os.PathLike[str], device: str | None = None) -> OpenRun:
    """Load a run directory that describes a table.

    Raises:
        UserError: if it is damaged, is none, or its model does not fit its columns.
    """
    place = choose_device(device)
    run = load_run(path, place)
    if run.schema is None:
        raise UserError(f"{run.path}: describes no table; give a run directory made by diffeo fit from a table")
    if (kind := run.schema.get("kind", "table")) != "table":
        raise UserError(f"{run.path}: was trained on {kind}; this is for runs of tables")
    try:
        schema = Schema.from_json(run.schema)
    except UserError as error:
        raise UserError(f"{run.path}: model.json is damaged: {error}; restore it or train again") from error
    context = (schema.context_size,) if schema.context_size else ()
    if run.flow.event_shape != (schema.features,) or run.flow.context_shape != context:
        raise UserError(f"{run.path}: model.json is damaged: its model does not fit its columns; train again")
    return OpenRun(os.fspath(path), run.flow, schema, run.metrics, run.provenance, place)


@contextmanager
def claimed(folder: Path, may_exist: bool) -> Iterator[None]:
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

"""A run directory: of a table, opened for use; claimed for a new run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.modalities.tables.schema import Schema
from diffeo.objectives import guided
from diffeo.training.device import choose_device
from diffeo.training.run import claim_folder, load_run, read_model
from diffeo.transforms.ode import find_ode

__all__ = ["OpenRun", "Opened", "claimed", "open_run", "run_kind", "with_guidance", "with_likelihood"]


class Opened(Protocol):
    """A run directory that was opened, whatever it is of."""

    @property
    def path(self) -> str:
        """Where it is."""

    @property
    def flow(self) -> Flow:
        """Its flow, on the device, in evaluation mode."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Where it comes from."""

    @property
    def device(self) -> torch.device:
        """Where its flow is."""

    @property
    def description(self) -> dict[str, Any]:
        """What the run directory says of its data."""


Kind = TypeVar("Kind", bound=Opened)


@dataclass(frozen=True)
class OpenRun:
    """A flow on its device, in evaluation mode, with the schema of the table that it describes."""

    path: str
    flow: Flow
    schema: Schema
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    device: torch.device

    @property
    def description(self) -> dict[str, Any]:
        """What the run directory says of its table."""
        return self.schema.to_json()


def run_kind(run: str | os.PathLike[str]) -> str:
    """Return what a run directory was trained on: "table", "images" or "audio".

    Raises:
        UserError: if it is none, or damaged.
    """
    return (read_model(run)["schema"] or {}).get("kind", "table")


def open_run(path: str | os.PathLike[str], device: str | torch.device | None = None) -> OpenRun:
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


def with_likelihood(run: Kind) -> Kind:
    """Return a run that was opened, unless it has samples but no likelihood.

    Raises:
        UserError: for a continuous flow that is solved in a few fixed steps, as students are.
    """
    ode = find_ode(run.flow.transform)
    if ode is None or ode.has_likelihood:
        return run
    teacher = run.provenance.get("distillation", {}).get("teacher", {}).get("run")
    remedy = f"use the run that it was distilled from, {teacher}" if teacher else "train it without fixed steps"
    steps = f"{ode.steps} step{'s' * (ode.steps != 1)}"
    raise UserError(f"{run.path}: samples in {steps} of {ode.solver} and has no likelihood; {remedy}")


def with_guidance(run: Any, weight: float | None) -> Any:
    """Return a run that was opened, its flow guided by the context (see ``guided``) if a weight is given.

    Raises:
        UserError: for a flow that cannot be guided, or a weight that is not finite.
    """
    if weight is None:
        return run
    try:
        return replace(run, flow=guided(run.flow, weight))
    except ValueError as error:
        remedy = "guidance (--guidance) takes a conditional flow-matching run trained with --set dropout=0.1"
        raise UserError(f"{run.path}: {remedy}: {error}") from error


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

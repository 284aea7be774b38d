"""Run directories, opened for a command."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch

from diffeo.commands.settings import check_reading, option_of
from diffeo.errors import UserError
from diffeo.modalities import open_run
from diffeo.modalities.base import OpenRun
from diffeo.objectives import guided

__all__ = ["open_for", "with_guidance", "with_likelihood"]


def open_for(
    command: str, run: str | os.PathLike[str], device: str | torch.device | None, **options: Any
) -> tuple[OpenRun, dict[str, Any]]:
    """Open a run for a command, with those of its options that say something: not None, nor that missing is an error.

    Raises:
        UserError: for a bad run directory, or an option that its kind of data has no use for or that makes no sense.
    """
    opened = open_run(run, device)
    chosen = {
        name: value for name, value in options.items() if value is not None and (name, value) != ("missing", "error")
    }
    foreign = [name for name in chosen if name not in opened.options.get(command, ())]
    if foreign:
        option, data = option_of(foreign[0]), opened.words.data
        raise UserError(f"{option} is not for {opened.path}, which was trained on {data}; leave it out")
    check_reading(chosen)
    return opened, chosen


def with_likelihood(run: OpenRun, *, or_bound: bool = False) -> OpenRun:
    """Return a run that was opened, unless it has samples but no likelihood.

    Args:
        run: that was opened.
        or_bound: whether bounds of the likelihood, which a VAE has, do as well.

    Raises:
        UserError: for one that has none: a VAE, or a flow that is solved in a few fixed steps, as students are.
    """
    if run.flow.has_log_prob or (or_bound and run.flow.has_bound):
        return run
    if run.flow.has_bound:
        raise UserError(f"{run.path}: is a VAE, which has no exact likelihood; diffeo score reports bounds of it")
    teacher = run.provenance.get("distillation", {}).get("teacher", {}).get("run")
    remedy = f"use the run that it was distilled from, {teacher}" if teacher else "train it without fixed steps"
    raise UserError(f"{run.path}: samples in a few steps and has no likelihood; {remedy}")


def with_guidance(run: OpenRun, weight: float | None) -> OpenRun:
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

"""From a table of simulations to a run directory of a posterior."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffeo.commands.fit import make_run
from diffeo.commands.settings import settings_of
from diffeo.errors import UserError
from diffeo.inference.posterior import METHODS
from diffeo.modalities import open_run
from diffeo.modalities.tables.run import SIMULATIONS, TableRun
from diffeo.modalities.tables.table import open_table
from diffeo.report.style import Figures
from diffeo.report.verdict import FEWEST
from diffeo.training import read_model, save_metrics

__all__ = ["posterior"]

NUMBERS = ("number", "float", "integer", "bool")


def posterior(
    source: Any,
    out: str | os.PathLike[str],
    *,
    parameters: Sequence[str] = (),
    observed: Sequence[str] = (),
    bounds: Mapping[str, Sequence[float | None]] | None = None,
    method: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    drop: Sequence[str] = (),
    missing: str = "error",
    na: Sequence[str] = (),
    sep: str | None = None,
    decimal: str | None = None,
    test: float | None = None,
    folds: int | None = None,
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
    """Learn the density of parameters given observations from a table of simulations, and write a run directory.

    A row is a simulation: parameters from their prior, and what a simulator made of them. The run is one of a table,
    trained with the observed columns as context, so that ``sample``, ``score``, ``predict`` and ``check`` take it.

    Args:
        source: what ``open_table`` takes.
        out: the run directory to make.
        parameters: the columns of the parameters; needed but to resume.
        observed: the columns of the observation; by default all other columns of numbers.
        bounds: of parameters by name, (low, high), None for none: the ends of their prior.
        method: "npe", the default, or "fmpe"; see ``diffeo.posterior``.
        arguments: of the recipe, in place of the method's own.
        drop: columns to leave out.
        missing: what becomes of simulations with NaN or an empty cell: "error", or "drop".
        na: texts and numbers that stand for a missing cell, beside NA, NaN, null and the like.
        sep: what separates the columns of a csv; found by default.
        decimal: the decimal mark of a csv; found by default.
        test: the fraction of simulations that the training never sees, for ``check``.
        folds: how many parts of the simulations are held out in turn; by default 5, for more than 20,000 one model.
        epochs: the budget in epochs.
        minutes: the budget in minutes.
        batch_size: simulations per step.
        lr: the highest learning rate.
        seed: decides all that is random; 0 by default.
        device: where to train; a GPU if there is one.
        resume: continue a run that was interrupted.
        force: replace an earlier run.
        figures: plot the figures, that of the calibration among them.
        progress: show a bar on stderr.
        say: called with every note on how the table was read.

    Returns:
        What ``metrics`` of the run directory says, ``calibration`` among it, by simulations that were held out if there
        are enough of them, and its path.

    Raises:
        UserError: for bad input, simulations outside the bounds, or a folder that cannot be written.
    """
    earlier = read_model(out) if resume else None
    stored = earlier["provenance"].get("settings", {}) if earlier else {}
    chosen: dict[str, Any] = {
        "bounds": bounds, "drop": drop, "missing": missing, "na": na, "sep": sep, "decimal": decimal, "test": test,
        "folds": folds, "epochs": epochs, "minutes": minutes, "batch_size": batch_size, "lr": lr, "seed": seed,
    }  # fmt: skip
    if earlier is None:
        method = "npe" if method is None else method
        if method not in METHODS:
            raise UserError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
        recipe = METHODS[method]
        reading: dict[str, Any] = {
            name: value for name, value in (("na", na), ("sep", sep), ("decimal", decimal)) if value
        }
        context, aside = _columns(open_table(source, missing="keep", **reading), parameters, observed, drop)
        if aside:
            say(f"no columns of numbers, left out: {', '.join(map(repr, aside))}")
        chosen |= {
            "method": method, "model": recipe.recipe, "arguments": {**recipe.arguments, **(arguments or {})},
            "context": context, "drop": [*drop, *aside],
        }  # fmt: skip
    settings = settings_of(chosen, out, stored)
    summary = make_run(
        source, out, settings, earlier, device=device, force=force, figures=figures, progress=progress, say=say
    )
    if summary["stopped"] == "interrupted":
        return summary
    run = open_run(out, device)
    assert isinstance(run, TableRun)
    if sum(summary["rows"].values()) < FEWEST:
        return summary
    examples = run.examples(source, SIMULATIONS, settings.get("seed", 0), {"missing": missing})
    calibration = run.calibration(examples, settings.get("seed", 0))
    which = examples.which + (": in sample, so it says nothing of new simulations" if examples.in_sample else "")
    metrics = {"calibration": {"which": which, **calibration.to_json()}}
    save_metrics(out, metrics)
    if figures:
        path = Figures(Path(out))("calibration")
        summary["figures"].append(str(calibration.plot(path)))
    return {**summary, **metrics}


def _columns(
    table: Any, parameters: Sequence[str], observed: Sequence[str], drop: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The columns of the observation, and those that are left out since they are neither numbers nor asked for.

    Raises:
        UserError: for unknown columns, no parameters or no observation, or columns that are both.
    """
    listed = ", ".join(map(repr, table.all_names))
    if not parameters:
        raise UserError(f"{table.name}: give the columns of the parameters (--parameters COLS); it has {listed}")
    for option, names in (("parameters", parameters), ("observed", observed)):
        for name in names:
            if name not in table.all_names:
                raise UserError(f"{table.name}: has no column {name!r} for --{option}; it has {listed}")
    twice = next((name for name in parameters if parameters.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{table.name}: column {twice!r} is there twice in --parameters; name each once")
    both = [name for name in parameters if name in (*observed, *drop)]
    if both:
        other = "observed" if both[0] in observed else "dropped"
        raise UserError(f"{table.name}: column {both[0]!r} is a parameter and {other}; choose one")
    rest = [name for name in table.all_names if name not in (*parameters, *drop)]
    kinds = table.types
    context = [name for name in rest if (name in observed if observed else kinds[name] in NUMBERS)]
    if not context:
        raise UserError(f"{table.name}: no column of numbers is left as the observation; it has {listed}")
    return context, [name for name in rest if name not in context]

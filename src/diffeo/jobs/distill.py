"""From a run that is slow to sample to one that samples in a single parallel pass."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.jobs.check import Judging, rows_to_judge_by
from diffeo.jobs.fit import likelihood_facts
from diffeo.jobs.pictures import draw_pairs
from diffeo.jobs.plain import plain
from diffeo.jobs.runs import OpenRun, claimed, open_run
from diffeo.jobs.settings import check_settings
from diffeo.objectives import Distillation, Objective
from diffeo.recipes import build
from diffeo.recipes.assembly import take_apart
from diffeo.report.compare import mean_and_error
from diffeo.report.distillation import (
    Draws,
    compare_draws,
    divergence_curve,
    draw_both,
    generate_naively,
    likelihoods,
    pace,
    warnings,
)
from diffeo.training import FitResult, create_run, fit, provenance, read_model, save_metrics, save_weights
from diffeo.training.parallel import World
from diffeo.training.sampled import SampleStream
from diffeo.training.seeding import derive, seed_noise
from diffeo.training.weights import digest
from diffeo.transforms import Autoregressive, Chain, Transform

__all__ = ["STUDENTS", "distill_run"]

# What a student may be, as a recipe and arguments of it; all of them sample in one pass.
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "nsf-inverse": ("nsf", {"structure": "inverse", "affine": True}),
    "iaf": ("iaf", {}),
    "realnvp": ("realnvp", {}),
    "nsf-coupling": ("nsf", {"structure": "coupling", "affine": True}),
}

BATCH_SIZE, BATCHES = 512, 100  # rows per step, steps per epoch
EPOCHS = 100
VALIDATED = 4_096  # rows of the teacher's that tell which weights to keep
REPORTED = 20_000  # draws of each that the report is of
TIMED = 1_000  # rows drawn at a time where speed is measured


def distill_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    source: Any = None,
    *,
    student: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    missing: str = "error",
    seed: int | None = None,
    device: str | None = None,
    resume: bool = False,
    force: bool = False,
    figures: bool = True,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Distil the run of a table into a student that samples in one parallel pass, and say what was lost.

    The student learns from rows that the teacher draws: first to give them density (the forward KL), then by both
    Kullback-Leibler divergences. It lives within the teacher's preprocessing, which cancels in every log-ratio.

    Args:
        run: the teacher's run directory.
        out: the run directory to make.
        source: a table, as ``open_table`` takes it: the report then says what the student lost on real rows, those
            that the teacher was not trained on. By default the table that the run names, if it is still there. A
            conditional teacher needs one, for the contexts.
        student: a name in ``STUDENTS``.
        arguments: arguments of its recipe that replace the default ones.
        epochs: the budget of all training, in epochs of 100 steps; 100 by default.
        minutes: the same in minutes instead.
        missing: what becomes of rows with NaN, infinity or an empty cell: "error" or "drop".
        seed: decides the initial weights, the draws and the noise; 0 by default.
        device: where to train; a GPU if there is one.
        resume: continue a run that was interrupted, with its own settings where none are given here.
        force: replace an earlier run; distil a teacher that is fast already.
        figures: draw the figures.
        progress: show a bar on stderr.
        say: called with every note.

    Returns:
        What ``metrics`` of the run directory says, and its path.

    Raises:
        UserError: for bad input, a teacher that samples in one pass already, an unknown student or argument, or a
            folder that cannot be written.
    """
    teacher = open_run(run, device)
    folder = Path(out)
    if folder.exists() and folder.samefile(run):
        raise UserError(f"{folder} is the teacher's own folder: choose another one for the student (--out)")
    if teacher.flow.cheap in ("forward", "both") and not force:
        raise UserError(f"{teacher.path} samples in one pass already: nothing to gain (distil it anyway with --force)")
    given = {
        "student": student, "arguments": dict(arguments or {}) or None, "epochs": epochs, "minutes": minutes,
        "seed": seed,
    }  # fmt: skip
    earlier = read_model(out) if resume else None
    settings = {**_earlier_settings(out, earlier), **{k: v for k, v in given.items() if v is not None}}
    check_settings({name: settings[name] for name in ("epochs", "minutes", "seed") if name in settings})
    seed = settings.get("seed", 0)
    world = World(teacher.device)
    tell = say if world.leads else lambda text: None

    core, preprocessing = take_apart(teacher.flow)
    real = _real_rows(teacher, source, missing, seed, tell)
    contexts = None if real is None else real.contexts
    if core.context_shape and contexts is None:
        raise UserError(f"{teacher.path} is conditional: give the table that its contexts are to be taken from (DATA)")
    flow = _student(teacher, settings, seed)
    assert flow.recipe is not None  # it was built from one
    own, _ = take_apart(flow)

    with claimed(folder, earlier is not None or force) if world.leads else nullcontext():
        if earlier is not None and earlier["schema"] != teacher.schema.to_json():
            raise UserError(f"{folder} was distilled from another run; give the same or start again (--force)")
        if earlier is None and world.leads:
            create_run(folder, flow, teacher.schema.to_json(), plain(_origin(teacher, settings)), force)
            shutil.rmtree(folder / "figures", ignore_errors=True)
    world.wait()  # under torchrun, until the first process has made the run directory

    stages = _train(own, core, contexts, folder, settings, seed, resume, progress, world, tell)
    facts = {
        "model": flow.recipe["name"],
        "teacher": teacher.path,
        "parameters": sum(parameter.numel() for parameter in flow.parameters()),
        "columns": teacher.schema.features,
        "context": list(teacher.schema.context),
        "stages": {name: _stage(result) for name, result in stages.items()},
        "epochs": sum(result.epochs for result in stages.values()),
        "seconds": sum(result.seconds for result in stages.values()),
        "stopped": list(stages.values())[-1].stopped,
    }
    drawn: list[str] = []
    if world.leads:
        save_weights(folder, flow)
        if facts["stopped"] != "interrupted":
            draws = draw_both(own, core, contexts, REPORTED, derive(seed, "report"))
            held_out = _on_real_rows(own, core, preprocessing, real, seed)
            facts |= _report(own, core, draws, held_out, real, seed)
            if figures:
                drawn = _draw(folder, teacher, preprocessing, draws, held_out, stages)
        save_metrics(folder, plain(facts))
    return {"run": os.fspath(out), **plain(facts), "figures": drawn}


def _earlier_settings(out: str | os.PathLike[str], earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    if earlier is None:
        return {}
    settings = earlier["provenance"].get("distillation", {}).get("settings")
    if not isinstance(settings, dict):
        raise UserError(f"{os.fspath(out)} was not made by diffeo distill: choose another folder")
    return settings


def _real_rows(teacher: OpenRun, source: Any, missing: str, seed: int, say: Callable[[str], None]) -> Judging | None:
    """Return real rows to judge by, from the table that was given, or else from the one that the run names."""
    if source is not None:
        return rows_to_judge_by(teacher, teacher.schema.open(source, missing=missing), REPORTED, seed)
    recorded = (teacher.provenance.get("data") or {}).get("name")
    if not isinstance(recorded, str):
        return None
    missing = teacher.provenance.get("settings", {}).get("missing", missing)
    try:
        return rows_to_judge_by(teacher, teacher.schema.open(recorded, missing=missing), REPORTED, seed)
    except (UserError, OSError) as error:
        say(f"no real rows to judge by, only the teacher's own: {error}; give the table (DATA)")
        return None


def _student(teacher: OpenRun, settings: Mapping[str, Any], seed: int) -> Flow:
    """Build the student: the teacher's columns, contexts and preprocessing; its initial weights follow the seed."""
    name = settings.get("student", next(iter(STUDENTS)))
    if name not in STUDENTS:
        raise UserError(f"unknown student {name!r}; expected one of {', '.join(STUDENTS)}")
    assert teacher.flow.recipe is not None  # it was built from one
    recipe, arguments = STUDENTS[name]
    shared = {key: teacher.flow.recipe["arguments"][key] for key in ("features", "context", "preprocess")}
    seed_noise(torch.device("cpu"), derive(seed, "weights"))
    try:
        flow = build(recipe, {**arguments, **settings.get("arguments", {}), **shared})
    except ValueError as error:
        raise UserError(f"student {name!r}: {error}") from error
    if flow.cheap not in ("forward", "both"):
        raise UserError(f"student {name!r} with {dict(settings['arguments'])} does not sample in one pass")
    flow.to(teacher.flow.base.device_marker)
    for own, its in zip(_shared_parts(flow), _shared_parts(teacher.flow), strict=True):
        own.load_state_dict(its.state_dict())
    return flow


def _shared_parts(flow: Flow) -> list[torch.nn.Module]:
    """What a student has from its teacher, state and all."""
    return [*take_apart(flow)[1], *([] if flow.context_transform is None else [flow.context_transform])]


def _origin(teacher: OpenRun, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Where the student comes from. Data and seed are the teacher's: they tell which rows it was never shown."""
    assert teacher.flow.recipe is not None
    its = teacher.provenance
    return provenance(
        data=its.get("data"), seed=its.get("seed"),
        distillation={
            "settings": dict(settings),
            "teacher": {
                "run": teacher.path, "model": teacher.flow.recipe["name"],
                "sha256": digest(teacher.flow.state_dict()), "versions": its.get("versions"),
            },
        },
    )  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A part of the training: what is minimised, the share of the budget that it has, and its learning rate."""

    name: str
    says: str
    objective: Callable[[Flow, Flow], Objective]
    share: float
    lr: float


# The reverse KL is asked for last: far from the teacher its gradients explode, and alone it leaves modes out. The
# forward KL needs no WarmStart, whose error an unfinished student makes small by shrinking to the mean row.
STAGES = (
    Stage("forward", "forward KL", partial(Distillation, forward_share=1.0), 0.65, 1e-2),
    Stage("both", "mean of reverse and forward KL", Distillation, 0.35, 3e-3),
)


def _train(
    student: Flow,
    teacher: Flow,
    contexts: Tensor | None,
    out: Path,
    settings: Mapping[str, Any],
    seed: int,
    resume: bool,
    progress: bool,
    world: World,
    say: Callable[[str], None],
) -> dict[str, FitResult]:
    """Run the stages, each with a checkpoint of its own: one that is over only gives its weights back."""
    drawn = SampleStream(teacher, contexts, batch_size=VALIDATED, batches=1, seed=derive(seed, "validation"))
    validation = next(iter(drawn))
    results: dict[str, FitResult] = {}
    for number, stage in enumerate(STAGES, start=1):
        folder = out / "train" / stage.name
        say(f"stage {number} of {len(STAGES)}: {stage.says}")
        rows = SampleStream(teacher, contexts, batch_size=BATCH_SIZE, batches=BATCHES, seed=derive(seed, stage.name))
        results[stage.name] = fit(
            stage.objective(student, teacher), rows, validation=validation, lr=stage.lr, patience=math.inf,
            seed=seed, device=world.device, out=folder, resume=resume and folder.is_dir(), progress=progress,
            **_budget(settings, stage.share),
        )  # fmt: skip
        if results[stage.name].stopped == "interrupted":
            break
    return results


def _budget(settings: Mapping[str, Any], share: float) -> dict[str, Any]:
    if "minutes" in settings:
        return {"minutes": share * settings["minutes"]}
    return {"epochs": max(1, round(share * settings.get("epochs", EPOCHS)))}


def _stage(result: FitResult) -> dict[str, Any]:
    return {
        "loss": result.best_loss, "epochs": result.epochs, "best_epoch": result.best_epoch, "steps": result.steps,
        "skipped_batches": result.skipped, "seconds": result.seconds,
    }  # fmt: skip


@torch.no_grad()
def _on_real_rows(
    student: Flow, teacher: Flow, preprocessing: Sequence[Transform], real: Judging | None, seed: int
) -> dict[str, Tensor] | None:
    """Return log-likelihoods of real rows, (n,): student's and teacher's within the preprocessing, and its log-det."""
    if real is None:
        return None
    device = teacher.base.device_marker.device
    x, context = real.x.to(device), None if real.context is None else real.context.to(device)
    seed_noise(device, derive(seed, "real rows"))
    log_det = torch.zeros(len(x), device=device)
    if preprocessing:
        x, log_det = Chain(preprocessing).eval().inverse_and_log_det(x)
    found = {
        "student": student.log_prob(x, context, nan="propagate"),
        "teacher": teacher.log_prob(x, context, nan="propagate"),
        "log_det": log_det,
    }
    good = torch.stack(list(found.values())).isfinite().all(0)
    if good.sum() < 2:
        return None
    return {name: values[good].double().cpu() for name, values in found.items()}


def _report(
    student: Flow, teacher: Flow, draws: Draws, held_out: Mapping[str, Tensor] | None, real: Judging | None, seed: int
) -> dict[str, Any]:
    report = compare_draws(draws, seed)
    report["warnings"] = warnings(report)
    report["rows_per_second"] = _paces(student, teacher, draws.context)
    if held_out is None or real is None:
        return {"distillation": report}
    difference = mean_and_error((held_out["student"] - held_out["teacher"]).numpy())
    report["real_rows"] = {**difference, "rows": len(held_out["student"]), "which": real.which}
    nll = -(held_out["student"] + held_out["log_det"])
    return {"distillation": report, "validation": likelihood_facts(nll, report["dimensions"], "column")}


def _paces(student: Flow, teacher: Flow, context: Tensor | None) -> dict[str, float]:
    """Return rows per second of the student, of the teacher, and of the teacher by one full pass per element."""
    given = None if context is None else context[:TIMED]

    def draw(flow: Flow) -> Callable[[int], Tensor]:
        return lambda rows: flow.sample((rows,) if given is None else (), given)

    count = TIMED if given is None else len(given)
    found = {"student": pace(draw(student), count), "teacher": pace(draw(teacher), count)}
    if any(isinstance(part, Autoregressive) for part in teacher.transform.modules()):
        prepared = teacher.normalize_context(given)
        found["teacher_naive"] = pace(
            lambda rows: generate_naively(teacher.transform, teacher.base.sample((rows,)), prepared), count
        )
    return found


@torch.no_grad()
def _draw(
    folder: Path,
    teacher: OpenRun,
    preprocessing: Sequence[Transform],
    draws: Draws,
    held_out: Mapping[str, Tensor] | None,
    stages: Mapping[str, FitResult],
) -> list[str]:
    """Draw the figures and return their paths."""
    home = folder / "figures"
    home.mkdir(exist_ok=True)
    paths = [home / f"{name}.png" for name in ("kl", "pairs", "likelihoods")]
    divergence_curve({stage.says: stages[stage.name].history for stage in STAGES}, paths[0])
    rows = [Chain(preprocessing).eval().forward(part) if preprocessing else part for part in (draws.x, draws.s)]
    draw_pairs(teacher.schema, rows[0], rows[1], paths[1], ("teacher", "student"))
    likelihoods(draws, None if held_out is None else held_out["teacher"].numpy(), paths[2])
    return [str(path) for path in paths]

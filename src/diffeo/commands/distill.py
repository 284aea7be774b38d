"""From a run that is slow to sample to one that samples in a single parallel pass, or in a few steps."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from diffeo.commands.runs import with_likelihood
from diffeo.commands.settings import refuse_foreign, settings_of
from diffeo.distillation.base import Method
from diffeo.distillation.density import DensityMethod
from diffeo.distillation.sequence import SequenceMethod
from diffeo.distillation.steps import ImageSteps, TableSteps
from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.mixture import Mixture
from diffeo.modalities import open_run
from diffeo.modalities.base import OpenRun
from diffeo.recipes import build
from diffeo.training import FitResult, create_run, fit, provenance, read_model, save_metrics, save_weights
from diffeo.training.parallel import World, choose_device
from diffeo.training.place import claimed, place
from diffeo.training.run import plain
from diffeo.training.seeding import derive, seed_noise
from diffeo.training.weights import digest

__all__ = ["distill"]

# The first method that suits a run provides the default student.
METHODS: tuple[type[Method], ...] = (TableSteps, DensityMethod, ImageSteps, SequenceMethod)


def distill(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    source: Any = None,
    *,
    student: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    forward_share: float | None = None,
    power: float | None = None,
    contrast: float | None = None,
    missing: str = "error",
    seed: int | None = None,
    device: str | None = None,
    resume: bool = False,
    force: bool = False,
    figures: bool = True,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Distil a run into a student that samples in one parallel pass, or in a few steps, and say what was lost.

    The student of a continuous flow, of a table or of images, is that flow with its trajectories straightened, then
    trained to follow them in a few Euler steps; it has samples and no likelihood. Any other student has a density, and
    lives within the teacher's preprocessing, which cancels in every log-ratio. That of a table learns from
    rows that the teacher draws: first to give them density (the forward KL), then by both Kullback-Leibler divergences.
    That of audio, a Parallel WaveNet, learns from sounds that the teacher draws in the contexts of recordings: first to
    map the noise of each to it, then by the reverse KL.

    Args:
        run: the teacher's run directory.
        out: the run directory to make.
        source: a table, as ``open_table`` takes it: the report then says what the student lost on real rows, those
            that the teacher was not trained on. By default the table that the run names, if it is still there. A
            conditional teacher needs one, for the contexts. Of audio, recordings, as ``open_audio`` takes them, always
            needed; by default those that the run names.
        student: by the name that the kind of run has for it.
        arguments: arguments of its recipe that replace the default ones: ``steps`` of the student "few-steps".
        epochs: the budget of all training, in epochs: of 100 steps, 100 by default; for images of 32 steps, 150; of
            audio, passes over the recordings, 60.
        minutes: the same in minutes instead.
        forward_share: weight of the forward KL, along the teacher's encoding, in the last stage of audio; 0.1 by
            default. It keeps more of what the teacher knows.
        power: weight of the power loss, per sample, of audio; 2 by default, without which a student is too quiet.
        contrast: weight of the contrastive term, of audio, in [0, 1); 0.3 in the paper.
        missing: what becomes of rows with NaN, infinity or an empty cell: "error" or "drop".
        seed: decides the initial weights, the draws and the noise; 0 by default.
        device: where to train; a GPU if there is one.
        resume: continue a run that was interrupted, with its own settings where none are given here.
        force: replace an earlier run; distil a teacher that is fast already.
        figures: plot the figures.
        progress: show a bar on stderr.
        say: called with every note.

    Returns:
        What ``metrics`` of the run directory says, and its path.

    Raises:
        UserError: for bad input, a teacher that samples in one pass or a few steps already, an unknown student or
            argument, or a folder that cannot be written.
    """
    world = World(choose_device(device))
    teacher = with_likelihood(open_run(run, world.device))
    if isinstance(teacher.flow, Mixture):
        raise UserError(f"{teacher.path} is a mixture of several models; distil one trained with --folds 1")
    if Path(out).exists() and Path(out).samefile(run):
        raise UserError(f"{os.fspath(out)} is the teacher's own folder: choose another one for the student (--out)")
    if "sample" in teacher.flow.fast and not force:
        raise UserError(f"{teacher.path} samples in one pass already: nothing to gain (distil it anyway with --force)")
    earlier = read_model(place(out, resume)) if resume else None
    stored = earlier["provenance"].get("distillation", {}).get("settings") if earlier else {}
    if stored is None:
        raise UserError(f"{os.fspath(out)} was not made by diffeo distill: choose another folder")
    settings = settings_of(locals(), out, stored)
    method = _method(teacher, settings.get("student"))
    by_kind = {method.run.words.data: method.options for method in METHODS}
    refuse_foreign(by_kind, method.run.words.data, settings)
    seed = settings.get("seed", 0)
    say = say if world.leads else lambda text: None

    method.read(source, settings, seed, say)
    flow = _student(method, settings.get("arguments", {}), seed)
    assert flow.recipe is not None  # it was built from one
    core = flow.core

    with claimed(out, resume, force) if world.leads else nullcontext(place(out, resume, force)) as folder:
        if earlier is not None and earlier["schema"] != plain(method.description):
            text = f"{os.fspath(out)} was distilled from another run; give the same or start again (--force)"
            raise UserError(text)
        if earlier is None and world.leads:
            create_run(folder, flow, method.description, _origin(method, settings))
        world.wait()  # under torchrun, until the first process has made the run directory

        results = _train(core, method, folder, settings, seed, resume, progress, world, say)
        facts = {
            "model": flow.recipe["name"],
            "student": method.student,
            "teacher": method.path,
            "parameters": sum(parameter.numel() for parameter in flow.parameters()),
            **method.facts(),
            "stages": {name: _stage(result) for name, result in results.items()},
            "epochs": sum(result.epochs for result in results.values()),
            "seconds": sum(result.seconds for result in results.values()),
            "stopped": list(results.values())[-1].stopped,
        }
        interrupted = facts["stopped"] == "interrupted"
        if world.leads:
            save_weights(folder, flow)
            method.opened.hand_on(folder)
            if not interrupted:
                facts |= method.report(core, seed)
                facts["distillation"]["warnings"] += pace_warnings(facts["distillation"])
            save_metrics(folder, facts)
    plotted = method.plot(Path(out), results) if world.leads and figures and not interrupted else []
    return {"run": os.fspath(out), **plain(facts), "figures": plotted}


def pace_warnings(report: Mapping[str, Any]) -> list[str]:
    """Warn where the student is no faster than its teacher, as a teacher with a cache can be."""
    speed = report.get("samples_per_second") or report.get("rows_per_second") or {}
    if not speed or speed["student"] >= speed["teacher"]:
        return []
    return [
        f"the student samples no faster than its teacher ({speed['student']:,.0f} a second to "
        f"{speed['teacher']:,.0f}): here the teacher itself is the better sampler"
    ]


def _method(teacher: OpenRun, student: str | None) -> Method:
    """Choose the method for a student of this name, by default the first one that suits the teacher."""
    methods = [method for method in METHODS if isinstance(teacher, method.run)]
    fitting = [method for method in methods if method.suits(teacher.flow)]
    if not fitting:
        able = f", only {methods[0].teachers}" if methods else ", nothing"
        raise UserError(f"{teacher.path}: of {teacher.words.data}{able} can be distilled")
    names = {name: kind for kind in fitting for name in kind.students}
    name = student or next(iter(names))
    if name not in names:
        others = [method for method in METHODS if name in method.students]
        what = f"student {name!r} is for {others[0].teachers}" if others else f"unknown student {name!r}"
        raise UserError(f"{what}; expected one of {', '.join(names)}")
    return names[name](teacher, name)


def _student(method: Method, chosen: Mapping[str, Any], seed: int) -> Flow:
    """Build the student, with what it takes over from its teacher; the seed decides its initial weights."""
    recipe, arguments = method.students[method.student]
    shared = method.shared()
    for argument in shared:
        if chosen.get(argument, shared[argument]) != shared[argument]:
            raise UserError(
                f"a student has its teacher's {argument} ({shared[argument]!r}), got {chosen[argument]!r}; leave it out"
            )
    seed_noise(torch.device("cpu"), derive(seed, "weights"))
    try:
        flow = build(recipe, {**arguments, **chosen, **shared})
    except ValueError as error:
        raise UserError(f"student {method.student!r}: {error}; change or leave out that option") from error
    method.check(flow)
    flow.to(method.flow.base.device_marker)
    for part, original in zip(method.inherited(flow), method.inherited(method.flow), strict=True):
        part.load_state_dict(original.state_dict())
    return flow


def _origin(method: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Where the student comes from. Data and seed are the teacher's: they say which rows it was not trained on."""
    recorded = method.provenance
    return provenance(
        data=recorded.get("data"), seed=recorded.get("seed"),
        distillation={
            "settings": dict(settings),
            "teacher": {
                "run": method.path, "model": method.model,
                "sha256": digest(method.flow.state_dict()), "versions": recorded.get("versions"),
            },
        },
    )  # fmt: skip


def _train(
    student: Flow,
    method: Method,
    out: Path,
    settings: Mapping[str, Any],
    seed: int,
    resume: bool,
    progress: bool,
    world: World,
    say: Callable[[str], None],
) -> dict[str, FitResult]:
    """Run the stages, each with its own checkpoint; a finished one only restores its weights."""
    results: dict[str, FitResult] = {}
    for number, stage in enumerate(method.stages, start=1):
        folder = out / "train" / stage.name
        say(f"stage {number} of {len(method.stages)}: {stage.says}")
        stream, held_out = method.training_data(stage, student, seed)
        results[stage.name] = fit(
            stage.objective(student, method.training_core), stream, validation=held_out, lr=stage.lr, patience=math.inf,
            bfloat16=method.bfloat16, seed=seed, device=world.device, out=folder, resume=resume and folder.is_dir(),
            progress=progress, **_budget(settings, stage.share, method.epochs),
        )  # fmt: skip
        if results[stage.name].stopped == "interrupted":
            break
    return results


def _budget(settings: Mapping[str, Any], share: float, epochs: int) -> dict[str, Any]:
    if "minutes" in settings:
        return {"minutes": share * settings["minutes"]}
    return {"epochs": max(1, round(share * settings.get("epochs", epochs)))}


def _stage(result: FitResult) -> dict[str, Any]:
    return {
        "loss": result.best_loss, "epochs": result.epochs, "best_epoch": result.best_epoch, "steps": result.steps,
        "skipped_batches": result.skipped, "seconds": result.seconds,
    }  # fmt: skip

"""From data to a run directory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffeo.commands.report import report as write_report
from diffeo.commands.settings import refuse_foreign, settings_of
from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.modalities import modalities, recognize
from diffeo.modalities.base import Dataset, Words
from diffeo.objectives import Objective, objective_of
from diffeo.objectives.choice import SETTINGS
from diffeo.recipes import build
from diffeo.report.statistics import bound_facts, likelihood_facts
from diffeo.training import FitResult, create_run, provenance, read_model, save_metrics
from diffeo.training.fit import fit as train
from diffeo.training.folds import FoldsResult, fit_folds
from diffeo.training.initialise import Breakdown
from diffeo.training.parallel import World, choose_device
from diffeo.training.place import claimed, place
from diffeo.training.run import plain, save_model, trained_recipe
from diffeo.training.seeding import derive, seed_noise
from diffeo.variational import VAE

__all__ = ["Learned", "fit", "learn", "make_run", "model_for"]

EVALUATED = 50_000  # training rows whose likelihood is reported
FEWER = 1_000  # rows of each part, where a likelihood takes many evaluations of a network
CHUNK = 2**22  # numbers scored at a time
FIGURES, FIGURES_SECONDS = 0.1, 10.0  # time for figures: this share of the training's, or so many seconds if more


def fit(
    source: Any,
    out: str | os.PathLike[str],
    *,
    model: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    context: Sequence[str] = (),
    drop: Sequence[str] = (),
    missing: str = "error",
    categorical: Sequence[str] = (),
    integer: Sequence[str] = (),
    continuous: Sequence[str] = (),
    dates: Sequence[str] = (),
    bounds: Mapping[str, Sequence[float | None]] | None = None,
    weights: str | None = None,
    na: Sequence[str] = (),
    sep: str | None = None,
    decimal: str | None = None,
    test: float | None = None,
    folds: int | None = None,
    memory: float | None = None,
    size: Sequence[int] = (),
    rate: int | None = None,
    crop: float | None = None,
    mels: int | None = None,
    label_pattern: str | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    resume: bool = False,
    force: bool = False,
    figures: bool = True,
    report: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Learn the density of a table, of images or of audio and write a run directory.

    A tenth of the rows, drawn by the seed, is for validation: it decides when to stop and which weights to keep.

    Under ``torchrun``, or in workers of Ray Train, the processes train together: each has a part of every batch, and of
    a table that is not kept in memory it reads that part alone.

    Args:
        source: what ``open_table``, ``open_images`` or ``open_audio`` takes: a path, the name of a built-in set, an
            array or a frame.
        out: the run directory to make.
        model: a recipe's name, with dashes or underscores; by default ``default_model`` chooses.
        arguments: arguments of the recipe that replace the default ones, and settings of the objective: ``coupling``,
            ``time``, ``pool`` and ``dropout`` of flow matching.
        context: columns that the density shall be conditional on; of images, "label" for their class; of audio, "mel"
            for log-mel features, "label" for what the files' names say.
        drop: columns to leave out.
        missing: what becomes of rows with NaN or an empty cell: "error", but a mixed density keeps them, or "drop".
        categorical: columns of a table whose values are categories, whatever they look like.
        integer: columns of whole numbers, whatever they look like.
        continuous: columns that have a smooth density, whatever they look like.
        dates: columns of dates or times, whatever they look like.
        bounds: of columns of numbers, by name, (low, high) with None for none: the density is zero beyond, in models
            of complete numbers.
        weights: the column of a table that says how much each row counts, in training and in what is reported: finite
            numbers of at least 0, without gaps. It is not modelled.
        na: texts and numbers that stand for a missing cell, beside NA, NaN, null and the like.
        sep: what separates the columns of a csv; found by default.
        decimal: the decimal mark of a csv, a point or a comma; found by default.
        test: the fraction of rows or images, drawn by the seed, that neither training nor validation sees; their
            likelihood is reported, and ``check_run`` examines the run on them.
        folds: of a table, how many parts of the rows are held out in turn, each of another flow; these and simpler
            densities are stacked by what they held out (``diffeo.fit_folds``). 1 for a single model; by default 5 for
            tables of 50 to 20,000 rows, of 5,000 with text, dates or gaps.
        memory: of a table, how many GiB of its rows are kept in memory, at 4 bytes for a number; 2 by default. A larger
            one is read in every epoch: of Parquet files row group by row group, in an order that the seed decides, with
            at most 200,000 rows held out for validation, and for the test. The process takes a few times as much.
        size: side, or height and width, that pictures are brought to.
        rate: samples per second that audio is brought to; by default what most files have.
        crop: seconds of audio in an example; 1 by default.
        mels: log-mel channels; by default 40, or 80 from 12 kHz on.
        label_pattern: the regular expression that finds a label in the name of a recording (``Audio.labelled``).
        epochs: the budget in epochs.
        minutes: the budget in minutes.
        batch_size: rows per step; 512 by default, 64 images, 8 crops of audio.
        accumulate: chunks of a batch whose gradients are added up, where all of it does not fit into memory; 1 by
            default.
        lr: the highest learning rate.
        seed: decides the split, the initial weights, the order and the noise; 0 by default.
        device: where to train; a GPU if there is one.
        resume: continue a run that was interrupted, or train a finished one for more epochs or minutes, with its own
            settings where none are given here.
        force: replace an earlier run.
        figures: plot the figures.
        report: write ``report.html`` into the run directory, with the data, unless the training is interrupted.
        progress: show a bar on stderr.
        say: called with every note on how the table was read.

    Returns:
        What ``metrics`` of the run directory says, and its path; that of the report.

    Raises:
        UserError: for bad input, an unknown model or argument, or a folder that cannot be written.
    """
    earlier = read_model(place(out, resume)) if resume else None
    settings = settings_of(locals(), out, earlier["provenance"].get("settings", {}) if earlier else {})
    summary = make_run(
        source, out, settings, earlier, device=device, force=force, figures=figures, progress=progress, say=say
    )
    if not report or summary["stopped"] == "interrupted" or not World(choose_device(device)).leads:
        return summary
    say("writing the report ...")
    write = partial(write_report, out, seed=settings.get("seed", 0), device=device, force=True)
    try:
        written = write(source, missing=settings.get("missing", "error"))
    except UserError as error:  # data that suffice to learn from may be too few to check by
        say(f"the report is without data: {error}")
        written = write()
    return {**summary, "report": written["out"]}


def make_run(
    source: Any,
    out: str | os.PathLike[str],
    settings: Mapping[str, Any],
    earlier: Mapping[str, Any] | None,
    *,
    device: str | None,
    force: bool,
    figures: bool,
    progress: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Learn the density of data and write a run directory, by settings that were checked; see ``fit``.

    Args:
        source: the data.
        out: the run directory to make.
        settings: as ``settings_of`` returns them.
        earlier: what ``model.json`` says of the training that is resumed.
        device: where to train; a GPU if there is one.
        force: replace an earlier run.
        figures: plot the figures.
        progress: show a bar on stderr.
        say: called with every note on how the data were read.

    Raises:
        UserError: as ``fit``.
    """
    resume = earlier is not None
    world = World(choose_device(device))
    seed = settings.get("seed", 0)

    modality = recognize(source, settings.get("model"))
    refuse_foreign({each.run.words.data: each.options for each in modalities()}, modality.run.words.data, settings)
    # Under torchrun one process claims the folder: another, later, would find that a run is there already.
    with claimed(out, resume, force) if world.leads else nullcontext(place(out, resume, force)) as folder:
        dataset = modality.dataset(source, settings, seed)
        description = plain(dataset.description)
        if earlier is not None and earlier["schema"] != description:
            raise UserError(f"{os.fspath(out)} was trained on other data; give the same or start again (--force)")
        for note in dataset.notes if world.leads else ():
            say(note)
        flow = model_for(dataset, settings, seed, earlier)
        if earlier is None and world.leads:
            data = {"name": dataset.name, "sha256": dataset.hash, "rows": dataset.total, "test": dataset.tested}
            create_run(folder, flow, description, provenance(data=data, seed=seed, settings=settings))
        world.wait()  # under torchrun, until the first process has made the run directory

        learned = learn(
            flow, dataset, settings, seed, earlier,
            device=world.device, out=folder, resume=resume, progress=progress, say=say,
        )  # fmt: skip
        flow = learned.flow
        if learned.stacked is not None and world.leads:
            save_model(folder, flow)
        metrics = learned.metrics(dataset, modality.run.words, seed)
        if world.leads:
            dataset.remember(folder, flow, learned.stacked)
            save_metrics(folder, metrics, settings)
    plotted: list[str] = []
    if world.leads and figures and learned.result.stopped != "interrupted":
        say("plotting figures ...")
        plotted = dataset.plot(Path(out), flow, max(FIGURES * learned.result.seconds, FIGURES_SECONDS))
    return {"run": os.fspath(out), **metrics, "figures": plotted}


@dataclass(frozen=True)
class Learned:
    """What was learned of a dataset.

    Attributes:
        flow: the density, in evaluation mode.
        result: how the training went; of folds all of them as one.
        model: the name of the recipe that was trained, which a stack may leave out.
        stacked: what the folds came to, or None of a single model.
    """

    flow: Flow
    result: FitResult
    model: str
    stacked: FoldsResult | None

    def metrics(self, dataset: Dataset, words: Words, seed: int) -> dict[str, Any]:
        """What a run directory says of it: likelihoods in the data's own units, and facts; plain data.

        Args:
            dataset: what was learned.
            words: what its examples are called.
            seed: of the noise of discrete values.
        """
        likelihoods = _metrics(self.flow, dataset, words, seed, self.stacked)
        return dict(plain({**likelihoods, **self._facts(dataset), "notes": dataset.notes}))

    def _facts(self, dataset: Dataset) -> dict[str, Any]:
        flow, result, stacked = self.flow, self.result, self.stacked
        folds = {} if stacked is None else {"folds": dataset.folds, "weights": stacked.weights}
        return {
            "model": self.model,
            **folds,
            "parameters": sum(parameter.numel() for parameter in flow.parameters()),
            **dataset.facts(),
            "epochs": result.epochs,
            "best_epoch": result.best_epoch,
            "steps": result.steps,
            "skipped_batches": result.skipped,
            "seconds": result.seconds,
            "stopped": result.stopped,
        }


def model_for(
    dataset: Dataset, settings: Mapping[str, Any], seed: int, earlier: Mapping[str, Any] | None = None
) -> Flow:
    """Return the model that the settings ask for, untrained; one that cannot be trained is refused before any work.

    Args:
        dataset: what is to be learned.
        settings: as ``settings_of`` returns them.
        seed: decides the initial weights.
        earlier: what ``model.json`` says of the training that is resumed.

    Raises:
        UserError: for arguments that make no model, or that no objective can train.
    """
    flow = _flow(dataset, settings, earlier, seed)
    _check_objective(flow, dataset, settings)
    return flow


def learn(
    flow: Flow,
    dataset: Dataset,
    settings: Mapping[str, Any],
    seed: int,
    earlier: Mapping[str, Any] | None = None,
    *,
    device: torch.device,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    jobs: int | None = None,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Learned:
    """Train a model of ``model_for``, by folds where the dataset says so; nothing is written unless ``out`` is given.

    Args:
        flow: the model.
        dataset: what is to be learned.
        settings: as ``settings_of`` returns them.
        seed: decides the order of the examples, the folds and the noise.
        earlier: what ``model.json`` says of the training that is resumed.
        device: where to train.
        out: the run directory, for what resuming needs.
        resume: go on with what is there.
        jobs: how many folds are trained side by side; by default as many as there are cores.
        progress: show a bar on stderr.
        say: called when the training of a fold is over.

    Raises:
        UserError: if the training breaks down, or ``out`` cannot be written.
    """
    held_out = (dataset.valid_x, dataset.valid_context, dataset.valid_weights)
    names = ("epochs", "minutes", "accumulate", "lr")
    chosen: dict[str, Any] = {name: settings[name] for name in names if name in settings}
    how: dict[str, Any] = {
        "batch_size": dataset.batch_size, "seed": seed, "device": device, "out": out, "resume": resume,
        "progress": progress, "weights": dataset.weights, **dataset.training(flow), **chosen,
    }  # fmt: skip
    make: Callable[[Flow], Objective] = partial(objective_of, **_objective_settings(flow, settings))
    assert flow.recipe is not None
    name = flow.recipe["name"]
    try:
        if dataset.folds == 1:
            result = train(make(flow), dataset.x, dataset.context, validation=held_out, **how)
            return Learned(flow, result, name, None)
        models = dataset.stacked_models()
        beside = {other: _flow(dataset, {**settings, **changes}, earlier, seed) for other, changes in models.items()}
        most_epochs = {other: changes["epochs"] for other, changes in models.items() if changes.get("epochs")}
        flows = {name: flow, **beside}
        stacked = fit_folds(
            flows, dataset.x, dataset.context, folds=dataset.folds, together=dataset.together, objective=make,
            most_epochs=most_epochs, jobs=jobs, say=say, **how,
        )  # fmt: skip
    except Breakdown as error:
        raise UserError(f"{dataset.name}: {error}") from error
    return Learned(stacked.flow, stacked.training, name, stacked)


def _flow(dataset: Dataset, settings: Mapping[str, Any], earlier: Mapping[str, Any] | None, seed: int) -> Flow:
    """Build the model; the seed decides its initial weights."""
    if earlier is not None:
        recipe = trained_recipe(earlier)
        name, arguments = recipe["name"], recipe["arguments"]
    else:
        name, arguments = dataset.default_model()
    if settings.get("model", name) != name:
        name, arguments = settings["model"], {}
    chosen = {key: value for key, value in settings.get("arguments", {}).items() if key not in SETTINGS.get(name, ())}
    if name == "flow_matching" and settings.get("arguments", {}).get("dropout"):
        chosen["droppable"] = True
    arguments = {"preprocess": dataset.preprocessing(name), **arguments}
    sizes = {"features": dataset.features, "context": dataset.context_size, **dataset.sizes}
    seed_noise(torch.device("cpu"), derive(seed, "weights"))
    try:
        flow = build(name, {**arguments, **chosen, **sizes})
    except ValueError as error:
        raise UserError(f"{dataset.name}: model {name!r}: {error}; change or leave out that option") from error
    if not (flow.has_log_prob or flow.has_bound):
        raise UserError(
            f"model {name!r}: a few fixed steps have no likelihood to report; leave steps out, and make a sampler of "
            "few steps of the run by diffeo distill"
        )
    return flow


def _check_objective(flow: Flow, dataset: Dataset, settings: Mapping[str, Any]) -> None:
    """Refuse a model that no objective can train.

    Raises:
        UserError: for such a model.
    """
    assert flow.recipe is not None
    try:
        objective = objective_of(flow, **_objective_settings(flow, settings))
    except ValueError as error:
        raise UserError(f"model {flow.recipe['name']!r}: {error}") from error
    batch = min(dataset.batch_size, dataset.rows)
    if 0 < objective.pool < batch:
        raise UserError(
            f"expected a pool of at least a batch of {batch} to couple with noise, got {objective.pool}; "
            f"give --set pool={batch} or more, or a smaller --batch-size"
        )


def _objective_settings(flow: Flow, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the flow's objective takes, of those that were given."""
    assert flow.recipe is not None
    names = SETTINGS.get(flow.recipe["name"], ())
    return {name: value for name, value in settings.get("arguments", {}).items() if name in names}


@torch.no_grad()
def _metrics(
    flow: Flow, dataset: Dataset, words: Words, seed: int, stacked: FoldsResult | None = None
) -> dict[str, Any]:
    """Return negative log-likelihoods in the data's own units: nats per row with standard errors, and bits.

    They are means over the rows, weighted where rows have weights; of a VAE bounds, with the ELBO beside them.
    """
    result: dict[str, Any] = {}
    weights = dataset.judged_weights()
    if stacked is not None:
        size = math.prod(dataset.x.shape[1:])
        given = weights.get("train")
        result["out_of_fold"] = likelihood_facts(
            -stacked.log_prob - dataset.log_grid, size, words.dimension, dataset.step, given
        )
    device = flow.base.device_marker.device
    quick = flow.fast and not isinstance(flow, VAE)
    most = EVALUATED if quick else FEWER
    for name, (x, context) in dataset.judged(most).items():
        if not quick:
            x, context = x[:most], None if context is None else context[:most]
        seed_noise(device, derive(seed, "metrics", name))
        given = weights[name][:most] if name in weights else None
        facts: dict[str, Any] = {}
        if isinstance(flow, VAE):
            bound = flow.bound(x.to(device))
            nll, facts = -bound.log_prob.cpu(), bound_facts(bound)
        else:
            nll = -_log_prob(flow, x, context, device, dataset.draws) - dataset.log_grid
        result[name] = likelihood_facts(nll, math.prod(x.shape[1:]), words.dimension, dataset.step, given) | facts
    result["rows"] = {"train": dataset.rows}
    if stacked is None:
        result["rows"]["validation"] = len(dataset.valid_x)
    if "test" in result:
        result["rows"]["test"] = dataset.tested
    return result


def _log_prob(flow: Flow, x: Tensor, context: Tensor | None, device: torch.device, draws: int) -> Tensor:
    """Log-likelihoods in double precision, in chunks that fit the device."""
    chunk = max(1, CHUNK // max(1, math.prod(x.shape[1:])))
    contexts = [None] * len(x) if context is None else context.split(chunk)
    score = flow.log_prob if draws == 1 else partial(flow.log_mass, draws=draws)
    parts = [
        score(part.to(device), None if chunk_context is None else chunk_context.to(device)).double().cpu()
        for part, chunk_context in zip(x.split(chunk), contexts, strict=False)
    ]
    return torch.cat(parts)

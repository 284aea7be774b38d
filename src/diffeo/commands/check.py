"""Whether a run can be trusted on a table, on images or on audio."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.modalities.audio.check import check_sound
from diffeo.modalities.audio.dataset import STEP, Crops, features, split_clips
from diffeo.modalities.audio.run import AudioRun, open_audio_run
from diffeo.modalities.images.dataset import hold_out
from diffeo.modalities.images.images import Images
from diffeo.modalities.images.run import ImageRun, open_image_run
from diffeo.modalities.runs import OpenRun, open_run, run_kind, with_likelihood
from diffeo.modalities.tables.rows import ENOUGH, LARGE, draw_rows, split_rows
from diffeo.modalities.tables.table import Table
from diffeo.report.check import FEWEST, IMAGES, check
from diffeo.training.batches import fingerprint

Part = TypeVar("Part", Tensor, Images)

__all__ = ["Judging", "check_run", "images_to_judge_by", "rows_to_judge_by"]

ROWS = 10_000
MOST_IMAGES = 2_000  # drawing and classifying more would take minutes
MOST_CROPS = 16  # of audio, which have thousands of samples each

IN_SAMPLE = "in sample: says nothing about new data"


def check_run(
    run: str | os.PathLike[str],
    source: Any,
    *,
    rows: int = ROWS,
    missing: str = "error",
    seed: int = 0,
    device: str | None = None,
) -> dict[str, Any]:
    """Examine a run on a table, on images or on audio: numerics, latents, samples, likelihood, and a verdict.

    If the data are those that the run was trained on, the rows used are those kept for the test, or else those for
    validation. Where these are fewer than 100, the rows of training are looked at, and the verdict is never that the
    run can be trusted: in sample, nothing is known about new rows.

    Args:
        run: a run directory.
        source: what ``open_table``, ``open_images`` or ``open_audio`` takes.
        rows: at most so many rows, images or crops of audio are used, drawn at random.
        missing: what becomes of rows with NaN, infinity or an empty cell: "error" or "drop".
        seed: of the draws.
        device: where to compute; a GPU if there is one.

    Raises:
        UserError: for bad input, fewer than 20 usable rows (two crops of audio), or a bad run directory.
    """
    if rows < FEWEST:
        raise UserError(f"expected at least {FEWEST} rows to check by, got {rows}")
    kind = run_kind(run)
    if kind == "images":
        return _check_images(with_likelihood(open_image_run(run, device)), source, rows, seed)
    if kind == "audio":
        return _check_audio(open_audio_run(run, device), source, rows, seed)
    model = with_likelihood(open_run(run, device))
    table = model.schema.open(source, missing=missing)
    found = rows_to_judge_by(model, table, rows, seed)
    x, context = found.x, found.context
    _check_enough(x, table.name)
    schema = model.schema
    bounds = np.array([grid.low for grid in schema.discrete]), np.array([grid.high for grid in schema.discrete])
    report = check(model.flow, x, context, bounds=bounds, names=schema.feature_names, seed=seed)
    return _report(model.path, table.name, found, report)


@dataclass(frozen=True)
class Judging:
    """Rows to judge a run by, as its flow takes them: x (n, features), context (n, context_size) or None.

    ``contexts`` are those of all other rows of the table, or of all where none were set aside. ``reasons`` counts the
    impossible rows by column; ``which`` says what the rows are, ``in_sample`` whether the run was trained on them.
    """

    x: Tensor
    context: Tensor | None
    contexts: Tensor | None
    reasons: dict[str, int]
    which: str
    in_sample: bool = False


def rows_to_judge_by(model: OpenRun, table: Table, rows: int, seed: int) -> Judging:
    """Return at most so many rows of a table; of the one that the run was trained on, those held out if they suffice.

    Raises:
        UserError: for bad input.
    """
    schema = model.schema
    # To find out whether these are the rows of training takes all of them.
    small = 4 * schema.rows * (schema.features + schema.context_size) <= LARGE
    x, context, reasons, read = draw_rows(table, schema, max(rows, schema.rows) if small else rows, seed)
    contexts, which, in_sample = context, "all rows", False
    if small and read == schema.rows and fingerprint(x, context) == _trained_on(model):
        train, valid, test = split_rows(len(x), model.provenance["seed"], _tested(model))
        held_out, which = _held_out(valid, test if len(test) else None, "rows")
        in_sample = held_out is None
        if held_out is not None:
            rest = torch.cat([train, valid]) if len(test) else train
            contexts = None if context is None else context[rest]
            x, context = x[held_out], None if context is None else context[held_out]
    elif not small and read == schema.rows:  # too many to compare, but as many
        which, in_sample = "rows of a table as long as that of training", True
    x, context, which = _some(x, context, rows, which, seed)
    return Judging(x, context, contexts, reasons, which, in_sample)


def images_to_judge_by(model: ImageRun, source: Any, most: int, seed: int) -> tuple[Judging, str]:
    """Return at most so many images, and the name of all; of those of the training, those held out if they suffice.

    Raises:
        UserError: for bad input, or fewer than 20 images.
    """
    images, which, in_sample = model.images(source), "all images", False
    if images.sha256 == _trained_on(model):
        _, valid, test = hold_out(images, model.provenance["seed"], _tested(model))
        held_out, which = _held_out(valid, test, "images")
        images, in_sample = held_out or images, held_out is None
    x = torch.from_numpy(np.ascontiguousarray(images.pixels))
    _check_enough(x, images.name)
    x, context, which = _some(x, model.context(images), most, which, seed)
    return Judging(x, context, None, {}, which, in_sample), images.name


def _check_images(model: ImageRun, source: Any, most: int, seed: int) -> dict[str, Any]:
    found, name = images_to_judge_by(model, source, min(most, MOST_IMAGES), seed)
    names = [f"pixel {place}" for place in itertools.product(*map(range, model.shape))]
    box = 0.0, float(model.levels)
    report = check(model.flow, found.x, found.context, box=box, names=names, limits=IMAGES, seed=seed)
    return _report(model.path, name, found, report)


def _check_audio(model: AudioRun, source: Any, most: int, seed: int) -> dict[str, Any]:
    audio, form = model.audio(source), model.form
    clips, which = np.arange(len(audio)), "crops of all recordings"
    if audio.sha256 == _trained_on(model):
        clips, which = split_clips(audio, model.provenance["seed"])[1], "crops of recordings held out of training"
    if not (audio.lengths[clips] >= form.hop).any():
        raise UserError(
            f"{audio.name}: its recordings are shorter than a frame of {form.hop} samples; give longer ones"
        )
    mel = features(audio, form) if form.mels else None
    x, context = Crops(audio, clips, mel, form, model.crop // form.hop, 1, seed).in_order()
    if len(x) < 2:
        wanted = 2 * model.crop / form.rate
        raise UserError(f"{audio.name}: has less than the {wanted:g} seconds of sound that a check takes; give more")
    x, context, which = _some(x, context, min(most, MOST_CROPS), which, seed)
    report = check_sound(model.flow, x, context, form.rate, form.hop, STEP, seed)
    return _report(model.path, audio.name, Judging(x, context, None, {}, which), report)


def _held_out(valid: Part, test: Part | None, things: str) -> tuple[Part | None, str]:
    """Choose the part of the data of a training to judge by, if one is large enough, and say what it is."""
    if test is not None:
        return test, f"test {things}, held out of training and of early stopping"
    if len(valid) >= ENOUGH:
        return valid, f"{things} held out of training"
    return None, f"the {things} of training"


def _report(run: str, data: str, judging: Judging, report: dict[str, Any]) -> dict[str, Any]:
    """Say what was examined. A model that does well on rows that it was trained on may be overfitted to them."""
    if judging.in_sample and report["verdict"] != "not trustworthy":
        report = {**report, "verdict": IN_SAMPLE}
    return {
        "run": run, "data": data, "which": judging.which, "in_sample": judging.in_sample,
        "impossible_by_column": judging.reasons, **report,
    }  # fmt: skip


def _check_enough(x: Tensor, name: str) -> None:
    if len(x) < FEWEST:
        raise UserError(f"{name}: has {len(x)} usable rows, expected at least {FEWEST} to check by")


def _some(x: Tensor, context: Tensor | None, most: int, which: str, seed: int) -> tuple[Tensor, Tensor | None, str]:
    """Draw at most so many rows, and say which they are."""
    if len(x) <= most:
        return x, context, which
    chosen = torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(len(x))[:most]))
    return x[chosen], None if context is None else context[chosen], f"{most:,} of {which}"


def _tested(model: OpenRun | ImageRun) -> int:
    """How many rows were kept for the test."""
    count = model.provenance["data"].get("test", 0)
    if not isinstance(count, int) or count < 0:
        raise UserError(f"{model.path}: model.json is damaged: its number of test rows is {count!r}; train again")
    return count


def _trained_on(model: OpenRun | ImageRun | AudioRun) -> str | None:
    data = model.provenance.get("data")
    if not isinstance(data, dict) or not isinstance(model.provenance.get("seed"), int):
        return None
    return data.get("sha256")

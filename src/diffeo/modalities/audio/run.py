"""What a run of audio is used for: scoring and drawing sounds."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.flow import Flow, bits_per_dim
from diffeo.modalities.audio.audio import Audio, open_audio
from diffeo.modalities.audio.dataset import STEP, SoundFormat
from diffeo.modalities.audio.recordings import save_wavs
from diffeo.modalities.folders import Progress
from diffeo.modalities.tables.write import TableWriter
from diffeo.spectral import frames_of
from diffeo.training.device import choose_device
from diffeo.training.run import load_run
from diffeo.training.seeding import derive, seed_noise

__all__ = ["AudioRun", "open_audio_run", "sample_audio", "score_audio"]

PORTION = 64  # sounds drawn at a time


class _Group(NamedTuple):
    """Sounds to draw of one length: samples, features ``(mels, frames)`` or None, and the label of each."""

    samples: int
    mel: Tensor | None
    labels: np.ndarray


@dataclass(frozen=True)
class AudioRun:
    """A flow on its device, in evaluation mode, and what its sounds are like."""

    path: str
    flow: Flow
    form: SoundFormat
    crop: int
    provenance: dict[str, Any]
    device: torch.device

    @property
    def description(self) -> dict[str, Any]:
        """What the run directory says of its sounds."""
        return {"kind": "audio", "crop": self.crop, **self.form.to_json()}

    def audio(self, source: Any, labelled: bool = True) -> Audio:
        """Open recordings at this run's rate, with its labels if it has any.

        Raises:
            UserError: if they cannot be opened, or a label is none that the run knows.
        """
        found = open_audio(source, self.form.rate)
        if not (labelled and self.form.classes):
            return found
        return found.labelled(self.form.pattern, self.form.classes)


def open_audio_run(run: str | os.PathLike[str], device: str | torch.device | None = None) -> AudioRun:
    """Load a run directory of audio.

    Raises:
        UserError: if it is damaged, or of something else.
    """
    place = choose_device(device)
    loaded = load_run(run, place)
    schema = dict(loaded.schema or {})
    if schema.pop("kind", None) != "audio":
        raise UserError(f"{loaded.path}: was not trained on audio")
    try:
        crop = schema.pop("crop")
        form = SoundFormat(**{**schema, "classes": tuple(schema["classes"])})
        shapes = (crop,), form.context_shape(crop) if form.hop >= 1 else None
        fits = form.rate >= 1 and shapes == (loaded.flow.event_shape, loaded.flow.context_shape)
    except (TypeError, KeyError) as error:
        raise UserError(f"{loaded.path}: model.json is damaged: its sounds are not described; train again") from error
    if not fits:
        raise UserError(f"{loaded.path}: model.json is damaged: its model does not fit its sounds; train again")
    return AudioRun(os.fspath(run), loaded.flow, form, crop, loaded.provenance, place)


@torch.no_grad()
def score_audio(
    run: str | os.PathLike[str],
    source: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    device: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the log-likelihood of every recording, whole, in nats, and its bits per 16-bit sample.

    The density is that of samples in [-1, 1), dequantised by uniform noise of one 16-bit step, 2^-15; bits are those of
    the 16-bit values: -log2 p(x) / T + 15.

    Args:
        run: a run directory of audio.
        source: what ``open_audio`` takes.
        out: a table to write, with the columns ``file``, ``seconds``, ``log_likelihood``, ``bits_per_sample``.
        seed: of the dequantisation noise.
        device: where to compute.
        force: replace ``out``.
        progress: called with the number of recordings done and of all.

    Returns:
        clips, mean and stderr of the log-likelihood, bits per sample over all samples with the standard error that the
        clips' differences give it, the lowest log-likelihood, skipped files, notes, seconds of sound and of work.

    Raises:
        UserError: for bad input, a bad run directory or an output that cannot be written.
    """
    model = open_audio_run(run, device)
    audio = model.audio(source)
    started = time.monotonic()
    scores, bits = np.empty(len(audio)), np.empty(len(audio))
    tell = progress or (lambda done, total: None)
    columns = ["file", "seconds", "log_likelihood", "bits_per_sample"]
    with TableWriter(out, columns, ["string", "float64", "float64", "float64"], force=force) as writer:
        for i in range(len(audio)):
            x, context = model.form.of_clip(audio, i)
            seed_noise(model.device, derive(seed, "score", i))
            flow = model.form.sized(model.flow, len(x))
            given = None if context is None else context.to(model.device)
            log_prob = flow.log_prob(x.to(model.device), given).double()
            scores[i], bits[i] = float(log_prob), float(bits_per_dim(log_prob, len(x), STEP))
            row = [audio.files[i], len(x) / audio.rate, scores[i], bits[i]]
            writer.write(np.array([row], dtype=object))
            tell(i + 1, len(audio))
    seconds = time.monotonic() - started
    share = audio.lengths / audio.lengths.mean()
    average = float((bits * share).mean())
    return {
        "clips": len(scores),
        "mean": float(scores.mean()),
        "stderr": float(scores.std() / math.sqrt(len(scores))),
        "bits_per_sample": average,
        # that of a ratio: of all the bits to all the samples
        "bits_per_sample_stderr": float((share * (bits - average)).std() / math.sqrt(len(scores))),
        "min": float(scores.min()),
        "skipped": [name for name, _ in audio.skipped],
        "notes": list(audio.notes),
        "duration": audio.seconds,
        "seconds": seconds,
    }


@torch.no_grad()
def sample_audio(
    run: str | os.PathLike[str],
    n: int | None,
    out: str | os.PathLike[str] | None,
    *,
    length: float | None = None,
    given: Mapping[str, Any] | None = None,
    given_from: Any = None,
    seed: int = 0,
    device: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Draw sounds into a folder of 16-bit wavs.

    Args:
        run: a run directory of audio.
        n: how many; with ``given_from``, how many for each of its recordings (1 by default).
        out: the folder to make.
        length: in seconds; by default that of the crops of the training, or of the recordings.
        given: {"label": class} for a run that is conditional on labels; without it classes take turns.
        given_from: recordings, as ``open_audio`` takes them, whose log-mel features are given to the model.
        seed: the same seed gives the same sounds.
        device: where to compute.
        force: replace ``out``, a folder of such wavs.
        progress: called with the number of sounds done and of all.

    Returns:
        clips, their duration in all, samples that were cut off at full scale or were not finite, seconds, and how many
        times faster than real time.

    Raises:
        UserError: for a number below 1, a context that is missing or unknown, or an output that cannot be written.
    """
    if out is None or str(out) == "-":
        raise UserError("sounds need a place: give --out with the name of a folder")
    if n is None and given_from is None:
        raise UserError("how many sounds? give a number of samples (-n)")
    if n is not None and n < 1:
        raise UserError(f"expected a number of sounds of at least 1 (-n), got {n}")
    if length is not None and not 0 < length < math.inf:
        raise UserError(f"expected a length above 0 seconds (--seconds), got {length}")
    model = open_audio_run(run, device)
    contexts = _contexts(model, n or 1, length, given, given_from)
    total = sum(len(labels) for _, _, labels in contexts)
    started = time.monotonic()
    tell = progress or (lambda done, total: None)
    lost = save_wavs(out, _draw(model, contexts, seed, lambda done: tell(done, total)), model.form.rate, force)
    seconds = time.monotonic() - started
    duration = sum(samples * len(labels) for samples, _, labels in contexts) / model.form.rate
    return {
        "out": str(out), "clips": total, "duration": duration, **lost, "seconds": seconds,
        "real_time_factor": duration / seconds if seconds else math.inf,
    }  # fmt: skip


def _draw(model: AudioRun, contexts: list[_Group], seed: int, tell: Callable[[int], None]) -> Iterator[np.ndarray]:
    done = 0
    tell(done)
    for samples, mel, labels in contexts:
        flow = model.form.sized(model.flow, samples)
        for start in range(0, len(labels), PORTION):
            part = labels[start : start + PORTION]
            context = _context(model.form, mel, part, frames_of(samples, model.form.hop))
            seed_noise(model.device, derive(seed, "sample", done))
            x = flow.sample(len(part)) if context is None else flow.sample((), context.to(model.device))
            yield from x.cpu().numpy()
            done += len(part)
            tell(done)


def _context(form: SoundFormat, mel: Tensor | None, labels: np.ndarray, frames: int) -> Tensor | None:
    """The context ``(n, channels, frames)`` of n sounds, from features ``(mels, frames)`` and the n labels."""
    features = None if mel is None else mel.expand(len(labels), *mel.shape)
    return form.context(features, torch.from_numpy(labels)[:, None] if form.classes else None, frames)


def _contexts(
    model: AudioRun, n: int, length: float | None, given: Mapping[str, Any] | None, given_from: Any
) -> list[_Group]:
    form = model.form
    label = _given_label(model, given)
    if given_from is None:
        if form.mels:
            raise UserError(f"{model.path}: is conditional on log-mel features; give a recording (--given-file)")
        samples = model.crop if length is None else max(1, round(length * form.rate))
        turns = np.arange(n) % max(1, len(form.classes)) if label is None else np.full(n, label)
        return [_Group(samples, None, turns)]
    if not form.mels:
        raise UserError(f"{model.path}: is not conditional on log-mel features; leave the recording out (--given-file)")
    return list(_features_of(model, model.audio(given_from, labelled=label is None), n, length, label))


def _features_of(model: AudioRun, audio: Audio, n: int, length: float | None, label: int | None) -> Iterator[_Group]:
    for i in range(len(audio)):
        x = torch.from_numpy(audio.scaled(i))
        x = x if length is None else x[: max(1, round(length * audio.rate))]
        own = int(audio.labels[i]) if label is None and audio.labels is not None else label or 0
        yield _Group(len(x), model.form.mel(x), np.full(n, own))


def _given_label(model: AudioRun, given: Mapping[str, Any] | None) -> int | None:
    if not given:
        return None
    classes = model.form.classes
    if not classes:
        raise UserError(f"{model.path}: is not conditional on labels; leave {', '.join(given)} out")
    if set(given) != {"label"} or str(given["label"]) not in classes:
        raise UserError(f"{model.path}: expected label={'|'.join(classes)}, got {dict(given)}")
    return classes.index(str(given["label"]))

"""A run of audio, opened for use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.fields import Fields, ListOf, Number, Text, problem
from diffeo.modalities.audio.audio import Audio, open_audio
from diffeo.modalities.audio.check import check_sound
from diffeo.modalities.audio.crops import STEP, Crops, SoundFormat, features
from diffeo.modalities.audio.recordings import save_wavs
from diffeo.modalities.base import Chunk, Draw, Examples, OpenRun, Scoring, Words, choose
from diffeo.spectral import frames_of
from diffeo.training.run import Run as StoredRun
from diffeo.training.splitting import split_evenly

__all__ = ["AudioRun"]

CHUNK = 64  # sounds drawn at a time
MOST = 16  # crops to check by, which have thousands of samples each

_SIZE = Number(0, 2**31 - 1, whole=True)
_RATE, _FRAME = Number(1, 2**31 - 1, whole=True), Number(1, 2**31 - 1, whole=True)
SCHEMA = Fields(
    required={"kind": Text(("audio",)), "crop": _FRAME, "rate": _RATE, "hop": _FRAME, "classes": ListOf(Text())},
    optional={"mels": _SIZE, "window": _SIZE, "pattern": Text()},
)


@dataclass(frozen=True)
class AudioRun(OpenRun):
    """A flow of sounds, what they are like, and the length of the crops that it was trained on."""

    words = Words("recording", "recordings", "sample", "audio")
    options = {"sample": ("given", "given_from", "length")}  # noqa: RUF012 - a constant

    form: SoundFormat
    crop: int

    @classmethod
    def restore(cls, stored: StoredRun, path: str, device: torch.device) -> Self:
        """Read what the sounds are like, and prove that the flow fits them."""
        if fault := problem(stored.schema, SCHEMA):
            raise UserError(f"{stored.path}: model.json is damaged: of its sounds {fault}; restore it or train again")
        schema = {name: value for name, value in (stored.schema or {}).items() if name != "kind"}
        crop = schema.pop("crop")
        form = SoundFormat(**{**schema, "classes": tuple(schema["classes"])})
        twice = len(set(form.classes)) != len(form.classes)
        if twice or ((crop,), form.context_shape(crop)) != (stored.flow.event_shape, stored.flow.context_shape):
            raise UserError(f"{stored.path}: model.json is damaged: its model does not fit its sounds; train again")
        return cls(path, stored.flow, stored.metrics, stored.provenance, device, form, crop)

    @property
    def description(self) -> dict[str, Any]:
        """The length of a crop and the format."""
        return {"kind": "audio", "crop": self.crop, **self.form.to_json()}

    def facts(self) -> dict[str, Any]:
        """How many recordings, and what they are like."""
        rows = self.provenance.get("data", {}).get("rows", 0)
        return {"rows": rows, "crop": self.crop, **self.form.to_json(), "context": self.form.parts}

    def open(self, source: Any, labelled: bool = True) -> Audio:
        """Open recordings at this run's rate, with its labels if it has any.

        Raises:
            UserError: if they cannot be opened, or a label is none that the run knows.
        """
        audio = open_audio(source, self.form.rate)
        if not (labelled and self.form.classes):
            return audio
        return audio.labelled(self.form.pattern, self.form.classes)

    def scoring(self, source: Any, options: Mapping[str, Any]) -> Scoring:
        """Open recordings: a line for each, whole, with its file and its seconds; the density is that of [-1, 1)."""
        audio = self.open(source)

        def facts() -> dict[str, Any]:
            skipped = [name for name, _ in audio.skipped]
            return {"skipped": skipped, "notes": list(audio.notes), "duration": audio.seconds}

        def chunks() -> Iterator[Chunk]:
            for index in range(len(audio)):
                x, context = self.form.of_clip(audio, index)
                cells = np.array([[audio.files[index], len(x) / audio.rate]], dtype=object)
                context = None if context is None else context[None]
                yield Chunk(index, x[None], context, cells, flow=self.form.sized(self.flow, len(x)))

        return Scoring(len(audio), chunks(), ["file", "seconds"], ["string", "float64"], facts, bits=STEP)

    def draws(self, n: int | None, options: Mapping[str, Any]) -> tuple[Iterable[Draw], int | None]:
        """Draw n sounds, of the class {"label": class} or of all in turns; or n by each recording's features."""
        given, given_from, length = (options.get(name) for name in ("given", "given_from", "length"))
        if length is not None and not 0 < length < math.inf:
            raise UserError(f"expected a length above 0 seconds (--seconds), got {length}")
        label, form = self._label(given), self.form
        if given_from is not None:
            if not form.mels:
                raise UserError(
                    f"{self.path}: is not conditional on log-mel features; leave the recording out (--given-file)"
                )
            groups = list(self._like(self.open(given_from, labelled=label is None), n or 1, length, label))
        elif form.mels:
            raise UserError(f"{self.path}: is conditional on log-mel features; give a recording (--given-file)")
        else:
            assert n is not None
            samples = self.crop if length is None else max(1, round(length * form.rate))
            turns = np.arange(n) % max(1, len(form.classes)) if label is None else np.full(n, label)
            groups = [(samples, None, turns)]
        return self._draws(groups), sum(len(labels) for _, _, labels in groups)

    def _draws(self, groups: list[tuple[int, Tensor | None, np.ndarray]]) -> Iterator[Draw]:
        """Of sounds of one length: samples, features ``(mels, frames)`` or None, and the label of each."""
        key = 0
        for samples, mel, labels in groups:
            frames, flow = frames_of(samples, self.form.hop), self.form.sized(self.flow, samples)
            for start in range(0, len(labels), CHUNK):
                part = torch.from_numpy(labels[start : start + CHUNK])
                repeated = None if mel is None else mel.expand(len(part), *mel.shape)
                context = self.form.context(repeated, part[:, None] if self.form.classes else None, frames)
                yield Draw(key, len(part), context, flow)
                key += len(part)

    def _like(
        self, audio: Audio, n: int, length: float | None, label: int | None
    ) -> Iterator[tuple[int, Tensor | None, np.ndarray]]:
        for index in range(len(audio)):
            x = torch.from_numpy(audio.scaled(index))
            x = x if length is None else x[: max(1, round(length * audio.rate))]
            of_file = int(audio.labels[index]) if label is None and audio.labels is not None else label or 0
            yield len(x), self.form.mel(x), np.full(n, of_file)

    def _label(self, given: Mapping[str, Any] | None) -> int | None:
        if not given:
            return None
        classes = self.form.classes
        if not classes:
            raise UserError(f"{self.path}: is not conditional on labels; leave {', '.join(given)} out")
        if set(given) != {"label"} or str(given["label"]) not in classes:
            raise UserError(f"{self.path}: expected label={'|'.join(classes)}, got {dict(given)}")
        return classes.index(str(given["label"]))

    def check_target(self, out: Any, force: bool) -> None:
        """Sounds become a folder."""
        if out is None or str(out) == "-":
            raise UserError("sounds need a place: give --out with the name of a folder")

    def save(self, out: Any, drawn: Iterator[tuple[Tensor, Draw]], force: bool) -> dict[str, Any]:
        """Write 16-bit wavs as they are drawn; count samples cut off at full scale, and those not finite."""
        samples = 0

        def sounds() -> Iterator[np.ndarray]:
            nonlocal samples
            for x, _ in drawn:
                samples += x.numel()
                yield from x.cpu().numpy()

        lost = save_wavs(out, sounds(), self.form.rate, force)
        return {"duration": samples / self.form.rate, **lost}

    def examples(self, source: Any, most: int, seed: int, options: Mapping[str, Any]) -> Examples:
        """Crops of recordings; of those of the training, of the ones held out."""
        audio, form = self.open(source), self.form
        clips, which = np.arange(len(audio)), "crops of all recordings"
        if audio.sha256 == self.trained_on():
            clips = split_evenly(len(audio), self.provenance["seed"], audio.labels).valid.numpy()
            which = "crops of recordings held out of training"
        if not (audio.lengths[clips] >= form.hop).any():
            raise UserError(
                f"{audio.name}: its recordings are shorter than a frame of {form.hop} samples; give longer ones"
            )
        mel = features(audio, form) if form.mels else None
        x, context = Crops(audio, clips, mel, form, self.crop // form.hop, 1, seed).in_order()
        if len(x) < 2:
            wanted = 2 * self.crop / form.rate
            raise UserError(
                f"{audio.name}: has less than the {wanted:g} seconds of sound that a check takes; give more"
            )
        rows, which = choose(len(x), min(most, MOST), which, seed)
        return Examples(audio.name, x[rows], None if context is None else context[rows], which)

    def examine(self, examples: Examples, seed: int) -> dict[str, Any]:
        """Numerics, latents, sound and likelihood."""
        return check_sound(self.flow, examples.x, examples.context, self.form.rate, self.form.hop, STEP, seed)

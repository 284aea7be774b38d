"""Audio to learn."""

from __future__ import annotations

import glob
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.modalities.audio import figures as audio_figures
from diffeo.modalities.audio.audio import AUDIO_SETS, Audio, open_audio
from diffeo.modalities.audio.recordings import FULL_SCALE, SOUNDS, is_sound
from diffeo.modalities.base import Material
from diffeo.modalities.images.decoding import is_picture
from diffeo.modalities.storage import allocate
from diffeo.recipes import RECIPES
from diffeo.spectral import frames_of, log_mel
from diffeo.training.seeding import derive

__all__ = ["RECIPES_OF_AUDIO", "AudioData", "Crops", "SoundFormat", "features", "shows_audio", "split_clips"]

BATCH_SIZE = 8
CROP = 1.0  # seconds
STEP = 1 / FULL_SCALE
HELD_OUT = 0.1
RECIPES_OF_AUDIO = tuple(name for name, make in RECIPES.items() if "hop" in inspect.signature(make).parameters)


def shows_audio(source: Any) -> bool:
    """Tell whether ``fit`` should take this for audio; of a folder, whether it holds sound and no pictures."""
    if isinstance(source, Audio) or (isinstance(source, str) and source in AUDIO_SETS):
        return True
    if not isinstance(source, str | Path):
        return False
    path = Path(source)
    if path.is_dir():
        names = [file.relative_to(path) for file in path.rglob("*")]
        return any(map(is_sound, names)) and not any(map(is_picture, names))
    if path.exists() or not glob.has_magic(str(path)):
        return path.suffix.lower() in SOUNDS
    return any(is_sound(Path(Path(name).name)) for name in glob.glob(str(path), recursive=True))


@dataclass(frozen=True)
class SoundFormat:
    """What the sounds of a run are like, and how the context of a sound is made.

    A context is ``(channels, frames)``: log-mel features, then the label one-hot, the same in every frame; frame f is
    that of the samples f hop .. (f + 1) hop - 1.

    Attributes:
        rate: samples per second.
        hop: samples per frame.
        mels: log-mel channels of the context, 0 for none.
        window: samples in a window of the spectra that they come from.
        classes: labels that the context may name, () for none.
        pattern: the regular expression that finds them in the names of files.
    """

    rate: int
    hop: int
    mels: int = 0
    window: int = 0
    classes: tuple[str, ...] = ()
    pattern: str = ""

    @property
    def channels(self) -> int:
        """How many channels a context has."""
        return self.mels + len(self.classes)

    @property
    def parts(self) -> list[str]:
        """What the context is made of: "mel", "label"."""
        return ["mel"] * (self.mels > 0) + ["label"] * bool(self.classes)

    def mel(self, x: Tensor) -> Tensor:
        """Return the log-mel features ``(mels, frames)`` of a sound ``(T,)``."""
        return log_mel(x, self.rate, self.mels, self.window, self.hop)

    def context(self, mel: Tensor | None, label: Tensor | None, frames: int) -> Tensor | None:
        """Join features ``(*batch, mels, frames)`` and labels, numbers ``(*batch, frames)`` or ``(*batch, 1)``."""
        parts = [] if mel is None else [mel]
        if label is not None:
            one_hot = torch.nn.functional.one_hot(label, len(self.classes)).float().movedim(-1, -2)
            parts.append(one_hot.expand(*one_hot.shape[:-1], frames))
        return torch.cat(parts, -2) if parts else None

    def of_clip(self, audio: Audio, index: int) -> tuple[Tensor, Tensor | None]:
        """Return a clip ``(T,)`` in [-1, 1) and its context; it has a label where the context has classes."""
        x = torch.from_numpy(audio.scaled(index))
        label = torch.from_numpy(audio.labels[[index]]) if self.classes and audio.labels is not None else None
        return x, self.context(self.mel(x) if self.mels else None, label, frames_of(len(x), self.hop))

    def context_shape(self, samples: int) -> tuple[int, ...]:
        """The shape of the context of a sound of this length, () for none."""
        return (self.channels, frames_of(samples, self.hop)) if self.channels else ()

    def sized(self, flow: Flow, samples: int) -> Flow:
        """Return a flow's density of sounds of this length."""
        return flow.resized((samples,), self.context_shape(samples))

    def to_json(self) -> dict[str, Any]:
        """Return plain data, from which ``SoundFormat(**data)`` makes the same."""
        return {**asdict(self), "classes": list(self.classes)}


class Crops:
    """Crops of fixed length of recordings, as ``diffeo.fit`` takes a stream: (x, context) batches.

    The clips' whole frames are laid end to end, with their own contexts, and cut into crops: in every epoch in another
    order and from another frame on, both decided by seed and epoch. So every sample counts once an epoch whatever the
    lengths, and nothing is padded or masked; where one clip ends within a crop the next begins. At a crop's start a
    network sees no past, as at the start of a sound that it scores or draws. Less than a frame at the end of each clip
    is left out; what is shorter than a crop in all is repeated.

    Args:
        audio: the recordings, labelled if the format has classes.
        clips: which of them.
        mel: features ``(frames of all clips, mels)``, or None.
        form: how contexts are made.
        frames: length of a crop.
        batch_size: crops in a batch.
        seed: of the order.
    """

    def __init__(
        self,
        audio: Audio,
        clips: np.ndarray,
        mel: np.ndarray | None,
        form: SoundFormat,
        frames: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.audio, self.clips, self.mel, self.form, self.frames, self.seed = audio, clips, mel, form, frames, seed
        self.epoch = 0
        whole = audio.lengths // form.hop
        self.first_frame = np.cumsum(whole) - whole
        self.clip_of_frame = np.repeat(np.arange(len(audio)), whole)
        self.count = max(1, int(whole[clips].sum()) // frames)
        self.batch_size = min(batch_size, self.count)
        self.fingerprint = f"{audio.sha256} {form} {clips.tolist()} {frames} {batch_size} {seed}"

    def __len__(self) -> int:
        return self.count // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next: it decides the order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None] | Tensor]:
        generator = np.random.default_rng(derive(self.seed, "crops", self.epoch))
        tape = self._tape(generator.permutation(self.clips))
        crops = self._cut(np.roll(tape, -generator.integers(self.frames)))
        for batch in range(len(self)):
            yield self._batch(crops[batch * self.batch_size : (batch + 1) * self.batch_size])

    def in_order(self, most: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the crops of the clips in their order, or so many of them, evenly spaced."""
        crops = self._cut(self._tape(self.clips))
        chosen = np.arange(self.count) if most is None else np.linspace(0, self.count - 1, min(most, self.count))
        return self._pick(crops[chosen.astype(int)])

    def _tape(self, clips: np.ndarray) -> np.ndarray:
        """The numbers of the clips' frames, end to end."""
        whole = self.audio.lengths // self.form.hop
        tape = np.concatenate([self.first_frame[clip] + np.arange(whole[clip]) for clip in clips])
        return np.resize(tape, max(len(tape), self.frames))

    def _cut(self, tape: np.ndarray) -> np.ndarray:
        return tape[: self.count * self.frames].reshape(self.count, self.frames)

    def _batch(self, crops: np.ndarray) -> tuple[Tensor, Tensor | None] | Tensor:
        x, context = self._pick(crops)
        return x if context is None else (x, context)

    def _pick(self, crops: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Frames' numbers (n, frames) -> x (n, frames hop) in [-1, 1) and the context (n, channels, frames)."""
        clip = self.clip_of_frame[crops]
        begin = self.audio.starts[clip] + (crops - self.first_frame[clip]) * self.form.hop
        samples = self.audio.samples[begin[..., None] + np.arange(self.form.hop)]  # (n, frames, hop)
        x = torch.from_numpy(samples.reshape(len(crops), -1).astype(np.float32) * np.float32(STEP))
        mel = None if self.mel is None else torch.from_numpy(self.mel[crops]).movedim(-1, -2)
        label = (
            torch.from_numpy(self.audio.labels[clip]) if self.form.classes and self.audio.labels is not None else None
        )
        return x, self.form.context(mel, label, self.frames)


class AudioData(Material):
    """Recordings, with their log-mel features and labels where the density is conditional on them."""

    options = ("rate", "crop", "mels", "label_pattern")
    unit, dimension, step = "crop", "sample", STEP

    def __init__(self, source: Any, settings: Mapping[str, Any], seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.batch_size = settings.get("batch_size", BATCH_SIZE)
        self.given = settings.get("context", [])
        if not set(self.given) <= {"mel", "label"}:
            raise UserError(f"audio can be given mel, label or both (--context mel,label), got {', '.join(self.given)}")
        model = settings.get("model")
        if model is not None and model not in RECIPES_OF_AUDIO:
            raise UserError(f"model {model!r} is not for audio; expected one of {', '.join(RECIPES_OF_AUDIO)}")
        self.audio = open_audio(source, settings.get("rate"))
        self.name = self.audio.name

    def read(self) -> None:
        """Compute the features and hold out a tenth of the recordings, of each label alike."""
        settings, audio = self.settings, self.audio
        given_label, pattern = "label" in self.given, settings.get("label_pattern")
        if given_label and (pattern or audio.labels is None):
            audio = self.audio = audio.labelled(pattern)
        if len(audio) < 2:
            raise UserError(f"{audio.name}: a single recording; at least two are needed, since one is held out")
        hop = settings.get("arguments", {}).get("hop", round(audio.rate / 100))
        if not isinstance(hop, int) or hop < 1:
            raise UserError(f"expected a hop of at least one sample (--set hop=80), got {hop!r}")
        mels = settings.get("mels", 40 if audio.rate < 12_000 else 80) if "mel" in self.given else 0
        classes, pattern = (audio.classes, audio.pattern) if given_label else ((), "")
        self.form = SoundFormat(audio.rate, hop, mels, 4 * hop if mels else 0, classes, pattern)
        frames = max(1, round(settings.get("crop", CROP) * audio.rate / hop))
        trained, held = split_clips(audio, self.seed)
        if not (audio.lengths[trained] >= hop).any() or not (audio.lengths[held] >= hop).any():
            raise UserError(f"{audio.name}: its recordings are shorter than a frame of {hop} samples; give longer ones")
        self.x = self._crops(audio, trained, frames)
        self.context = None
        self.valid_x, self.valid_context = self._crops(audio, held, frames, self.x.mel).in_order()
        self.test = None if audio.test is None else self._crops(audio.test, np.arange(len(audio.test)), frames)
        self.rows, self.total, self.hash = self.x.count, len(audio), audio.sha256
        self.features, self.context_size, self.sizes = frames * hop, self.form.channels, {"hop": hop}
        self.description = {"kind": "audio", "crop": self.features, **self.form.to_json()}
        self.notes = [*audio.notes, *(f"{name} was skipped: {why}" for name, why in audio.skipped)]
        if self.form.pattern:
            self.notes.append(f"{len(audio.classes)} labels from the files' names, by the pattern {audio.pattern!r}")

    def _crops(self, audio: Audio, clips: np.ndarray, frames: int, mel: np.ndarray | None = None) -> Crops:
        if mel is None and self.form.mels:
            mel = features(audio, self.form)
        return Crops(audio, clips, mel, self.form, frames, self.batch_size, self.seed)

    def default_model(self) -> tuple[str, dict[str, Any]]:
        """A WaveNet."""
        return "wavenet", {}

    def preprocessing(self, model: str) -> list[Any]:
        """Dequantise 16-bit values, bring all samples to mean 0 and standard deviation 1."""
        return [["dequantize", {"step": STEP, "low": -1.0}], "standardize"]

    def training(self, flow: Flow) -> dict[str, Any]:
        """A lower rate than that of tables' networks."""
        reach: int = max((getattr(module, "receptive_field", 0) for module in flow.modules()), default=0)
        crop = self.x.frames * self.form.hop
        if reach > crop:
            self.notes.append(
                f"crops of {crop} samples are shorter than the {reach} that the model looks back; longer ones"
                " (--crop) would let it learn to"
            )
        return {"lr": 2e-3}

    def judged(self, most: int) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Crops of held-out recordings, of some of those trained on, and of the set's own test recordings."""
        parts = {"validation": (self.valid_x, self.valid_context)}
        parts["train"] = self.x.in_order(min(most, len(self.valid_x)))
        if self.test is not None:
            parts["test"] = self.test.in_order()
        return parts

    def facts(self) -> dict[str, Any]:
        """Rate, frames, how long the recordings are together, and what the density is given."""
        return {
            "rate": self.form.rate, "hop": self.form.hop, "crop": self.features, "clips": self.total,
            "duration": self.audio.seconds, "context": self.form.parts,
        }  # fmt: skip

    def draw(self, run: Path, flow: Flow) -> list[str]:
        """Learning curve, sounds real and drawn, their likelihoods."""
        return audio_figures.draw(run, flow, self.valid_x, self.valid_context, self.form.rate, STEP, self.seed)


def split_clips(audio: Audio, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the clips to train on and of those held out: a tenth, evenly over the labels."""
    order = np.random.default_rng(seed).permutation(len(audio))
    if audio.labels is not None:
        order = order[np.argsort(audio.labels[order], kind="stable")]  # label after label, each shuffled
    held = np.zeros(len(audio), dtype=bool)
    count = max(1, round(HELD_OUT * len(audio)))
    held[order[((np.arange(count) + 0.5) * len(audio) / count).astype(int)]] = True  # evenly spaced along the labels
    return np.flatnonzero(~held), np.flatnonzero(held)


def features(audio: Audio, form: SoundFormat) -> np.ndarray:
    """The log-mel features of the clips' whole frames, (frames, mels), in memory or mapped into it."""
    whole = audio.lengths // form.hop
    features = allocate((int(whole.sum()), form.mels), dtype=np.float32)
    for index, end in enumerate(np.cumsum(whole)):
        if whole[index]:
            mel = form.mel(torch.from_numpy(audio.scaled(index)))
            features[end - whole[index] : end] = mel[:, : whole[index]].T.numpy()
    return features

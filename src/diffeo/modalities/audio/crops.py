"""Recordings as a network sees them: their format, crops of fixed length, and log-mel features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.modalities.audio.audio import Audio
from diffeo.modalities.audio.recordings import FULL_SCALE
from diffeo.modalities.storage import allocate
from diffeo.spectral import frames_of, log_mel
from diffeo.training.seeding import derive
from diffeo.training.stream import BatchStream

__all__ = ["STEP", "Crops", "SoundFormat", "features"]

STEP = 1 / FULL_SCALE


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


class Crops(BatchStream):
    """Crops of fixed length of recordings.

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
        self.whole = audio.lengths // form.hop  # frames of each clip
        self.first_frame = np.cumsum(self.whole) - self.whole
        self.clip_of_frame = np.repeat(np.arange(len(audio)), self.whole)
        self.count = max(1, int(self.whole[clips].sum()) // frames)
        self.batch_size = min(batch_size, self.count)
        self.asked = batch_size

    def __len__(self) -> int:
        return self.count // self.batch_size

    @property
    def fingerprint(self) -> str:
        """The recordings' SHA-256, and what crops are made of which of them."""
        return f"{self.audio.sha256} {self.form} {self.clips.tolist()} {self.frames} {self.asked} {self.seed}"

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        generator = np.random.default_rng(derive(self.seed, "crops", self.epoch))
        tape = self._tape(generator.permutation(self.clips))
        crops = self._cut(np.roll(tape, -generator.integers(self.frames)))
        for batch in range(len(self)):
            yield self._pick(crops[batch * self.batch_size : (batch + 1) * self.batch_size])

    def in_order(self, most: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the crops of the clips in their order, or so many of them, evenly spaced."""
        crops = self._cut(self._tape(self.clips))
        chosen = np.arange(self.count) if most is None else np.linspace(0, self.count - 1, min(most, self.count))
        return self._pick(crops[chosen.astype(int)])

    def _tape(self, clips: np.ndarray) -> np.ndarray:
        """The numbers of the clips' frames, end to end."""
        tape = np.concatenate([self.first_frame[clip] + np.arange(self.whole[clip]) for clip in clips])
        return np.resize(tape, max(len(tape), self.frames))

    def _cut(self, tape: np.ndarray) -> np.ndarray:
        return tape[: self.count * self.frames].reshape(self.count, self.frames)

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


def features(audio: Audio, form: SoundFormat) -> np.ndarray:
    """The log-mel features of the clips' whole frames, (frames, mels), in memory or mapped into it."""
    whole = audio.lengths // form.hop
    features = allocate((int(whole.sum()), form.mels), dtype=np.float32)
    for index, end in enumerate(np.cumsum(whole)):
        if whole[index]:
            mel = form.mel(torch.from_numpy(audio.scaled(index)))
            features[end - whole[index] : end] = mel[:, : whole[index]].T.numpy()
    return features

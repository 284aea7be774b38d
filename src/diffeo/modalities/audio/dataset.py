"""Audio to learn."""

from __future__ import annotations

import glob
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.modalities.audio import figures as audio_figures
from diffeo.modalities.audio.audio import AUDIO_SETS, Audio, open_audio
from diffeo.modalities.audio.crops import STEP, Crops, SoundFormat, features
from diffeo.modalities.audio.recordings import SOUNDS, is_sound
from diffeo.modalities.base import Dataset
from diffeo.modalities.images.decoding import is_picture
from diffeo.recipes import RECIPES
from diffeo.training.splitting import split_evenly

__all__ = ["RECIPES_OF_AUDIO", "AudioDataset", "shows_audio"]

BATCH_SIZE = 8
CROP = 1.0  # seconds
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


class AudioDataset(Dataset):
    """Recordings, with their log-mel features and labels where the density is conditional on them."""

    step = STEP

    def __init__(self, source: Any, settings: Mapping[str, Any], seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.batch_size = settings.get("batch_size", BATCH_SIZE)
        self.conditions = settings.get("context", [])
        if not set(self.conditions) <= {"mel", "label"}:
            raise UserError(
                f"audio can be given mel, label or both (--context mel,label), got {', '.join(self.conditions)}"
            )
        model = settings.get("model")
        if model is not None and model not in RECIPES_OF_AUDIO:
            raise UserError(f"model {model!r} is not for audio; expected one of {', '.join(RECIPES_OF_AUDIO)}")
        self.audio = open_audio(source, settings.get("rate"))
        self.name = self.audio.name
        self._divide(self.audio)

    def _divide(self, audio: Audio) -> None:
        """Compute the features and hold out a tenth of the recordings, of each label alike."""
        settings = self.settings
        with_label, pattern = "label" in self.conditions, settings.get("label_pattern")
        if with_label and (pattern or audio.labels is None):
            audio = self.audio = audio.labelled(pattern)
        if len(audio) < 2:
            raise UserError(f"{audio.name}: a single recording; at least two are needed, since one is held out")
        hop = settings.get("arguments", {}).get("hop", round(audio.rate / 100))
        if not isinstance(hop, int) or hop < 1:
            raise UserError(f"expected a hop of at least one sample (--set hop=80), got {hop!r}")
        mels = settings.get("mels", 40 if audio.rate < 12_000 else 80) if "mel" in self.conditions else 0
        classes, pattern = (audio.classes, audio.pattern) if with_label else ((), "")
        self.form = SoundFormat(audio.rate, hop, mels, 4 * hop if mels else 0, classes, pattern)
        frames = max(1, round(settings.get("crop", CROP) * audio.rate / hop))
        trained, held = (part.numpy() for part in split_evenly(len(audio), self.seed, audio.labels)[:2])
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

    def plot(self, run: Path, flow: Flow, seconds: float) -> list[str]:
        """Learning curve, sounds real and drawn, their likelihoods."""
        return audio_figures.plot(run, flow, self.valid_x, self.valid_context, self.form.rate, STEP, self.seed)

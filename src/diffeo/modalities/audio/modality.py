"""Audio, as the commands know it."""

from diffeo.modalities.audio.dataset import RECIPES_OF_AUDIO, AudioDataset, shows_audio
from diffeo.modalities.audio.recordings import SOUNDS
from diffeo.modalities.audio.report import AudioReport
from diffeo.modalities.audio.run import AudioRun
from diffeo.modalities.base import Modality

__all__ = ["MODALITY"]

MODALITY = Modality(
    "audio",
    recognizes=shows_audio,
    dataset=AudioDataset,
    run=AudioRun,
    report=AudioReport,
    options=("rate", "crop", "mels", "label_pattern"),
    suffixes=SOUNDS,
    recipes=RECIPES_OF_AUDIO,
)

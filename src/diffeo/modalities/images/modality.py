"""Images, as the commands know them."""

from diffeo.modalities.base import Modality
from diffeo.modalities.images.dataset import ImageDataset, shows_images
from diffeo.modalities.images.run import ImageRun

__all__ = ["MODALITY"]

MODALITY = Modality(
    "images",
    recognizes=lambda source, model: shows_images(source),
    dataset=ImageDataset,
    run=ImageRun,
    options=("size", "test"),
)

"""Images, as the commands know them."""

from diffeo.modalities.base import Modality
from diffeo.modalities.images.dataset import ImageDataset, shows_images
from diffeo.modalities.images.decoding import PICTURES
from diffeo.modalities.images.report import ImageReport
from diffeo.modalities.images.run import ImageRun

__all__ = ["MODALITY"]

MODALITY = Modality(
    "images",
    recognizes=shows_images,
    dataset=ImageDataset,
    run=ImageRun,
    report=ImageReport,
    options=("size", "test"),
    suffixes=PICTURES,
)

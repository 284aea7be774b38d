"""Tables, as the commands know them."""

from diffeo.modalities.base import Modality
from diffeo.modalities.tables.dataset import TableDataset
from diffeo.modalities.tables.run import TableRun

__all__ = ["MODALITY"]

MODALITY = Modality(
    "table",
    recognizes=lambda source, model: True,
    dataset=TableDataset,
    run=TableRun,
    options=("drop", "missing", "test"),
)

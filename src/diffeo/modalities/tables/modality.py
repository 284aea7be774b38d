"""Tables, as the commands know them."""

from pathlib import Path

from diffeo.modalities.base import Modality
from diffeo.modalities.tables.dataset import TableDataset
from diffeo.modalities.tables.report import TableReport
from diffeo.modalities.tables.run import TableRun
from diffeo.modalities.tables.table import EXTENSIONS

__all__ = ["MODALITY"]

MODALITY = Modality(
    "table",
    recognizes=lambda source: True,
    dataset=TableDataset,
    run=TableRun,
    report=TableReport,
    options=(
        "drop",
        "missing",
        "test",
        "folds",
        "memory",
        "categorical",
        "integer",
        "continuous",
        "dates",
        "bounds",
        "weights",
        "method",
        "na",
        "sep",
        "decimal",
    ),
    suffixes={Path(f"x{extension}").suffix for extension in EXTENSIONS} - {".npy", ".npz"},
)

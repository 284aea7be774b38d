"""A table to learn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffeo.flow import Flow
from diffeo.modalities.base import Dataset
from diffeo.modalities.tables import rows
from diffeo.modalities.tables.defaults import default_model, preprocessing
from diffeo.modalities.tables.figures import plot_figures
from diffeo.modalities.tables.infer import infer_schema
from diffeo.modalities.tables.rows import Split, TableStream, split_table
from diffeo.modalities.tables.table import open_table

__all__ = ["TableDataset"]

BATCH_SIZE = 512


class TableDataset(Dataset):
    """The rows of a table."""

    split: Split

    def __init__(self, source: Any, settings: Mapping[str, Any], seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.batch_size = settings.get("batch_size", BATCH_SIZE)
        numbers = settings.get("model") != "mixed"
        self.table = open_table(source, missing=settings.get("missing", "error" if numbers else "keep"))
        self.name = self.table.name
        # Infer the schema, and hold out rows for validation and, where asked, for a test: from one reading, if it fits.
        self.table.hold(rows.LARGE)
        chosen = self.settings.get("context", ()), self.settings.get("drop", ())
        self.schema = infer_schema(self.table, *chosen, numbers=numbers)
        self.split = split_table(self.table, self.schema, self.batch_size, self.seed, self.settings.get("test", 0.0))
        self.x, self.context = self.split.x, self.split.context
        self.valid_x, self.valid_context = self.split.valid_x, self.split.valid_context
        self.tested = len(self.split.test_x)
        self.rows, self.hash, self.total = self.split.rows, self.split.hash, self.schema.rows
        self.features, self.context_size = self.schema.features, self.schema.context_size
        self.description = self.schema.to_json()
        self.notes = [*self.table.notes, *self.schema.notes()]
        if self.rows < self.batch_size:
            self.notes.append(
                f"a batch of {self.batch_size} is larger than the {self.rows} training rows: all of them make one"
            )
        if self.table.dropped:
            self.notes.append(f"{self.table.dropped} rows with missing or infinite values were left out")

    def default_model(self) -> tuple[str, dict[str, Any]]:
        """Autoregressive splines placed by affine maps."""
        return default_model(self.rows)

    def preprocessing(self, model: str) -> list[Any]:
        """Dequantise what is discrete, standardise, and make normal what has tails like Cauchy's."""
        return preprocessing(self.schema, self.valid_x if isinstance(self.x, TableStream) else self.x)

    def training(self, flow: Flow) -> dict[str, Any]:
        """The defaults of ``diffeo.fit`` are those of tables."""
        return {}

    def judged(self, most: int) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Rows for validation, for the test if there are any, and training rows where they are in memory."""
        parts: dict[str, tuple[Tensor, Tensor | None]] = {"validation": (self.valid_x, self.valid_context)}
        if not isinstance(self.x, TableStream):
            parts["train"] = (self.x[:most], None if self.context is None else self.context[:most])
        if self.tested:
            parts["test"] = (self.split.test_x, self.split.test_context)
        return parts

    def facts(self) -> dict[str, Any]:
        """How many columns, and which are the context."""
        return {"columns": self.schema.features, "context": list(self.schema.context)}

    def plot(self, run: Path, flow: Flow, seconds: float) -> list[str]:
        """Learning curves, pairs of columns, latents, and the density of two columns."""
        return plot_figures(run, flow, self.schema, self.split, self.seed)

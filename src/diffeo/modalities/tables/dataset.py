"""A table to learn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.flow import DRAWS, Flow
from diffeo.inference.posterior import METHODS, usual_training
from diffeo.modalities.base import Dataset
from diffeo.modalities.tables.defaults import check_bounds, default_model, preprocessing
from diffeo.modalities.tables.figures import plot_figures
from diffeo.modalities.tables.infer import infer_schema
from diffeo.modalities.tables.mixed import factors
from diffeo.modalities.tables.rows import Split, TableStream, limit_of, split_table, too_large
from diffeo.modalities.tables.seen import TEST, TRAIN, VALID, SeenRows, looks, noise_of, smoothed
from diffeo.modalities.tables.table import open_table
from diffeo.training.folds import FoldsResult, assign_folds, out_of_fold

__all__ = ["TableDataset"]

BATCH_SIZE = 512
FOLDS = 5  # that tables of so many rows are trained by
FEWEST_ROWS, MOST_ROWS, MOST_MIXED = 50, 20_000, 5_000  # a mixed density takes several times as long
ORDERS = 2  # of each member of a stack of mixed densities, which together have more
STEPS, SMALLEST_BATCH = 8, 16  # of small tables: steps in an epoch, of so many rows at least
PATIENCE = 60  # epochs of these
CALIBRATED, FEWER = 20_000, 1_000  # validation rows whose scores a single model remembers; of a slow one
READING = ("na", "sep", "decimal")  # settings of how a table is read
CHOSEN = ("context", "drop", "categorical", "integer", "continuous", "dates", "weights")  # of what its columns are


class TableDataset(Dataset):
    """The rows of a table."""

    split: Split
    draws = DRAWS

    def __init__(self, source: Any, settings: Mapping[str, Any], seed: int) -> None:
        self.settings, self.seed = settings, seed
        numbers = settings.get("model", "mixed") != "mixed"  # a model of complete numbers was asked for
        reading = {name: settings[name] for name in READING if name in settings}
        self.table = open_table(source, missing=settings.get("missing", "error" if numbers else "keep"), **reading)
        self.name = self.table.name
        # Infer the schema, and hold out rows for validation and, where asked, for a test: from one reading, if it fits.
        limit = limit_of(settings)
        self.table.hold(limit)
        chosen = {name: settings[name] for name in CHOSEN if name in settings}
        self.schema = infer_schema(self.table, numbers=numbers, **chosen)
        self.bounds = settings.get("bounds", {})
        if self.bounds and "preprocess" in settings.get("arguments", {}):
            raise UserError("--bounds and --set preprocess exclude each other; choose one")
        check_bounds(self.table, self.schema, self.bounds)
        most = MOST_MIXED if self.mixed else MOST_ROWS
        small = FEWEST_ROWS <= self.schema.rows <= most and not too_large(self.schema, limit=limit)
        self.folds = settings.get("folds", FOLDS if small else 1)
        self.log_grid = self.schema.log_on_grids
        # Equal rows are copies where some column is continuous; where all are discrete, such rows just are so.
        self.together = any(column.kind == "continuous" for column in self.schema.feature_columns)
        batch_size = BATCH_SIZE if self.folds == 1 else max(SMALLEST_BATCH, min(BATCH_SIZE, self.schema.rows // STEPS))
        if "method" in settings:
            batch_size = usual_training(settings["method"], self.schema.rows)["batch_size"]
        self.batch_size = settings.get("batch_size", batch_size)
        self.split = split_table(
            self.table, self.schema, self.batch_size, seed, settings.get("test", 0.0), self.folds == 1, limit
        )
        self.x, self.context = self.split.x, self.split.context
        if self.folds > 1:  # before a run is made of them
            if isinstance(self.split.x, TableStream):
                raise UserError(f"{self.table.name}: is too large to train several times over; leave out --folds")
            try:
                assign_folds(self.split.x, self.context, self.folds, self.seed, self.together)
            except ValueError as error:
                remedy = "give fewer of them, or --folds 1 for a single model"
                raise UserError(f"{self.table.name}: {error}; {remedy}") from error
        self.valid_x, self.valid_context = self.split.valid_x, self.split.valid_context
        self.weights, self.valid_weights = self.split.weights, self.split.valid_weights
        self.tested = len(self.split.test_x)
        self.rows, self.hash, self.total = self.split.rows, self.split.hash, self.schema.rows
        self.features, self.context_size = self.schema.features, self.schema.context_size
        self.description = self.schema.to_json()
        self.notes = [*self.table.notes, *self.schema.notes()]
        if isinstance(self.x, TableStream):
            self.notes.append(self.x.note(limit))
        if self.rows < self.batch_size:
            self.notes.append(
                f"a batch of {self.batch_size} is larger than the {self.rows} training rows: all of them make one"
            )
        if "model" not in settings:
            self.notes.append(
                "model: mixed, which takes categories, dates and gaps as they are"
                if self.mixed
                else "model: nsf, the better of complete numbers (--model mixed has every conditional)"
            )
        if self.schema.weights:
            self.notes.append(self._weighting())
        if self.table.dropped:
            self.notes.append(f"{self.table.dropped} rows with missing or infinite values were left out")

    def default_model(self) -> tuple[str, dict[str, Any]]:
        """The mixed density of tables that have more than complete numbers; else splines placed by affine maps."""
        if self.mixed:
            orders = {"orders": ORDERS} if self.folds > 1 else {}
            return "mixed", {"columns": factors(self.schema, self._some(), self.bounds), **orders}
        return default_model(self.rows)

    def stacked_models(self) -> dict[str, dict[str, Any]]:
        """The same splines with dropout: of small tables some are learned better by the one, some by the other.

        Beside a posterior the simpler flows of its method; nothing beside a model that was chosen otherwise.
        """
        arguments = self.settings.get("arguments", {})
        if "method" in self.settings:
            method = METHODS[self.settings["method"]]
            flows = method.beside if arguments == method.arguments else {}
            return {
                name: {"model": flow.recipe, "arguments": flow.arguments, "epochs": flow.epochs}
                for name, flow in flows.items()
            }
        dropout = {"dropout": 0.1, "transforms": 3}
        if self.mixed or "model" in self.settings or dropout.keys() & arguments.keys():
            return {}
        return {"nsf with dropout": {"arguments": {**arguments, **dropout}}}

    def preprocessing(self, model: str) -> list[Any]:
        """Dequantise what is discrete, open bounds, standardise, and make normal what has tails like Cauchy's."""
        return [] if model == "mixed" else preprocessing(self.schema, self._some(), self.bounds)

    @property
    def mixed(self) -> bool:
        """Whether categories, dates or gaps are among the columns, or the mixed density was asked for."""
        return self.settings.get("model") == "mixed" or ("model" not in self.settings and self.schema.mixed)

    def _some(self) -> Tensor:
        return self.valid_x if isinstance(self.x, TableStream) else self.x

    def training(self, flow: Flow) -> dict[str, Any]:
        """The defaults of ``diffeo.fit`` suit large tables; small ones, and a mixed density, learn more slowly."""
        if "method" in self.settings:
            return usual_training(self.settings["method"], self.schema.rows) | {"batch_size": self.batch_size}
        if flow.transform.takes_missing:
            return {"lr": 2e-3}
        small = {"lr": 3e-3, "weight_decay": 0.1, "patience": PATIENCE}
        return small if self.folds > 1 and flow.ode is None else {}

    def judged(self, most: int) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Rows for validation, for the test if there are any, and training rows where they are in memory."""
        parts: dict[str, tuple[Tensor, Tensor | None]] = {"validation": (self.valid_x, self.valid_context)}
        if not isinstance(self.x, TableStream):
            parts["train"] = (self.x[:most], None if self.context is None else self.context[:most])
        if self.folds > 1:
            del parts["validation"]
        if self.tested:
            parts["test"] = (self.split.test_x, self.split.test_context)
        return parts

    def judged_weights(self) -> dict[str, Tensor]:
        """Those of the rows for validation, for the test and for training, where there are any."""
        split = self.split
        parts = {"validation": split.valid_weights, "train": split.weights, "test": split.test_weights}
        return {name: weights for name, weights in parts.items() if weights is not None}

    def _weighting(self) -> str:
        """Say how rows are weighted; the effective number of rows is (sum w)^2 / sum w^2 (Kish 1965)."""
        name = "validation" if isinstance(self.x, TableStream) else "train"
        w = self.judged_weights()[name]
        effective, none = float(w.sum() ** 2 / (w @ w)), int((w == 0).sum())
        left_out = f"; {none} of them have weight 0 and are left out" if none else ""
        which = "training" if name == "train" else name
        return (
            f"rows are weighted by {self.schema.weights!r}, which is not modelled: {len(w)} {which} rows are worth"
            f" {effective:.0f} of equal weight{left_out}"
        )

    def facts(self) -> dict[str, Any]:
        """How many columns, which are the context, and by which column likelihoods are weighted."""
        weights = {"weighted_by": self.schema.weights} if self.schema.weights else {}
        return {"columns": self.schema.features, "context": list(self.schema.context), **weights}

    def remember(self, run: Path, flow: Flow, stacked: FoldsResult | None) -> None:
        """Write the digest of each row, its part in the training, and its likelihood by what was not trained on it."""
        seen = self.seen(flow, stacked)
        if seen is not None:
            seen.save(run)

    @torch.no_grad()
    def seen(self, flow: Flow, stacked: FoldsResult | None) -> SeenRows | None:
        """The rows, with the part that each had in the training; None of those that are too many for memory."""
        if isinstance(self.x, TableStream):
            return None
        noise = noise_of(flow, self.x)
        fold: int | Tensor = TRAIN
        log_prob = None
        if stacked is not None:
            fold = stacked.fold

            def around(density: Flow, rows: Tensor) -> Tensor:
                return smoothed(density, self.x[rows], None if self.context is None else self.context[rows], noise)

            log_prob = torch.cat([stacked.log_prob[:, None], out_of_fold(flow, stacked.fold, around)], 1)
        most = CALIBRATED if flow.fast else FEWER
        context = None if self.valid_context is None else self.valid_context[:most]
        some = looks(flow, self.valid_x[:most], context, noise)
        rest = some.new_full((len(self.valid_x) - len(some), some.shape[1]), torch.nan)
        valid = (self.valid_x, self.valid_context, VALID, torch.cat([some, rest]))
        test = (self.split.test_x, self.split.test_context, TEST, None)
        levels = [self.schema.places[c.name].start for c in self.schema.feature_columns if c.kind == "levels"]
        return SeenRows.of([(self.x, self.context, fold, log_prob), valid, test], noise, levels)

    def plot(self, run: Path, flow: Flow, seconds: float) -> list[str]:
        """Learning curves, pairs of columns, latents, and the density of two columns, of rows drawn by weight."""
        return plot_figures(run, flow, self.schema, self.split.in_proportion(), self.seed)

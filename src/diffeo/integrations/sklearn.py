"""Estimators of scikit-learn: densities, outliers, gaps and regressions of tables.

They take the same road as ``diffeo fit``: the schema of the columns, the default model, folds and a stack. A data frame
goes in as it is, with texts, dates and gaps; an array has numbers.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    DensityMixin,
    OneToOneFeatureMixin,
    OutlierMixin,
    RegressorMixin,
    TransformerMixin,
)
from sklearn.exceptions import DataConversionWarning
from sklearn.utils import Tags, check_array, check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from diffeo.commands.fit import learn, model_for
from diffeo.commands.scoring import scores
from diffeo.commands.settings import settings_of
from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.modalities import open_run
from diffeo.modalities.base import Chunk, Draw, chunks_of
from diffeo.modalities.tables.dataset import TableDataset
from diffeo.modalities.tables.held_out import HeldOut
from diffeo.modalities.tables.prediction import check_targets, predicted_points, predicted_quantiles
from diffeo.modalities.tables.run import TableRun
from diffeo.training import provenance
from diffeo.training.parallel import choose_device
from diffeo.training.place import claimed
from diffeo.training.run import create_run, save_metrics, save_weights
from diffeo.training.seeding import derive, fork_rng, seed_noise
from diffeo.transforms.preprocess import Dequantize

__all__ = ["FlowDensity", "FlowImputer", "FlowOutlier", "FlowRegressor"]

SETTINGS = ("model", "arguments", "folds", "epochs", "minutes", "batch_size", "lr", "categorical", "integer",
            "continuous", "dates")  # fmt: skip


class _Learner(BaseEstimator):
    """A table that was learned, without a folder.

    Attributes:
        run_: the density, in double precision, and the schema of the columns: what a run directory holds.
    """

    run_: TableRun
    random_state: Any
    n_jobs: int | None
    device: str | None

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _learn(self, source: Any, sample_weight: Any = None, **settings: Any) -> None:
        """Learn a table, as ``_source`` returns it, in memory."""
        if sample_weight is not None:
            source = _as_arrow(source)
            weights = check_array(sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
            if weights.shape != (source.num_rows,):
                raise ValueError(f"expected sample weights of shape ({source.num_rows},), got {weights.shape}")
            if not weights.any():
                raise ValueError("expected a sample weight above zero, got zero weights alone")
            source, settings["weights"] = _with_column(source, "sample_weight", weights)
        seed = _seed(self.random_state)
        parameters = {name: _plain(getattr(self, name, None)) for name in SETTINGS}
        asked = parameters | {"seed": seed} | settings
        chosen = settings_of(asked, type(self).__name__, {})
        device = choose_device(self.device)
        jobs = os.cpu_count() if self.n_jobs is not None and self.n_jobs < 0 else self.n_jobs or 1
        with fork_rng(device):
            dataset = TableDataset(source, chosen, seed)
            learned = learn(model_for(dataset, chosen, seed), dataset, chosen, seed, device=device, jobs=jobs)
            if learned.result.stopped == "interrupted":
                raise KeyboardInterrupt
            metrics = learned.metrics(dataset, TableRun.words, seed)
            seen = dataset.seen(learned.flow, learned.stacked)
        data = {"name": dataset.name, "sha256": dataset.hash, "rows": dataset.total, "test": 0}
        origin = provenance(data=data, seed=seed, settings=chosen)
        name = type(self).__name__
        self.run_ = TableRun(name, learned.flow.double(), metrics, origin, device, dataset.schema, seen)

    def _source(self, X: Any, reset: bool = False) -> Any:
        """What ``open_table`` takes, of rows whose columns were checked: a frame as it is, or an array of numbers."""
        if _is_frame(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if hasattr(self, "feature_names_in_"):
                return X.reset_index(drop=True) if hasattr(X, "reset_index") else X  # pandas would export an index
        finite = "allow-nan" if self.__sklearn_tags__().input_tags.allow_nan else True
        return validate_data(self, X, reset=reset, ensure_all_finite=finite, ensure_min_samples=2 if reset else 1)

    def save(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """Write a run directory, which ``load`` and the command line read.

        Args:
            path: a folder that does not exist or is empty.
            force: replace a run that is there.

        Raises:
            UserError: if it cannot be written.
            NotFittedError: before ``fit``.
        """
        check_is_fitted(self)
        run = self.run_
        parameters = {name: _plain(value) for name, value in self.get_params(deep=False).items()}
        described = {"name": type(self).__name__, "parameters": parameters | {"random_state": run.provenance["seed"]}}
        origin = run.provenance | {"estimator": described | self._also()}
        with claimed(path, force=force) as folder:
            create_run(folder, run.flow, run.description, origin)
            save_weights(folder, run.flow)
            save_metrics(folder, run.metrics)
            if run.seen is not None:
                run.seen.save(folder)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | None = None) -> Self:
        """Open the run directory of a table, which ``save`` or the command line made.

        Args:
            path: a run directory.
            device: where to compute; a GPU if there is one.

        Raises:
            UserError: if it is damaged, or not what this estimator learns.
        """
        run = open_run(path, device)
        if not isinstance(run, TableRun):
            raise UserError(f"{run.path}: was trained on {run.words.data}, expected a table")
        described = run.provenance.get("estimator", {})
        known = {**run.provenance.get("settings", {}), **described.get("parameters", {}), "device": device}
        known["random_state"] = run.provenance.get("seed")
        parameters = {name: value for name, value in known.items() if name in cls._get_param_names()}
        estimator = cls(**{n: tuple(value) if isinstance(value, list) else value for n, value in parameters.items()})
        seen = run.seen
        estimator.run_ = TableRun(
            cls.__name__, run.flow.double(), run.metrics, run.provenance, run.device, run.schema, seen
        )
        estimator._restore()
        return estimator

    def _also(self) -> dict[str, Any]:
        """What a run directory says of a fitted estimator beside its parameters."""
        return {}

    def _restore(self) -> None:
        """Set the attributes of a fitted estimator that the run says."""
        names = self._columns()
        self.n_features_in_ = len(names)
        if names != [f"c{i}" for i in range(len(names))]:  # what columns of an array are called
            self.feature_names_in_ = np.array(names, dtype=object)

    def _columns(self) -> list[str]:
        """The names of all columns that go in."""
        schema = self.run_.schema
        return [name for name in schema.all_names or schema.names if name != schema.weights]

    def _returned(self, cells: np.ndarray) -> Any:
        """Rows of all columns of the model in the container that ``fit`` had: an array, or a pandas frame."""
        schema = self.run_.schema
        if not hasattr(self, "feature_names_in_"):
            return np.asarray(cells, dtype=np.float64)
        try:
            import pandas as pd
        except ImportError:
            return cells
        return pd.DataFrame(cells, columns=list(schema.names)).infer_objects()


@dataclass(kw_only=True, eq=False, repr=False)
class _Estimator(_Learner):
    """The parameters that all estimators have, as fields: a field is an argument of ``__init__``, which keeps it."""

    arguments: Mapping[str, Any] | None = None
    folds: int | None = None
    epochs: int | None = None
    minutes: float | None = None
    batch_size: int | None = None
    lr: float | None = None
    categorical: Sequence[str] = ()
    integer: Sequence[str] = ()
    continuous: Sequence[str] = ()
    dates: Sequence[str] = ()
    n_jobs: int | None = None
    device: str | None = None
    random_state: int | np.random.RandomState | None = None


@dataclass(kw_only=True, eq=False, repr=False)
class _Density(_Estimator):
    """What densities and outliers have in common: rows have scores."""

    model: str | None = None

    def score_samples(self, X: Any) -> np.ndarray:
        """Score of each row in nats, the lower the less usual; of training rows out of fold.

        Of a density the log-likelihood, in the units of the columns; of ``FlowOutlier`` see there. A row has one score,
        whatever rows are with it. An infinite value has -inf.

        Args:
            X: ``(n, columns)``, an array or a data frame with the columns of the training.

        Returns:
            ``(n,)``, double precision.

        Raises:
            ValueError: for other columns, or values that the model does not take.
        """
        check_is_fitted(self)
        scoring = self.run_.scoring(self._source(X), {})
        with fork_rng(self.run_.device):
            chunks, score = chunks_of(self.run_, scoring, 0, lambda done, total: None), self._scorer()
            return np.concatenate([score(chunk, scoring.draws) for chunk in chunks])

    def _scorer(self) -> Callable[[Chunk, int], np.ndarray]:
        """What scores rows, with so many draws of the noise that discrete values are spread by."""
        return partial(scores, self.run_)


class FlowDensity(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, _Density):
    """The density of a table: exact log-likelihoods, samples, and a map to noise and back.

    A stack of flows and simpler densities, each trained without a part of the rows, as ``diffeo fit`` makes it.

    Args:
        model: a recipe's name; by default what ``diffeo fit`` chooses for the columns.
        arguments: of the recipe, such as ``{"hidden": [64, 64], "transforms": 3}``.
        folds: how many parts of the rows are held out in turn; by default 5 for tables of 50 to 20,000 rows, else 1.
        epochs: the budget in epochs.
        minutes: the budget in minutes.
        batch_size: rows per step.
        lr: the highest learning rate.
        categorical: columns that hold categories, whatever they look like.
        integer: columns of whole numbers.
        continuous: columns with a smooth density.
        dates: columns of dates or times.
        n_jobs: how many folds are trained side by side; 1 by default, -1 for all cores.
        device: where to compute; a GPU if there is one.
        random_state: decides folds, initial weights and noise; an int makes ``fit`` reproducible.

    Attributes:
        run_: the density, in double precision, and the schema of the columns: what a run directory holds.
        n_features_in_: how many columns ``fit`` saw.
        feature_names_in_: their names, of a data frame.
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn the density of the rows.

        Args:
            X: ``(n, columns)``, an array or a data frame.
            y: ignored.
            sample_weight: how much each row counts ``(n,)``, at least 0; all alike by default.

        Raises:
            ValueError: for bad input or parameters.
        """
        self._learn(self._source(X, reset=True), sample_weight)
        return self

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log-likelihood of the rows, in nats; higher is better.

        Args:
            X: ``(n, columns)``.
            y: ignored.
        """
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None) -> Any:
        """Draw rows that look like those of the training; nothing is outside their range.

        Args:
            n_samples: how many.
            random_state: the same int draws the same rows.

        Returns:
            An array, or a pandas data frame where ``fit`` saw a data frame.

        Raises:
            ValueError: for a number below 1.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"expected n_samples >= 1, got {n_samples}")
        draws, _ = self.run_.draws(n_samples, {})
        seed = _seed(random_state)
        return self._returned(np.concatenate([*self._drawn(draws, seed)]))

    def _drawn(self, draws: Any, seed: int) -> Iterator[np.ndarray]:
        run = self.run_
        draw: Draw
        with fork_rng(run.device):
            for draw in draws:
                seed_noise(run.device, derive(seed, "sample", draw.key))
                yield run.schema.decode(run.flow.sample(draw.count).cpu().numpy())

    def transform(self, X: Any) -> np.ndarray:
        """Noise that the rows are made of, by the heaviest flow of the stack: about standard normal.

        Of whole numbers it is that of the middle of their cells. A mixed density (categories, dates, gaps) has uniform
        noise, drawn within the interval of each mass, the same for the same rows.

        Args:
            X: ``(n, columns)``.

        Returns:
            ``(n, features)``.
        """
        check_is_fitted(self)
        run = self.run_
        encoded = [chunk.x for chunk in run.scoring(self._source(X), {}).chunks]
        with torch.no_grad(), fork_rng(run.device), _in_the_middle(run.flow):
            seed_noise(run.device, 0)
            return np.concatenate([run.flow.encode(x.to(run.device)).cpu().numpy() for x in encoded])

    def inverse_transform(self, X: Any) -> Any:
        """Rows that noise stands for: ``inverse_transform(transform(X))`` is X, to what its cells and units round.

        Args:
            X: noise ``(n, features)``.

        Returns:
            An array, or a pandas data frame where ``fit`` saw a data frame.

        Raises:
            ValueError: for another number of columns.
        """
        check_is_fitted(self)
        run = self.run_
        z = torch.from_numpy(np.asarray(X, dtype=np.float64)).to(run.device)
        with torch.no_grad():
            x = run.flow.decode(z)
        return self._returned(run.schema.decode(x.cpu().numpy(), clip=False))

    @property
    def _n_features_out(self) -> int:
        return self.run_.flow.base.event_shape.numel()


@dataclass(kw_only=True, eq=False, repr=False)
class FlowOutlier(OutlierMixin, _Density):
    """Rows that are unlikely under the density of a table, as ``FlowDensity`` learns it.

    A score is the log-likelihood, lowered where a row is stranger when it is looked at less sharply, as ``diffeo
    anomalies`` has it; of runs that know no held-out rows, such as those of a few rows, the log-likelihood. Scores of
    training rows are out of fold: by the part of the stack that has not been trained on them, so that the threshold is
    that of new rows. A value off its column's grid makes a row an outlier, but not where such values are usual.

    Args:
        model: a recipe's name; by default what ``diffeo fit`` chooses for the columns.
        arguments: of the recipe, such as ``{"hidden": [64, 64], "transforms": 3}``.
        contamination: the share of the training rows that are outliers, in (0, 0.5].
        folds: how many parts of the rows are held out in turn; by default 5 for tables of 50 to 20,000 rows, else 1.
        epochs: the budget in epochs.
        minutes: the budget in minutes.
        batch_size: rows per step.
        lr: the highest learning rate.
        categorical: columns that hold categories, whatever they look like.
        integer: columns of whole numbers.
        continuous: columns with a smooth density.
        dates: columns of dates or times.
        n_jobs: how many folds are trained side by side; 1 by default, -1 for all cores.
        device: where to compute; a GPU if there is one.
        random_state: decides folds, initial weights and noise; an int makes ``fit`` reproducible.

    Attributes:
        offset_: the score below which a row is an outlier.
        run_: the density, in double precision, and the schema of the columns: what a run directory holds.
        n_features_in_: how many columns ``fit`` saw.
        feature_names_in_: their names, of a data frame.
    """

    contamination: float = 0.01

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn the density of the rows, and the threshold of outliers.

        Args:
            X: ``(n, columns)``, an array or a data frame.
            y: ignored.
            sample_weight: how much each row counts ``(n,)``, at least 0; all alike by default.

        Raises:
            ValueError: for bad input or parameters.
        """
        if not 0 < self.contamination <= 0.5:
            raise ValueError(f"expected contamination in (0, 0.5], got {self.contamination}")
        self._learn(self._source(X, reset=True), sample_weight)
        self.offset_ = _threshold(self.score_samples(X), self.contamination, sample_weight)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """``score_samples(X) - offset_``: negative of outliers.

        Args:
            X: ``(n, columns)``.

        Returns:
            ``(n,)``, in nats.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Tell outliers, -1, from other rows, 1.

        Args:
            X: ``(n, columns)``.

        Returns:
            ``(n,)``.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _also(self) -> dict[str, Any]:
        return {"offset": self.offset_}

    def _restore(self) -> None:
        super()._restore()
        stored = self.run_.provenance.get("estimator", {}).get("offset")
        known = HeldOut.of(self.run_).law.scores.numpy() if stored is None else None
        self.offset_ = float(stored) if known is None else _threshold(known, self.contamination)

    def _scorer(self) -> Callable[[Chunk, int], np.ndarray]:
        if self.run_.seen is None or not self.run_.seen.held_out.any():
            return super()._scorer()
        held_out = HeldOut.of(self.run_)
        return lambda chunk, draws: held_out.judged(chunk, draws)[1].numpy()


class FlowImputer(OneToOneFeatureMixin, TransformerMixin, _Estimator):
    """Missing cells, drawn given the others of their row by a mixed density of any order.

    Args:
        arguments: of the mixed density, such as ``{"hidden": 128, "layers": 2}``.
        folds: how many parts of the rows are held out in turn; by default 5 for tables of 50 to 20,000 rows, else 1.
        epochs: the budget in epochs.
        minutes: the budget in minutes.
        batch_size: rows per step.
        lr: the highest learning rate.
        categorical: columns that hold categories, whatever they look like.
        integer: columns of whole numbers.
        continuous: columns with a smooth density.
        dates: columns of dates or times.
        n_jobs: how many folds are trained side by side; 1 by default, -1 for all cores.
        device: where to compute; a GPU if there is one.
        random_state: decides folds, initial weights and what is drawn; an int makes all of it reproducible.

    Attributes:
        run_: the density, in double precision, and the schema of the columns: what a run directory holds.
        n_features_in_: how many columns ``fit`` saw.
        feature_names_in_: their names, of a data frame.
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn the density of rows with gaps.

        Args:
            X: ``(n, columns)``, an array or a data frame; NaN or null is a gap.
            y: ignored.
            sample_weight: how much each row counts ``(n,)``, at least 0; all alike by default.

        Raises:
            ValueError: for bad input or parameters.
        """
        self._learn(self._source(X, reset=True), sample_weight, model="mixed")
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Fill the gaps of rows: each is drawn given the other cells of its row; these stay as they are.

        Args:
            X: ``(n, columns)``.

        Returns:
            ``(n, columns)``; of objects where not all columns are numbers.
        """
        check_is_fitted(self)
        run = self.run_
        table = run.gaps(self._source(X), {})
        filled = []
        with fork_rng(run.device):
            for number, (x, cells) in enumerate(table.chunks):
                known = ~x.isnan()
                seed_noise(run.device, derive(run.provenance["seed"], "impute", number, 0))
                full = run.flow.complete(x.to(run.device), known.to(run.device), gaps=False)
                filled.append(run.filled(full, known, cells, table.names))
        result = np.concatenate(filled)
        return result.astype(np.float64) if not hasattr(self, "feature_names_in_") else result


@dataclass(kw_only=True, eq=False, repr=False)
class FlowRegressor(RegressorMixin, _Estimator):
    """The density of one target or several given the other columns: quantiles, intervals, means and draws.

    A conditional stack, as ``diffeo fit --context`` makes it. Quantiles of one target are exact; of several they are
    those of 400 draws, the same noise for every row, and each target's own.

    Args:
        model: a recipe's name; by default what ``diffeo fit`` chooses for the columns.
        arguments: of the recipe, such as ``{"hidden": [64, 64], "transforms": 3}``.
        point: what ``predict`` gives: "mean" or "median".
        folds: how many parts of the rows are held out in turn; by default 5 for tables of 50 to 20,000 rows, else 1.
        epochs: the budget in epochs.
        minutes: the budget in minutes.
        batch_size: rows per step.
        lr: the highest learning rate.
        categorical: columns that hold categories, whatever they look like.
        integer: columns of whole numbers.
        continuous: columns with a smooth density.
        dates: columns of dates or times.
        n_jobs: how many folds are trained side by side; 1 by default, -1 for all cores.
        device: where to compute; a GPU if there is one.
        random_state: decides folds, initial weights and noise; an int makes ``fit`` reproducible.

    Attributes:
        targets_: the names of the targets, in the order of their predictions.
        run_: the density, in double precision, and the schema of the columns: what a run directory holds.
        n_features_in_: how many columns ``fit`` saw in X.
        feature_names_in_: their names, of a data frame.
    """

    model: str | None = None
    point: str = "mean"

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = False  # a context is complete; FlowImputer before it fills gaps
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn the density of y given X.

        Args:
            X: ``(n, columns)``, an array or a data frame, without gaps.
            y: ``(n,)`` or ``(n, targets)``, numbers.
            sample_weight: how much each row counts ``(n,)``, at least 0; all alike by default.

        Raises:
            ValueError: for bad input or parameters.
        """
        if self.point not in ("mean", "median"):
            raise ValueError(f"expected point to be 'mean' or 'median', got {self.point!r}")
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        names = _target_names(y)
        source = self._source(X, reset=True)
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y", allow_nd=False)
        if y.ndim == 2 and y.shape[1] == 1:
            message = "A column-vector y was passed when a 1d array was expected"
            warnings.warn(message, DataConversionWarning, stacklevel=2)
        check_consistent_length(X, y)
        columns = y[:, None] if y.ndim == 1 else y
        table = _as_arrow(source)
        context = list(table.column_names)
        names = names if len(names) == columns.shape[1] else [f"y{i}" for i in range(columns.shape[1])]
        for name, column in zip(names, columns.T, strict=True):
            table, _ = _with_column(table, name, column)
        self._learn(table, sample_weight, context=context)
        check_targets(self.run_)
        self._one = y.ndim == 1 or y.shape[1] == 1
        self.targets_ = self._targets()
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Mean or median of each target, as ``point`` says.

        Args:
            X: ``(n, columns)``.

        Returns:
            ``(n,)``, or ``(n, targets)`` of several.
        """
        check_is_fitted(self)
        if self.point == "median":
            return self.predict_quantiles(X, [0.5])[..., 0]
        parts = []
        for context in self._contexts(X):
            points, weights = predicted_points(self.run_, self.run_.flow, context)
            parts.append(np.einsum("nmt,m->nt", points, weights))
        return self._shaped(np.concatenate(parts))

    def predict_quantiles(self, X: Any, quantiles: Sequence[float] = (0.05, 0.5, 0.95)) -> np.ndarray:
        """Quantiles of each target.

        Args:
            X: ``(n, columns)``.
            quantiles: their levels, in (0, 1).

        Returns:
            ``(n, Q)``, or ``(n, targets, Q)`` of several.

        Raises:
            ValueError: for levels outside (0, 1).
        """
        check_is_fitted(self)
        run, levels = self.run_, np.asarray(quantiles, dtype=np.float64)
        if levels.ndim != 1 or not ((levels > 0) & (levels < 1)).all():
            raise ValueError(f"expected quantiles in (0, 1), such as [0.05, 0.5, 0.95], got {quantiles}")
        parts = [predicted_quantiles(run, run.flow, context, levels.tolist()) for context in self._contexts(X)]
        return self._shaped(np.concatenate(parts))

    def predict_interval(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        """The central interval that holds each target with this probability.

        Args:
            X: ``(n, columns)``.
            coverage: in (0, 1).

        Returns:
            Lower and upper ends, ``(n, 2)``, or ``(n, targets, 2)`` of several.

        Raises:
            ValueError: for a coverage outside (0, 1).
        """
        return self.predict_quantiles(X, [(1 - coverage) / 2, (1 + coverage) / 2])

    def sample(self, X: Any, n_samples: int = 1, random_state: int | np.random.RandomState | None = None) -> np.ndarray:
        """Draw targets given each row; nothing is outside the range of the training.

        Args:
            X: ``(n, columns)``.
            n_samples: how many for each row.
            random_state: the same int draws the same targets.

        Returns:
            ``(n, n_samples)``, or ``(n, n_samples, targets)`` of several.

        Raises:
            ValueError: for a number below 1.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"expected n_samples >= 1, got {n_samples}")
        run, seed = self.run_, _seed(random_state)
        draws, _ = run.draws(n_samples, {"given_from": self._source(X)})
        places = [run.schema.names.index(name) for name in self.targets_]
        parts = []
        with fork_rng(run.device):
            for draw in draws:
                assert draw.context is not None
                seed_noise(run.device, derive(seed, "sample", draw.key))
                drawn = run.flow.sample((), draw.context.to(run.device)).cpu().numpy()
                parts.append(run.schema.decode(drawn, draw.about)[:, places].astype(np.float64))
        drawn = np.concatenate(parts).reshape(-1, n_samples, len(places))
        return drawn[..., 0] if self._one else drawn

    def _contexts(self, X: Any) -> Iterator[torch.Tensor]:
        """The rows as the flow takes them, a batch at a time."""
        draws, _ = self.run_.draws(1, {"given_from": self._source(X)})
        for draw in draws:
            assert draw.context is not None
            yield draw.context.to(self.run_.device)

    def _shaped(self, predicted: np.ndarray) -> np.ndarray:
        """Predictions (n, targets, ...), without the targets' axis of one target."""
        return predicted[:, 0] if self._one else predicted

    def _targets(self) -> list[str]:
        return [column.name for column in self.run_.schema.feature_columns]

    def _columns(self) -> list[str]:
        return [name for name in super()._columns() if name in self.run_.schema.context]

    def _restore(self) -> None:
        check_targets(self.run_)
        super()._restore()
        self.targets_ = self._targets()
        self._one = len(self.targets_) == 1


def _threshold(scores: np.ndarray, share: float, weights: Any = None) -> float:
    """The score that this share of the rows, by their weights if there are any, is below."""
    if weights is None:
        return float(np.percentile(scores, 100 * share))
    return float(np.quantile(scores, share, weights=np.asarray(weights, dtype=np.float64), method="inverted_cdf"))


def _as_arrow(source: Any) -> pa.Table:
    """A table of an array, whose columns are called as ``open_table`` does, or of a frame."""
    if isinstance(source, np.ndarray):
        return pa.table({f"c{i}": column for i, column in enumerate(source.T)})
    return pa.RecordBatchReader.from_stream(source).read_all()


def _with_column(table: pa.Table, name: str, values: np.ndarray) -> tuple[pa.Table, str]:
    """A table with another column, and what that is called in the end: no other column is."""
    while name in table.column_names:
        name += "_"
    return table.append_column(name, pa.array(values)), name


def _target_names(y: Any) -> list[str]:
    """What a series or the columns of a frame are called; else y."""
    if hasattr(y, "columns"):
        return [str(name) for name in y.columns]
    name = getattr(y, "name", None)
    return [name if isinstance(name, str) else "y"]


def _seed(random_state: int | np.random.RandomState | None) -> int:
    """An int is the seed itself, as of the command line; else one is drawn."""
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _plain(value: Any) -> Any:
    """A number of numpy's, as searches over parameters set them, as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _is_frame(X: Any) -> bool:
    return hasattr(X, "__arrow_c_stream__") and hasattr(X, "columns")


@contextmanager
def _in_the_middle(flow: Flow) -> Iterator[None]:
    """A block in which discrete values stand for the middle of their cells, in place of a random place in them."""
    parts = [part for part in flow.modules() if isinstance(part, Dequantize)]
    try:
        for part in parts:
            part.noise = torch.full_like(part.step, 0.5)
        yield
    finally:
        for part in parts:
            part.noise = None

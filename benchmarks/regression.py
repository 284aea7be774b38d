"""Intervals and quantiles of `FlowRegressor`, with no options, beside quantile gradient boosting.

diffeo            `diffeo.sklearn.FlowRegressor()`: one conditional stack, whose quantiles are all consistent
boosting          scikit-learn's GradientBoostingRegressor(loss="quantile"), a model for each level
histograms        scikit-learn's HistGradientBoostingRegressor(loss="quantile"), a model for each level
marginal          quantiles of the training rows' targets, whatever x: what knowing x is worth

Each of --splits splits, made by its seed, holds out a tenth of the rows; columns are as in the files, the last one is
the target. Printed are, means over the splits with their standard errors:

coverage          share of held-out targets between the 5 % and 95 % quantiles: 90 % if these are right
width             of that interval, in standard deviations of the training rows' targets
CRPS              2 x the mean pinball loss over the levels 5, 10, ..., 95 %, in such standard deviations: the
                  continuous ranked probability score by its quantiles, alike for all. Lower is better.

DIFFEO_DATA=... OMP_NUM_THREADS=1 python benchmarks/regression.py [--tables ...] [--splits 5] [--out results.json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingRegressor

from diffeo.sklearn import FlowRegressor

TABLES = ("autompg", "housing", "machine", "servo", "yacht")
LEVELS = np.arange(1, 20) / 20
Model = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


def diffeo(x: np.ndarray, y: np.ndarray, new: np.ndarray, seed: int) -> np.ndarray:
    """Quantiles (n, Q) of new rows by one conditional density."""
    return FlowRegressor(random_state=seed).fit(x, y).predict_quantiles(new, LEVELS)


def boosting(x: np.ndarray, y: np.ndarray, new: np.ndarray, seed: int) -> np.ndarray:
    """Quantiles (n, Q) of new rows by a boosted ensemble for each."""
    models = (GradientBoostingRegressor(loss="quantile", alpha=level, random_state=seed) for level in LEVELS)
    return np.stack([model.fit(x, y).predict(new) for model in models], 1)


def histograms(x: np.ndarray, y: np.ndarray, new: np.ndarray, seed: int) -> np.ndarray:
    """Quantiles (n, Q) of new rows by a boosted ensemble of histograms for each."""
    models = (HistGradientBoostingRegressor(loss="quantile", quantile=level, random_state=seed) for level in LEVELS)
    return np.stack([model.fit(x, y).predict(new) for model in models], 1)


def marginal(x: np.ndarray, y: np.ndarray, new: np.ndarray, seed: int) -> np.ndarray:
    """Quantiles (n, Q) of the training targets."""
    return np.tile(np.quantile(y, LEVELS), (len(new), 1))


MODELS: dict[str, Model] = {
    "diffeo": diffeo, "boosting": boosting, "histograms": histograms, "marginal": marginal,
}  # fmt: skip


def measures(quantiles: np.ndarray, y: np.ndarray, unit: float) -> dict[str, float]:
    """Coverage and width of the interval between the outermost quantiles (n, Q), and the CRPS, of targets (n,)."""
    low, high = quantiles[:, 0], quantiles[:, -1]
    off = y[:, None] - quantiles
    pinball = np.maximum(LEVELS * off, (LEVELS - 1) * off)
    return {
        "coverage": float(((y >= low) & (y <= high)).mean()),
        "width": float((high - low).mean() / unit),
        "crps": float(2 * pinball.mean() / unit),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=TABLES)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--out", type=Path, help="a JSON file of all results, written after each split")
    options = parser.parse_args()
    folder = Path(os.environ.get("DIFFEO_DATA", "data")) / "small"
    results: list[dict[str, object]] = []
    for seed in range(options.splits):
        for table in options.tables:
            rows = np.loadtxt(folder / f"{table}.csv.gz", delimiter=",")
            order = np.random.default_rng(seed).permutation(len(rows))
            held, train = rows[order[: len(rows) // 10]], rows[order[len(rows) // 10 :]]
            for name in options.models:
                started = time.perf_counter()
                quantiles = MODELS[name](train[:, :-1], train[:, -1], held[:, :-1], seed)
                seconds = time.perf_counter() - started
                measured = measures(quantiles, held[:, -1], float(train[:, -1].std()))
                results.append({"table": table, "split": seed, "model": name, "seconds": seconds, **measured})
                print(f"  {table} {seed} {name}: " + ", ".join(f"{k} {v:.3f}" for k, v in measured.items()), flush=True)
            if options.out:
                options.out.write_text(json.dumps(results, indent=1))
    for table in options.tables:
        print(table)
        report([each for each in results if each["table"] == table], options.models)
    if len(options.tables) > 1:
        print(f"all {len(options.tables)} tables")
        report(results, options.models)


def report(results: list[dict[str, object]], models: list[str]) -> None:
    """Print a line for each model."""
    print(f"| {'model':<10} | {'coverage':>13} | {'width':>13} | {'CRPS':>15} | seconds |")
    for name in models:
        mine = [each for each in results if each["model"] == name]
        cells = []
        for measure, digits in (("coverage", 3), ("width", 3), ("crps", 4)):
            values = np.array([each[measure] for each in mine], dtype=float)
            error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            cells.append(f"{values.mean():.{digits}f} ± {error:.{digits}f}")
        seconds = np.mean([float(str(each["seconds"])) for each in mine])
        print(f"| {name:<10} | {' | '.join(cells)} | {seconds:7.1f} |", flush=True)


if __name__ == "__main__":
    main()

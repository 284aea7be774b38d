"""What else fills gaps of a table of categories and numbers: modes and means, nearest neighbours, forests.

`python benchmarks/mixed_imputers.py --table adult` removes a fifth of the cells of held-out rows and measures each; a
`--csv FILE` of the same rows with their gaps filled (`--gaps FILE` writes them out) is measured beside.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.impute import KNNImputer

from mixed_data import TABLES, Table, load
from mixed_measures import align, imputation, name_of, remove_cells

SWEEPS, TREES, LEAF = 5, 50, 5


class Codes:
    """Rows as numbers, (N, D): categories by their place among those of the training rows, gaps as NaN."""

    def __init__(self, table: Table):
        self.table = table
        self.levels = {c: sorted(table.train[c].dropna().unique()) for c in table.categorical}

    def encode(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the rows' codes; a category that no training row has is a gap."""
        columns = []
        for name in rows.columns:
            if name in self.levels:
                places = {name_of(level): place for place, level in enumerate(self.levels[name])}
                columns.append(rows[name].map(name_of).map(places))
            else:
                columns.append(rows[name])
        return np.column_stack([c.to_numpy(dtype="float64") for c in columns])

    def decode(self, codes: np.ndarray, rows: pd.DataFrame) -> pd.DataFrame:
        """Return ``rows`` with their gaps filled from the codes."""
        filled = {}
        for k, name in enumerate(rows.columns):
            values = pd.Series(codes[:, k], rows.index)
            if name in self.levels:
                values = values.astype(int).map(dict(enumerate(self.levels[name])))
            filled[name] = rows[name].where(rows[name].notna(), values)
        return pd.DataFrame(filled)


def typical(train: np.ndarray, table: Table) -> np.ndarray:
    """Return the mode of each categorical column's codes, the mean of each numeric column, (D,)."""
    categorical = [c in table.categorical for c in table.train.columns]
    return np.array(
        [
            np.bincount(x[~np.isnan(x)].astype(int)).argmax() if discrete else np.nanmean(x)
            for x, discrete in zip(train.T, categorical, strict=True)
        ]
    )


def by_typical(gaps: pd.DataFrame, table: Table, seed: int, draws: int) -> list[pd.DataFrame]:
    """Modes and means."""
    codes = Codes(table)
    values = typical(codes.encode(table.train), table)
    return [codes.decode(np.tile(values, (len(gaps), 1)), gaps)]


def by_columns(gaps: pd.DataFrame, table: Table, seed: int, draws: int) -> list[pd.DataFrame]:
    """Draws of each column alone: cells of random training rows."""
    rng, codes = np.random.default_rng(seed), Codes(table)
    present = [x[~np.isnan(x)] for x in codes.encode(table.train).T]
    return [codes.decode(np.column_stack([rng.choice(x, len(gaps)) for x in present]), gaps) for _ in range(draws)]


def by_neighbours(gaps: pd.DataFrame, table: Table, seed: int, draws: int, rows: int = 5000) -> list[pd.DataFrame]:
    """scikit-learn's KNNImputer, 10 of ``rows`` training rows: one-hot categories, standardised numbers."""
    codes = Codes(table)
    subset = table.train.sample(min(rows, len(table.train)), random_state=seed)
    both = pd.concat([subset, gaps], ignore_index=True)
    numeric = list(table.numeric)
    both[numeric] = (both[numeric] - table.train[numeric].mean()) / table.train[numeric].std()
    places = codes.encode(both)
    blocks, spans, width = [], [], 0
    for k, name in enumerate(both.columns):
        block = places[:, [k]]
        if name in codes.levels:
            block = np.where(np.isnan(block), np.nan, block == np.arange(len(codes.levels[name]))) / np.sqrt(2)
        blocks.append(block)
        spans.append(slice(width, width + block.shape[1]))
        width += block.shape[1]
    x = np.column_stack(blocks)
    imputer = KNNImputer(n_neighbors=10, keep_empty_features=True).fit(x[: len(subset)])
    result = imputer.transform(x[len(subset) :])
    columns = []
    for name, span in zip(both.columns, spans, strict=True):
        if name in codes.levels:
            columns.append(result[:, span].argmax(1))
        else:
            columns.append(result[:, span.start] * table.train[name].std() + table.train[name].mean())
    return [codes.decode(np.column_stack(columns), gaps)]


class Forests:
    """Extremely randomised trees that predict each column from all others, grown on the training rows.

    scikit-learn's IterativeImputer could hold the same trees, but regresses categories, as if their codes were numbers.
    """

    def __init__(self, table: Table, seed: int, rows: int = 10_000):
        self.codes = Codes(table)
        x = self.codes.encode(table.train.sample(min(rows, len(table.train)), random_state=seed))
        self.start, present = typical(x, table), ~np.isnan(x)
        self.x = np.where(present, x, self.start)
        self.rng = np.random.default_rng(seed)
        self.columns = []
        for k, name in enumerate(table.train.columns):
            kind = ExtraTreesClassifier if name in table.categorical else ExtraTreesRegressor
            forest = kind(TREES, min_samples_leaf=LEAF, random_state=seed)
            known = present[:, k]
            self.columns.append((forest.fit(np.delete(self.x[known], k, 1), x[known, k]), x[known, k], known))

    def sweep(
        self, gaps: pd.DataFrame, copies: int, value: Callable[[int, np.ndarray], np.ndarray]
    ) -> list[np.ndarray]:
        """Return ``copies`` of the codes of the rows, each gap filled again and again from the other columns."""
        x = np.tile(self.codes.encode(gaps), (copies, 1))
        missing = np.isnan(x)
        x = np.where(missing, self.start, x)
        for _ in range(SWEEPS):
            for k in range(x.shape[1]):
                if (rows := missing[:, k]).any():
                    x[rows, k] = value(k, np.delete(x[rows], k, 1))
        return np.split(x, copies)

    def predict(self, k: int, others: np.ndarray) -> np.ndarray:
        """Return the forest's class or mean for column ``k``."""
        return self.columns[k][0].predict(others)

    def draw(self, k: int, others: np.ndarray) -> np.ndarray:
        """Return values of column ``k`` of training rows, each a random one in the same leaf of a random tree."""
        forest, values, known = self.columns[k]
        training = np.delete(self.x[known], k, 1).astype("float32")
        others, chosen = others.astype("float32"), self.rng.integers(TREES, size=len(others))
        result = np.empty(len(others))
        for t in np.unique(chosen):
            tree, rows = forest.estimators_[t], chosen == t
            leaves = tree.apply(training)
            order = np.argsort(leaves, kind="stable")
            first, last = (np.searchsorted(leaves[order], tree.apply(others[rows]), side) for side in ("left", "right"))
            result[rows] = values[order[self.rng.integers(first, last)]]
        return result


def by_forests(gaps: pd.DataFrame, table: Table, seed: int, draws: int) -> list[pd.DataFrame]:
    """MissForest (Stekhoven and Buehlmann, 2012), with extra trees: classes and means."""
    forests = Forests(table, seed)
    return [forests.codes.decode(x, gaps) for x in forests.sweep(gaps, 1, forests.predict)]


def by_forest_draws(gaps: pd.DataFrame, table: Table, seed: int, draws: int) -> list[pd.DataFrame]:
    """Multiple imputation by chained forests (Doove et al., 2014), with extra trees: values of the same leaf."""
    forests = Forests(table, seed)
    return [forests.codes.decode(x, gaps) for x in forests.sweep(gaps, draws, forests.draw)]


IMPUTERS = {
    "mode, mean": by_typical,
    "draws of columns": by_columns,
    "KNNImputer": by_neighbours,
    "extra trees (MissForest)": by_forests,
    "extra trees, draws (MICE)": by_forest_draws,
}


def hold_out(table: Table, rows: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return ``rows`` of the test rows, the same with a fifth of their cells removed, and where these were."""
    truth = table.test.sample(min(rows, len(table.test)), random_state=seed).reset_index(drop=True)
    return truth, *remove_cells(truth, seed=seed)


def read_draws(path: Path, gaps: pd.DataFrame, table: Table) -> list[pd.DataFrame]:
    """Return the draws of a csv file: one set of rows after another, or numbered by a column called draw."""
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    if "draw" in frame.columns and "draw" not in gaps.columns:
        frame = frame.sort_values("draw", kind="stable", ignore_index=True)
    if not len(frame) or len(frame) % len(gaps):
        raise SystemExit(f"expected a multiple of {len(gaps)} rows in {path}, got {len(frame)}")
    frame = align(frame, table.train)
    sets = [frame.iloc[k : k + len(gaps)].reset_index(drop=True) for k in range(0, len(frame), len(gaps))]
    return [gaps.where(gaps.notna(), filled) for filled in sets]


def report(table: Table, rows: int, seed: int, draws: int, files: dict[str, Path]) -> Iterator[str]:
    """The lines of a markdown table: what the files hold beside every imputer."""
    truth, gaps, removed = hold_out(table, rows, seed)
    yield f"{len(truth)} held-out rows, {int(removed.sum().sum())} of their cells removed\n"
    yield "| imputer | draws | accuracy | CRPS, sd | coverage of 90 % | seconds |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    sources = {name: (lambda path=path: read_draws(path, gaps, table)) for name, path in files.items()}
    sources |= {name: (lambda impute=impute: impute(gaps, table, seed, draws)) for name, impute in IMPUTERS.items()}
    for name, source in sources.items():
        start = time.perf_counter()
        filled = source()
        seconds = "-" if name in files else f"{time.perf_counter() - start:.1f}"
        r = imputation(truth, removed, filled, table, seed)
        coverage = f"{r['coverage']:.3f}" if len(filled) > 1 else "-"
        yield f"| {name} | {len(filled)} | {r['accuracy']:.4f} | {r['CRPS']:.4f} | {coverage} | {seconds} |"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, required=True)
    parser.add_argument("--csv", type=Path, help="also measure these rows with gaps filled")
    parser.add_argument("--gaps", type=Path, help="write the rows with their gaps to this csv file, and stop")
    parser.add_argument("--rows", type=int, default=2000, help="held-out rows (2000)")
    parser.add_argument("--draws", type=int, default=19, help="draws of those that can draw (19)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", type=int, default=0, help="seed of Beijing's and Magic's split (0)")
    args = parser.parse_args()
    table = load(args.table, args.split)
    if args.gaps:
        hold_out(table, args.rows, args.seed)[1].to_csv(args.gaps, index=False)
        return
    files = {args.csv.name: args.csv} if args.csv else {}
    for line in report(table, args.rows, args.seed, args.draws, files):
        print(line, flush=True)


if __name__ == "__main__":
    main()

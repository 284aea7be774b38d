"""How good samples of a table of categories and numbers are: detection, shape and trend, utility, privacy, imputation.

`python benchmarks/mixed_measures.py REAL.csv SAMPLES.csv` prints the detection score. In Python, on frames:

c2st         1 for a perfect sampler, 0 for samples that a classifier always tells from real rows
quality      shape (columns) and trend (pairs of columns), 1 where they equal the real rows'
utility      what XGBoost learns from the samples, tested on real rows: AUC of a class, RMSE of a logarithm
privacy      how much closer to training rows the samples lie than rows that are as new
imputation   what was put into removed cells: accuracy of categories, CRPS of numbers, coverage of intervals
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.stats import ks_2samp

from mixed_data import Table

MISSING = "(missing)"  # the category of a gap


def align(samples: pd.DataFrame, real: pd.DataFrame) -> pd.DataFrame:
    """Return the samples with the columns and the kinds of the real rows: text as text, numbers as numbers.

    Raises:
        ValueError: if a column is missing, or has text where numbers belong.
    """
    if absent := [c for c in real.columns if c not in samples.columns]:
        raise ValueError(f"expected samples with the columns {', '.join(real.columns)}, got none called {absent[0]}")
    result = {}
    for name in real.columns:
        if pd.api.types.is_numeric_dtype(real[name]):
            try:
                result[name] = pd.to_numeric(samples[name]).astype("float64")
            except ValueError as error:
                raise ValueError(f"expected numbers in column {name} of the samples, got {error}") from error
            continue
        result[name] = samples[name].astype("object").where(samples[name].notna(), None)
    return pd.DataFrame(result, index=samples.index)


def filled(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with text as objects, a category of its own for its gaps; numbers keep theirs."""
    text = [c for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])]
    return frame.assign(**{c: frame[c].astype("object").where(frame[c].notna(), MISSING) for c in text})


def one_hot(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with a column of zeros and ones for each category of each column of text."""
    full = filled(frame)
    return pd.get_dummies(full, columns=list(full.select_dtypes("object")), dtype="float64")


def c2st(real: pd.DataFrame, synthetic: pd.DataFrame, seed: int = 0) -> float:
    """Return the classifier two-sample test's score, 1 - 2 max(AUC - 1/2, 0), averaged over three folds.

    sdmetrics' detection metric with XGBoost's default classifier, as TabPC's authors measure their models and others':
    text is one-hot, a gap is a category, numbers stay numbers (also Beijing's, where they stand for categories); the
    real rows are those for training, and the samples are as many.

    Args:
        real: rows of the data; the kinds of its columns decide.
        synthetic: samples with the same columns.
        seed: of the folds.

    Reference: Lopez-Paz and Oquab, Revisiting classifier two-sample tests, 2017.
    """
    from sdmetrics.single_table.detection.sklearn import ScikitLearnClassifierDetectionMetric
    from xgboost import XGBClassifier

    class Detection(ScikitLearnClassifierDetectionMetric):
        @staticmethod
        def _get_classifier():
            return XGBClassifier(eval_metric="logloss", enable_categorical=True, random_state=0)

    # Encoded together, where sdmetrics encodes by the real rows and refuses a category that none of them has.
    both = one_hot(pd.concat([real, align(synthetic, real)], ignore_index=True))
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002 - sdmetrics shuffles its folds by the global generator
    try:
        return float(Detection.compute(both.iloc[: len(real)], both.iloc[len(real) :]))
    finally:
        np.random.set_state(state)  # noqa: NPY002


def quality(real: pd.DataFrame, synthetic: pd.DataFrame, categorical: Sequence[str]) -> tuple[float, float]:
    """Return shape and trend, means over columns and over pairs of columns, as in sdmetrics' quality report.

    Shape is 1 - KS of a numeric column, 1 - TV of a categorical one. Trend is 1 - |difference of correlations| / 2 of
    two numeric columns, else 1 - TV of the contingency tables, with numbers in ten bins of the real rows' range.
    Written out here because sdmetrics 0.32 leaves out pairs that depend weakly, which earlier releases counted.
    """
    both = (filled(real), filled(align(synthetic, real)))
    text = {c: [f[c].map(name_of) for f in both] for c in categorical}
    numbers = {c: [f[c].to_numpy(dtype="float64") for f in both] for c in real.columns if c not in categorical}
    # The outermost bins are open, and a gap comes after them all.
    edges = {c: [-np.inf, *np.histogram_bin_edges(x[~np.isnan(x)])[1:-1], np.inf] for c, (x, _) in numbers.items()}
    bins = {
        c: [pd.Series(np.digitize(x, edges[c]), f.index) for x, f in zip(numbers[c], both, strict=True)]
        for c in numbers
    }
    bins |= text
    shapes = [1 - variation(*text[c]) for c in categorical]
    shapes += [1 - ks_2samp(*(x[~np.isnan(x)] for x in numbers[c])).statistic for c in numbers]
    trends = []
    for one, other in combinations(real.columns, 2):
        if one in numbers and other in numbers:
            rho = [f[one].corr(f[other]) for f in both]
            trends.append(1 - abs(rho[0] - rho[1]) / 2)
        else:
            trends.append(
                1 - variation(*(bins[one][k].astype(str) + "\0" + bins[other][k].astype(str) for k in (0, 1)))
            )
    return float(np.mean(shapes)), float(np.nanmean(trends))  # a constant column correlates with none


def variation(real: pd.Series, synthetic: pd.Series) -> float:
    """Return the total variation distance of two columns of categories."""
    shares = [column.value_counts(normalize=True) for column in (real, synthetic)]
    return float(shares[0].sub(shares[1], fill_value=0).abs().sum() / 2)


GRID = {"max_depth": (5, 10, 20), "min_child_weight": (1, 10), "gamma": (0.0, 1.0)}
TREES = (10, 50, 100)


def utility(train: pd.DataFrame, table: Table, seed: int = 0) -> float:
    """Return what XGBoost, trained on ``train``, comes to on the table's test rows: AUC, or RMSE for a number.

    TabSyn's grid of 36 settings, chosen on a random ninth of the rows. A number is predicted as log(clip(y, 1, 20000)),
    in which the RMSE is; unlike TabSyn's code, also where settings are chosen. Rows without a target are left out.
    """
    from sklearn.metrics import roc_auc_score, root_mean_squared_error
    from xgboost import XGBClassifier, XGBRegressor

    train = align(train, table.train).dropna(subset=[table.target]).reset_index(drop=True)
    both = pd.concat([train, table.test], ignore_index=True)
    if table.is_regression:
        y = np.log(both[table.target].clip(1, 20_000)).to_numpy(dtype="float64")
        model, score = XGBRegressor, lambda truth, guess: -root_mean_squared_error(truth, guess)
    else:
        y = (both[table.target] == max(table.train[table.target])).to_numpy(dtype="int64")
        model, score = XGBClassifier, roc_auc_score
        if y[: len(train)].min() == y[: len(train)].max():
            return 0.5  # samples of one class teach nothing
    inputs = [c for c in both.columns if c != table.target]
    text = {c: both[c].map(name_of) for c in inputs if c in table.categorical}
    x = one_hot(both[inputs].assign(**text)).to_numpy(dtype="float32")
    order = np.random.default_rng(seed).permutation(len(train))
    chosen, fitted = np.split(order, [len(order) // 9])
    best, found = -np.inf, None
    for setting in (dict(zip(GRID, values, strict=True)) for values in product(*GRID.values())):
        learner = model(n_estimators=max(TREES), tree_method="hist", random_state=seed, **setting)
        learner.fit(x[fitted], y[fitted])
        for trees in TREES:  # the first trees are those of a shorter training
            value = score(y[chosen], predict(learner, x[chosen], trees))
            if value > best:
                best, found = value, predict(learner, x[len(train) :], trees)
    return abs(float(score(y[len(train) :], found)))


def predict(learner: object, x: np.ndarray, trees: int) -> np.ndarray:
    """Return the probability of the second class, or the number, by the first ``trees`` trees."""
    output = getattr(learner, "predict_proba", learner.predict)(x, iteration_range=(0, trees))
    return output[:, 1] if output.ndim == 2 else output


def name_of(value: object) -> object:
    """Return a category as text, the same for 3 and 3.0; a gap stays one."""
    if pd.isna(value):
        return None
    return str(int(value)) if isinstance(value, float | np.floating) and float(value).is_integer() else str(value)


def privacy(
    samples: pd.DataFrame, train: pd.DataFrame, held_out: pd.DataFrame, table: Table, rows: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return two shares of the samples that tell whether training rows were memorised.

    The first is the share that lies closer to a training row than to a held-out row, among equally many of both (ties
    count half): 0.5 is ideal (TabSyn's DCR score; exact where a model learned half of the rows, diluted where the
    training rows are more than the held-out ones). The second is the share whose nearest training row is closer than
    that of 95 % of the held-out rows: 0.05 is ideal (TabPC's).

    Distances are sums over columns: |difference| / range of the training rows for numbers, 2 for unequal categories.
    At most ``rows`` samples, and held-out rows for the second share, are looked at.
    """
    rng = np.random.default_rng(seed)
    samples = align(samples, table.train)
    samples, some = (f.iloc[rng.permutation(len(f))[:rows]] for f in (samples, held_out))
    equal = min(len(train), len(held_out))
    subset, unseen = (f.iloc[rng.permutation(len(f))[:equal]] for f in (train, held_out))
    near, far = nearest(samples, subset, table), nearest(samples, unseen, table)
    closer = np.mean(near < far) + 0.5 * np.mean(near == far)
    to_training = near if equal == len(train) else nearest(samples, train, table)
    return float(closer), float(np.mean(to_training < np.quantile(nearest(some, train, table), 0.05)))


def nearest(rows: pd.DataFrame, others: pd.DataFrame, table: Table, chunk: int = 256) -> np.ndarray:
    """Return the distance of each row to the nearest of the others, (N,)."""
    numeric = list(table.numeric)
    low, high = table.train[numeric].min(), table.train[numeric].max()
    scale = (high - low).where(high > low, 1)
    numbers = [((f[numeric] - low) / scale).fillna(0.5).to_numpy(dtype="float64") for f in (rows, others)]
    both = pd.concat([rows, others])
    gaps = [both[c].isna() for c in numeric if both[c].isna().any()]  # a gap and a number are unequal categories
    columns = [*(both[c].map(name_of) for c in table.categorical), *gaps]
    codes = np.column_stack([pd.factorize(column)[0] for column in columns]).astype("float64")
    here, there = np.split(codes, [len(rows)])
    result = np.empty(len(rows))
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        unequal = cdist(here[part], there, "hamming") * codes.shape[1]
        result[part] = (cdist(numbers[0][part], numbers[1], "cityblock") + 2 * unequal).min(1)
    return result


def remove_cells(rows: pd.DataFrame, share: float = 0.2, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows with this share of their cells removed at random, and where they were, (N, D) of bool."""
    chosen = np.random.default_rng(seed).random(rows.shape) < share
    removed = pd.DataFrame(chosen, rows.index, rows.columns) & rows.notna()
    return rows.mask(removed), removed


def imputation(
    truth: pd.DataFrame, removed: pd.DataFrame, draws: Sequence[pd.DataFrame], table: Table, seed: int = 0
) -> dict[str, float]:
    """Return accuracy, CRPS and coverage of what one or more draws put into the removed cells.

    ``accuracy``: share of categorical cells whose most frequent draw is right. ``CRPS``: of numeric cells, in standard
    deviations of the training rows, E|X - y| - E|X - X'| / 2 without bias in the number of draws (Gneiting and
    Raftery, 2007); of one draw it is the mean absolute error. ``coverage``: share of numeric cells whose rank among
    the draws lies in the middle nine tenths, ties broken at random, which is 0.9 where the draws follow the truth's
    distribution, whatever their number and however often values repeat; NaN for one draw.
    """
    rng = np.random.default_rng(seed)
    right, errors, inside = [], [], []
    for name in truth.columns:
        cells = removed[name].to_numpy()
        if not cells.any():
            continue
        if name in table.categorical:
            truths = truth[name][cells].map(name_of).to_numpy()
            guesses = pd.DataFrame({k: d[name].to_numpy()[cells] for k, d in enumerate(draws)}).map(name_of)
            right.append(guesses.mode(axis=1)[0].to_numpy() == truths)
            continue
        y = truth[name].to_numpy(dtype="float64")[cells]
        x = np.sort(np.column_stack([d[name].to_numpy(dtype="float64")[cells] for d in draws]), 1)  # (cells, K)
        k = x.shape[1]
        spread = (x * (2 * np.arange(k) - k + 1)).sum(1) / max(k * (k - 1), 1)
        errors.append((np.abs(x - y[:, None]).mean(1) - spread) / table.train[name].std())
        below, ties = (x < y[:, None]).sum(1), (x == y[:, None]).sum(1)
        rank = (below + (ties + 1) * rng.random(len(y))) / (k + 1)
        inside.append((rank > 0.05) & (rank < 0.95))
    means = [float(np.concatenate(v).mean()) if v else float("nan") for v in (right, errors, inside)]
    return {"accuracy": means[0], "CRPS": means[1], "coverage": means[2] if len(draws) > 1 else float("nan")}


def read_samples(path: Path, real: pd.DataFrame, missing: str = "") -> pd.DataFrame:
    """Return the rows of a csv file with the kinds of the real rows; empty cells and ``missing`` are gaps."""
    return align(pd.read_csv(path, keep_default_na=False, na_values=["", "nan", "NaN", missing]), real)


def main() -> None:
    """Prints the detection score of two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, help="csv file of real rows")
    parser.add_argument("samples", type=Path, help="csv file of samples")
    parser.add_argument("--seed", type=int, default=0, help="of the folds (0)")
    args = parser.parse_args()
    real = pd.read_csv(args.real)
    print(f"C2ST {c2st(real, read_samples(args.samples, real), args.seed):.4f}")


if __name__ == "__main__":
    main()

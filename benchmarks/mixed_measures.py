"""How good samples of a table of categories and numbers are: detection, shape and trend, utility, privacy, imputation.

`python benchmarks/mixed_measures.py REAL.csv SAMPLES.csv` prints the detection score. In Python, on frames:

c2st       score of a perfect sampler 1, of samples that a classifier always tells from real rows 0
quality    shape (columns) and trend (pairs of columns), 1 where equal
utility    what XGBoost learns from the samples, tested on real rows
privacy    share of samples that lie closer to a training row than to a held-out one, 0.5 where nothing was memorised
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

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

"""False alarms, the columns that are named, and stability of ``diffeo anomalies``, on five tables of normal rows.

    DIFFEO_DATA=../shared/data python benchmarks/anomalies.py [--splits 3] [--epochs 100] [--out anomalies.md]

Protocol: the normal rows of five sets of ADBench (``adbench/*.npz`` below DIFFEO_DATA; Han et al. 2022), of which a
split draws ``--rows`` to train on by ``diffeo fit``, with no options but a seed and the epochs, and the others are
fresh. False alarms: the share of fresh rows with a p-value of at most 1 % and 5 %; the error is that of the splits'
mean. Named: of ``--trials`` fresh rows one column each, drawn at random among those that are not levels, is moved by 10
of its standard deviations up or down (to the nearest point of its grid); how often ``column`` is that one, and moved by
3. Seeds: the share of flagged rows that are flagged with ``--seed 1``, too, on the fresh rows.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from diffeo import commands
from diffeo.modalities import open_run

TABLES = ("28_pendigits", "31_satimage-2", "32_shuttle", "23_mammography", "2_annthyroid")
LEVELS = (0.01, 0.05)
MOVED = (10, 3)  # standard deviations


class Measured(NamedTuple):
    """Of one split: false alarms by level, shares of moved columns named, flags shared by two seeds, and seconds."""

    alarms: list[float]
    named: list[float]
    shared: float
    seconds: float


def normal_rows(folder: Path, name: str) -> pd.DataFrame:
    """The normal rows of a set."""
    with np.load(folder / "adbench" / f"{name}.npz") as arrays:
        x = arrays["X"][arrays["y"].ravel() == 0].astype(float)
    return pd.DataFrame(x, columns=[f"c{i}" for i in range(x.shape[1])])


def results(run: Path, rows: pd.DataFrame, folder: Path, seed: int = 0, alpha: float = LEVELS[0]) -> pd.DataFrame:
    """What ``diffeo anomalies`` says of rows, in their order."""
    commands.anomalies(run, rows, folder / "a.parquet", alpha=alpha, seed=seed, force=True)
    return pd.read_parquet(folder / "a.parquet").set_index("row").sort_index()


def moved(run: Path, rows: pd.DataFrame, by: float, count: int, seed: int) -> tuple[pd.DataFrame, list[str]]:
    """Rows of which one column each is moved by so many standard deviations, and which."""
    g = np.random.default_rng(seed)
    columns = [column for column in open_run(run, None).schema.columns if column.kind in ("continuous", "integer")]
    chosen, names = rows.sample(count, random_state=seed).reset_index(drop=True), []
    for row in range(count):
        column = columns[g.integers(len(columns))]
        step = by * rows[column.name].std() * g.choice([-1, 1])
        chosen.loc[row, column.name] += column.step * round(step / column.step) if column.step else step
        names.append(column.name)
    return chosen, names


def measure(rows: pd.DataFrame, options: argparse.Namespace, seed: int) -> Measured:
    """Train on some of the rows and judge by the others."""
    started = time.monotonic()
    train = rows.sample(min(options.rows, len(rows) // 2), random_state=seed)
    fresh = rows.drop(train.index).reset_index(drop=True)
    with tempfile.TemporaryDirectory() as name:
        folder, run = Path(name), Path(name) / "run"
        budget = {} if options.epochs is None else {"epochs": options.epochs}
        commands.fit(train.reset_index(drop=True), run, seed=seed, figures=False, **budget)
        one, two = (results(run, fresh, folder, seed) for seed in (0, 1))
        named = []
        for by in MOVED:
            strange, columns = moved(run, fresh, by, options.trials, seed)
            named.append(float((results(run, strange, folder, alpha=1 - 1e-9)["column"] == columns).mean()))
    flags = [part["p_value"] <= LEVELS[0] for part in (one, two)]
    shared = float((flags[0] & flags[1]).sum() / max(1, (flags[0] | flags[1]).sum()))
    alarms = [float((one["p_value"] <= level).mean()) for level in LEVELS]
    return Measured(alarms, named, shared, time.monotonic() - started)


def main() -> None:
    """Measure every table and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DIFFEO_DATA", "../shared/data")))
    parser.add_argument("--tables", nargs="+", default=list(TABLES))
    parser.add_argument("--rows", type=int, default=3000, help="to train on, at most half of them")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--epochs", type=int, help="of each training; by default that of diffeo fit")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    heads = [*(f"false alarms at {level:.0%}" for level in LEVELS), *(f"named, moved by {by} sd" for by in MOVED)]
    lines = [
        f"| table | rows x columns | {' | '.join(heads)} | flags shared by two seeds | s |",
        "| --- | ---: " + "| ---: " * (len(heads) + 2) + "|",
    ]
    print(*lines, sep="\n", flush=True)
    every = []
    for name in options.tables:
        rows = normal_rows(options.data, name)
        each = [measure(rows, options, seed) for seed in range(options.splits)]
        every += [split.alarms[0] for split in each]
        cells = [name, f"{min(options.rows, len(rows) // 2)} x {rows.shape[1]}"]
        cells += [_percent([split.alarms[k] for split in each]) for k in range(len(LEVELS))]
        cells += [f"{np.mean([split.named[k] for split in each]):.1%}" for k in range(len(MOVED))]
        cells += [f"{np.mean([split.shared for split in each]):.1%}", f"{np.mean([s.seconds for s in each]):.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"All tables together: {_percent(every)} at {LEVELS[0]:.0%}. {options.splits} splits, {options.trials} trials,"
        f" {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()},"
        f" {time.strftime('%Y-%m-%d')}.",
    ]
    print(*lines[-2:], sep="\n")
    if options.out:
        options.out.write_text("\n".join(["# Anomalies", "", *lines, ""]))


def _percent(values: list[float]) -> str:
    """Their mean and its standard error."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{np.mean(values):.2%} ± {error:.2%}"


if __name__ == "__main__":
    main()

"""Samples of Adult, Beijing and Magic beside real rows, independent columns, and what TabDiff and TabPC published.

samples   measures a csv file of samples: `mixed.py samples --table adult --csv samples.csv`
train     fits `diffeo` on the training rows for some minutes, samples, imputes, and measures both
bounds    what real rows score, the best that samples can do, and what columns drawn each by itself do, the least

Needs the environment of mixed_setup.sh, and DIFFEO_DATA or the internet. mixed_measures.py says what each column means,
mixed_data.py what the tables are, mixed_imputers.py what fills gaps beside diffeo.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

import mixed_imputers
from mixed_data import TABLES, Table, halves, load
from mixed_measures import c2st, privacy, quality, read_samples, utility

# Means of their authors' runs, from the tables of TabPC's repository (github.com/april-tools/tabpc, 2026): C2ST by
# XGBoost, shape, trend, utility. Privacy is there measured in halves, and not by these seeds; it is not repeated here.
PUBLISHED = {
    "adult": {"TabDiff": (0.8409, 0.9932, 0.9846, 0.9130), "TabPC": (0.8554, 0.9942, 0.9856, 0.9162)},
    "beijing": {"TabDiff": (0.7723, 0.9895, 0.9741, 0.5642), "TabPC": (0.5704, 0.9943, 0.9781, 0.6558)},
    "magic": {"TabDiff": (0.7732, 0.9920, 0.9916, 0.9358), "TabPC": (0.8602, 0.9902, 0.9830, 0.9324)},
}
NONE = float("nan")
PACKAGES = ("torch", "xgboost", "sdmetrics", "scikit-learn", "pandas", "diffeo")


def versions() -> str:
    """The packages, the processor and the threads in one line."""
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(": ")[2] if names else model
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{packages}; {model}, {threads} of {os.cpu_count()} processors"


def row(name: str, values: tuple[float, ...], seconds: float = NONE) -> str:
    """One line of the table of scores."""
    cells = [f"{v:.4f}" if v == v else "-" for v in values]
    return f"| {' | '.join([name, *cells, f'{seconds:.1f}' if seconds == seconds else '-'])} |"


def header(table: Table) -> list[str]:
    """The head of the table of scores."""
    target = f"RMSE of log {table.target}" if table.is_regression else f"AUC of {table.target}"
    columns = ("", "C2ST", "shape", "trend", target, "closer (0.5)", "too close (0.05)", "seconds")
    return [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 1)}"]


def measure(name: str, samples: pd.DataFrame, table: Table, seed: int) -> str:
    """The line of these samples."""
    start = time.perf_counter()
    values = (
        c2st(table.train, samples, seed),
        *quality(table.train, samples, table.categorical),
        utility(samples, table, seed),
        *privacy(samples, table.train, table.test, table, seed=seed),
    )
    return row(name, values, time.perf_counter() - start)


def published(table: Table) -> list[str]:
    """The lines of what others published."""
    return [row(f"{name} (published)", (*values, NONE, NONE)) for name, values in PUBLISHED[table.name].items()]


def bounds(table: Table, seed: int) -> Iterator[str]:
    """The lines of real rows, independent columns and, for privacy, of the training rows themselves."""
    start = time.perf_counter()
    # Test rows take the place of samples. What is held out from these is half of them, and what a classifier learns
    # for the test rows it learns from training rows.
    shuffled, middle = table.test.sample(frac=1, random_state=seed), len(table.test) // 2
    values = (
        c2st(table.train, table.test, seed),
        *quality(table.train, table.test, table.categorical),
        utility(table.train, table, seed),
        *privacy(shuffled[:middle], table.train, shuffled[middle:], table, seed=seed),
    )
    yield row("real rows", values, time.perf_counter() - start)
    rng = np.random.default_rng(seed)
    columns = {c: rng.choice(table.train[c].to_numpy(), len(table.train)) for c in table.train}
    yield measure("independent columns", pd.DataFrame(columns), table, seed)
    yield measure("training rows, copied", table.train, table, seed)


def command(*arguments: object) -> float:
    """Runs `diffeo` with these arguments and returns how many seconds it took."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "diffeo", *map(str, arguments)], check=True)
    return time.perf_counter() - start


def train(table: Table, args: argparse.Namespace) -> Iterator[str]:
    """Fits, samples and imputes by the command line; the lines of what came out."""
    with nullcontext(args.out) if args.out else tempfile.TemporaryDirectory() as folder:
        out = Path(folder, table.name)
        out.mkdir(parents=True, exist_ok=True)
        run, samples, gaps, full = (out / name for name in ("run", "samples.csv", "gaps.csv", "full.csv"))
        table.train.to_csv(out / "train.csv", index=False)
        chosen = chain.from_iterable(("--set", each) for each in args.set)
        fitted = command(
            "fit", out / "train.csv", "--out", run, "--minutes", args.minutes, "--seed", args.seed, *chosen
        )
        drawn = command("sample", run, "-n", len(table.train), "--out", samples, "--seed", args.seed)
        yield f"diffeo: fitted in {fitted:.1f} s, {len(table.train)} rows drawn in {drawn:.1f} s\n"
        yield from header(table)
        yield measure("diffeo", read_samples(samples, table.train), table, args.seed)
        yield from published(table)
        if args.imputations:
            mixed_imputers.hold_out(table, args.rows, args.seed)[1].to_csv(gaps, index=False)
            seconds = command("impute", run, gaps, "--out", full, "--draws", args.imputations, "--seed", args.seed)
            yield f"\ndiffeo: imputed in {seconds:.1f} s"
            yield from mixed_imputers.report(table, args.rows, args.seed, args.imputations, {"diffeo": full})


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--table", choices=TABLES, action="append", help="repeat for more (all)")
    common.add_argument("--seed", type=int, default=0, help="of the model and of the measures (0)")
    common.add_argument("--split", type=int, default=0, help="seed of Beijing's and Magic's split (0)")
    common.add_argument(
        "--halves", action="store_true", help="learn half of all rows, hold out the others: for privacy"
    )
    of_samples = commands.add_parser("samples", parents=[common], help="measure a csv file of samples")
    of_samples.add_argument("--csv", type=Path, required=True, help="the samples, as many as the training rows")
    of_samples.add_argument("--missing", default="", help="what stands for a missing cell, besides an empty one")
    trained = commands.add_parser("train", parents=[common], help="fit diffeo, then sample, impute and measure")
    trained.add_argument("--minutes", type=float, default=10, help="training time of each table (10)")
    trained.add_argument("--set", action="append", default=[], help="an argument of the model, any_order=false say")
    trained.add_argument("--imputations", type=int, default=19, help="draws of each removed cell (19; 0: none)")
    trained.add_argument("--rows", type=int, default=2000, help="held-out rows whose cells are removed (2000)")
    trained.add_argument("--out", type=Path, help="keep runs, samples and imputed rows below this folder")
    commands.add_parser("bounds", parents=[common], help="what real rows and independent columns score")
    args = parser.parse_args()
    if args.command == "samples" and len(args.table or TABLES) != 1:
        parser.error("samples are of one table: name it with --table")
    for name in args.table or TABLES:
        table = load(name, args.split)
        if args.halves:
            table = halves(table, args.split)
        split = "UCI's split" if name == "adult" and not args.halves else f"split {args.split}"
        print(f"{name}: {len(table.train)} training and {len(table.test)} test rows, {split}, seed {args.seed}")
        print(f"{versions()}\n", flush=True)
        if args.command == "train":
            lines = train(table, args)
        elif args.command == "bounds":
            lines = chain(header(table), bounds(table, args.seed), published(table))
        else:
            samples = read_samples(args.csv, table.train, args.missing)
            lines = [*header(table), measure(args.csv.name, samples, table, args.seed), *published(table)]
        for line in chain(lines, [""]):
            print(line, flush=True)


if __name__ == "__main__":
    main()

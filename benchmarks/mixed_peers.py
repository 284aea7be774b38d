"""Held-out nats per row, and rows per second, of diffeo's `mixed` beside other densities of mixed tables.

diffeo mixed          `diffeo fit` with no options but --minutes: the default on these tables
mixed, one order      the same with `--set any_order=false`: what the conditionals of any order cost
independent columns   masses of repeated values, of gaps and of categories, else a histogram between quantiles of the
                      training rows; not trained
diffeo nsf            the default before `mixed`, a spline flow: text columns become a column of zeros and ones for each
                      category (a gap is one), and what is whole is dequantised by uniform noise
mostlyai-engine       TabularARGN with its defaults, but without value protection, which would replace what is rare;
                      in the environment of mixed_mostly_setup.sh, which --mostly names; left out where there is none

Each is trained for the same --minutes (mostlyai-engine's `max_training_time`, or until it stops by itself).

**What is compared** is log P(row), the probability of exactly the row that is recorded: a density is no probability,
and its logarithm depends on units, so a mass of one model and a density of another cannot be set beside each other. All
are therefore brought to counting measure on the values that a cell can hold: categories, gaps, and numbers with as many
decimals as the column has anywhere in the training rows (4 in all of Magic's, so steps of 1e-4).

diffeo mixed          Masses stay. A smooth density becomes masses F(x + step/2) - F(x - step/2), which add up to 1 with
                      those of single values: the same weights with another ``Factor.steps``. Exact. (`diffeo score`
                      gives the density instead: about log step less in each column that has one.)
independent columns   The same with the histogram's density times the step.
diffeo nsf            The mean of log p(x + u) + sum log step over --draws of uniform noise u within each cell, also of
                      columns that the model takes as continuous. It bounds log P(row) from below (Jensen); how much
                      is lost shows by `log of mean`, of the same draws: between the bound and log P on average.
mostlyai-engine       Its `log_prob` is that of its codes. Categories, few-valued numbers and digits are masses of
                      values; a bin's is divided by the number of values in it, as its sampler draws them uniformly.
                      A number that its codes cannot tell (beyond the training's range, or never seen among few)
                      would never be drawn by it; it gets the code's whole mass, in its favour, and is counted.

A category never seen in training has a mass by diffeo mixed and by mostlyai-engine, as one event. nsf and histograms
have none; rows without a probability are counted, and left out of every model's mean, so that all are of the same rows.

Speed is that of one process as its user calls it (files in and out, but no start of Python): rows per second in
training, of scoring the test rows, of sampling, and of filling a fifth of the cells of --rows test rows once, beside
scikit-learn's imputers (their fit is told apart, but for KNNImputer). The median of --repeats, of one call where it
takes half a minute. Threads are what OMP_NUM_THREADS says.

Needs the environment of mixed_setup.sh, and DIFFEO_DATA or the internet.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer

from diffeo import commands
from diffeo.commands.runs import open_for
from diffeo.flow import Flow
from diffeo.modalities.tables.defaults import default_model
from diffeo.report.baselines import factor_log_prob
from diffeo.report.statistics import mean_and_error
from diffeo.transforms.mixed import Mixed
from mixed import versions
from mixed_data import TABLES, Table, load
from mixed_imputers import Codes, Forests, by_neighbours, hold_out
from mixed_measures import filled
from mixed_mostly import clocked

CHUNK = 4096  # rows at a time
OURS, ORDERED = "diffeo mixed", "mixed, one order"
SPEEDS = ("training", "scoring", "sampling", "imputing")


@dataclass
class Result:
    """What is known of one model.

    Attributes:
        log_prob: of each test row, -inf where it has none.
        seconds: of fitting, all in all.
        speeds: rows per second by name.
        remark: what else to say.
    """

    log_prob: np.ndarray | None = None
    seconds: float = math.nan
    speeds: dict[str, float] = field(default_factory=dict)
    remark: str = ""


# ---- diffeo ---------------------------------------------------------------------------------------------------------


def encoded(run: Path, rows: Path | pd.DataFrame) -> tuple[Any, torch.Tensor, np.ndarray]:
    """Return the opened run, the rows as its flow takes them, and what values on and off grids add."""
    opened, options = open_for("score", run, None)
    chunks = list(opened.scoring(rows, options).chunks)
    return opened, torch.cat([c.x for c in chunks]), np.concatenate([c.log_grid for c in chunks])


def resolutions(table: Table, names: list[str]) -> np.ndarray:
    """Return the step between values with as many decimals as each column has in the training rows."""
    steps = []
    for name in names:
        texts = [] if name not in table.train else table.train[name].dropna().unique().tolist()
        decimals = [str(value).partition(".")[2].rstrip("0") for value in texts if isinstance(value, float)]
        steps.append(10.0 ** -max(map(len, decimals), default=0))
    return np.array(steps)


def on_grids(flow: Flow, steps: np.ndarray) -> Flow:
    """Return the flow with masses of cells of these steps in the place of densities, its weights the same."""
    transform: Any = flow.transform
    columns = [
        # The grid's point next to 0, where float32 has the most digits
        replace(factor, steps=(step,), origin=math.remainder(factor.origin, step)) if factor.continuous else factor
        for factor, step in zip(transform.factors, steps.tolist(), strict=True)
    ]
    state = {name: value.clone() for name, value in transform.state_dict().items()}  # a new one starts its network
    gridded = Mixed(transform.network, columns, transform.components, len(transform.orders))
    gridded.load_state_dict(state)
    return Flow(flow.base, gridded).eval()


@torch.no_grad()
def log_probs(flow: Flow, x: torch.Tensor) -> np.ndarray:
    """Return log p of rows, in parts."""
    return torch.cat([flow.log_prob(part) for part in x.split(CHUNK)]).double().numpy()


def times(run: Path, test: Path, table: Table, gaps: Path | None, args: argparse.Namespace) -> dict[str, float]:
    """Return a run's rows per second, none if they are not asked for."""
    if "speed" not in args.part:
        return {}
    epochs = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    out, rows = run / "rows.csv", args.rows
    speeds = {
        "training": float(np.median([epoch["rows_per_second"] for epoch in epochs])),
        "scoring": len(table.test) / clocked(lambda: commands.score(run, test, out, force=True), args.repeats),
        "sampling": rows / clocked(lambda: commands.sample(run, rows, out, force=True), args.repeats),
    }
    if gaps is not None:
        speeds["imputing"] = rows / clocked(lambda: commands.impute(run, gaps, out, force=True), args.repeats)
    return speeds


def mixed_and_independent(table: Table, folder: Path, gaps: Path, args: argparse.Namespace) -> dict[str, Result]:
    """Fit the default, the same of one order, and histograms with masses for the same values."""
    train, test = (folder / f"{part}.csv" for part in ("train", "test"))
    options = {"minutes": args.minutes, "seed": args.seed, "figures": False}
    results = {}
    for name, arguments in ((OURS, {}), (ORDERED, {"any_order": False})):
        run = folder / name.replace(" ", "-")
        seconds = clocked(lambda run=run, arguments=arguments: commands.fit(train, run, arguments=arguments, **options))
        opened, x, log_grid = encoded(run, test)
        if not isinstance(opened.flow.transform, Mixed):
            raise SystemExit(f"expected the default to be mixed, got {opened.flow.transform}")
        flow = on_grids(opened.flow, resolutions(table, opened.schema.feature_names))
        log_prob = log_probs(flow, x) + log_grid
        results[name] = Result(log_prob, seconds, times(run, test, table, gaps if name == OURS else None, args))
        factors = flow.transform.factors
    independent = factor_log_prob(factors, encoded(run, train)[1].double().numpy(), x.double().numpy()).sum(1)
    independent += log_grid
    return {**results, "independent columns": Result(independent)}


def zeros_and_ones(rows: pd.DataFrame, table: Table) -> pd.DataFrame:
    """Return the rows with columns of zeros and ones in the place of text, for the categories of the training rows."""
    train, full = filled(table.train), filled(rows)
    columns = {}
    for name in rows.columns:
        if pd.api.types.is_numeric_dtype(rows[name]):
            columns[name] = full[name]
            continue
        for level in sorted(train[name].unique()):
            columns[f"{name}={level}"] = (full[name] == level).astype(int)
    return pd.DataFrame(columns)


def spline_flow(table: Table, folder: Path, args: argparse.Namespace) -> Result:
    """Fit the default before ``mixed`` to numbers, and score the test rows dequantised."""
    run, train, test = folder / "nsf", folder / "train01.csv", folder / "test01.csv"
    zeros_and_ones(table.train, table).to_csv(train, index=False)
    rows = zeros_and_ones(table.test, table)
    rows.to_csv(test, index=False)
    name, arguments = default_model(len(table.train))
    options = {"model": name, "arguments": arguments, "minutes": args.minutes, "seed": args.seed, "figures": False}
    seconds = clocked(lambda: commands.fit(train, run, **options))
    opened, x, log_grid = encoded(run, test)
    own = np.array([grid.step for grid in opened.schema.discrete])  # the model's cells, 0 where it has none
    steps = np.where(own > 0, own, resolutions(table, opened.schema.feature_names))
    generator = torch.Generator().manual_seed(args.seed)
    torch.manual_seed(args.seed)
    draws = []
    for _ in range(args.draws):
        noise = (torch.rand(x.shape, generator=generator) - 0.5) * torch.from_numpy(np.where(own > 0, 0, steps)).to(x)
        draws.append(log_probs(opened.flow, x + noise) + np.log(steps).sum() + log_grid)
    each = np.stack(draws)
    texts = [c for c in rows.columns if c not in table.train]
    spans = {c.partition("=")[0] for c in texts}
    ruled_out = np.zeros(len(rows), dtype=bool)
    for column in spans:  # all zeros: a category that training has not seen
        ruled_out |= (rows[[c for c in texts if c.startswith(f"{column}=")]].sum(1) == 0).to_numpy()
    each[:, ruled_out] = -np.inf
    best = np.logaddexp.reduce(each, 0) - math.log(len(each))
    finite = np.isfinite(each).all(0)
    remark = f"a bound from below; log of mean: {best[finite].mean() - each[:, finite].mean():+.3f}"
    speeds = times(run, test, table, None, args)
    return Result(each.mean(0), seconds, speeds, f"{remark}; {rows.shape[1]} columns")


# ---- Others ---------------------------------------------------------------------------------------------------------


def mostly(table: Table, folder: Path, gaps: Path, args: argparse.Namespace) -> Result | None:
    """Run mixed_mostly.py in its own environment."""
    if not args.mostly.exists():
        return None
    out = folder / "mostly"
    script = Path(__file__).with_name("mixed_mostly.py")
    repeats = args.repeats if "speed" in args.part else 0
    options = {"minutes": args.minutes, "seed": args.seed, "rows": args.rows, "repeats": repeats}
    files = {"train": folder / "train.csv", "test": folder / "test.csv", "gaps": gaps, "out": out}
    words = [word for name, value in {**files, **options}.items() for word in (f"--{name}", str(value))]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([args.mostly, script, *words], check=True, env=alone)
    facts = json.loads((out / "facts.json").read_text())
    remark = (
        f"mostlyai-engine {facts['version']}, torch {facts['torch']}, {facts['epochs']:.1f} epochs;"
        f" {facts['unknown']:,} rows with a number that its codes cannot tell"
    )
    return Result(np.load(out / "log_prob.npy"), facts["seconds"], facts["speeds"], remark)


def imputers(table: Table, args: argparse.Namespace) -> dict[str, Result]:
    """Time scikit-learn's imputers, IterativeImputer on the codes of categories as if they were numbers."""
    gaps = hold_out(table, args.rows, args.seed)[1]
    codes, results = Codes(table), {}
    few = table.train.sample(min(10_000, len(table.train)), random_state=args.seed)
    learner = IterativeImputer(random_state=args.seed)
    fitted = clocked(lambda: learner.fit(codes.encode(few)))
    seconds = clocked(lambda: learner.transform(codes.encode(gaps)), args.repeats)
    results["IterativeImputer (ridge)"] = Result(None, fitted, {"imputing": len(gaps) / seconds})
    start = time.perf_counter()
    forests = Forests(table, args.seed)
    fitted = time.perf_counter() - start
    seconds = clocked(lambda: forests.sweep(gaps, 1, forests.predict), args.repeats)
    results["extra trees (MissForest)"] = Result(None, fitted, {"imputing": len(gaps) / seconds})
    seconds = clocked(lambda: by_neighbours(gaps, table, args.seed, 1), args.repeats)
    results["KNNImputer"] = Result(None, math.nan, {"imputing": len(gaps) / seconds})
    return results


# ---- Tables ---------------------------------------------------------------------------------------------------------


def likelihoods(results: dict[str, Result]) -> Iterator[str]:
    """The lines of log P(row), of the rows to which every model gives one."""
    scored = {name: result for name, result in results.items() if result.log_prob is not None}
    kept = np.all([np.isfinite(result.log_prob) for result in scored.values()], axis=0)
    yield f"log P(row) of {kept.sum():,} of {len(kept):,} test rows, those to which every model gives a probability\n"
    yield "| | nats per row | less than diffeo mixed | rows without | seconds | |"
    yield "| --- | ---: | ---: | ---: | ---: | --- |"
    for name, result in scored.items():
        here, ours = result.log_prob[kept], scored[OURS].log_prob[kept]
        mean, behind = mean_and_error(here), mean_and_error(ours - here)
        less = "-" if name == OURS else f"{behind['mean']:.3f} ± {behind['stderr']:.3f}"
        without = int((~np.isfinite(result.log_prob)).sum())
        cells = f"{mean['mean']:.3f} ± {mean['stderr']:.3f} | {less} | {without:,} | {seconds(result)}"
        yield f"| {name} | {cells} | {result.remark} |"


def speeds(results: dict[str, Result]) -> Iterator[str]:
    """The lines of rows per second, and how many times as many diffeo mixed makes."""
    yield "rows per second, and how many times as many diffeo mixed makes\n"
    yield f"| | {' | '.join(SPEEDS)} | seconds to fit |"
    yield f"| --- |{' ---: |' * (len(SPEEDS) + 1)}"
    for name, result in results.items():
        if not result.speeds:
            continue
        cells = []
        for key in SPEEDS:
            rate, ratio = result.speeds.get(key, math.nan), results[OURS].speeds[key] / result.speeds.get(key, math.nan)
            cells.append("-" if rate != rate else f"{rate:,.0f}" + (f" ({ratio:.2g}x)" if name != OURS else ""))
        yield f"| {name} | {' | '.join(cells)} | {seconds(result)} |"


def seconds(result: Result) -> str:
    """How long fitting took."""
    return "-" if math.isnan(result.seconds) else f"{result.seconds:.1f}"


PARTS = {"likelihood": likelihoods, "speed": speeds}


def main() -> None:
    """Fits, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, action="append", help="repeat for more (all)")
    parser.add_argument("--part", choices=PARTS, action="append", help="print only this (both)")
    parser.add_argument("--minutes", type=float, default=4, help="training time of each model (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the models (0)")
    parser.add_argument("--split", type=int, default=0, help="seed of Beijing's and Magic's split (0)")
    parser.add_argument("--draws", type=int, default=8, help="of the noise that nsf is scored with (8)")
    parser.add_argument("--rows", type=int, default=2000, help="rows to sample and to impute for their speed (2000)")
    parser.add_argument("--repeats", type=int, default=3, help="how often each speed is measured (3)")
    parser.add_argument(
        "--mostly", type=Path, default=Path(".venv-mostly/bin/python"), help="mostlyai-engine's python (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="keep runs below this folder")
    args = parser.parse_args()
    args.part = args.part or list(PARTS)
    for name in args.table or TABLES:
        table = load(name, args.split)
        split = "UCI's split" if name == "adult" else f"split {args.split}"
        print(f"{name}: {len(table.train)} training and {len(table.test)} test rows, {split}, seed {args.seed}")
        print(f"{args.minutes:g} minutes each, {torch.get_num_threads()} threads; {versions()}\n", flush=True)
        with nullcontext(args.out) if args.out else tempfile.TemporaryDirectory() as keep:
            folder = Path(keep, name)
            folder.mkdir(parents=True, exist_ok=True)
            gaps = folder / "gaps.csv"
            for part in ("train", "test"):
                getattr(table, part).to_csv(folder / f"{part}.csv", index=False)
            hold_out(table, args.rows, args.seed)[1].to_csv(gaps, index=False)
            results = mixed_and_independent(table, folder, gaps, args)
            results["diffeo nsf"] = spline_flow(table, folder, args)
            if (other := mostly(table, folder, gaps, args)) is None:
                print(f"mostlyai-engine: left out, there is no {args.mostly} (sh benchmarks/mixed_mostly_setup.sh)\n")
            else:
                results["mostlyai-engine"] = other
            if "speed" in args.part:
                results |= imputers(table, args)
        for part in args.part:
            print(*PARTS[part](results), "", sep="\n", flush=True)


if __name__ == "__main__":
    main()

"""Rows per second of `diffeo fit` on the protein table, beside zuko's same model in a hand-written loop.

`DIFFEO_DATA=data python benchmarks/fit_speed.py`. The whole command is measured as its user runs it: training with
validation after every epoch, checkpoints, averaged weights, the guard against bad batches. The loop by hand does only
what it must: draw a batch, log_prob, backward, fused Adam, validation after every epoch. They take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import peers
import protein

SETTINGS = {"maf": ["--set", "activation=relu", "--set", "residual=false"]}
SETTINGS["nsf"] = [*SETTINGS["maf"], "--set", "affine=false"]


def fit(family: str, hidden: int, epochs: int, data: protein.Data, threads: int) -> float:
    """Training rows per second of one `diffeo fit`, validation included."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "table.csv")
        table.write_bytes(b"\n".join(data.raw_lines["fit"]) + b"\n")
        command = [
            sys.executable, "-m", "diffeo", "fit", str(table), "--out", f"{folder}/run", "--model", family, "--json",
            "--hidden", f"{hidden},{hidden}", "--transforms", "5", "--epochs", str(epochs), "--no-figures",
            *SETTINGS[family],
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        facts = json.loads(done.stdout)
        seconds = facts["seconds"]
    return 0.9 * len(data.raw_lines["fit"]) * epochs / seconds  # a tenth is for validation


def loop(family: str, hidden: int, seconds: float, data: protein.Data) -> float:
    """Training rows per second of the loop by hand, validation included."""
    model = peers.build("zuko", peers.Spec(family, protein.COLUMNS, hidden))
    took, epochs = protein.train_by_hand(
        model.module, lambda x: model.module().log_prob(x), data, seconds, 1e-3, tuned=False
    )
    return epochs * len(data.train) / took


def main() -> None:
    """Takes turns and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--data", type=Path, help=f"the file; else {protein.FILE} below the folder in DIFFEO_DATA")
    args = parser.parse_args()
    threads = peers.use_threads(None)
    data = protein.load(protein.locate(args.data))
    for family, epochs in (("maf", 20), ("nsf", 8)):
        pace: dict[str, list[float]] = {"diffeo fit": [], "zuko by hand": []}
        for _ in range(args.rounds):
            pace["diffeo fit"].append(fit(family, args.hidden, epochs, data, threads))
            seconds = epochs * len(data.train) / pace["diffeo fit"][-1]
            pace["zuko by hand"].append(loop(family, args.hidden, seconds, data))
        medians = {name: statistics.median(values) for name, values in pace.items()}
        ranges = ", ".join(f"{n} {m:,.0f} ({min(pace[n]):,.0f}-{max(pace[n]):,.0f})" for n, m in medians.items())
        ratio = medians["diffeo fit"] / medians["zuko by hand"]
        print(f"{family} {args.hidden}: rows/s {ranges}: {ratio:.2f}x", flush=True)


if __name__ == "__main__":
    main()

"""Test likelihood on UCI's protein table: diffeo beside zuko, the same model, data, batch and minutes in one run.

Rows permuted by numpy.random.RandomState(0), first tenth test, second tenth validation, the rest training; standardised
by the training rows; float32; 5 transforms, hidden (128, 128), batch 512. zuko is trained twice by a hand-written loop
that keeps the best weights on validation: `plain` (Adam, constant rate) and `tuned` (warm-up, cosine decay, averaged
weights, as diffeo's own loop has). `--model default` compares with what `diffeo fit` makes of the rows by
itself; zuko's MAF and NSF then get the minutes that it took, if not told otherwise.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import hashlib
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import peers

FILE = "tables/protein.csv.gz"
SHA256 = "f709d0107c3ee90ab019b9e5d77fc2ae182158958cb70b1903236a51334fd01b"
ROWS, COLUMNS, BATCH = 45730, 10, 512


@dataclass(frozen=True)
class Data:
    """The three splits in standardised units, the lines of the file that are not for testing, and the scales."""

    train: Tensor
    valid: Tensor
    test: Tensor
    raw_lines: dict[str, list[bytes]]
    log_scale: float  # sum of the log standard deviations: a log-density gains it by standardising


@dataclass
class Result:
    """One trained model on the test rows."""

    name: str
    nll: Tensor  # (rows,), nats, standardised units
    seconds: float
    epochs: float
    parameters: int

    @property
    def mean(self) -> float:
        """Mean negative log-likelihood."""
        return float(self.nll.mean())

    @property
    def error(self) -> float:
        """Its standard error."""
        return float(self.nll.std() / math.sqrt(len(self.nll)))


def load(path: Path) -> Data:
    """Reads, checks and splits the table."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"expected {path} with SHA-256 {SHA256}, got {digest}")
    lines = gzip.decompress(content).splitlines()
    table = np.array([[float(v) for v in line.split(b",")] for line in lines])
    if table.shape != (ROWS, COLUMNS):
        raise SystemExit(f"expected {ROWS} x {COLUMNS} values in {path}, got {table.shape}")
    order = np.random.RandomState(0).permutation(ROWS)
    test, valid, train = np.split(order, [ROWS // 10, 2 * (ROWS // 10)])
    mean, std = table[train].mean(0), table[train].std(0)
    splits = [torch.tensor((table[i] - mean) / std, dtype=torch.float32) for i in (train, valid, test)]
    raw = {"fit": [lines[i] for i in (*train, *valid)], "test": [lines[i] for i in test]}
    return Data(*splits, raw_lines=raw, log_scale=float(np.log(std).sum()))


def locate(argument: Path | None) -> Path:
    """The file from the command line, or below the folder that DIFFEO_DATA names."""
    if argument is None and "DIFFEO_DATA" not in os.environ:
        raise SystemExit("set DIFFEO_DATA to the folder that holds tables/protein.csv.gz, or name the file with --data")
    path = argument or Path(os.environ["DIFFEO_DATA"]) / FILE
    if not path.exists():
        raise SystemExit(f"no such file: {path}")
    return path


@torch.no_grad()
def score(log_prob: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Negative log-likelihood of each row, (N,)."""
    return -torch.cat([log_prob(part) for part in x.split(8192)])


def train_by_hand(
    module: nn.Module, log_prob: Callable[[Tensor], Tensor], data: Data, seconds: float, lr: float, tuned: bool
) -> tuple[float, float]:
    """A careful loop for `seconds`, validation included; leaves the best weights and returns seconds and epochs."""
    optimizer = torch.optim.Adam(module.parameters(), lr=lr, fused=True)
    weights = [p.detach() for p in module.parameters()]
    averages = [w.clone() for w in weights]
    best, best_loss = copy.deepcopy(module.state_dict()), math.inf
    start, epochs, steps, elapsed = time.perf_counter(), 0.0, 0, 0.0
    while elapsed < seconds:
        order = torch.randperm(len(data.train)).split(BATCH)
        for rows in order:
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                break
            done = elapsed / seconds
            if tuned:
                rate = done / 0.03 if done < 0.03 else 0.5 * (1 + math.cos(math.pi * (done - 0.03) / 0.97))
                optimizer.param_groups[0]["lr"] = lr * rate
            loss = -log_prob(data.train[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            if not loss.isfinite():
                continue
            optimizer.step()
            steps += 1
            epochs += len(rows) / len(data.train)
            if tuned:
                decay = min(0.99, steps / (steps + 10))
                torch._foreach_lerp_(averages, weights, 1 - decay)
        current = [w.clone() for w in weights]
        if tuned:
            torch._foreach_copy_(weights, averages)
        loss_value = float(score(log_prob, data.valid).mean())
        if loss_value < best_loss:
            best, best_loss = copy.deepcopy(module.state_dict()), loss_value
        torch._foreach_copy_(weights, current)
    elapsed = time.perf_counter() - start
    module.load_state_dict(best)
    return elapsed, epochs


def run_zuko(family: str, data: Data, seconds: float, seed: int, lr: float, tuned: bool) -> Result:
    """zuko's model of the family."""
    model = peers.build("zuko", peers.Spec(family, COLUMNS, 128), seed)
    log_prob = lambda x: model.module().log_prob(x)  # noqa: E731
    took, epochs = train_by_hand(model.module, log_prob, data, seconds, lr, tuned)
    name = f"zuko {family} {'tuned' if tuned else 'plain'}"
    return Result(name, score(log_prob, data.test), took, epochs, model.parameters())


def run_diffeo(family: str, data: Data, seconds: float, seed: int, lr: float) -> Result:
    """diffeo's model of the family, by `diffeo.fit`."""
    import diffeo

    torch.manual_seed(seed)
    flow = diffeo.recipes.RECIPES[family](features=COLUMNS, transforms=5, hidden=(128, 128), preprocess=())
    start = time.perf_counter()
    result = diffeo.fit(
        diffeo.MaximumLikelihood(flow), data.train, validation=data.valid, minutes=seconds / 60, batch_size=BATCH,
        lr=lr, patience=math.inf, seed=seed,
    )  # fmt: skip
    took = time.perf_counter() - start
    parameters = sum(p.numel() for p in flow.parameters() if p.requires_grad)
    epochs = result.steps / math.ceil(len(data.train) / BATCH)
    return Result(f"diffeo {family}", score(flow.log_prob, data.test), took, epochs, parameters)


def run_default(data: Data, seed: int) -> Result:
    """What `diffeo fit FILE` makes of the rows that are not for testing, scored by `diffeo score`."""
    import diffeo

    command = [sys.executable, "-m", "diffeo"]
    with tempfile.TemporaryDirectory() as folder:
        run, scores = Path(folder, "run"), Path(folder, "scores.csv")
        for name, lines in data.raw_lines.items():
            Path(folder, f"{name}.csv").write_bytes(b"\n".join(lines) + b"\n")
        subprocess.run([*command, "fit", f"{folder}/fit.csv", "--out", str(run), "--seed", str(seed)], check=True)
        subprocess.run([*command, "score", str(run), f"{folder}/test.csv", "--out", str(scores)], check=True)
        log_prob = np.genfromtxt(scores, delimiter=",", skip_header=1, ndmin=2)[:, -1]
        loaded = diffeo.training.load_run(run)
    parameters = sum(p.numel() for p in loaded.flow.parameters() if p.requires_grad)
    facts = loaded.metrics
    name, epochs = f"diffeo default ({facts['model']})", facts["steps"] * BATCH / len(data.train)
    return Result(name, -torch.tensor(log_prob) - data.log_scale, facts["seconds"], epochs, parameters)


def report(results: list[Result], data: Data) -> list[str]:
    """A markdown table; the difference to diffeo is taken row by row, which its standard error profits from."""
    diffeo_result = next((r for r in results if r.name.startswith("diffeo")), None)
    lines = [
        "| model | parameters | test NLL, nats per row | minus diffeo's, row by row | median row | seconds"
        " | epochs | rows/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in results:
        beside = "-"
        if diffeo_result is not None and r is not diffeo_result:
            gap = (r.nll - diffeo_result.nll).double()
            beside = f"{float(gap.mean()):+.3f} +- {float(gap.std() / math.sqrt(len(gap))):.3f}"
        pace = f"{r.epochs:.1f} | {r.epochs * len(data.train) / r.seconds:,.0f}"
        lines.append(
            f"| {r.name} | {r.parameters:,d} | {r.mean:.3f} +- {r.error:.3f} | {beside} | {float(r.nll.median()):.3f}"
            f" | {r.seconds:.1f} | {pace} |"
        )
    return lines


def main() -> None:
    """Trains, scores and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("maf", "nsf", "default"), default="maf")
    parser.add_argument("--minutes", type=float, help="training time of each model (1; with default: what diffeo took)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of every model but the default (0.001)")
    parser.add_argument("--threads", type=int, help="threads (all processors)")
    parser.add_argument("--data", type=Path, help=f"the file; else {FILE} below the folder in DIFFEO_DATA")
    parser.add_argument("--only", choices=("diffeo", "zuko"), help="train only this library's models")
    parser.add_argument("--out", type=Path, help="write the table (markdown) to this file too")
    args = parser.parse_args()
    threads = peers.use_threads(args.threads)
    data = load(locate(args.data))
    results: list[Result] = []

    def add(result: Result) -> None:
        results.append(result)
        print(f"{result.name}: {result.mean:.3f} +- {result.error:.3f} in {result.seconds:.1f} s", flush=True)

    seconds = 60 * (args.minutes or 1.0)
    if args.only != "zuko" and args.model != "default":
        add(run_diffeo(args.model, data, seconds, args.seed, args.lr))
    elif args.only != "zuko":
        add(run_default(data, args.seed))
        if args.minutes is None:
            seconds = results[0].seconds
    for family in ("maf", "nsf") if args.model == "default" else (args.model,):
        for tuned in (False, True) if args.only != "diffeo" else ():
            add(run_zuko(family, data, seconds, args.seed, args.lr, tuned))
    versions = ", ".join(f"{name} {v}" for name, v in peers.versions(("diffeo", "zuko")).items())
    head = f"Standardised units. {versions}; {threads} threads, seed {args.seed}."
    text = "\n".join([head, "", *report(results, data), ""])
    print("\n" + text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()

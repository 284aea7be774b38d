"""Sampling an autoregressive flow: time and memory against D and the batch, the error of the incremental inversion.

`python benchmarks/sampling.py --out docs/images` plots sampling.png and prints the numbers. The models are MAFs with
5 transforms and hidden layers (H, H); `naive` inverts them as other libraries do, by one pass of the network per
element. Peak memory is what a fresh process adds while it samples. Errors are those of 100,000 samples of a MAF trained
for a few hundred steps: the largest |x - naive x| in float32 and float64.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import diffeo
import peers
from diffeo.transforms import Autoregressive

DIMENSIONS = (16, 32, 64, 128, 256, 512, 1024)
BATCHES = (1, 10, 100, 1000, 10_000, 100_000)
HIDDEN = 512


def model(features: int, hidden: int = HIDDEN) -> diffeo.Flow:
    """The MAF of all measurements, with weights that do something."""
    torch.manual_seed(0)
    flow = diffeo.recipes.build("maf", {"features": features, "hidden": (hidden, hidden), "preprocess": ()})
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) / max(1, parameter.shape[-1]) ** 0.5)
    return flow.eval()


@torch.no_grad()
def naive(flow: diffeo.Flow, z: Tensor) -> Tensor:
    """The same samples by one pass of each network per element."""
    x = z
    for transform in flow.transform:
        if not isinstance(transform, Autoregressive):
            x = transform.forward(x)
            continue
        z, x = x.mT.contiguous(), torch.zeros_like(x.mT)
        for i in range(len(z)):
            x[i] = transform.univariate.forward_and_log_det(z, transform.net(x))[0][i]
        x = x.mT
    return x


def child(features: int, batch: int, repeats: int) -> dict[str, float]:
    """Median seconds of a sample and of a log_prob, and the memory that sampling adds, in MiB."""

    def resident(key: str) -> float:
        text = Path("/proc/self/status").read_text()
        return int(text.split(key)[1].split()[0]) / 1024

    flow = model(features)
    flow.sample(1)
    before = resident("VmRSS:")
    took: dict[str, list[float]] = {"sample": [], "log_prob": []}
    with torch.no_grad():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            x = flow.sample(batch)
            took["sample"].append(time.perf_counter() - start)
        memory = resident("VmHWM:") - before
        for _ in range(repeats + 1):
            start = time.perf_counter()
            flow.log_prob(x)
            took["log_prob"].append(time.perf_counter() - start)
    return {name: float(np.median(seconds[1:])) for name, seconds in took.items()} | {"memory": memory}


def measured(features: int, batch: int) -> dict[str, float]:
    """`child` in a process of its own, so that its memory is its own."""
    repeats = 3 if batch * features > 1_000_000 else 15
    command = [sys.executable, __file__, "--child", str(features), str(batch), str(repeats)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def errors(count: int, features: int, hidden: int) -> dict[str, float]:
    """Largest |diffeo - naive| over `count` samples, by precision; float32 against float64 for scale."""
    flow = model(features, hidden)
    correlated = torch.randn(4096, features) @ torch.randn(features, features) / features**0.5
    diffeo.fit(diffeo.MaximumLikelihood(flow), correlated, epochs=25, validation=0)
    z = torch.randn(count, features)
    result, samples = {}, {}
    for dtype in (torch.float32, torch.float64):
        flow.to(dtype)
        parts = z.to(dtype).split(2000)
        with torch.no_grad():
            incremental = torch.cat([flow.transform.forward(part) for part in parts])
            plain = torch.cat([naive(flow, part) for part in parts])
        samples[dtype] = incremental
        result[f"{dtype}: max |incremental - naive|".removeprefix("torch.")] = float((incremental - plain).abs().max())
    gap = (samples[torch.float32] - samples[torch.float64]).abs()
    result["float32 - float64, incremental"] = float(gap.max())
    result["largest |x|"] = float(samples[torch.float64].abs().max())
    return result


def plot(by_dimension: list[dict], by_batch: list[dict], path: Path) -> None:
    """Time and memory against D and against the batch."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), sharex="col", layout="constrained")
    panels = ((by_dimension, "features", "D, 1000 rows"), (by_batch, "batch", "rows, D = 64"))
    for column, (rows, key, label) in enumerate(panels):
        x = [row[key] for row in rows]
        top, bottom = axes[:, column]
        top.plot(x, [1e3 * row["sample"] for row in rows], "o-", label="sample")
        top.plot(x, [1e3 * row["log_prob"] for row in rows], "s--", label="log_prob")
        if any("naive" in row for row in rows):
            known = [row for row in rows if "naive" in row]
            top.plot([r[key] for r in known], [1e3 * r["naive"] for r in known], "^:", label="naive: D passes")
        top.set(xscale="log", yscale="log", ylabel="ms")
        top.legend(frameon=False)
        bottom.plot(x, [max(row["memory"], 0.1) for row in rows], "o-")
        bottom.set(xscale="log", yscale="log", ylabel="peak memory of a sample, MiB", xlabel=label)
    figure.suptitle(f"Sampling a MAF, 5 transforms, hidden ({HIDDEN}, {HIDDEN})")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for sampling.png")
    parser.add_argument("--errors", type=int, default=100_000, help="samples compared with the naive ones (100000)")
    parser.add_argument("--child", nargs=3, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    peers.use_threads(None)
    if args.child:
        print(json.dumps(child(*args.child)))
        return
    rows: dict[str, list[dict]] = {"D": [], "batch": []}
    for features in DIMENSIONS:
        row = {"features": features, **measured(features, 1000)}
        if features <= 128:
            flow, z = model(features), torch.randn(1000, features)
            start = time.perf_counter()
            naive(flow, z)
            row["naive"] = time.perf_counter() - start
        rows["D"].append(row)
        print(f"D {features:5d}, 1000 rows: " + line(row), flush=True)
    for batch in BATCHES:
        rows["batch"].append({"batch": batch, **measured(64, batch)})
        print(f"D 64, {batch:6d} rows: " + line(rows["batch"][-1]), flush=True)
    if args.out:
        plot(rows["D"], rows["batch"], args.out / "sampling.png")
    if args.errors:
        for name, value in errors(args.errors, 64, 256).items():
            print(f"{name}: {value:.3g}", flush=True)


def line(row: dict[str, float]) -> str:
    """One measurement in words."""
    text = f"sample {1e3 * row['sample']:.2f} ms, log_prob {1e3 * row['log_prob']:.2f} ms"
    text += f", memory {row['memory']:.1f} MiB"
    return text + (f", naive {1e3 * row['naive']:.0f} ms" if "naive" in row else "")


if __name__ == "__main__":
    main()

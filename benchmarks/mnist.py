"""MNIST beside the papers: `DIFFEO_DATA=data python benchmarks/mnist.py nice --minutes 15`.

Each model is trained by `diffeo fit mnist` in a process of its own, on the first 50,000 training images, the last
10,000 for validation, and judged on the 10,000 test images. `nice` is the paper's architecture, in nats of pixels
(u8 + U[0, 1)) / 256; `realnvp` and `glow` are in bits per dimension. Reference figures: NICE 1980.50 (arXiv:1410.8516),
RealNVP 1.06, Glow 1.05 bits/dim (arXiv:1810.01367, table 2).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

PIXELS = 784
MODELS = {
    "nice": (["--model", "nice", "--set", "preset=paper", "--batch-size", "256"], "nats, pixels in [0, 1]", 1980.50),
    "realnvp": (["--model", "realnvp"], "bits/dim", 1.06),
    "glow": (["--model", "glow"], "bits/dim", 1.05),
}


def main() -> None:
    """Trains and prints one line per model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] models ... [-- options of diffeo fit]",
    )  # fmt: skip
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the run directories")
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    args, options_given = parser.parse_args(given[:cut]), given[cut + 1 :]
    for name in args.models:
        options, unit, paper = MODELS[name]
        with tempfile.TemporaryDirectory() as folder:
            run = (args.keep or Path(folder)) / name
            command = [
                sys.executable, "-m", "diffeo", "fit", "mnist", "--out", str(run), "--json", "--force",
                "--minutes", str(args.minutes), "--seed", str(args.seed), *options, *options_given,
            ]  # fmt: skip
            facts = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        figures = []
        for part in ("train", "validation", "test"):
            nats, error = -facts[part]["nll"], facts[part]["stderr"]
            if unit == "bits/dim":
                nats, error = (value / (PIXELS * math.log(2)) for value in (-nats, error))
                figures.append(f"{part} {nats:.4f} +- {error:.4f}")
            else:
                figures.append(f"{part} {nats + PIXELS * math.log(256):.2f} +- {error:.2f}")
        print(
            f"{name}: {', '.join(figures)} {unit} (paper: {paper}); {facts['parameters']:,} parameters, "
            f"{facts['epochs']} epochs in {facts['seconds']:.0f} s, best in epoch {facts['best_epoch']}, "
            f"seed {args.seed}",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""How close the default model comes to a known entropy: the checkerboard's, ln(8 / 0.45^2) = 3.67646 nats.

    python benchmarks/checkerboard.py [--minutes 1.7]

Fits as ``diffeo fit checkerboard`` does, then scores 100,000 fresh rows. NLL - entropy is the Kullback-Leibler
divergence of the model from the truth; at most 0.05 nats is asked for, in under 2 minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

import diffeo
from diffeo import commands
from diffeo.data import ENTROPY, load_builtin


def main() -> None:
    """Fit, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.7)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        commands.fit("checkerboard", Path(folder) / "run", minutes=options.minutes, seed=options.seed, figures=False)
        seconds = time.monotonic() - started
        flow = diffeo.training.load_run(Path(folder) / "run").flow
    fresh = torch.as_tensor(load_builtin("checkerboard", 100_000, seed=options.seed + 1_000_003).x)
    with torch.no_grad():
        nll = -flow.log_prob(fresh)
    error = nll.std() / len(nll) ** 0.5
    print(f"test NLL {nll.mean():.4f} ± {error:.4f} nats, entropy {ENTROPY['checkerboard']:.4f}", end=", ")
    print(f"KL {nll.mean() - ENTROPY['checkerboard']:.4f} ± {error:.4f}, {seconds:.0f} s")


if __name__ == "__main__":
    main()

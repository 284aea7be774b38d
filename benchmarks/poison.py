"""Train on batches of which one in a hundred holds NaN, infinity or 1e30, and compare with a clean training.

The weights stay finite, the skipped batches are counted, and the test likelihood is that of the clean training within
0.05 nats.

    python benchmarks/poison.py [--epochs 20]
"""

import argparse
import math
import sys

import torch

from diffeo import recipes
from diffeo.modalities.builtin import load_builtin
from diffeo.objectives import MaximumLikelihood
from diffeo.training import fit

POISONS = (math.nan, 1e30, math.inf, -1e30)


def main() -> None:
    """Run the benchmark and exit with 1 if poison got in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rows", type=int, default=51_200)
    options = parser.parse_args()

    x = torch.from_numpy(load_builtin("moons", options.rows, seed=0).x).float()
    held_out, test = (torch.from_numpy(load_builtin("moons", 20_000, seed=s).x).float() for s in (1, 2))
    batches = x.split(256)
    poisoned = [batch.clone() for batch in batches]
    places = range(0, len(batches), 100)  # the first batch is one of them
    for number, place in enumerate(places):
        poisoned[place][number % 256, number % 2] = POISONS[number % len(POISONS)]

    print(f"{'training':8}  {'batches':>7}  {'bad':>3}  {'skipped':>7}  {'finite weights':>14}  test NLL (nats)")
    scores = {}
    fine = True
    for name, data in (("clean", batches), ("poisoned", poisoned)):
        torch.manual_seed(0)
        flow = recipes.maf(2, transforms=5, hidden=(64, 64))
        result = fit(MaximumLikelihood(flow), data, validation=held_out, epochs=options.epochs, patience=math.inf)
        finite = all(p.isfinite().all() for p in flow.parameters())
        with torch.no_grad():
            losses = -flow.log_prob(test)
        scores[name] = losses.mean().item()
        bad = len(places) if name == "poisoned" else 0
        fine &= bool(finite) and result.skipped == bad * options.epochs
        stderr = losses.std().item() / len(losses) ** 0.5
        print(
            f"{name:8}  {len(data):7}  {bad:3}  {result.skipped:7}  {'yes' if finite else 'NO':>14}  "
            f"{scores[name]:.4f} +- {stderr:.4f}"
        )
    difference = scores["poisoned"] - scores["clean"]
    print(f"difference {difference:+.4f} nats (at most 0.05 in size)")
    sys.exit(not fine or not abs(difference) <= 0.05)


if __name__ == "__main__":
    main()

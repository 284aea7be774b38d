"""Ways to train on rows with weights, judged by new rows drawn from the weighted distribution.

    python benchmarks/sample_weights.py --seeds 3

Nats per row beside weights of mean 1 in the loss, which is what ``diffeo.fit`` does: weights divided by their mean in
each batch; rows drawn in proportion, anew in every epoch; no weights at all. Negative: better.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import diffeo
from diffeo.training.batches import Batch, Rows, Share, everything, in_proportion

WAYS = ("weights of mean 1", "in each batch", "drawn", "ignored")
CASES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "tilted": lambda x, g: torch.exp(x[:, 0]),
    "tilted more": lambda x, g: torch.exp(3 * x[:, 0]),
    "lognormal, of no meaning": lambda x, g: torch.exp(torch.randn(len(x), generator=g)),
    "a rare corner, a hundredfold": lambda x, g: 1 + 99.0 * ((x[:, 0] > 1.6) & (x[:, 3] > 1.0)),
}
shuffled, select = Rows.shuffled, Rows.select


def in_each_batch(self: Rows, places: Tensor, share: Share = everything) -> Batch:
    """A batch whose weights have mean 1."""
    batch = select(self, places, share)
    return batch if batch.weights is None else batch._replace(weights=batch.weights / batch.weight, weight=1.0)


def drawn(self: Rows, seed: int, epoch: int, start: int = 0, share: Share = everything) -> Iterator[Batch]:
    """The batches of an epoch whose rows are drawn in proportion to their weights."""
    if self.weights is None:
        return shuffled(self, seed, epoch, start, share)
    generator = torch.Generator().manual_seed(epoch)
    places = in_proportion(self.weights[self.rows], torch.rand((), generator=generator).item())
    order = places[torch.randperm(self.size, generator=generator)].split(self.batch_size)[: self.batches]
    return (select(self, each, share)._replace(weights=None, weight=1.0) for each in order[start:])


def rows(count: int, generator: torch.Generator) -> Tensor:
    """Two moons, a column that hangs on them, and one that does not."""
    angle, upper = math.pi * torch.rand(count, generator=generator), torch.rand(count, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    noise = torch.randn(count, 4, generator=generator)
    return torch.stack([x, y, 0.5 * x, torch.zeros(count)], 1) + noise * torch.tensor([0.08, 0.08, 0.3, 1.0])


def loss(way: str, x: Tensor, weights: Tensor, test: Tensor, seed: int) -> float:
    """Nats per row of the test, after a training in one of the ways."""
    torch.manual_seed(seed)
    flow = diffeo.nsf(4, transforms=3, hidden=[48, 48], affine=True, preprocess=["standardize"])
    replaced = {"in each batch": {"select": in_each_batch}, "drawn": {"shuffled": drawn}}.get(way, {})
    with mock.patch.multiple(Rows, **replaced) if replaced else mock.MagicMock():
        counts = None if way == "ignored" else weights
        diffeo.fit(flow, x, weights=counts, epochs=80, batch_size=256, seed=seed)
    with torch.no_grad():
        return -flow.log_prob(test).mean().item()


def main() -> None:
    """Print a table: the effective sample size of the rows, nats, and differences with standard errors over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=3000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| weights | effective sample size | {' | '.join(WAYS)} |\n| --- | --- |{' --- |' * len(WAYS)}")
    for name, weigh in CASES.items():
        losses: list[list[float]] = []
        shares = []
        for seed in range(arguments.seeds):
            generator = torch.Generator().manual_seed(seed)
            x, many = rows(arguments.rows, generator), rows(400_000, generator)
            weights = weigh(x, generator)
            chosen = torch.multinomial(weigh(many, generator), 20_000, replacement=True, generator=generator)
            shares.append(float(weights.sum() ** 2 / (weights @ weights) / len(x)))
            losses.append([loss(way, x, weights, many[chosen], seed) for way in WAYS])
        nats = np.array(losses)
        beyond = nats[:, 1:] - nats[:, :1]
        errors = beyond.std(0, ddof=1) / len(nats) ** 0.5
        cells = [f"{mean:+.3f} ± {error:.3f}" for mean, error in zip(beyond.mean(0), errors, strict=True)]
        print(f"| {name} | {np.mean(shares):.2f} | {nats[:, 0].mean():.3f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""The first rows, seen before training begins."""

from itertools import islice

import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.objectives import Objective, WithoutData
from diffeo.training.batches import Batch, Nothing, Rows, Stream, in_proportion
from diffeo.training.faults import locate
from diffeo.training.seeding import derive, seed_noise

__all__ = ["Breakdown", "breakdown", "initialise"]


@torch.no_grad()
def initialise(
    objective: Objective, source: Rows | Stream | Nothing, seed: int, device: torch.device, attempts: int
) -> list[Tensor]:
    """Let layers such as ActNorm set themselves from the data; return the buffers that every later step moves.

    Rows with a non-finite loss are not shown: first those that have one while nothing is set yet (a layer set with a
    row of 1e30 among the others makes all of them look alike), then those that have one afterwards. Rows with weights
    are shown as often as these say, so that statistics are those of the weighted data. What an objective draws itself
    are no rows that could be left out.

    Raises:
        UserError: if no rows with a finite loss are found, saying where the first non-finite value arose.
    """
    tensors = [*objective.parameters(), *objective.buffers()]
    before = [tensor.clone() for tensor in tensors]
    noise = derive(seed, "initialise")

    def finite(rows: Batch) -> Tensor:
        losses = objective(rows.x, rows.context)
        if losses.shape != (len(rows.x),):
            raise ValueError(f"expected one loss per example, shape ({len(rows.x)},), got {tuple(losses.shape)}")
        return losses.isfinite() | isinstance(objective, WithoutData)

    for batch in map(_in_proportion, islice(source.examples(seed), attempts)):
        seed_noise(device, noise)
        objective.eval()
        good = finite(batch)
        shown = batch.take(good) if good.any() else batch
        objective.train()
        while len(shown.x):
            seed_noise(device, noise)
            good = finite(shown)
            if good.all():
                versions = [buffer._version for buffer in objective.buffers()]
                objective(shown.x, shown.context)
                return [b for b, version in zip(objective.buffers(), versions, strict=True) if b._version != version]
            shown = shown.take(good)
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(old)
    seed_noise(device, noise)
    raise breakdown(objective, batch, "no row of the first batches has a finite loss")


def _in_proportion(batch: Batch) -> Batch:
    return batch if batch.weights is None else batch.take(in_proportion(batch.weights))


class Breakdown(UserError):
    """A training ended because its losses or gradients were no numbers."""


def breakdown(objective: Objective, batch: Batch, what: str) -> UserError:
    """Return the error that ends a training: what happened, and where in the last bad batch it began."""
    with torch.enable_grad():
        where = locate(objective, batch)
    return Breakdown(f"training stopped: {what}; the first non-finite value {where}; {objective.remedy}")

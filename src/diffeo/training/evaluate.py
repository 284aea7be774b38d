"""The loss on data that is not trained on."""

import math

import torch
from torch import nn

from diffeo.training.batches import Rows, Stream
from diffeo.training.interrupt import Interrupt
from diffeo.training.parallel import World
from diffeo.training.seeding import derive, seed_noise

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    objective: nn.Module, source: Rows | Stream | None, seed: int, world: World, interrupt: Interrupt
) -> tuple[float, float, int]:
    """Return the mean loss over the rows where it is finite, its standard error, and the number of the other rows.

    Without data the mean is NaN. Noise inside the model is the same each time, so that epochs compare. With a single
    process an interrupt cuts it short.
    """
    objective.eval()
    # number, sum, sum of squares, number of bad rows: float64 keeps the variance meaningful
    moments = torch.zeros(4, dtype=torch.float64, device=world.device)
    for number, batch in enumerate(source.in_order(world.share) if source is not None else ()):
        if len(batch.x):
            seed_noise(world.device, derive(seed, "validation", number, world.rank))
            losses = objective(batch.x, batch.context).double()
            good = losses.isfinite()
            losses = torch.where(good, losses, 0)
            moments += torch.stack((good.sum(), losses.sum(), losses.square().sum(), (~good).sum()))
        if interrupt.pressed and world.size == 1:
            break
    count, total, squares, bad = world.sum(moments).tolist()
    if not count:
        return math.nan, math.nan, int(bad)
    mean = total / count
    return mean, math.sqrt(max(0.0, squares / count - mean**2) / max(1, count - 1)), int(bad)

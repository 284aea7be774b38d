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
) -> tuple[float, float]:
    """Return the mean loss over all rows and its standard error, NaN without data.

    Noise inside the model is the same each time, so that epochs compare. With a single process an interrupt cuts it
    short.
    """
    objective.eval()
    # count, sum, sum of squares: float64 keeps the variance meaningful
    moments = torch.zeros(3, dtype=torch.float64, device=world.device)
    for number, batch in enumerate(source.in_order(world.share) if source is not None else ()):
        if len(batch.x):
            seed_noise(world.device, derive(seed, "validation", number, world.rank))
            losses = objective(batch.x, batch.context).double()
            moments += torch.stack((losses.new_tensor(len(losses)), losses.sum(), losses.square().sum()))
        if interrupt.pressed and world.size == 1:
            break
    count, total, squares = world.sum(moments).tolist()
    if not count:
        return math.nan, math.nan
    mean = total / count
    variance = max(0.0, squares / count - mean**2) if math.isfinite(squares) else math.nan
    return mean, math.sqrt(variance / max(1, count - 1))

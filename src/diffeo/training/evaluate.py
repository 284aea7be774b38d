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

    Of rows with weights it is their weighted mean, sum(w l) / sum(w), and the standard error that of this ratio (delta
    method). Without data the mean is NaN. Noise inside the model is the same each time, so that epochs compare. With a
    single process an interrupt cuts it short.
    """
    objective.eval()
    # number, sums of w, w l, w^2, w^2 l, w^2 l^2, number of bad rows: float64 keeps the variance meaningful
    moments = torch.zeros(7, dtype=torch.float64, device=world.device)
    for number, batch in enumerate(source.in_order(world.share) if source is not None else ()):
        if len(batch.x):
            seed_noise(world.device, derive(seed, "validation", number, world.rank))
            losses = objective(batch.x, batch.context).double()
            good = losses.isfinite()
            losses = torch.where(good, losses, 0)
            w = good.double() if batch.weights is None else good * batch.weights.double()
            parts = good, w, w * losses, w * w, w * w * losses, (w * losses).square(), ~good
            moments += torch.stack([part.sum() for part in parts])
        if interrupt.pressed and world.size == 1:
            break
    count, weight, total, *squares, bad = world.sum(moments).tolist()
    if not count:
        return math.nan, math.nan, int(bad)
    mean = total / weight
    ww, wwl, wwll = (square / count for square in squares)
    # the mean of w^2 (l - mean)^2; without weights, of l^2 - mean^2
    variance = wwll - (ww * mean**2 + 2 * mean * (wwl - ww * mean))
    return mean, math.sqrt(max(0.0, variance) / max(1, count - 1)) * (count / weight), int(bad)

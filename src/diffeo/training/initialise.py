"""The first batch, seen before training begins."""

from itertools import islice

import torch
from torch import Tensor, nn

from diffeo.errors import UserError
from diffeo.training.batches import Batch, Rows, Stream
from diffeo.training.faults import locate
from diffeo.training.seeding import derive, seed_noise

__all__ = ["breakdown", "initialise"]


@torch.no_grad()
def initialise(
    objective: nn.Module, source: Rows | Stream, seed: int, device: torch.device, attempts: int
) -> list[Tensor]:
    """Let layers such as ActNorm set themselves from the first good batch; return the buffers that every step moves.

    A batch with which anything becomes non-finite leaves no trace, and the next one is tried.

    Raises:
        UserError: after so many attempts, saying where the first non-finite value arose.
    """
    objective.train()
    tensors = [*objective.parameters(), *objective.buffers()]
    before = [tensor.clone() for tensor in tensors]
    tried = 0
    for batch in islice(source.shuffled(seed, 0), attempts):
        tried += 1
        noise = derive(seed, "initialise", tried)
        seed_noise(device, noise)
        losses = objective(batch.x, batch.context)
        if losses.shape != (len(batch.x),):
            raise ValueError(f"expected one loss per example, shape ({len(batch.x)},), got {tuple(losses.shape)}")
        if losses.mean().isfinite() and not any(tensor.isnan().any() for tensor in tensors):
            versions = [buffer._version for buffer in objective.buffers()]
            objective(batch.x, batch.context)
            return [b for b, version in zip(objective.buffers(), versions, strict=True) if b._version != version]
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)
    seed_noise(device, noise)
    raise breakdown(objective, batch, tried)


def breakdown(objective: nn.Module, batch: Batch, count: int) -> UserError:
    """Return the error that ends a training after ``count`` bad batches, the last of which is given."""
    with torch.enable_grad():
        where = locate(objective, batch)
    return UserError(
        f"training stopped: {count} batches in a row gave a non-finite loss or gradient; "
        f"in the last one the first non-finite value {where}; clean the data or lower the learning rate"
    )

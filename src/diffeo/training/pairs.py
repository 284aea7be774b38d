"""Data paired with noise before they are batched."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffeo.training.batches import Batch, Rows, Stream, everything, in_proportion, place
from diffeo.training.parallel import Share
from diffeo.training.seeding import derive, seed_noise

__all__ = ["Pairs"]

REUSED = 32  # epochs that use the same pairs, which makes their price small


class Pairs(Rows):
    """A source of batches whose x are pairs (z, x) of noise and data, ``(n, 2, *event)``, coupled in pools.

    The rows of the data fall at random into pools; within a pool each row gets a noise of its own. Which pairs there
    are follows from the seed and the epoch alone, so a training that is resumed finds them again.

    Rows with weights are drawn in proportion to these before they are coupled, anew each time, and count alike
    afterwards. (Weights on pairs would be weights on their noise, too, which then is no longer the base's: where each
    row has the noise closest to it, the model would not learn of the weights at all.)

    Args:
        source: the data, rows in memory.
        couple: noise for the rows x of a pool, given their context.
        pool: rows coupled together.

    Raises:
        ValueError: for a stream, whose rows cannot be found again, or a pool smaller than a batch.
    """

    def __init__(self, source: Rows | Stream, couple: Callable[[Tensor, Tensor | None], Tensor], pool: int) -> None:
        if not isinstance(source, Rows):
            raise ValueError("expected data in memory to couple with noise, got a stream; couple independently")
        if pool < source.batch_size:
            raise ValueError(f"expected a pool of at least a batch of {source.batch_size} rows to couple, got {pool}")
        self.__dict__.update(source.__dict__)
        self.source, self.couple, self.pool = source, couple, pool
        # what was coupled last: for which seed and round, and the noise of the row in each place
        self.coupled: tuple[tuple[int, int], Tensor] | None = None

    def shuffled(self, seed: int, epoch: int, start: int = 0, share: Share = everything) -> Iterator[Batch]:
        """Yield the batches of an epoch from number ``start`` on, in pairs."""
        self._couple(seed, epoch // REUSED)
        return super().shuffled(seed, epoch, start, share)

    def in_order(self, share: Share = everything) -> Iterator[Batch]:
        """Yield all rows once, in pairs that are always the same."""
        self._couple(0, 0)
        return super().in_order(share)

    def examples(self, seed: int) -> Iterator[Batch]:
        """Yield chunks of the rows, which are not paired."""
        return self.source.examples(seed)

    def select(self, places: Tensor, share: Share = everything) -> Batch:
        """Return the pairs in these places (or this process's share of them) as a batch."""
        assert self.coupled is not None  # before any batch is asked for
        batch = super().select(places, share)
        noise = self.coupled[1]
        z = noise[places[share(len(places))].to(noise.device)]
        x = torch.stack([place(z, batch.x.device, None), batch.x.to(z.dtype)], 1)
        return batch._replace(x=x, weights=None)

    @torch.no_grad()
    def _couple(self, seed: int, number: int) -> None:
        if self.coupled is not None and self.coupled[0] == (seed, number):
            return
        generator = torch.Generator().manual_seed(derive(seed, "pools", number))
        if self.weights is not None:
            rows = self.source.rows
            drawn = torch.Generator().manual_seed(derive(seed, "drawn", number))
            self.rows = rows[in_proportion(self.weights[rows], torch.rand((), generator=drawn).item())]
        order = torch.randperm(self.size, generator=generator)
        parts = []
        for index, chosen in enumerate(order.split(self.pool)):
            batch = super().select(chosen.to(self.x.device))
            seed_noise(batch.x.device, derive(seed, "couple", number, index))
            parts.append(self.couple(batch.x, batch.context))
        coupled = torch.cat(parts)
        noise = torch.empty_like(coupled)
        noise[order.to(noise.device)] = coupled
        self.coupled = (seed, number), noise

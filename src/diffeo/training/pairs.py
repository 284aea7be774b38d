"""Data paired with noise before they are batched."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from diffeo.training.batches import Batch, Rows, Share, Stream, everything, place
from diffeo.training.seeding import derive, seed_noise

__all__ = ["Pairs"]

REUSED = 32  # epochs that use the same pairs, which makes their price small


class Pairs(Rows):
    """A source of batches whose x are pairs (z, x) of noise and data, ``(n, 2, *event)``, coupled in pools.

    The rows of the data fall at random into pools; within a pool each row gets a noise of its own. Which pairs there
    are follows from the seed and the epoch alone, so a training that is resumed finds them again.

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
        self.couple, self.pool = couple, pool
        # what was coupled last, by the numbers of its rows in the data, and for which seed and round
        self.noise: tuple[tuple[int, int], Tensor] | None = None

    def shuffled(self, seed: int, epoch: int, start: int = 0, share: Share = everything) -> Iterator[Batch]:
        """Yield the batches of an epoch from number ``start`` on, in pairs."""
        return self._paired(super().shuffled(seed, epoch, start, share), seed, epoch // REUSED)

    def in_order(self, share: Share = everything) -> Iterator[Batch]:
        """Yield all rows once, in pairs that are always the same."""
        return self._paired(super().in_order(share), 0, 0)

    def _paired(self, batches: Iterable[Batch], seed: int, number: int) -> Iterator[Batch]:
        noise = self._noise(seed, number)
        for batch in batches:
            assert batch.rows is not None  # rows in memory have numbers
            z = noise[batch.rows.to(noise.device)]
            yield batch._replace(x=torch.stack([place(z, batch.x.device, None), batch.x.to(z.dtype)], 1))

    @torch.no_grad()
    def _noise(self, seed: int, number: int) -> Tensor:
        if self.noise is None or self.noise[0] != (seed, number):
            generator = torch.Generator().manual_seed(derive(seed, "pools", number))
            order = torch.randperm(self.size, generator=generator)
            parts = []
            for index, chosen in enumerate(order.split(self.pool)):
                batch = self.select(self.rows[chosen].to(self.x.device))
                seed_noise(batch.x.device, derive(seed, "couple", number, index))
                parts.append(self.couple(batch.x, batch.context))
            coupled = torch.cat(parts)
            noise = coupled.new_zeros(len(self.x), *coupled.shape[1:])
            noise[self.rows[order].to(noise.device)] = coupled
            self.noise = (seed, number), noise
        return self.noise[1]

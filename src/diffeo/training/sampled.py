"""Batches that a flow draws: data without end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.training.batches import fingerprint
from diffeo.training.seeding import derive, seeded
from diffeo.training.stream import BatchStream

__all__ = ["SampleStream"]


def _samples(flow: Flow, count: int, context: Tensor | None) -> Tensor:
    return flow.sample((count,) if context is None else (), context)


class SampleStream(BatchStream):
    """Draws of a flow, decided by seed and epoch.

    Args:
        flow: what to draw from, without gradients.
        contexts: the contexts ``(n, *context)`` to draw in, picked at random; for a flow that takes one.
        batch_size: rows per batch.
        batches: batches per epoch.
        seed: of the draws.
        draw: what to draw, ``draw(flow, count, context=context)`` -> (count, ...): samples by default,
            ``reflow_pairs``, or ``trajectories`` of so many steps.
        reused: epochs in a row that have the same draws, each in an order of its own; more than 1 where a draw costs
            much more than a step of training. Then an epoch's draws are held in memory.
    """

    def __init__(
        self,
        flow: Flow,
        contexts: Tensor | None = None,
        *,
        batch_size: int = 512,
        batches: int = 100,
        seed: int = 0,
        draw: Callable[..., Tensor] = _samples,
        reused: int = 1,
    ) -> None:
        self.flow, self.contexts, self.draw = flow, contexts, draw
        self.batch_size, self.batches, self.seed, self.reused = batch_size, batches, seed, reused
        self._held: tuple[int, list[tuple[Tensor, Tensor | None]]] = 0, []

    def __len__(self) -> int:
        return self.batches

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of the first batch, which tells this stream from that of another flow or seed."""
        return fingerprint(*self._batch(0, 0))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        number, again = divmod(self.epoch, self.reused)
        if not again:
            yield from self._draws(number)
            return
        parts, contexts = zip(*self._draws(number), strict=True)
        x, context = torch.cat(parts), None if self.contexts is None else torch.cat(contexts)
        generator = torch.Generator().manual_seed(derive(self.seed, "order", self.epoch))
        for rows in torch.randperm(len(x), generator=generator).to(x.device).split(self.batch_size):
            yield x[rows], None if context is None else context[rows]

    def _draws(self, number: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The batches of new draws of this number, each of them drawn once if they are used again."""
        if self._held[0] != number:
            self._held = number, []
        held = self._held[1]
        for index in range(self.batches):
            if index < len(held):
                yield held[index]
                continue
            batch = self._batch(number, index)
            if self.reused > 1:
                held.append(batch)
            yield batch

    def _batch(self, number: int, index: int) -> tuple[Tensor, Tensor | None]:
        device = self.flow.base.device_marker.device
        with seeded(device, derive(self.seed, "draws", number, index)), torch.no_grad():
            if self.contexts is None:
                return self.draw(self.flow, self.batch_size, context=None), None
            chosen = torch.randint(len(self.contexts), (self.batch_size,))
            context = self.contexts[chosen.to(self.contexts.device)].to(device)
            return self.draw(self.flow, self.batch_size, context=context), context

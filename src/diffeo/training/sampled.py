"""Batches that a flow draws: data without end."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.training.batches import fingerprint
from diffeo.training.seeding import derive, seed_noise

__all__ = ["SampleStream"]


class SampleStream:
    """Fresh draws of a flow in every epoch, as ``diffeo.fit`` takes a stream; seed and epoch decide them.

    Args:
        flow: what to draw from, without gradients.
        contexts: the contexts (n, *context) to draw in, picked at random; for a flow that takes one.
        batch_size: rows per batch.
        batches: batches per epoch.
        seed: of the draws.
    """

    def __init__(
        self, flow: Flow, contexts: Tensor | None = None, *, batch_size: int = 512, batches: int = 100, seed: int = 0
    ) -> None:
        self.flow, self.contexts = flow, contexts
        self.batch_size, self.batches, self.seed = batch_size, batches, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.batches

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next: it decides the draws."""
        self.epoch = epoch

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of the first batch, which tells this stream from that of another flow or seed."""
        return fingerprint(*self._batch(0, 0))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for number in range(self.batches):
            yield self._batch(self.epoch, number)

    def _batch(self, epoch: int, number: int) -> tuple[Tensor, Tensor | None]:
        device = self.flow.base.device_marker.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            seed_noise(device, derive(self.seed, "draws", epoch, number))
            if self.contexts is None:
                return self.flow.sample(self.batch_size), None
            chosen = torch.randint(len(self.contexts), (self.batch_size,))
            context = self.contexts[chosen.to(self.contexts.device)].to(device)
            return self.flow.sample((), context), context

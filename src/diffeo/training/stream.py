"""The protocol of data that come in batches."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor

__all__ = ["BatchStream", "Item"]

# Of a batch x and context, and the weights of its rows where they have any.
Item = tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, Tensor | None]


class BatchStream(ABC):
    """Training data in batches that are read, computed or drawn anew in every epoch.

    Whoever goes through it says first which epoch it is, by ``set_epoch``; then ``iter`` gives the batches of that one.
    What they hold is decided by the stream's arguments and the epoch alone: the same epoch twice gives the same
    batches, so a training that was killed goes on as if it had not been.

    Attributes:
        epoch: the one that ``iter`` gives, from 0.
    """

    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next.

        Args:
            epoch: its number, from 0.
        """
        self.epoch = epoch

    @abstractmethod
    def __iter__(self) -> Iterator[Item]:
        """Yield the epoch's batches: x ``(n, *event)`` and the context ``(n, *context)``, or None where there is none.

        Where rows have weights, these come third, ``(n,)``: finite, of at least 0. The sizes n may differ, event and
        context may not.
        """

    def part(self, start: int, rank: int, size: int) -> Iterator[tuple[Item, int]] | None:
        """Yield one process's rows of each batch, and how many rows the whole batch has, from number ``start`` on.

        For streams that can read these rows alone; None, as by default, where only whole batches can be had. All
        processes' rows together, in the order of the processes, are the batches that ``iter`` gives.

        Args:
            start: the number of the first batch.
            rank: which of the processes, from 0.
            size: how many there are.
        """
        return None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches, the same in every epoch."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What tells these data from others: a checkpoint belongs to a stream if it has the checkpoint's fingerprint.

        It depends on neither the epoch nor on how far anyone has read.
        """

"""The norm of all gradients, then AdamW and the moving average of the weights, in one call each (``update.c``).

The reference is ``Update`` in ``training/update.py``: PyTorch's AdamW and its operations on lists of tensors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffeo.ops.cpu.binding import addresses, structure
from diffeo.ops.cpu.build import library
from diffeo.ops.specs import Trained

__all__ = ["FusedUpdate"]


_Trained = structure("p value average mean square steps, l size, d rate decay")
_Adam = structure("d kept_mean kept_square epsilon")


class FusedUpdate:
    """The updates of all parameters as C sees them; their tensors are changed in place.

    Args:
        trained: the parameters, float32 on the CPU and contiguous.
        betas: how much of the moments is kept.
        epsilon: what is added to the root of the second one.
    """

    def __init__(self, trained: Sequence[Trained], betas: tuple[float, float], epsilon: float) -> None:
        self.trained = trained  # alive as long as what points to it
        self.addresses = [each.value.data_ptr() for each in trained]
        self.all = (_Trained * len(trained))(
            *(
                _Trained(*(t.data_ptr() for t in each[:5]), each.value.numel(), each.rate, each.decay)
                for each in trained
            )
        )
        self.adam = _Adam(*betas, epsilon)
        self._read: tuple[list[Tensor | None], list[Tensor | None], Any] | None = None

    @property
    def current(self) -> bool:
        """Whether the parameters are still where they were."""
        return self.addresses == [each.value.data_ptr() for each in self.trained]

    def norm(self) -> Tensor:
        """The norm of all gradients together, a number."""
        self._read = self._gradients()
        total = library().gradient_norm_f32(self.all, self._read[-1], len(self.trained), torch.get_num_threads())
        return torch.tensor(total, dtype=torch.float64)

    def take(self, factor: float, scale: float, kept: float) -> None:
        """Take a step.

        Args:
            factor: of the full learning rates.
            scale: of the gradients.
            kept: the share of the averages that is kept.
        """
        read = self._gradients()
        library().update_f32(
            self.all, read[-1], len(self.trained), ctypes.byref(self.adam), factor, scale, kept,
            torch.get_num_threads(),
        )  # fmt: skip
        self._read = None  # the next ones need the memory

    def _gradients(self) -> tuple[list[Tensor | None], list[Tensor | None], Any]:
        """The gradients, these contiguous, and their addresses; as they were read last, if they are the same."""
        grads = [each.value.grad for each in self.trained]
        if self._read is not None and all(a is b for a, b in zip(grads, self._read[0], strict=True)):
            return self._read
        gradients = [None if grad is None else grad.contiguous() for grad in grads]
        return grads, gradients, addresses(gradients)

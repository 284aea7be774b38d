"""What the kernels' autograd functions share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["needs_grad", "second_derivatives"]


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether somebody will ask for a gradient with respect to one of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def second_derivatives(
    outputs: Sequence[Tensor], grads: Sequence[Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """A kernel's backward pass where a second derivative is asked for: through ``outputs`` of the reference."""
    wanted = [t for t, need in zip(inputs, needed, strict=True) if need and t is not None]
    pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
    derivatives = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [grad for _, grad in pairs], create_graph=True, materialize_grads=True
        )
    )
    return [next(derivatives) if need else None for need in needed]

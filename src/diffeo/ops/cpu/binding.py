"""What the bindings of the C functions share: types, structures, addresses, and gradients."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["TYPES", "addresses", "needs_grad", "pointer", "second_derivatives", "structure"]

# A letter for each of C's types, by which functions (build.py) and structures are declared.
TYPES: dict[str, Any] = {
    "i": ctypes.c_int,
    "l": ctypes.c_long,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
    "p": ctypes.c_void_p,
    "L": ctypes.POINTER(ctypes.c_long),  # of a structure, which keeps the array that it points to
}


def structure(declaration: str) -> Any:
    """The type of a C structure, such as ``structure("p weight bias, l units columns")``."""
    members = [member.split() for member in declaration.split(",")]
    fields = [(name, TYPES[letter]) for letter, *names in members for name in names]
    return type("Structure", (ctypes.Structure,), {"_fields_": fields})


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a tensor's first element."""
    return None if tensor is None else tensor.data_ptr()


def addresses(tensors: Sequence[Tensor | None]) -> Any:
    """The addresses of tensors as an array."""
    return (ctypes.c_void_p * len(tensors))(*map(pointer, tensors))


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether somebody will ask for a gradient with respect to one of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def second_derivatives(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    grads: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """A kernel's backward pass where a second derivative is asked for: through ``function``, the reference.

    The derivatives are partial ones: to each input as it is handed over, though one may be made of another, or twice
    the same.
    """
    views = [None if each is None else each.view_as(each) for each in inputs]
    wanted = [view for view, need in zip(views, needed, strict=True) if need and view is not None]
    pairs = [(out, grad) for out, grad in zip(function(*views), grads, strict=False) if out.requires_grad]
    derivatives = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [grad for _, grad in pairs], create_graph=True, materialize_grads=True
        )
    )
    return [next(derivatives) if need else None for need in needed]

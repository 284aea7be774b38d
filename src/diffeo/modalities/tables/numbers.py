"""Operations on numbers that are an array of NumPy's or a tensor of PyTorch's, where the two have other names for them.

So what a column's values become is written once, and an exported program computes the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Numbers", "below", "entries", "floats", "numbers_of"]

Numbers = Any  # np.ndarray or torch.Tensor


def numbers_of(values: Numbers) -> Any:
    """The library whose these are: ``numpy`` or ``torch``, for all that has one name in both."""
    if not _is_tensor(values):
        return np
    import torch

    return torch


def below(edges: np.ndarray, values: Numbers) -> Numbers:
    """How many of the ascending edges lie below each value, as ``np.searchsorted`` counts; for tensors by comparing."""
    if _is_tensor(values):
        import torch

        return (values[..., None] > torch.as_tensor(edges, device=values.device)).sum(-1)
    return np.searchsorted(edges, values)


def entries(table: np.ndarray, places: Numbers) -> Numbers:
    """The entries of a table at these places, which are whole numbers of any type."""
    if _is_tensor(places):
        import torch

        return torch.as_tensor(table, device=places.device)[places.long()]
    return table[places.astype(int)]


def floats(values: Numbers) -> Numbers:
    """The same values in double precision."""
    return values.double() if _is_tensor(values) else values.astype(np.float64)


def _is_tensor(values: Numbers) -> bool:
    """Whether it is a tensor, without the import of PyTorch: tables are read without it."""
    return type(values).__module__.partition(".")[0] == "torch"

"""Where a non-finite value came from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffeo.training.batches import Batch

__all__ = ["locate"]

# Transforms and velocities are used through these methods, which forward hooks do not see.
WATCHED = (
    "forward", "inverse", "forward_and_log_det", "inverse_and_log_det", "log_prob", "sample_and_log_prob",
    "squared_error",
)  # fmt: skip


def locate(objective: nn.Module, batch: Batch) -> str:
    """Return where the first non-finite value arises when the batch is run again: data, module or parameter."""
    for name, parameter in objective.named_parameters():
        if not parameter.isfinite().all():
            return f"is in the parameter {name} itself"
    for name, data in (("data", batch.x), ("context", batch.context)):
        if data is not None and not data.isfinite().all():
            return f"is in the {name}: {_place(data, ~data.isfinite(), batch.rows)}"
    if not len(batch.x):
        return "arose in another process"
    with _watch(objective) as places:
        losses = objective(batch.x, batch.context)
    rows = (~losses.detach().isfinite()).nonzero().flatten().tolist()
    if places or rows:
        return f"arose in {places[0] if places else 'the loss'}{_largest(batch, rows[0] if rows else None)}"
    objective.zero_grad()
    losses.mean().backward()
    bad = [n for n, p in objective.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    objective.zero_grad()
    if bad:  # the last parameter in the forward pass is the first one in the backward pass
        return f"arose in the backward pass, in the gradient of {bad[-1]}{_largest(batch, None)}"
    return "did not arise again, or arose in another process or in the norm of large gradients"


def _largest(batch: Batch, row: int | None) -> str:
    """Say which entry of the batch, or of one of its rows, is the largest: often it is what went wrong."""
    if not batch.x.numel():  # of an objective without data
        return ""
    size = batch.x.abs()
    if row is None:
        return f" (largest entry of the data: {_place(batch.x, size == size.max(), batch.rows)})"
    in_row = torch.arange(len(size), device=size.device).reshape(-1, *(1,) * (size.ndim - 1)) == row
    return f" (its largest entry: {_place(batch.x, in_row & (size == size[row].max()), batch.rows)})"


def _place(data: Tensor, bad: Tensor, rows: Tensor | None) -> str:
    """Say which row and column of the data the first marked entry is, and what it holds."""
    where = bad.nonzero()[0].tolist()
    value = data[tuple(where)].item()
    row = f"row {where[0]} of the batch" if rows is None else f"row {int(rows[where[0]])}"
    column = f", column {', '.join(map(str, where[1:]))}" if len(where) > 1 else ""
    return f"{row}{column} holds {value:g}"


@contextmanager
def _watch(root: nn.Module) -> Iterator[list[str]]:
    """Record, inside the block, the calls within ``root`` whose output is not finite, the innermost one first."""
    places: list[str] = []
    watched: list[tuple[nn.Module, str]] = []

    def watch(module: nn.Module, path: str, method: str) -> None:
        original: Callable[..., Any] = getattr(module, method)

        def watching(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            if any(not t.isfinite().all() for t in _tensors(output)):
                places.append(f"{path or type(module).__name__}.{method} ({type(module).__name__})")
            return output

        module.__dict__[method] = watching  # shadows the class's method on this instance only
        watched.append((module, method))

    for path, module in root.named_modules():
        for method in WATCHED:
            if callable(getattr(module, method, None)):
                watch(module, path, method)
    try:
        yield places
    finally:
        for module, method in watched:
            del module.__dict__[method]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)

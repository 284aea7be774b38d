"""The activations that a network can be asked for by name, and the soft bound on its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffeo.ops.reference.network import ACTIVATIONS, soft_bound

__all__ = [
    "ACTIVATIONS",
    "INPUT_BOUND",
    "as_widths",
    "get_activation",
    "overwriting",
    "rate_for_width",
    "soften",
    "with_slope",
    "zero_last",
]

# Networks see their inputs through a soft bound, in standard deviations: whatever a user scores, shifts and scales stay
# finite, and the map stays invertible in float32 where the network has never seen data.
INPUT_BOUND = 3.0


def as_widths(widths: Sequence[int], name: str = "hidden widths") -> tuple[int, ...]:
    """The widths of layers.

    Args:
        widths: one for each.
        name: what they are called.

    Raises:
        TypeError: for a number, or what holds no numbers.
    """
    if not isinstance(widths, Sequence) or not all(isinstance(width, int) for width in widths):
        raise TypeError(f"expected {name} such as (128, 128), got {widths!r}")
    return tuple(widths)


def get_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Look an activation up by its name, one in ``ACTIVATIONS``.

    Raises:
        ValueError: for another.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"expected an activation among {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


def overwriting(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the activation that writes over its argument, where its derivative follows from its value alone.

    Large images are then not given a second piece of memory, which costs more than the arithmetic.
    """
    return torch.relu_ if activation is F.relu else activation


def soften(x: Tensor) -> Tensor:
    """Bound a network's inputs smoothly: ``c tanh(x / c)``, close to the identity where standardised data are."""
    return soft_bound(x, INPUT_BOUND)


def with_slope(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """An elementwise function and its derivative, both differentiable; in closed form where it is a common one."""
    if function is F.silu:
        gate = torch.sigmoid(at)
        value = at * gate
        return value, torch.addcmul(gate, value, 1 - gate)
    if function is torch.tanh or function is soften:
        scale = INPUT_BOUND if function is soften else 1.0
        value = torch.tanh(at / scale)
        return scale * value, 1 - value.square()
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        at = at if at.requires_grad else at.detach().requires_grad_()
        value = function(at)
        (slope,) = torch.autograd.grad(value, at, torch.ones_like(value), create_graph=recorded)
    return (value, slope) if recorded else (value.detach(), slope)


def zero_last(last: nn.Module) -> None:
    """Set a network's last layer to zero, so that the flow that it parameterises starts as the identity."""
    for parameter in last.parameters():
        nn.init.zeros_(parameter)


def rate_for_width(hidden: Sequence[int]) -> float:
    """The learning rate of a network relative to one of width 128: falls as 1 / width beyond that.

    A step of Adam moves every weight by the learning rate, so an output moves with the number of units that feed it
    (Yang et al. 2022, arXiv:2203.03466).
    """
    return min(1.0, 128 / max(hidden, default=128))

"""AdamW with a rate per module, and the rate over time."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

__all__ = ["BETAS", "EPSILON", "Group", "adamw", "groups_of", "learning_rate", "set_learning_rate"]

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of AdamW: how much of the moments is kept, what is added to a root


class Group(NamedTuple):
    """Parameters that learn at one rate.

    Attributes:
        parameters: which they are.
        rate: the full one.
        decay: the share of the rate by which they decay.
    """

    parameters: list[nn.Parameter]
    rate: float
    decay: float


def groups_of(module: nn.Module, lr: float, weight_decay: float) -> list[Group]:
    """Group the trainable parameters by what they learn at.

    A module with an attribute ``lr_scale`` learns that many times faster than ``lr``, and all within it that has no
    scale of its own. Only matrices decay: biases, scales and locations are not large by overfitting.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    scales: dict[str, float] = {}
    seen: set[nn.Parameter] = set()
    for name, part in module.named_modules():  # parents come before their children
        scales[name] = float(getattr(part, "lr_scale", scales.get(name.rpartition(".")[0], 1.0)))
        for parameter in part.parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                groups.setdefault((scales[name], parameter.ndim >= 2), []).append(parameter)
    if not groups:
        raise ValueError("expected an objective with trainable parameters, got none")
    return [Group(parameters, lr * scale, weight_decay * decays) for (scale, decays), parameters in groups.items()]


def adamw(groups: Sequence[Group]) -> torch.optim.AdamW:
    """Return PyTorch's AdamW over groups of parameters. The first one of a process imports torch._dynamo: seconds."""
    every = [parameter for group in groups for parameter in group.parameters]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in every)
    return torch.optim.AdamW(
        [
            {"params": group.parameters, "lr": group.rate, "full_lr": group.rate, "weight_decay": group.decay}
            for group in groups
        ],
        betas=BETAS,
        eps=EPSILON,
        fused=fused,
    )


def learning_rate(progress: float, warmup: float) -> float:
    """Return the rate, relative to the full one, when a fraction ``progress`` of the budget is used up.

    It rises linearly over the fraction ``warmup``, then falls as half a cosine to 0 at the end.
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the rate of every group to its full one times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * factor

"""AdamW with a rate per module, and the rate over time."""

import math

import torch
from torch import nn

__all__ = ["learning_rate", "make_optimizer", "set_learning_rate"]


def make_optimizer(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters.

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
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for ps in groups.values() for p in ps)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": lr * scale, "full_lr": lr * scale, "weight_decay": weight_decay * decays}
            for (scale, decays), parameters in groups.items()
        ],
        lr=lr,
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

"""Which noise goes with which row of the data."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CONDITION_WEIGHT", "assign"]

CONDITION_WEIGHT = 50.0  # of standardised contexts: noise is exchanged within a class, and between close numbers


def assign(z: Tensor, x: Tensor, context: Tensor | None = None, weight: float = CONDITION_WEIGHT) -> Tensor:
    """Return for each row of x the row of z that optimal transport gives it; each is used exactly once.

    The cost of a pair is the mean square of z - x over elements, plus ``weight |c - c'|^2`` where there are contexts,
    c' being the context of the row that z came with. Without that term the noise given a context would not be the
    base, and a conditional model would be biased (C2OT, Cheng and Schwing 2025, arXiv:2503.10636).

    Args:
        z: noise ``(n, *event)``.
        x: data ``(n, *event)``.
        context: of the data ``(n, context)``; row i of the noise came with row i of the data.
        weight: of the contexts' distance; large, noise is exchanged within a class alone.

    Returns:
        Row numbers ``(n,)``.
    """
    from scipy.optimize import linear_sum_assignment

    # |z - x|^2 = |z|^2 + |x|^2 - 2 z x; what depends on one side alone changes no assignment
    x, z = x.flatten(1), z.flatten(1)
    cost = (x @ z.mT).mul_(-2.0 / x.shape[1])
    if context is not None:
        cost.addmm_(context, context.mT, alpha=-2.0 * weight)
    return torch.from_numpy(linear_sum_assignment(cost.double().cpu().numpy())[1]).to(x.device)

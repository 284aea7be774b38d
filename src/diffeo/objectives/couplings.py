"""Which noise goes with which row of the data."""

from __future__ import annotations

import math

import scipy
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
    # |z - x|^2 = |z|^2 + |x|^2 - 2 z x; what depends on one side alone changes no assignment
    x, z = x.flatten(1), z.flatten(1)
    cost = (x @ z.mT).mul_(-2.0 / x.shape[1]).double().cpu()
    if context is not None:
        context = context.double().cpu()
        cost.addmm_(context, context.mT, alpha=-2.0 * weight)
    return torch.from_numpy(scipy.optimize.linear_sum_assignment(_reduced(cost).numpy())[1]).to(x.device)


def _reduced(cost: Tensor) -> Tensor:
    """Subtract from rows and columns what nearly solves the dual problem.

    Every assignment becomes cheaper by the same amount, so the best one stays the best, and is found several times
    sooner. The numbers to subtract come from a few of Sinkhorn's iterations at falling temperatures (Cuturi 2013,
    arXiv:1306.0895); they are found in single precision, for any numbers will do, and subtracted in double.
    """
    left = cost.float()
    by_row, by_column = left.amin(1), (left - left.amin(1, keepdim=True)).amin(0)
    left = left - by_row[:, None] - by_column
    scale = float(left.mean())
    if 0 < scale < math.inf:
        for temperature in (0.1 * scale, 0.03 * scale, 0.01 * scale):
            # what underflows would do so slowly: arithmetic with denormal numbers takes a hundred times as long
            kernel = (left / -temperature).clamp_(min=-80).exp_()
            rows, columns = torch.ones_like(by_row), torch.ones_like(by_column)
            for _ in range(8):
                rows = 1 / (kernel @ columns).clamp_min(1e-30)
                columns = 1 / (kernel.mT @ rows).clamp_min(1e-30)
            by_row = by_row + temperature * rows.log()
            by_column = by_column + temperature * columns.log()
            left = left - temperature * (rows.log()[:, None] + columns.log())
            by_row, left = by_row + left.amin(1), left - left.amin(1, keepdim=True)
            by_column, left = by_column + left.amin(0), left - left.amin(0)
    reduced = cost - by_row.double()[:, None] - by_column.double()
    reduced -= reduced.amin(1, keepdim=True)
    return reduced.sub_(reduced.amin(0))

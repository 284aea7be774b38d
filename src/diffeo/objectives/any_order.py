"""Maximum likelihood over all orders of the columns at once."""

from __future__ import annotations

import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.objectives.base import Objective
from diffeo.transforms.mixed import Mixed

__all__ = ["AnyOrderLikelihood"]


class AnyOrderLikelihood(Objective):
    """-D / (D - t) sum_{i not known} log p(x_i | known), for t known columns drawn at random, t uniform on 0 ... D - 1.

    Its mean is that of -log p(x) over all orders of the D columns. The t of a batch's rows are spread evenly, so that
    the mean over the batch is less noisy. Hoogeboom et al. 2022 (arXiv:2110.02037).

    Args:
        flow: one of any order, whose transform is ``Mixed``.

    Raises:
        ValueError: for another flow.
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow)
        if not (isinstance(flow.transform, Mixed) and flow.any_order):
            raise ValueError(f"expected a flow of any order, such as mixed(...), got {type(flow.transform).__name__}")

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the estimate for each row: x ``(n, D)``, context ``(n, C)`` -> ``(n,)``."""
        rows, columns = x.shape
        spread = (torch.arange(rows, device=x.device) + torch.rand(rows, device=x.device)) / rows
        count = (spread * columns).long().clamp_max(columns - 1)[torch.randperm(rows, device=x.device)]
        known = torch.rand_like(x).argsort(1).argsort(1) < count[:, None]
        log_prob = self.flow.transform.log_conditionals(x, known, self.flow.normalize_context(context))
        return -torch.where(known, 0, log_prob).sum(1) * columns / (columns - count)

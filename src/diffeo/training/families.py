"""Simple densities that small tables stack beside flows: they cannot overfit much, or have tails that flows lack."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diffeo.bases import Base, Gaussians, StudentT
from diffeo.flow import Flow
from diffeo.recipes import build
from diffeo.training.fit import fit
from diffeo.transforms import Standardize
from diffeo.transforms.mixed import Mixed

__all__ = ["FAMILIES", "INDEPENDENT", "fitted"]

COMPONENTS = 12  # of a Gaussian mixture at most
WORSE = 2  # numbers of components in a row that do not lower the BIC end the search
ROWS = 20_000  # that a mixture of Gaussians is fitted to, and a kernel density has
TRIED = 1_000  # rows that a bandwidth is chosen by
BANDWIDTHS = np.geomspace(0.03, 3.0, 30)  # in standard deviations
CHUNK = 2**22  # distances at a time
INDEPENDENT = "independent"  # the family of mixed densities; FAMILIES are those of numbers
STEPS, BATCH = 300, 1024  # of its training
FLOOR = 1e-4  # the share of a broad component in its columns


def fitted(name: str, flow: Flow, x: Tensor, seed: int) -> Flow:
    """Fit one of ``FAMILIES`` to rows, within the preprocessing of a flow that was trained on them.

    Args:
        name: which.
        flow: a trained flow of vectors, whose preprocessing is copied; of "independent" a mixed density.
        x: rows (n, D).
        seed: of the noise that discrete values are spread by, and of what is drawn in fitting.

    Raises:
        ValueError: for fewer than two rows, or rows that such a density cannot be fitted to.
    """
    if name == INDEPENDENT:
        return _independent(flow, x, seed)
    steps = [copy.deepcopy(step) for step in flow.preprocessing]
    marker = flow.base.device_marker
    with torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(seed)
        y = x.cpu()
        for step in reversed(steps):
            y = step.cpu().eval().inverse(y)
        standard = Standardize(flow.event_shape).eval()
        standard.initialize(y)
        standard.initialized.fill_(True)
        base = FAMILIES[name](standard.inverse(y).double(), seed)
        flow = Flow(base, [standard, *steps], context_shape=flow.context_shape)  # which it does not look at
        return flow.to(marker.device).eval()


def _gaussian(y: Tensor, seed: int) -> Base:
    """A Gaussian whose covariance is shrunk as Ledoit and Wolf (2004) do."""
    from sklearn.covariance import LedoitWolf

    model = LedoitWolf().fit(y.numpy())
    return Gaussians.of(torch.from_numpy(model.location_)[None], torch.from_numpy(model.covariance_)[None])


def _gaussians(y: Tensor, seed: int) -> Base:
    """A mixture of Gaussians of full covariances, as many as the Bayesian information criterion asks for."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    rows = _some(y, ROWS, seed).numpy()
    best, lowest, worse = None, math.inf, 0
    for components in range(1, min(COMPONENTS, len(rows) // 2) + 1):
        model = GaussianMixture(components, reg_covar=1e-4, random_state=seed % 2**32, max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            criterion = model.fit(rows).bic(rows)
        best, worse = (model, 0) if criterion < lowest else (best, worse + 1)
        lowest = min(lowest, criterion)
        if worse == WORSE:
            break
    if best is None:
        raise ValueError(f"expected at least 2 rows, got {len(rows)}")
    return Gaussians.of(*(torch.from_numpy(each) for each in (best.means_, best.covariances_, best.weights_)))


def _kernels(y: Tensor, seed: int) -> Base:
    """A Gaussian kernel at each row, of the width that describes each row best by the others (Duin 1976)."""
    points = _some(y, ROWS, seed)
    rows, size = points[: max(2, min(TRIED, CHUNK // len(points)))], y.shape[1]
    squares = torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    squares[squares == 0] = torch.inf  # itself, and rows equal to it, which say nothing of how smooth the density is
    scores = [
        float(torch.logsumexp(-0.5 * squares / width**2, 1).clamp_min(-1e3).mean()) - size * math.log(width)
        for width in BANDWIDTHS
    ]
    width = float(BANDWIDTHS[int(np.argmax(scores))])
    return Gaussians.of(points, width**2 * torch.eye(size, dtype=torch.float64)[None])


def _broad(y: Tensor, seed: int) -> Base:
    """A round density with heavy tails, a floor under the others."""
    return StudentT(y.shape[1])


def _some(y: Tensor, most: int, seed: int) -> Tensor:
    order = np.random.default_rng(seed).permutation(len(y))[:most]
    return y[torch.from_numpy(order)]


def _independent(flow: Flow, x: Tensor, seed: int) -> Flow:
    """Independent columns of any kind: a mixed density of one unit, whose normalised value is always the same.

    It has a floor: no row is so far off that it spoils a mean.
    """
    assert flow.recipe is not None
    arguments = {**flow.recipe["arguments"], "context": 0, "hidden": 1, "layers": 1, "any_order": True, "orders": 1}
    torch.manual_seed(seed)
    columns = build("mixed", arguments)
    steps = max(1, -(-len(x) // BATCH))
    fit(columns, x, validation=0, epochs=-(-STEPS // steps), batch_size=BATCH, lr=0.1, weight_decay=0.0, seed=seed)
    assert isinstance(columns.transform, Mixed)
    columns.transform.put_floor(FLOOR)
    return columns


FAMILIES: dict[str, Callable[[Tensor, int], Base]] = {
    "gaussian": _gaussian,
    "gaussians": _gaussians,
    "kernels": _kernels,
    "broad": _broad,
}

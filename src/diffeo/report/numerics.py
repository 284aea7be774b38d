"""Does the code do what the mathematics says: inverses that invert, log-determinants that are those of the map."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.mixture import Mixture, OutOfFold
from diffeo.transforms import Chain, Dequantize, Support

__all__ = ["consistency", "continuous_part", "log_det_error", "off_data", "round_trip"]

HALVINGS = 40  # of a point's distance from the mean
WIDEST = 512  # event elements; beyond it a Jacobian by autograd takes too long


def continuous_part(flow: Flow, x: Tensor) -> tuple[Flow, Tensor]:
    """Return the flow without its dequantisation, and the rows dequantised: a bijection and points to try it on."""
    for transform in reversed(flow.parts):  # those of a mixture spread values alike
        if isinstance(transform, Dequantize):
            x = transform.inverse(x)
    return _without_noise(flow).eval(), x


def _without_noise(flow: Flow) -> Flow:
    if isinstance(flow, OutOfFold):
        whole = _without_noise(flow.mixture)
        assert isinstance(whole, Mixture)
        return OutOfFold(whole)
    if isinstance(flow, Mixture):
        return Mixture(map(_without_noise, flow.members), flow.log_weights.exp())
    kept = [part for part in flow.parts if not isinstance(part, Dequantize)]
    if len(kept) == len(flow.parts):
        return flow
    return Flow(flow.base, Chain(kept), flow.event_shape, flow.context_shape, flow.context_transform, flow.embedding)


@torch.no_grad()
def round_trip(flow: Flow, x: Tensor, context: Tensor | None, mean: Tensor, std: Tensor) -> dict[str, Any]:
    """Return the error of x -> z -> x: |x - f(f^-1(x))| / (1 + |x|), standardised, in each row's worst column."""
    back = flow.decode(flow.encode(x, context), context)
    size = (x - mean) / std
    error = ((x - back) / std).abs() / (1 + size.abs())
    worst = error.flatten(1).amax(1)
    return _summary(worst, worst.isfinite())


@torch.no_grad()
def off_data(
    flow: Flow,
    context: Tensor | None,
    mean: Tensor,
    std: Tensor,
    box: tuple[Tensor, Tensor],
    rows: int,
    generator: np.random.Generator,
) -> dict[str, Any]:
    """Return the round trip's error on points uniform in a box, (low, high) of the event's shape, far off the data.

    Points beyond a support, which have no image, are first brought towards the mean until they are within.
    """
    uniform = torch.from_numpy(generator.uniform(0, 1, (rows, *mean.shape))).to(mean)
    if context is not None:
        context = context[torch.from_numpy(generator.integers(len(context), size=rows)).to(context.device)]
    points, support = box[0] + (box[1] - box[0]) * uniform, flow.parts[-1]
    if isinstance(support, Support):
        for _ in range(HALVINGS):
            empty = support.inverse_and_log_det(points)[1] == -torch.inf
            beyond = (empty | ~support.constraint.check(points)).reshape(-1, *(1,) * mean.dim())
            points = torch.where(beyond, (points + mean) / 2, points)
    return round_trip(flow, points, context, mean, std)


def log_det_error(flow: Flow, x: Tensor, context: Tensor | None) -> dict[str, Any] | None:
    """Return the largest |log-det - log|det J|| / (1 + |log|det J||), J by autograd, all in float64; None if too wide.

    The fast direction is differentiated: that of scoring, or that of sampling where scoring is sequential.
    """
    if flow.event_shape.numel() > WIDEST:
        return None
    double = copy.deepcopy(flow).double()
    x, context = x.double(), None if context is None else context.double()
    prepared = double.normalize_context(context)
    sampling = flow.fast == {"sample"}
    with torch.no_grad():
        x = double.encode(x, context) if sampling else x
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        transform = double.transform
        y, log_det = (transform.forward_and_log_det if sampling else transform.inverse_and_log_det)(x, prepared)
        flat = y.flatten(1)  # (n, D); rows do not depend on each other, so a sum over them loses nothing
        grads = [torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)[0] for i in range(flat.shape[1])]
    jacobian = torch.stack([g.flatten(1) for g in grads], 1)  # (n, D, D)
    truth = torch.linalg.slogdet(jacobian).logabsdet
    error = (log_det.detach() - truth).abs() / (1 + truth.abs())
    return {"rows": len(x), "max": float(error.max())}


@torch.no_grad()
def consistency(flow: Flow, rows: int, context: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
    """Draw samples, and compare the density that the sampler gives them with the one that scoring gives.

    Returns:
        The samples, and the largest |difference| / (1 + |log p|) and its 99.9 % quantile, with non-finite counts.
    """
    shape = (rows,) if context is None else ()
    x, drawn = flow.sample_and_log_prob(shape, context)
    scored = flow.log_prob(x, context, nan="propagate")
    finite = torch.isfinite(x).flatten(1).all(1) & torch.isfinite(scored)
    return x, _summary((drawn - scored).abs() / (1 + scored.abs()), finite)


def _summary(error: Tensor, finite: Tensor) -> dict[str, Any]:
    """The 99.9 % quantile and the largest of the finite errors (n,), NaN where there is none."""
    kept = error[finite].double().cpu().numpy() if finite.any() else np.array([np.nan])
    return {
        "rows": len(error),
        "p99.9": float(np.quantile(kept, 0.999)),
        "max": float(kept.max()),
        "non_finite": int((~finite).sum()),
    }

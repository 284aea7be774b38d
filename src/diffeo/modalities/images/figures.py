"""Figures of a flow of images."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.flow import Flow
from diffeo.inpainting import inpaint
from diffeo.modalities.images.gallery import tiled
from diffeo.report.figures import training
from diffeo.report.style import Figures, figure
from diffeo.training.seeding import derive, seed_noise
from diffeo.transforms.multiscale import latent_scales

__all__ = ["board", "boards", "plot"]

SHOWN = 64
STEPS, FEWEST_STEPS = 200, 20  # of completing images: with fewer they stay unfinished


@torch.no_grad()
def plot(
    run: Path, flow: Flow, x: Tensor, context: Tensor | None, levels: int, seed: int, seconds: float = 60.0
) -> list[str]:
    """Write ``run/figures/*.png`` and return their paths.

    The learning curve in bits per dimension; real beside sampled images; paths in latent space between pairs of images;
    what the fine latents hold (drawn anew, coarse ones kept); images completed from their upper half, which takes
    hundreds of gradients: fewer where these take longer than the seconds there are, none where they would be too few,
    or where a density takes many evaluations of a network.

    Args:
        run: the run directory.
        flow: the trained flow.
        x: held-out images ``(n, C, H, W)``.
        context: their contexts, or None.
        levels: values a pixel can take.
        seed: of all that is random.
        seconds: for completing images.
    """
    path = Figures(run)
    training(path, flow, dimensions=x[0].numel())
    device = flow.base.device_marker.device
    seed_noise(device, derive(seed, "figures"))
    x = x[:SHOWN].to(device).float()
    context = None if context is None else context[:SHOWN].to(device)
    top = levels - 1.0
    sampled = flow.sample((len(x),)) if context is None else flow.sample((), context)
    boards({"data": x, "samples": sampled}, top, path("samples"))

    half = min(8, len(x) // 2)
    z = flow.encode(x, context)
    # along the sphere of the two latents, whose typical length straight lines would leave
    angle = torch.linspace(0, torch.pi / 2, 8, device=device).view(1, 8, *(1,) * (z.dim() - 1))
    between = z[:half, None] * angle.cos() + z[half : 2 * half, None] * angle.sin()
    contexts = None if context is None else context[:half].repeat_interleave(8, 0)
    boards({"between two images, in latent space": flow.decode(between.flatten(0, 1), contexts)}, top, path("between"))

    x, z, context = x[:16], z[:16], None if context is None else context[:16]
    anew = {"data": x}
    scales = latent_scales(flow.transform, flow.event_shape).to(device)
    for scale in range(int(scales.max())):
        fresh = torch.where(scales <= scale, flow.base.sample((len(z),)), z)
        anew[f"scales 1-{scale + 1} drawn anew" if scale else "finest scale drawn anew"] = flow.decode(fresh, context)
    if len(anew) > 1:
        boards(anew, top, path("scales"), side=4)

    if not flow.fast:  # hundreds of gradients of the density would take longer than the training
        return path.plotted
    hidden = torch.zeros(x.shape[1:], dtype=torch.bool, device=device)
    hidden[:, x.shape[2] // 2 :] = True
    complete = partial(inpaint, flow, x, hidden, context, high=top)
    complete(steps=1)  # the first one takes longer
    started = time.monotonic()
    complete(steps=2)
    steps = min(STEPS, int(2 * seconds / (time.monotonic() - started)))
    if steps >= FEWEST_STEPS:
        shown = torch.where(hidden, 0.5 * top, x)
        boards({"data": x, "hidden": shown, "completed": complete(steps=steps).x}, top, path("inpainting"), side=4)
    return path.plotted


def boards(parts: dict[str, Tensor], top: float, path: Path, side: int = 8) -> None:
    """Plot named sets of images ``(n, C, H, W)``, values 0 .. top, as squares side by side."""
    rows = max(-(-min(len(images), side * side) // side) for images in parts.values())
    with figure(path, (4.1 * len(parts), 4.1 * rows / side + 0.3)) as fig:
        fig.get_layout_engine().set(w_pad=0.1)  # so that sets are farther apart than images
        panels = fig.subplots(1, len(parts), squeeze=False)[0]
        for axes, (title, images) in zip(panels, parts.items(), strict=True):
            board(axes, images[: side * side], top, side)
            axes.set_title(title)


def board(axes: Any, images: Tensor, top: float, side: int) -> None:
    """Show images ``(n, C, H, W)``, values 0 .. top, row by row, ``side`` of them in each."""
    pixels = (images.nan_to_num(0.0) / top).clamp(0, 1).cpu().numpy()
    tiles = tiled(pixels, side, gap=1, fill=1.0)[:, 1:-1, 1:-1]
    axes.imshow(np.moveaxis(np.broadcast_to(tiles, (3, *tiles.shape[1:])), 0, -1), interpolation="nearest")
    axes.set_axis_off()

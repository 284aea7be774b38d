"""Figures of a VAE of images: reconstructions, and what its latents hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffeo.modalities.images.figures import board, boards
from diffeo.report.figures import training
from diffeo.report.style import GREY, Figures, figure
from diffeo.training.seeding import derive, seed_noise
from diffeo.variational import VAE

__all__ = ["plot"]

SHOWN = 64
POINTS = 5_000  # images in a picture of latents
REACH = 2.5  # standard deviations of a latent to either side, in a traversal
SIDE = 16  # images along an axis of a latent space of two dimensions


@torch.no_grad()
def plot(
    run: Path, vae: VAE, x: Tensor, labels: np.ndarray | None, classes: Sequence[str], levels: int, seed: int
) -> list[str]:
    """Write ``run/figures/*.png`` and return their paths.

    The learning curve in bits per dimension; data, as the likelihood knows them, beside draws and means; their
    reconstructions; paths in latent space between pairs of images; traversals of the latents that tell most of images,
    each moved alone; of two latents where images lie, and what is decoded all over the prior.

    Args:
        run: the run directory.
        vae: the trained model.
        x: held-out images ``(n, C, H, W)``.
        labels: the class of each ``(n,)``, for the colours of a picture of latents; or None.
        classes: their names.
        levels: values a pixel can take.
        seed: of all that is random.
    """
    path = Figures(run)
    training(path, vae, dimensions=x[0].numel())
    device = vae.base.device_marker.device
    seed_noise(device, derive(seed, "figures"))
    top = levels - 1.0
    x = vae.likelihood.prepare(x[:POINTS].to(device).float())
    z = vae.encode(x).flatten(1)
    few = x[:SHOWN]
    drawn = {"data": few, "samples": vae.sample(len(few)), "means of samples": vae.sample(len(few), means=True)}
    boards(drawn, top, path("samples"))
    boards({"data": few, "reconstructed": vae.decode(z[:SHOWN])}, top, path("reconstructions"))

    half = min(8, len(few) // 2)
    noise = vae.prior.encode(z[: 2 * half])
    angle = torch.linspace(0, torch.pi / 2, 8, device=device).view(1, 8, 1)
    between = noise[:half, None] * angle.cos() + noise[half:, None] * angle.sin()
    latents = vae.prior.decode(between.flatten(0, 1))
    boards({"between two images, in latent space": vae.decode(latents)}, top, path("between"))

    mean, std = z.mean(0), z.std(0, correction=0)
    most = std.argsort(descending=True)[:8]
    moved = z[:1].expand(len(most), 8, -1).clone()
    for row, j in zip(moved, most, strict=True):
        row[:, j] = mean[j] + std[j] * torch.linspace(-REACH, REACH, 8, device=device)
    title = "one latent moved in each row"
    boards({title: vae.decode(moved.flatten(0, 1))}, top, path("traversals"))
    if z.shape[1] == 2:
        _plane(vae, z, labels, classes, top, path("latents"))
    return path.plotted


def _plane(vae: VAE, z: Tensor, labels: np.ndarray | None, classes: Sequence[str], top: float, path: Path) -> None:
    """Two latents: where images lie (n, 2), and the images that quantiles of the prior's noise are decoded to."""
    from matplotlib import colormaps

    quantile = torch.special.ndtri((torch.arange(SIDE, device=z.device, dtype=z.dtype) + 0.5) / SIDE)
    grid = torch.stack(torch.meshgrid(quantile, -quantile, indexing="xy"), -1).flatten(0, 1)  # row by row, downwards
    places = z.cpu().numpy()
    with figure(path, (9.4, 4.7)) as fig:
        left, right = fig.subplots(1, 2)
        if labels is None or len(classes) > 20:
            left.scatter(*places.T, s=3, color=GREY, lw=0)
        else:
            colours = colormaps["tab10" if len(classes) <= 10 else "tab20"]
            for number, name in enumerate(classes):
                left.scatter(*places[labels == number].T, s=4, color=colours(number), lw=0, label=name)
            left.legend(markerscale=3, handletextpad=0.1, loc="center left", bbox_to_anchor=(1, 0.5))
        left.set_title("images by the centres of their posteriors")
        left.set_xlabel("first latent")
        left.set_ylabel("second latent")
        left.set_aspect("equal", "datalim")
        board(right, vae.decode(vae.prior.decode(grid)), top, SIDE)
        right.set_title("decoded over quantiles of the prior")

"""Completing images."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from diffeo.commands.runs import open_for, with_likelihood
from diffeo.errors import UserError
from diffeo.inpainting import inpaint as climb
from diffeo.modalities.images.dataset import one_hot
from diffeo.modalities.images.images import open_images
from diffeo.modalities.images.run import ImageRun, size
from diffeo.training.seeding import derive, seed_noise

__all__ = ["inpaint"]


def inpaint(
    run: str | os.PathLike[str],
    image: Any,
    mask: Any,
    out: str | os.PathLike[str],
    *,
    steps: int = 400,
    label: str | None = None,
    seed: int = 0,
    device: str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Complete the hidden pixels of images by gradient ascent of log p, and write them as ``sample`` does.

    Args:
        run: a run directory of images.
        image: what ``open_images`` takes, one image or many.
        mask: an image of the same height and width: pixels that are not black are hidden.
        out: a name ending in .png or .npz, or that of a folder to make.
        steps: steps of the ascent.
        label: the class, for a conditional run.
        seed: of the start and of the noise.
        device: where to compute.
        force: replace ``out``.

    Raises:
        UserError: for images or a mask of another shape, a mask that hides nothing or everything, or a bad output.
    """
    opened, _ = open_for("inpaint", run, device)
    if not isinstance(opened, ImageRun):
        raise UserError(f"{opened.path}: was not trained on images, but on {opened.words.data}")
    opened.check_target(out, force)
    with_likelihood(opened)
    images = opened.open(image)
    shown = open_images(mask)
    if len(shown) != 1 or shown.shape[1:] != opened.shape[1:]:
        wanted, got = size(opened.shape), size(shown.shape)
        raise UserError(f"{shown.name}: expected one mask of {wanted}, got {len(shown)} of {got}")
    hidden = torch.from_numpy((shown.pixels[0] > 0).any(0, keepdims=True)).expand(opened.shape)
    if hidden.all() or not hidden.any():
        raise UserError(f"{shown.name}: expected a mask that hides some pixels (white) and shows others (black)")
    labels = opened.labels(len(images), None if label is None else {"label": label})
    context = None if labels is None else one_hot(labels, len(opened.classes)).to(opened.device)
    x = torch.from_numpy(np.ascontiguousarray(images.pixels)).to(opened.device).float()
    seed_noise(opened.device, derive(seed, "inpaint"))
    result = climb(opened.flow, x, hidden.to(opened.device), context, high=opened.levels - 1.0, steps=steps)
    pixels = np.where(hidden.numpy(), opened.pixels(result.x.round()), images.pixels)
    opened.write(out, pixels, None, force)
    return {
        "images": len(pixels), "hidden": int(hidden.sum()), "before": float(result.before.mean()),
        "after": float(result.after.mean()), "out": str(out),
    }  # fmt: skip

"""What a run of images is used for: scoring, drawing and completing images."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.inpainting import inpaint
from diffeo.modalities.images.dataset import describe_images, one_hot
from diffeo.modalities.images.gallery import save_grid, save_npz, save_pngs
from diffeo.modalities.images.images import Images, open_images
from diffeo.modalities.runs import with_guidance, with_likelihood
from diffeo.modalities.tables.write import TableWriter
from diffeo.training.device import choose_device
from diffeo.training.run import load_run
from diffeo.training.seeding import derive, seed_noise
from diffeo.transforms.ode import watched_solves

__all__ = ["ImageRun", "inpaint_image", "open_image_run", "sample_images", "score_images"]

PORTION = 500  # images at a time

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class ImageRun:
    """A flow on its device, in evaluation mode, and what its images are like."""

    path: str
    flow: Flow
    shape: tuple[int, int, int]
    levels: int
    classes: tuple[str, ...]
    device: torch.device
    provenance: dict[str, Any]

    @property
    def description(self) -> dict[str, Any]:
        """What the run directory says of its images."""
        return describe_images(self.shape, self.levels, self.classes)

    def images(self, source: Any) -> Images:
        """Open images and prove that they are of this run's kind.

        Raises:
            UserError: if they are not.
        """
        _, height, width = self.shape
        found = open_images(source, (height, width) if _is_pictures(source) else None)
        if found.shape != self.shape:
            raise UserError(f"{found.name}: {self.path} knows images of {_size(self.shape)}, got {_size(found.shape)}")
        if found.levels != self.levels:
            raise UserError(f"{found.name}: {self.path} knows {self.levels} levels of grey, got {found.levels}")
        return found

    def context(self, images: Images) -> Tensor | None:
        """The one-hot labels of images, where the run is conditional.

        Raises:
            UserError: if there are none, or they are of other classes.
        """
        if not self.classes:
            return None
        if images.labels is None:
            raise UserError(f"{images.name}: {self.path} is conditional on labels; give images that have them")
        if images.classes != self.classes:
            known, got = (", ".join(names) for names in (self.classes, images.classes))
            raise UserError(f"{images.name}: {self.path} knows the classes {known}, got {got}")
        return one_hot(images.labels, len(self.classes)).to(self.device)


def open_image_run(run: str | os.PathLike[str], device: str | torch.device | None = None) -> ImageRun:
    """Load a run directory of images.

    Raises:
        UserError: if it is damaged, or of something else.
    """
    place = choose_device(device)
    loaded = load_run(run, place)
    schema = loaded.schema or {}
    if schema.get("kind") != "images":
        raise UserError(f"{loaded.path}: was not trained on images")
    try:
        channels, height, width = schema["shape"]
        shape, levels, classes = (channels, height, width), schema["levels"], tuple(schema["classes"])
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{loaded.path}: model.json is damaged: its images are not described; train again") from error
    if tuple(loaded.flow.event_shape) != shape or loaded.flow.context_shape != ((len(classes),) if classes else ()):
        raise UserError(f"{loaded.path}: model.json is damaged: its model does not fit its images; train again")
    return ImageRun(os.fspath(run), loaded.flow, shape, levels, classes, place, loaded.provenance)


def score_images(
    run: str | os.PathLike[str],
    source: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    device: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the log-likelihood of every image, in nats, and its bits per dimension.

    Pixels are whole numbers, dequantised by uniform noise: log p(x + u), on average over u, bounds the log-probability
    of the pixels from below (Theis et al. 2016, arXiv:1511.01844).

    Args:
        run: a run directory of images.
        source: what ``open_images`` takes.
        out: a table to write, with the columns ``image`` (from 0), ``log_likelihood``, ``bits_per_dim``.
        seed: of the dequantisation noise.
        device: where to compute.
        force: replace ``out``.
        progress: called with the number of images done and of all.

    Returns:
        images, mean and stderr of log-likelihood and of bits per dimension, seconds, images per second; of a continuous
        flow also what its solver took.

    Raises:
        UserError: for bad input, a bad run directory or an output that cannot be written.
    """
    model = with_likelihood(open_image_run(run, device))
    images = model.images(source)
    context = model.context(images)
    dimensions = math.prod(model.shape)
    started = time.monotonic()
    every: list[np.ndarray] = []
    tell = progress or (lambda done, total: None)
    columns = ["image", "log_likelihood", "bits_per_dim"]
    types = ["int64", "float64", "float64"]
    with TableWriter(out, columns, types, force=force) as writer, torch.no_grad(), watched_solves() as solves:
        for start in range(0, len(images), PORTION):
            part = slice(start, start + PORTION)
            x = torch.from_numpy(np.ascontiguousarray(images.pixels[part])).to(model.device)
            seed_noise(model.device, derive(seed, "score", start))
            log_prob = model.flow.log_prob(x, None if context is None else context[part]).double().cpu().numpy()
            numbers = np.arange(start, start + len(log_prob))
            writer.write(np.stack([numbers, log_prob, -log_prob / (dimensions * math.log(2))], axis=1))
            every.append(log_prob)
            tell(start + len(log_prob), len(images))
    seconds = time.monotonic() - started
    scores = np.concatenate(every)
    error = float(scores.std() / math.sqrt(len(scores)))
    return {
        "images": len(scores),
        "mean": float(scores.mean()),
        "stderr": error,
        "bits_per_dim": float(-scores.mean() / (dimensions * math.log(2))),
        "bits_per_dim_stderr": error / (dimensions * math.log(2)),
        "min": float(scores.min()),
        "skipped": [name for name, _ in images.skipped],
        "notes": list(images.notes),
        "seconds": seconds,
        "images_per_second": len(scores) / seconds if seconds else math.inf,
        **solves.summary(),
    }


def sample_images(
    run: str | os.PathLike[str],
    n: int | None,
    out: str | os.PathLike[str] | None,
    *,
    given: Mapping[str, Any] | None = None,
    guidance: float | None = None,
    seed: int = 0,
    device: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Draw images: a grid (.png), an array (.npz), or a folder of pngs.

    Args:
        run: a run directory of images.
        n: how many.
        out: a name ending in .png or .npz, or that of a folder to make.
        given: {"label": class} for a conditional run; without it classes take turns.
        guidance: of a continuous flow, how much more typical of their class images shall be than the data (1: just as).
        seed: the same seed gives the same images.
        device: where to compute.
        force: replace ``out``.
        progress: called with the number of images done and of all.

    Raises:
        UserError: for a number below 1, an unknown class, an output that cannot be written, or a model that cannot be
            guided.
    """
    if n is None or n < 1:
        raise UserError(f"expected a number of images of at least 1 (-n), got {n}")
    if out is None or str(out) == "-":
        raise UserError("images need a place: give --out with a name ending in .png or .npz, or a folder")
    _check_target(out, force)
    model: ImageRun = with_guidance(open_image_run(run, device), guidance)
    labels = _given_labels(model, n, given)
    started = time.monotonic()
    tell = progress or (lambda done, total: None)
    parts: list[np.ndarray] = []
    with torch.no_grad():
        for start in range(0, n, PORTION):
            count = min(PORTION, n - start)
            seed_noise(model.device, derive(seed, "sample", start))
            if labels is None:
                x = model.flow.sample((count,))
            else:
                x = model.flow.sample((), one_hot(labels[start : start + count], len(model.classes)).to(model.device))
            parts.append(to_pixels(x, model.levels))
            tell(start + count, n)
    pixels = np.concatenate(parts)
    _save(out, pixels, labels, model.classes, model.levels, force)
    seconds = time.monotonic() - started
    return {"images": n, "seconds": seconds, "images_per_second": n / seconds if seconds else math.inf, "out": str(out)}


def inpaint_image(
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
    """Complete the hidden pixels of images by gradient ascent of log p, and write them as ``sample_images`` does.

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
    _check_target(out, force)
    model = with_likelihood(open_image_run(run, device))
    images = model.images(image)
    shown = open_images(mask)
    if len(shown) != 1 or shown.shape[1:] != model.shape[1:]:
        wanted, got = _size(model.shape), _size(shown.shape)
        raise UserError(f"{shown.name}: expected one mask of {wanted}, got {len(shown)} of {got}")
    hidden = torch.from_numpy((shown.pixels[0] > 0).any(0, keepdims=True)).expand(model.shape)
    if hidden.all() or not hidden.any():
        raise UserError(f"{shown.name}: expected a mask that hides some pixels (white) and shows others (black)")
    labels = _given_labels(model, len(images), None if label is None else {"label": label})
    context = None if labels is None else one_hot(labels, len(model.classes)).to(model.device)
    x = torch.from_numpy(np.ascontiguousarray(images.pixels)).to(model.device).float()
    seed_noise(model.device, derive(seed, "inpaint"))
    found = inpaint(model.flow, x, hidden.to(model.device), context, high=model.levels - 1.0, steps=steps)
    pixels = to_pixels(found.x.round(), model.levels)
    pixels = np.where(hidden.numpy(), pixels, images.pixels)
    _save(out, pixels, None, (), model.levels, force)
    return {
        "images": len(pixels), "hidden": int(hidden.sum()), "before": float(found.before.mean()),
        "after": float(found.after.mean()), "out": str(out),
    }  # fmt: skip


def to_pixels(x: Tensor, levels: int) -> np.ndarray:
    """Samples as whole numbers of the images' range, uint8."""
    return x.nan_to_num(0.0).clamp(0, levels - 1).cpu().numpy().astype(np.uint8)


def _check_target(out: str | os.PathLike[str], force: bool) -> None:
    """Refuse, before any work, a place that images cannot be written to."""
    target = Path(out)
    if target.is_dir():
        return  # whoever fills it looks at what it holds
    if target.suffix and target.suffix.lower() not in (".png", ".npz"):
        raise UserError(
            f"{out}: unknown extension {target.suffix!r}; images are written as .png (a grid), as .npz (an array), or "
            "into a folder, whose name has none"
        )
    if target.exists() and not force:
        raise UserError(f"{out}: exists already; choose another name or replace it with --force")


def _save(
    out: str | os.PathLike[str],
    pixels: np.ndarray,
    labels: np.ndarray | None,
    classes: tuple[str, ...],
    levels: int,
    force: bool,
) -> None:
    kind = Path(out).suffix.lower()
    if kind == ".npz":
        save_npz(out, pixels, labels, classes, levels)
    elif kind == ".png":
        save_grid(out, pixels, levels=levels)
    else:
        save_pngs(out, pixels, levels, force)


def _given_labels(model: ImageRun, n: int, given: Mapping[str, Any] | None) -> np.ndarray | None:
    if not model.classes:
        if given:
            raise UserError(f"{model.path}: is not conditional; leave {', '.join(given)} out")
        return None
    if not given:
        return np.arange(n) % len(model.classes)
    if set(given) != {"label"} or str(given["label"]) not in model.classes:
        raise UserError(f"{model.path}: expected label={'|'.join(model.classes)}, got {dict(given)}")
    return np.full(n, model.classes.index(str(given["label"])))


def _is_pictures(source: Any) -> bool:
    path = Path(source) if isinstance(source, str | Path) else None
    return path is not None and path.suffix.lower() not in (".npy", ".npz") and path.exists()


def _size(shape: tuple[int, ...]) -> str:
    kind = {1: "grey", 3: "RGB"}.get(shape[0], f"{shape[0]} channels")
    return f"{shape[-2]} x {shape[-1]} {kind}"

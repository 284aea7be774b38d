"""A run of images, opened for use."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.fields import Fields, ListOf, Number, Text, problem
from diffeo.modalities.base import Chunk, Draw, Examples, OpenRun, Scoring, Words, choose, held_out
from diffeo.modalities.images.dataset import describe_images, hold_out, one_hot
from diffeo.modalities.images.gallery import save_grid, save_npz, save_pngs
from diffeo.modalities.images.images import Images, open_images
from diffeo.modalities.images.plain import PlainPixels
from diffeo.report import bounds
from diffeo.report.check import FEWEST, IMAGES, check
from diffeo.training.batches import as_tensor
from diffeo.training.run import Run as StoredRun
from diffeo.variational import VAE

__all__ = ["ImageRun"]

CHUNK = 500  # images at a time
MOST = 2_000  # to check by: drawing and classifying more would take minutes

SCHEMA = Fields(
    required={
        "kind": Text(("images",)), "shape": ListOf(Number(1, 2**20, whole=True), 3, 3),
        "levels": Number(2, 256, whole=True), "classes": ListOf(Text()),
    }
)  # fmt: skip


@dataclass(frozen=True)
class ImageRun(OpenRun):
    """A flow of images, and what they are like."""

    words = Words("image", "images", "dim", "images")
    options = {"sample": ("given", "guidance", "means"), "score": ("samples",)}  # noqa: RUF012 - a constant

    shape: tuple[int, int, int]
    levels: int
    classes: tuple[str, ...]

    @classmethod
    def restore(cls, stored: StoredRun, path: str, device: torch.device) -> Self:
        """Read what the images are like, and prove that the flow fits them."""
        schema = stored.schema or {}
        if fault := problem(schema, SCHEMA):
            raise UserError(f"{stored.path}: model.json is damaged: of its images {fault}; restore it or train again")
        channels, height, width = schema["shape"]
        shape, levels, classes = (channels, height, width), schema["levels"], tuple(schema["classes"])
        if len(set(classes)) != len(classes):
            raise UserError(f"{stored.path}: model.json is damaged: classes are named twice; restore it or train again")
        context = (len(classes),) if classes else ()
        if tuple(stored.flow.event_shape) != shape or stored.flow.context_shape != context:
            raise UserError(f"{stored.path}: model.json is damaged: its model does not fit its images; train again")
        return cls(path, stored.flow, stored.metrics, stored.provenance, device, shape, levels, classes)

    def plain(self) -> PlainPixels:
        """Pixels as they are stored."""
        return PlainPixels(self.shape, self.levels, self.classes)

    @property
    def description(self) -> dict[str, Any]:
        """Shape, levels and classes."""
        return describe_images(self.shape, self.levels, self.classes)

    def facts(self) -> dict[str, Any]:
        """How many images, their shape, levels and classes."""
        rows = self.provenance.get("data", {}).get("rows", 0)
        return {"rows": rows, "shape": list(self.shape), "levels": self.levels, "classes": list(self.classes)}

    def open(self, source: Any) -> Images:
        """Open images and prove that they are of this run's kind.

        Raises:
            UserError: if they are not.
        """
        _, height, width = self.shape
        images = open_images(source, (height, width) if _is_pictures(source) else None)
        if images.shape != self.shape:
            raise UserError(
                f"{images.name}: {self.path} knows images of {size(self.shape)}, got {size(images.shape)}; convert them"
            )
        if images.levels != self.levels:
            raise UserError(
                f"{images.name}: {self.path} knows {self.levels} levels of grey, got {images.levels}; an .npz says how"
                " many in an array 'levels'"
            )
        return images

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
            raise UserError(f"{images.name}: {self.path} knows the classes {known}, got {got}; rename them")
        return one_hot(images.labels, len(self.classes)).to(self.device)

    def scoring(self, source: Any, options: Mapping[str, Any]) -> Scoring:
        """Open images: a line for each, with its number from 1, and its file where it has one."""
        images = self.open(source)
        context = self.context(images)

        def facts() -> dict[str, Any]:
            return {"skipped": [name for name, _ in images.skipped], "notes": list(images.notes)}

        def chunks() -> Iterator[Chunk]:
            for start in range(0, len(images), CHUNK):
                part = slice(start, start + CHUNK)
                x = as_tensor(np.ascontiguousarray(images.pixels[part]), "pixels")
                cells = np.arange(start + 1, start + len(x) + 1)[:, None]
                if images.files:
                    cells = np.stack([cells[:, 0].astype(object), np.array(images.files[part], dtype=object)], axis=1)
                yield Chunk(start, x, None if context is None else context[part], cells)

        files = bool(images.files)
        return Scoring(
            len(images), chunks(), ["image", "file"][: 1 + files], ["int64", "string"][: 1 + files], facts, bits=1.0
        )

    def draws(self, n: int | None, options: Mapping[str, Any]) -> tuple[Iterable[Draw], int | None]:
        """Draw n images, ``given`` the class {"label": class}, or of all classes in turns."""
        assert n is not None
        labels = self.labels(n, options.get("given"))
        starts = range(0, n, CHUNK)
        if labels is None:
            return (Draw(start, min(CHUNK, n - start)) for start in starts), n
        parts = ((start, labels[start : start + CHUNK]) for start in starts)
        return (Draw(start, len(part), one_hot(part, len(self.classes)), about=part) for start, part in parts), n

    def labels(self, n: int, given: Mapping[str, Any] | None) -> np.ndarray | None:
        """The classes of n images, given {"label": class} or else in turns; None of a run that knows no classes.

        Raises:
            UserError: for an unknown class.
        """
        if not self.classes:
            if given:
                raise UserError(f"{self.path}: is not conditional; leave {', '.join(given)} out")
            return None
        if not given:
            return np.arange(n) % len(self.classes)
        if set(given) != {"label"} or str(given["label"]) not in self.classes:
            raise UserError(f"{self.path}: expected label={'|'.join(self.classes)}, got {dict(given)}")
        return np.full(n, self.classes.index(str(given["label"])))

    def check_target(self, out: Any, force: bool) -> None:
        """Images become a grid, an array or a folder."""
        if out is None or str(out) == "-":
            raise UserError("images need a place: give --out with a name ending in .png or .npz, or a folder")
        target = Path(out)
        if target.is_dir():
            return  # whoever fills it looks at what it holds
        if target.suffix and target.suffix.lower() not in (".png", ".npz"):
            raise UserError(
                f"{out}: unknown extension {target.suffix!r}; images are written as .png (a grid), as .npz (an array), "
                "or into a folder, whose name has none"
            )
        if target.exists() and not force:
            raise UserError(f"{out}: exists already; choose another name or replace it with --force")

    def save(self, out: Any, drawn: Iterator[tuple[Tensor, Draw]], force: bool) -> dict[str, Any]:
        """Write images: a grid (.png), an array (.npz), or a folder of pngs."""
        parts = [(self.pixels(x), draw.about) for x, draw in drawn]
        labels = [about for _, about in parts if about is not None]
        self.write(out, np.concatenate([x for x, _ in parts]), np.concatenate(labels) if labels else None, force)
        return {}

    def pixels(self, x: Tensor) -> np.ndarray:
        """Samples as whole numbers of the images' range, uint8."""
        return x.nan_to_num(0.0).clamp(0, self.levels - 1).cpu().numpy().astype(np.uint8)

    def write(self, out: Any, pixels: np.ndarray, labels: np.ndarray | None, force: bool) -> None:
        """Write pixels ``(n, C, H, W)``; an array keeps the labels."""
        kind = Path(out).suffix.lower()
        if kind == ".npz":
            save_npz(out, pixels, labels, self.classes if labels is not None else (), self.levels)
        elif kind == ".png":
            save_grid(out, pixels, levels=self.levels)
        else:
            save_pngs(out, pixels, self.levels, force)

    def examples(self, source: Any, most: int, seed: int, options: Mapping[str, Any]) -> Examples:
        """Images; of those of the training, the ones held out."""
        images, which, in_sample = self.open(source), "all images", False
        name = images.name
        if images.sha256 == self.trained_on():
            _, valid, test = hold_out(images, self.provenance["seed"], self.tested())
            part, which = held_out(len(valid), 0 if test is None else len(test), "images")
            in_sample = part is None
            images = {"test": test, "valid": valid}.get(part or "") or images
        if len(images) < FEWEST:
            raise UserError(f"{name}: has {len(images)} usable rows, expected at least {FEWEST} to check by")
        rows, which = choose(len(images), min(most, MOST), which, seed)
        context = self.context(images)
        x = as_tensor(np.ascontiguousarray(images.pixels), "pixels")[rows]
        return Examples(name, x, None if context is None else context[rows], which, in_sample)

    def examine(self, examples: Examples, seed: int) -> dict[str, Any]:
        """Numerics, latents, samples and likelihood, or its bounds, beside independent pixels."""
        names = [f"pixel {place}" for place in itertools.product(*map(range, self.shape))]
        if isinstance(self.flow, VAE):
            return bounds.check(self.flow, examples.x, names, seed=seed)
        box = 0.0, float(self.levels)
        return check(self.flow, examples.x, examples.context, box=box, names=names, limits=IMAGES, seed=seed)


def _is_pictures(source: Any) -> bool:
    path = Path(source) if isinstance(source, str | Path) else None
    return path is not None and path.suffix.lower() not in (".npy", ".npz") and path.exists()


def size(shape: tuple[int, ...]) -> str:
    """A shape in words."""
    kind = {1: "grey", 3: "RGB"}.get(shape[0], f"{shape[0]} channels")
    return f"{shape[-2]} x {shape[-1]} {kind}"

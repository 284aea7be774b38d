"""Images to learn."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.data import IMAGE_SETS, Images, open_images
from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.jobs.material import Material
from diffeo.jobs.rows import count_test, split_rows
from diffeo.report import image_figures

__all__ = ["ImageData", "describe_images", "hold_out", "one_hot", "shows_images"]

BATCH_SIZE = 64
ALPHA = 2e-3  # margin of the logit: small enough to tell the lowest levels apart


def shows_images(source: Any) -> bool:
    """Tell whether ``fit`` should take this for images, not for a table."""
    if isinstance(source, Images) or (isinstance(source, str) and source in IMAGE_SETS):
        return True
    if isinstance(source, str | Path):
        path = Path(source)
        return path.is_dir() or path.suffix.lower() in (".png", ".jpg", ".jpeg") or _rank(path) > 2
    return getattr(source, "ndim", 0) > 2


def _rank(path: Path) -> int:
    """The largest rank of the arrays in a .npy or .npz file, read from its headers; 0 of anything else."""
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r").ndim
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return max((_header_rank(archive, name) for name in archive.namelist()), default=0)
    except (OSError, ValueError, zipfile.BadZipFile):
        pass  # whoever opens it will say what is wrong with it
    return 0


def _header_rank(archive: zipfile.ZipFile, name: str) -> int:
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return len(read(file)[0])


class ImageData(Material):
    """Images, and their labels where the density is conditional on them."""

    options = ("size", "test")
    unit, dimension = "image", "dim"

    def __init__(self, source: Any, settings: Mapping[str, Any], seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.batch_size = settings.get("batch_size", BATCH_SIZE)
        context = settings.get("context", [])
        if context not in ([], ["label"]):
            raise UserError(f"images can be given their label alone (--context label), got {', '.join(context)}")
        self.labelled = bool(context)
        size = settings.get("size") or None
        if size is not None and len(size) > 2:
            raise UserError(f"expected a side or a height and a width (--size), got {len(size)} numbers")
        self.images = open_images(source, size if size is None or len(size) == 2 else size[0])
        self.name = self.images.name

    def read(self) -> None:
        """Hold out what custom holds out, or else a tenth; and images for a test, where asked."""
        images = self.images
        if self.labelled and images.labels is None:
            raise UserError(f"{images.name}: no labels to condition on; put each class into a folder of its own")
        if (test := self.settings.get("test", 0.0)) and (images.test is not None or images.validation):
            raise UserError(f"{images.name}: has test images of its own; leave --test out")
        self.tested = count_test(len(images), test)
        train, valid, self.test = hold_out(images, self.seed, self.tested)
        self.rows, self.total = len(train), len(images)
        self.x, self.context = _pixels(train), self._labels(train)
        self.valid_x, self.valid_context = _pixels(valid), self._labels(valid)
        self.hash, self.features = images.sha256, list(images.shape)
        self.context_size = len(images.classes) if self.labelled else 0
        self.description = describe_images(images.shape, images.levels, images.classes if self.labelled else ())
        self.notes = [*images.notes, *(f"{name} was skipped: {why}" for name, why in images.skipped)]

    def _labels(self, images: Images) -> Tensor | None:
        return one_hot(images.labels, len(images.classes)) if self.labelled and images.labels is not None else None

    def default_model(self) -> tuple[str, dict[str, Any]]:
        """Couplings over several scales."""
        return "realnvp", {}

    def preprocessing(self, model: str) -> list[Any]:
        """Dequantise, standardise; what is not NICE takes logits, their pooled distribution made normal, and a curve.

        For NICE standardising changes no density that it can express, since a network's first and last layers can undo
        it; but shifts are then of one size, whether a pixel spreads over 1/1000 or over 1. For the others, a background
        of one level is uniform noise once dequantised, which affine maps alone would take for a Gaussian: a quarter of
        a bit lost on each such pixel, or more. The curve, one for all pixels and learned with the layers, finds where
        the levels should lie for these; flow matching, whose loss is no likelihood, cannot learn it.
        """
        levels = self.images.levels
        steps: list[Any] = [["dequantize", {"step": 1.0}]]
        if model != "nice":
            shared = ["standardize", "gaussianize"] + ["curve"] * (model != "flow_matching")
            steps.append(["logit", {"low": 0.0, "high": float(levels), "alpha": ALPHA}])
            steps += [[name, {"shared": True}] for name in shared]
        return [*steps, "standardize"]

    def training(self, flow: Flow) -> dict[str, Any]:
        """Convolutions learn at a lower rate than the networks of tables."""
        assert flow.recipe is not None
        return {
            "lr": {"realnvp": 6e-3, "glow": 6e-3, "flow_matching": 2e-3}.get(flow.recipe["name"], 1e-2),
            "bfloat16": has_bfloat16(flow.base.device_marker.device),
        }

    def judged(self, most: int) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Images for validation, some of those trained on, and test images if there are any."""
        parts: dict[str, tuple[Tensor, Tensor | None]] = {"validation": (self.valid_x, self.valid_context)}
        most = min(most, 10_000)
        parts["train"] = (self.x[:most], None if self.context is None else self.context[:most])
        if self.test is not None:
            parts["test"] = (_pixels(self.test), self._labels(self.test))
        return parts

    def facts(self) -> dict[str, Any]:
        """Shape, levels and classes."""
        return {"shape": self.features, "levels": self.images.levels, "context": ["label"] * self.labelled}

    def draw(self, run: Path, flow: Flow) -> list[str]:
        """Learning curve, samples beside data, a path in latent space, what each scale holds."""
        return image_figures.draw(run, flow, self.valid_x, self.valid_context, self.images.levels, self.seed)


def describe_images(shape: Sequence[int], levels: int, classes: Sequence[str]) -> dict[str, Any]:
    """Return what a run directory says of its images; without classes, it is not conditional."""
    return {"kind": "images", "shape": list(shape), "levels": levels, "classes": list(classes)}


def hold_out(images: Images, seed: int, tested: int = 0) -> tuple[Images, Images, Images | None]:
    """The images to train on, for validation and for a test: by custom, or else a tenth, and ``tested`` others."""
    train, valid, test = images.split()
    if valid is not None:
        return train, valid, test
    train, valid, *rest = (images.part(rows.numpy()) for rows in split_rows(len(images), seed, tested))
    return train, valid, rest[0] if tested else test


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def one_hot(labels: np.ndarray, classes: int) -> Tensor:
    """Labels as a network reads them, ``(n, classes)``."""
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), classes).float()


def _pixels(images: Images) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.pixels))

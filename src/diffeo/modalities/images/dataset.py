"""Images to learn."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.flow import Flow
from diffeo.modalities.base import Dataset
from diffeo.modalities.folders import holds
from diffeo.modalities.images import figures as image_figures
from diffeo.modalities.images import latent
from diffeo.modalities.images.decoding import PICTURES
from diffeo.modalities.images.images import IMAGE_SETS, Images, open_images
from diffeo.nets.resnet import ResNet
from diffeo.nets.unet import UNet
from diffeo.training.batches import as_tensor
from diffeo.training.splitting import count_test, split_rows
from diffeo.variational import VAE

__all__ = ["ImageDataset", "describe_images", "hold_out", "one_hot", "shows_images"]

BATCH_SIZE = 64
SMALL = 256  # numbers in an image: so few are learned better one after the other than by convolutions
PRIOR = 1_300.0  # images: the weight decay of a training on that many is 1
FEW = 160.0  # images: a training on ten times as many hides a tenth of what the networks see
ALPHA = 2e-3  # margin of the logit: small enough to tell the lowest levels apart


def shows_images(source: Any) -> bool:
    """Tell whether ``fit`` should take this for images, not for a table; of a folder, unless it holds tables alone."""
    if isinstance(source, Images) or (isinstance(source, str) and source in IMAGE_SETS):
        return True
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            return holds(path, PICTURES) or not holds(path, [".parquet"])
        return path.suffix.lower() in (".png", ".jpg", ".jpeg") or _rank(path) > 2
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


class ImageDataset(Dataset):
    """Images, and their labels where the density is conditional on them."""

    def __init__(self, source: Any, settings: Mapping[str, Any], seed: int) -> None:
        self.settings, self.seed = settings, seed
        context = settings.get("context", [])
        if context not in ([], ["label"]):
            raise UserError(f"images can be given their label alone (--context label), got {', '.join(context)}")
        self.labelled = bool(context)
        size = settings.get("size") or None
        if size is not None and len(size) > 2:
            raise UserError(f"expected a side or a height and a width (--size), got {len(size)} numbers")
        self.images = open_images(source, size if size is None or len(size) == 2 else size[0])
        self.name = self.images.name
        small = math.prod(self.images.shape) <= SMALL
        self.batch_size = settings.get("batch_size", BATCH_SIZE * (2 if small else 1))
        self._divide(self.images)

    def _divide(self, images: Images) -> None:
        """Hold out what custom holds out, or else a tenth; and images for a test, where asked."""
        if self.labelled and images.labels is None:
            raise UserError(f"{images.name}: no labels to condition on; put each class into a folder of its own")
        if (test := self.settings.get("test", 0.0)) and (images.test is not None or images.validation):
            raise UserError(f"{images.name}: has test images of its own; leave --test out")
        if len(images) < 2:
            raise UserError(f"{images.name}: holds a single picture; give at least two, since one is held out")
        self.tested = count_test(len(images), test)
        train, valid, self.test = hold_out(images, self.seed, self.tested)
        self.rows, self.total = len(train), len(images)
        self.x, self.context = _pixels(train), self._labels(train)
        self.valid_x, self.valid_context = _pixels(valid), self._labels(valid)
        self.valid_labels = valid.labels
        self.hash, self.features = images.sha256, list(images.shape)
        self.context_size = len(images.classes) if self.labelled else 0
        self.sizes = {"levels": images.levels} if self.settings.get("model") == "vae" else {}
        self.description = describe_images(images.shape, images.levels, images.classes if self.labelled else ())
        self.notes = [*images.notes, *(f"{name} was skipped: {why}" for name, why in images.skipped)]

    def _labels(self, images: Images) -> Tensor | None:
        return one_hot(images.labels, len(images.classes)) if self.labelled and images.labels is not None else None

    def default_model(self) -> tuple[str, dict[str, Any]]:
        """Splines, element by element, on small images; couplings over several scales on others.

        The fewer there are, the more is done against overfitting: dropout here, weight decay in ``training``. The
        numbers were chosen by validation likelihood on digits of 8 x 8 and on MNIST brought to 8, 12 and 16 pixels a
        side, 2,000 to 30,000 images, each learned for 80 seconds of one AVX2 core.
        """
        if math.prod(self.images.shape) > SMALL:
            return "realnvp", {}
        network = {"hidden": [256, 256], "dropout": round(min(0.1, FEW / self.rows), 4)}
        return "nsf", {"transforms": 3, **network, "bins": 4, "affine": True}

    def preprocessing(self, model: str) -> list[Any]:
        """Dequantise, standardise; what is not NICE takes logits, their pooled distribution made normal, and a curve.

        For NICE standardising changes no density that it can express, since a network's first and last layers can undo
        it; but shifts are then of one size, whether a pixel spreads over 1/1000 or over 1. For the others, a background
        of one level is uniform noise once dequantised, which affine maps alone would take for a Gaussian: a quarter of
        a bit lost on each such pixel, or more. The curve, one for all pixels and learned with the layers, finds where
        the levels should lie for these; flow matching, whose loss is no likelihood, cannot learn it. A VAE's likelihood
        is of the pixels as they are.
        """
        if model == "vae":
            return []
        levels = self.images.levels
        steps: list[Any] = [["dequantize", {"step": 1.0}]]
        if model != "nice":
            shared = ["standardize", "gaussianize"] + ["curve"] * (model != "flow_matching")
            steps.append(["logit", {"low": 0.0, "high": float(levels), "alpha": ALPHA}])
            steps += [[name, {"shared": True}] for name in shared]
        return [*steps, "standardize"]

    def training(self, flow: Flow) -> dict[str, Any]:
        """Convolutions learn at a lower rate than the networks of tables; splines have a Gaussian prior of one width.

        The loss is a mean over images, so the weight of a prior, which is on their sum, goes with 1 / images.
        """
        assert flow.recipe is not None
        name = flow.recipe["name"]
        return {
            "lr": {"realnvp": 6e-3, "glow": 6e-3, "flow_matching": 2e-3, "vae": 2e-3}.get(name, 1e-2),
            **({"weight_decay": max(1e-2, PRIOR / self.rows)} if name == "nsf" else {}),
            "bfloat16": gains_by_bfloat16(flow),
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

    def plot(self, run: Path, flow: Flow, seconds: float) -> list[str]:
        """Learning curve, samples beside data, a path in latent space, what each scale, or each latent, holds."""
        if isinstance(flow, VAE):
            named = self.valid_labels, self.images.classes
            return latent.plot(run, flow, self.valid_x, *named, self.images.levels, self.seed)
        return image_figures.plot(run, flow, self.valid_x, self.valid_context, self.images.levels, self.seed, seconds)


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


def gains_by_bfloat16(flow: Flow) -> bool:
    """Whether training multiplies faster in bfloat16; on a CPU convolutions do, other networks have float32 kernels."""
    device = flow.base.device_marker.device
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    convolutional = any(isinstance(module, ResNet | UNet) for module in flow.modules())
    return device.type == "cpu" and convolutional and torch.cpu._is_amx_tile_supported()


def one_hot(labels: np.ndarray, classes: int) -> Tensor:
    """Labels as a network reads them, ``(n, classes)``."""
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), classes).float()


def _pixels(images: Images) -> Tensor:
    return as_tensor(np.ascontiguousarray(images.pixels), "pixels")

"""Data sets that need no download: four of scikit-learn's, and distributions in the plane.

The planar ones are drawn by numpy from a seed; the class of a point (which moon, ring, square, ...) is its label.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffeo.errors import UserError

__all__ = ["BUILTIN", "ENTROPY", "Sample", "load_builtin"]

ROWS = 100_000  # rows of a planar set, by default


class Sample(NamedTuple):
    """Rows x (n, d), the names of the columns, and labels (n,) or None."""

    x: np.ndarray
    names: tuple[str, ...]
    labels: np.ndarray | None


def load_builtin(name: str, rows: int | None = None, seed: int = 0) -> Sample:
    """Return a built-in set.

    Args:
        name: one of ``BUILTIN``.
        rows: how many rows; of a planar set 100,000 by default, of the others all, else a random choice of them.
        seed: of the draw. The same name, rows and seed give the same numbers.

    Raises:
        UserError: for an unknown name, or more rows than there are.
    """
    if name not in BUILTIN:
        raise UserError(f"no built-in set {name!r}; there are {', '.join(BUILTIN)}")
    if rows is not None and rows < 1:
        raise UserError(f"built-in set {name!r}: expected rows >= 1, got {rows}")
    return BUILTIN[name](rows, np.random.default_rng(seed))


def digits(rows: int | None, generator: np.random.Generator) -> Sample:
    """Return 1797 handwritten digits of 8 x 8 pixels, whole numbers 0 to 16; labels 0 to 9.

    Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998.
    """
    return _bundled("digits", rows, generator)


def breast_cancer(rows: int | None, generator: np.random.Generator) -> Sample:
    """Return 569 rows of 30 measurements of cell nuclei; labels 0 malignant, 1 benign.

    Reference: Street, Wolberg and Mangasarian, Breast Cancer Wisconsin (Diagnostic), UCI 1995.
    """
    return _bundled("breast_cancer", rows, generator)


def wine(rows: int | None, generator: np.random.Generator) -> Sample:
    """Return 178 rows of 13 chemical measurements of wines; labels 0 to 2, the cultivar.

    Reference: Aeberhard and Forina, Wine, UCI 1991.
    """
    return _bundled("wine", rows, generator)


def flower(rows: int | None, generator: np.random.Generator) -> Sample:
    """Return the 273,280 pixels of a photograph of a flower: place (y from below) and colour, 0 to 255; no labels.

    The photograph is scikit-learn's flower.jpg, by vultilion (flickr.com/photos/vultilion/6056698931, CC BY 2.0).
    """
    from sklearn.datasets import load_sample_image

    picture = load_sample_image("flower.jpg")  # (height, width, 3)
    height, width, _ = picture.shape
    y, x = np.mgrid[height - 1 : -1 : -1, :width]
    pixels = np.concatenate([np.stack([x, y], axis=-1), picture], axis=-1).reshape(-1, 5)  # (height * width, 5)
    return _some("flower", Sample(pixels.astype(np.float64), ("x", "y", "red", "green", "blue"), None), rows, generator)


def moons(rows: int | None, generator: np.random.Generator) -> Sample:
    """Return two interleaved half circles: (cos t, sin t) and (1 - cos t, 1/2 - sin t), t ~ U[0, pi], + N(0, 0.1^2)."""
    label, n = _labels(rows, generator, 2)
    t = generator.uniform(0, math.pi, n)
    x = np.where(label == 0, np.cos(t), 1 - np.cos(t))
    y = np.where(label == 0, np.sin(t), 0.5 - np.sin(t))
    return _plane(x, y, label, generator, noise=0.1)


def rings(rows: int | None, generator: np.random.Generator) -> Sample:
    """Return four concentric circles r (cos t, sin t), r = 0.75, 1.5, 2.25, 3, t ~ U[0, 2 pi], + N(0, 0.08^2)."""
    label, n = _labels(rows, generator, 4)
    t = generator.uniform(0, 2 * math.pi, n)
    radius = 0.75 * (label + 1)
    return _plane(radius * np.cos(t), radius * np.sin(t), label, generator, noise=0.08)


def checkerboard(rows: int | None, generator: np.random.Generator) -> Sample:
    """Return points uniform on the dark squares of a board: entropy ln(8 / 0.45^2) = 3.67646 nats.

    Dark are the 8 unit squares of [-2, 2]^2 with an even floor(x) + floor(y); the coordinates are divided by 0.45.
    """
    label, n = _labels(rows, generator, 8)
    column = label // 2  # 0 ... 3, the squares' left edge at column - 2
    row = 2 * (label % 2) + column % 2
    x = column - 2 + generator.random(n)
    y = row - 2 + generator.random(n)
    return _plane(x / 0.45, y / 0.45, label, generator)


def eight_gaussians(rows: int | None, generator: np.random.Generator) -> Sample:
    """Return the mixture of N(4 (cos t, sin t), 0.5^2 I), t = k pi / 4, all divided by sqrt 2."""
    label, _ = _labels(rows, generator, 8)
    t = label * (math.pi / 4)
    scale = math.sqrt(2)
    return _plane(4 / scale * np.cos(t), 4 / scale * np.sin(t), label, generator, noise=0.5 / scale)


def pinwheel(rows: int | None, generator: np.random.Generator) -> Sample:
    """Return five bent blades: (r, s) ~ (N(1, 0.3^2), N(0, 0.1^2)) turned by 2 pi k / 5 + exp(r) / 4, times 2.

    Reference: Johnson et al. 2016, 1603.06277.
    """
    label, n = _labels(rows, generator, 5)
    r, s = 1 + 0.3 * generator.standard_normal(n), 0.1 * generator.standard_normal(n)
    t = label * (2 * math.pi / 5) + 0.25 * np.exp(r)
    return _plane(2 * (r * np.cos(t) - s * np.sin(t)), 2 * (r * np.sin(t) + s * np.cos(t)), label, generator)


def spirals(rows: int | None, generator: np.random.Generator) -> Sample:
    """Return two arms: +-(u - t cos t, v + t sin t) / 3, t = 3 pi sqrt U[0, 1], u, v ~ U[0, 0.5], + N(0, 0.1^2).

    Reference: Grathwohl et al. 2018, 1810.01367 (their code).
    """
    label, n = _labels(rows, generator, 2)
    t = 3 * math.pi * np.sqrt(generator.random(n))
    sign = 1 - 2 * label
    x = sign * (0.5 * generator.random(n) - t * np.cos(t)) / 3
    y = sign * (0.5 * generator.random(n) + t * np.sin(t)) / 3
    return _plane(x, y, label, generator, noise=0.1)


BUILTIN: dict[str, Callable[[int | None, np.random.Generator], Sample]] = {
    "digits": digits,
    "breast_cancer": breast_cancer,
    "wine": wine,
    "flower": flower,
    "moons": moons,
    "rings": rings,
    "checkerboard": checkerboard,
    "8gaussians": eight_gaussians,
    "pinwheel": pinwheel,
    "spirals": spirals,
}

# Differential entropies in nats, where they are known exactly.
ENTROPY = {"checkerboard": math.log(8 / 0.45**2)}


def _labels(rows: int | None, generator: np.random.Generator, classes: int) -> tuple[np.ndarray, int]:
    n = ROWS if rows is None else rows
    return generator.integers(classes, size=n), n


def _plane(
    x: np.ndarray, y: np.ndarray, label: np.ndarray, generator: np.random.Generator, noise: float = 0.0
) -> Sample:
    points = np.stack([x, y], axis=1)  # (n, 2)
    if noise:
        points += noise * generator.standard_normal(points.shape)
    return Sample(points, ("x", "y"), label)


def _bundled(name: str, rows: int | None, generator: np.random.Generator) -> Sample:
    import sklearn.datasets  # slow to import, so only when asked for

    data = getattr(sklearn.datasets, f"load_{name}")()
    names = tuple(str(n) for n in data.feature_names)
    return _some(name, Sample(data.data.astype(np.float64), names, data.target), rows, generator)


def _some(name: str, sample: Sample, rows: int | None, generator: np.random.Generator) -> Sample:
    """Draw so many rows of a set of fixed size, or take all."""
    x, _, labels = sample
    if rows is None:
        return sample
    if rows > len(x):
        raise UserError(f"built-in set {name!r} has {len(x)} rows, fewer than the {rows} asked for")
    chosen = generator.choice(len(x), rows, replace=False)
    return sample._replace(x=x[chosen], labels=None if labels is None else labels[chosen])

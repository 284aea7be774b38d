"""Paths from noise to data: x_t = a_t x_1 + s_t x_0, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffeo.ops import PathSpec

__all__ = ["PATHS", "Path", "Point", "get_path"]

_LOW, _HIGH = 0.1, 20.0  # the noise's rate at the data and at the noise, as in Song et al. 2021, arXiv:2011.13456


class Point(NamedTuple):
    """Where a path stands at a time t.

    Attributes:
        data: the weight a_t of the data, of the shape of t.
        noise: the weight s_t of the noise.
        data_rate: da_t / dt.
        noise_rate: ds_t / dt.
    """

    data: Tensor
    noise: Tensor
    data_rate: Tensor
    noise_rate: Tensor


@dataclass(frozen=True)
class Path:
    """A path as a function of times, and as the kernels know it.

    Attributes:
        at: where it stands, a function of times.
        spec: its description for the kernels.
    """

    at: Callable[[Tensor], Point]
    spec: PathSpec

    def __call__(self, t: Tensor) -> Point:
        """Return where the path stands.

        Args:
            t: times in [0, 1], of any shape.
        """
        return self.at(t)


def linear(t: Tensor) -> Point:
    """Straight lines, x_t = t x_1 + (1 - t) x_0: rectified flow, conditional optimal transport.

    Args:
        t: times in [0, 1], of any shape.
    """
    return Point(t, 1 - t, torch.ones_like(t), -torch.ones_like(t))


def cosine(t: Tensor) -> Point:
    """A quarter of a circle, x_t = sin(pi t / 2) x_1 + cos(pi t / 2) x_0 (Albergo et al. 2023, arXiv:2303.08797).

    Args:
        t: times in [0, 1], of any shape.
    """
    half = math.pi / 2
    sine, cosine = torch.sin(half * t), torch.cos(half * t)
    return Point(sine, cosine, half * cosine, -half * sine)


def variance_preserving(t: Tensor) -> Point:
    """The variance-preserving diffusion run backwards: a_t = exp(-T / 2), s_t^2 = 1 - exp(-T).

    T = (1 - t) low + (1 - t)^2 (high - low) / 2. At t = 0 a weight of 0.0066 is left to the data; the rate of s_t has a
    pole at t = 1, before which ``FlowMatching`` stops drawing. Lipman et al. 2022, arXiv:2210.02747.

    Args:
        t: times in [0, 1], of any shape.
    """
    left = 1 - t
    total = left * _LOW + 0.5 * left**2 * (_HIGH - _LOW)
    rate = _LOW + left * (_HIGH - _LOW)  # -dT/dt
    data = torch.exp(-0.5 * total)
    noise = torch.sqrt(-torch.expm1(-total)).clamp_min(1e-6)
    return Point(data, noise, 0.5 * rate * data, -0.5 * rate * data**2 / noise)


PATHS = {
    "linear": Path(linear, PathSpec("linear")),
    "cosine": Path(cosine, PathSpec("cosine")),
    "vp": Path(variance_preserving, PathSpec("vp", _LOW, _HIGH)),
}


def get_path(name: str) -> Path:
    """Look a path up by its name, one in ``PATHS``.

    Args:
        name: "linear", "cosine" or "vp".

    Raises:
        ValueError: for another.
    """
    if name not in PATHS:
        raise ValueError(f"expected a path among {', '.join(PATHS)}, got {name!r}")
    return PATHS[name]

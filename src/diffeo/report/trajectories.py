"""How a continuous flow carries noise to data, for two columns, in the units that the velocity works in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.atomic import atomic_write
from diffeo.bases import Base
from diffeo.report.style import GREY, MODEL, REAL, figure, shades
from diffeo.transforms import ODE

__all__ = ["animate", "compare", "plot"]

TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
PARTICLES, CELLS = 300, 100
FRAMES, HELD = 40, 15  # of the animation, and how many times its last one is shown
REACH = 2.8  # standard deviations


@torch.no_grad()
def plot(ode: ODE, base: Base, path: str | Path) -> None:
    """Plot particles' paths from noise to data, a deformed grid, and the density at t = 0, .25, .5, .75, 1.

    Args:
        ode: of event shape (2,), without context.
        base: the distribution of the noise.
        path: of the PNG.
    """
    from matplotlib.colors import PowerNorm

    z = base.sample((PARTICLES,))
    moved = ode.trajectory(z, np.linspace(0, 1, 33).tolist()).cpu().numpy()  # (times, particles, 2)
    lines = torch.linspace(-2, 2, 17).to(z)
    along = torch.linspace(-2, 2, 81).to(z)
    rising = torch.stack(torch.meshgrid(lines, along, indexing="ij"), -1)  # (17, 81, 2)
    grid = ode.forward(torch.cat([rising, rising.flip(-1)]).flatten(0, 1)).unflatten(0, (34, 81)).cpu().numpy()
    edges = np.linspace(-REACH, REACH, CELLS + 1)
    densities = [_density(ode, base, time, edges) for time in TIMES]
    with figure(path, (2.2 * (2 + len(TIMES)), 2.6)) as fig:
        paths, deformed, *panels = fig.subplots(1, 2 + len(TIMES))
        for axes in (paths, deformed, *panels):
            _plain(axes)
        _lines(paths, moved)
        paths.set_title("noise (blue) to samples")
        for line in grid:
            deformed.plot(*line.T, color=GREY, lw=0.6)
        deformed.set_title("a grid, carried along")
        norm = PowerNorm(0.6, 0, float(np.quantile(densities[-1], 0.995)) or 1.0)
        for axes, time, density in zip(panels, TIMES, densities, strict=True):
            axes.pcolormesh(edges, edges, density, cmap=shades("#3B1C8C"), norm=norm, rasterized=True)
            axes.set_title(f"density at t = {time:g}")


def compare(moved: Mapping[str, Tensor], path: str | Path) -> None:
    """Plot the particles' paths of several flows, from the same noise, beside each other.

    Args:
        moved: where the particles of each pass, ``(times, particles, 2)``, by the name to show.
        path: of the PNG.
    """
    with figure(path, (2.9 * len(moved), 3.2)) as fig:
        panels = np.atleast_1d(fig.subplots(1, len(moved)))
        for axes, (name, passed) in zip(panels, moved.items(), strict=True):
            _plain(axes)
            _lines(axes, passed.cpu().numpy())
            axes.set_title(name)


@torch.no_grad()
def animate(ode: ODE, base: Base, path: str | Path) -> None:
    """Write an animation (GIF) of particles on their way from noise to data; arguments as those of ``plot``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    times = np.linspace(0, 1, FRAMES)
    moved = ode.trajectory(base.sample((4 * PARTICLES,)), times.tolist()).cpu().numpy()
    fig = Figure(figsize=(3.2, 3.4), layout="constrained")
    canvas = FigureCanvasAgg(fig)
    axes = fig.add_subplot()
    _plain(axes)
    (dots,) = axes.plot([], [], ".", color=MODEL, ms=2)
    frames = []
    for time, points in zip(times, moved, strict=True):
        dots.set_data(*points.T)
        axes.set_title(f"t = {time:.2f}")
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(16))
    with atomic_write(path) as temporary:
        rest = frames[1:] + HELD * frames[-1:]
        frames[0].save(temporary, format="GIF", save_all=True, append_images=rest, duration=60, loop=0)


def _density(ode: ODE, base: Base, time: float, edges: np.ndarray) -> np.ndarray:
    """The density of what the noise has become at a time, in the cells between the edges, y running first."""
    centres = (edges[1:] + edges[:-1]) / 2
    points = torch.from_numpy(np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)).to(base.device_marker)
    z, log_det = _back(ode, points, time)
    return (base.log_prob(z) + log_det).exp().double().cpu().numpy().reshape(len(centres), len(centres))


def _back(ode: ODE, points: Tensor, time: float) -> tuple[Tensor, Tensor]:
    if time == 0.0:
        return points, torch.zeros_like(points[:, 0])
    solution = ode.solve(points, time, 0.0, log_det=True)
    assert solution.log_det is not None
    return solution.value, solution.log_det


def _lines(axes: Any, moved: np.ndarray) -> None:
    """Paths ``(times, particles, 2)``, from blue points to vermilion ones."""
    axes.plot(moved[..., 0], moved[..., 1], color=GREY, lw=0.4, alpha=0.5)
    axes.plot(*moved[0].T, ".", color=REAL, ms=2)
    axes.plot(*moved[-1].T, ".", color=MODEL, ms=2)


def _plain(axes: Any) -> None:
    axes.set_xlim(-REACH, REACH)
    axes.set_ylim(-REACH, REACH)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])

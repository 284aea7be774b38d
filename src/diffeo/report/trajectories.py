"""How a continuous flow carries noise to data, for two columns, in the units that the velocity works in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.atomic import atomic_write
from diffeo.bases import Base
from diffeo.report.style import DENSITY, GREY, MODEL, REAL, blank, figure, heat
from diffeo.transforms import ODE

__all__ = ["animate", "compare", "plot"]

TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
PARTICLES, CELLS = 300, 100
FRAMES, HELD = 40, 15  # of the animation, and how many times its last one is shown
REACH = 2.8  # standard deviations


@torch.no_grad()
def plot(ode: ODE, base: Base, names: Sequence[str], path: str | Path) -> None:
    """Plot particles' paths from noise to data, a deformed grid, and the density at t = 0, .25, .5, .75, 1.

    Args:
        ode: of event shape (2,), without context.
        base: the distribution of the noise.
        names: of the two columns.
        path: of the PNG.
    """
    moved = ode.trajectory(base.sample((PARTICLES,)), np.linspace(0, 1, 33).tolist())
    lines, along = (torch.linspace(-2, 2, count).to(moved) for count in (17, 81))
    rising = torch.stack(torch.meshgrid(lines, along, indexing="ij"), -1)  # (17, 81, 2)
    grid = ode.forward(torch.cat([rising, rising.flip(-1)]))
    edges = np.linspace(-REACH, REACH, CELLS + 1)
    densities = [_density(ode, base, time, edges) for time in TIMES]
    most = float(np.quantile(densities[-1], 0.995)) or 1.0
    with figure(path, (2.2 * (2 + len(TIMES)), 2.7)) as fig:
        paths, deformed, *panels = _panels(fig, 2 + len(TIMES))
        _lines(paths, moved)
        paths.set_title("noise (blue) to samples")
        deformed.plot(*grid.cpu().numpy().T, color=GREY, lw=0.6)
        deformed.set_title("a grid, carried along")
        for axes, time, density in zip(panels, TIMES, densities, strict=True):
            heat(axes, (edges, edges), density, DENSITY, most)
            axes.set_title(f"density at t = {time:g}")
        for axes in (paths, deformed, *panels):
            axes.set_xlabel(f"{names[0]} (preprocessed)")
        paths.set_ylabel(f"{names[1]} (preprocessed)")


def compare(moved: Mapping[str, Tensor], path: str | Path) -> None:
    """Plot the particles' paths of several flows, from the same noise, beside each other.

    Args:
        moved: where the particles of each pass, ``(times, particles, 2)``, by the name to show.
        path: of the PNG.
    """
    with figure(path, (2.9 * len(moved), 3.2)) as fig:
        for axes, (name, passed) in zip(_panels(fig, len(moved)), moved.items(), strict=True):
            _lines(axes, passed)
            axes.set_title(name)


@torch.no_grad()
def animate(ode: ODE, base: Base, path: str | Path) -> None:
    """Write an animation (GIF) of particles on their way from noise to data; arguments as those of ``plot``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    times = np.linspace(0, 1, FRAMES)
    moved = ode.trajectory(base.sample((4 * PARTICLES,)), times.tolist()).cpu().numpy()
    frames = []
    with blank((3.2, 3.4)) as fig:
        canvas = FigureCanvasAgg(fig)
        (axes,) = _panels(fig, 1)
        (dots,) = axes.plot([], [], ".", color=MODEL, ms=2)
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
    points = torch.from_numpy(np.stack(np.meshgrid(centres, centres), -1)).to(base.device_marker)
    if time == 0.0:
        log_prob = base.log_prob(points)
    else:
        solution = ode.solve(points, time, 0.0, log_det=True)
        assert solution.log_det is not None
        log_prob = base.log_prob(solution.value) + solution.log_det
    return log_prob.exp().double().cpu().numpy()


def _lines(axes: Any, moved: Tensor) -> None:
    """Paths ``(times, particles, 2)``, from blue points to vermilion ones."""
    x, y = moved.cpu().numpy().transpose(2, 0, 1)
    axes.plot(x, y, color=GREY, lw=0.4, alpha=0.5)
    axes.plot(x[0], y[0], ".", color=REAL, ms=2)
    axes.plot(x[-1], y[-1], ".", color=MODEL, ms=2)


def _panels(fig: Any, count: int) -> Any:
    """Return so many axes side by side, all of one square."""
    panels = fig.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0]
    panels[0].set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=(-2, 0, 2), yticks=(-2, 0, 2))
    for axes in panels:
        axes.set_aspect("equal")
    return panels

"""One look for all figures: colours that the colour-blind can tell apart, thin grey axes, little ink."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diffeo.atomic import atomic_write

__all__ = [
    "DENSITY",
    "GREY",
    "MODEL",
    "OTHER",
    "REAL",
    "Figures",
    "blank",
    "figure",
    "heat",
    "histogram",
    "legend_above",
    "span",
]

# Okabe and Ito's palette: real data are always blue, what the model makes always vermilion, and
# what a second model makes green.
REAL, MODEL, OTHER, GREY = "#0072B2", "#D55E00", "#009E73", "#6B6B6B"
DENSITY = "#3B1C8C"

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": "#B0B0B0",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "text.parse_math": False,  # column names may hold dollar signs
}


@contextmanager
def blank(size: tuple[float, float]) -> Iterator[Any]:
    """Yield an empty matplotlib figure of this size in inches; what is drawn inside the block has the one look.

    No display and no pyplot: the program's own figures and settings stay as they are.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=size, layout="constrained")


@contextmanager
def figure(path: str | Path, size: tuple[float, float]) -> Iterator[Any]:
    """Yield a matplotlib figure of this size in inches; afterwards save it as PNG, atomically."""
    with blank(size) as fig:
        yield fig
        save(fig, path)


def save(fig: Any, path: str | Path) -> None:
    """Save a figure as PNG, atomically."""
    with atomic_write(path) as temporary:
        fig.savefig(temporary, format="png", dpi=140)


def heat(axes: Any, edges: Sequence[np.ndarray], values: np.ndarray, colour: str, most: float) -> None:
    """Show values (y cells, x cells) between edges (x, y): white at 0, a dark shade of a colour at ``most``."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgb

    red, green, blue = to_rgb(colour)
    shades: Any = ["white", colour, (0.35 * red, 0.35 * green, 0.35 * blue)]
    axes.pcolormesh(
        *edges, values, cmap=LinearSegmentedColormap.from_list(colour, shades), norm=PowerNorm(0.6, 0, most)
    )


def histogram(axes: Any, values: np.ndarray, edges: np.ndarray, colour: str, filled: bool, **options: Any) -> None:
    """Plot the density of values (n,) in even bins, as an area or as its outline; options go to ``axes.stairs``.

    By all values, not only those within the edges: a sampler that strays must not look better.
    """
    density = np.histogram(values, edges)[0] / (max(len(values), 1) * (edges[1] - edges[0]))
    look: dict[str, Any] = {"alpha": 0.35, "lw": 0} if filled else {"lw": 1.3}
    axes.stairs(density, edges, fill=filled, color=colour, **look, **options)


def span(values: np.ndarray, low: float, high: float, margin: float) -> tuple[float, float]:
    """Return limits from quantile to quantile of values (n,), and so large a share of that range to both sides."""
    start, stop = np.quantile(values, [low, high])
    more = margin * (stop - start) or 0.5
    return float(start - more), float(stop + more)


def legend_above(axes: Any, columns: int) -> None:
    """Place the legend in one row on top of the axes, where it hides no data and leaves room for a title."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=columns, borderaxespad=0)


class Figures:
    """The figures of a run directory: called with a name, it returns the path to plot to, and notes it.

    Attributes:
        run: the directory.
        plotted: the paths given out, in ``run/figures``, which is made if need be.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.plotted: list[str] = []
        (run / "figures").mkdir(exist_ok=True)

    def __call__(self, name: str, suffix: str = ".png") -> Path:
        """Return where to plot this one."""
        path = self.run / "figures" / f"{name}{suffix}"
        self.plotted.append(str(path))
        return path

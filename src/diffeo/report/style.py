"""One look for all figures: colours that the colour-blind can tell apart, thin grey axes, little ink."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffeo.atomic import atomic_write

__all__ = ["GREY", "MODEL", "OTHER", "REAL", "Figures", "figure", "shades"]

# Okabe and Ito's palette: real data are always blue, what the model makes always vermilion, and
# what a second model makes green.
REAL, MODEL, OTHER, GREY = "#0072B2", "#D55E00", "#009E73", "#6B6B6B"

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
def figure(path: str | Path, size: tuple[float, float]) -> Iterator[Any]:
    """Yield a matplotlib figure of this size in inches; afterwards save it as PNG, atomically.

    No display and no pyplot: the program's own figures and settings stay as they are.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        fig = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(fig)
        yield fig
        with atomic_write(path) as temporary:
            fig.savefig(temporary, format="png", dpi=140)


def shades(colour: str) -> Any:
    """Return a colour map from white to a dark shade of a colour."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    red, green, blue = to_rgb(colour)
    colours: Any = ["white", colour, (0.35 * red, 0.35 * green, 0.35 * blue)]
    return LinearSegmentedColormap.from_list(colour, colours)


class Figures:
    """The figures of a run directory: called with a name, it returns the path to plot to, and notes it.

    Attributes:
        folder: ``run/figures``, made if need be.
        plotted: the paths given out.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / "figures"
        self.folder.mkdir(exist_ok=True)
        self.plotted: list[str] = []

    def __call__(self, name: str, suffix: str = ".png") -> Path:
        """Return where to plot this one."""
        path = self.folder / f"{name}{suffix}"
        self.plotted.append(str(path))
        return path

    def metrics(self) -> Path | None:
        """What the training wrote of its epochs, if it wrote any."""
        path = self.run / "train" / "metrics.jsonl"
        return path if path.is_file() and path.stat().st_size else None

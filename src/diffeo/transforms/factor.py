"""What the conditional density of one column of a mixed table is made up of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Factor", "as_factors", "network_sizes"]


@dataclass(frozen=True)
class Factor:
    """How the conditional density of one column is made up: masses of single values, and a smooth rest.

    With respect to counting measure on ``values``, copies, gaps and grids, and to Lebesgue measure elsewhere.

    Attributes:
        values: which have a mass each, ascending, as float32 has them; the codes 0, 1, ... of categories.
        gaps: whether a missing cell (NaN) has a mass.
        copies: triples (j, a, b): the value a x_j + b has a mass, where column j is known.
        steps: 0 for a smooth density; else steps of grids, the finest first, on whose points masses of cells of a
            smooth density lie; empty if there is nothing but single values.
        origin: a point of the grids.
        unseen: the mass of any other value, where there is no smooth rest.
        low, high: what all values lie strictly between, where there is a smooth rest; None for no end.
    """

    values: tuple[float, ...] = ()
    gaps: bool = False
    copies: tuple[tuple[int, float, float], ...] = ()
    steps: tuple[float, ...] = ()
    origin: float = 0.0
    unseen: float = 0.0
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(map(float, self.values)))
        object.__setattr__(self, "copies", tuple((int(j), float(a), float(b)) for j, a, b in self.copies))
        object.__setattr__(self, "steps", tuple(map(float, self.steps)))
        for name, end in (("low", self.low), ("high", self.high)):
            object.__setattr__(self, name, None if end is None else float(end))
        if not (self.values or self.steps):
            raise ValueError("expected a column with values or with a smooth density, got neither")
        if list(self.values) != sorted(set(self.values)):
            raise ValueError(f"expected values in ascending order, got {self.values}")
        if any(step < 0 for step in self.steps) or (0 in self.steps and len(self.steps) > 1):
            raise ValueError(f"expected steps of grids above 0, or 0 alone for a density, got {self.steps}")
        if not 0 <= self.unseen < 1:
            raise ValueError(f"expected a mass of unseen values in [0, 1), got {self.unseen}")
        if not self.bounded:
            return
        low, high = self.ends
        if not (self.steps and low < high):
            raise ValueError(f"expected low < high of a smooth column, got {self.low} and {self.high}")
        if not all(low < value < high for value in self.values):
            raise ValueError(f"expected values between {low} and {high}, got {self.values}")
        if not all(first <= last for first, last in map(self.places, filter(None, self.steps))):
            raise ValueError(f"expected a point of every grid between {low} and {high}, got steps {self.steps}")

    @property
    def levels(self) -> int:
        """How many values a network tells apart, a gap among them."""
        return len(self.values) + self.gaps

    @property
    def continuous(self) -> bool:
        """Whether the smooth rest is a density, not masses of a grid's cells."""
        return self.steps == (0.0,)

    @property
    def bounded(self) -> bool:
        """Whether it has an end."""
        return (self.low, self.high) != (None, None)

    @property
    def ends(self) -> tuple[float, float]:
        """What values lie between, infinite for no end."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    def places(self, step: float) -> tuple[float, float]:
        """The least and the greatest k for which origin + k step lies between the ends; infinite for no end.

        Args:
            step: of a grid.
        """
        low, high = ((end - self.origin) / step for end in self.ends)
        return low if math.isinf(low) else math.floor(low) + 1, high if math.isinf(high) else math.ceil(high) - 1


def as_factors(columns: Sequence[Factor | Mapping[str, Any]]) -> list[Factor]:
    """The factors of columns that may be given by their fields' names."""
    return [each if isinstance(each, Factor) else Factor(**each) for each in columns]


def network_sizes(columns: Sequence[Factor | Mapping[str, Any]], components: int) -> dict[str, Any]:
    """The arguments of an ``AnyOrder`` that suit ``Mixed``: ``levels``, ``numeric`` and ``outputs``."""
    factors = as_factors(columns)
    grids = max((len(factor.steps) for factor in factors), default=0)
    masses = [(i, factor.levels + len(factor.copies)) for i, factor in enumerate(factors)]
    smooth = [(i, (grids + 2) * components) for i, factor in enumerate(factors) if factor.steps]
    return {
        "levels": [factor.levels for factor in factors],
        "numeric": [bool(factor.steps) for factor in factors],
        "outputs": [*masses, *smooth],
    }

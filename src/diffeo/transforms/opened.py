"""Columns with bounds on the whole line, one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffeo.transforms.supports import strictly_inside

__all__ = ["Opened"]

FARTHEST = 1e6  # units that a value may be from the end, where the unit is set


class Opened(nn.Module):
    r"""The bounds of columns moved to infinity; a column without is left as it is.

    .. math:: x = l + u \log(1 + e^z), \qquad x = h - u \log(1 + e^{-z}), \qquad x = l + (h - l) / (1 + e^{-z})

    for a column with a lower end l, with an upper one h, and with both: close to an end a logistic on the line of scale
    s has a density that goes with the distance to the power of 1/s - 1. Away from a single end the map is linear, so
    that what is broad on the line is no broader in the column's own units, as it would be by a logarithm. The unit u is
    the median distance from that end (``initialize``), and part of the state.

    Args:
        ends: of each column, infinite for none.
    """

    units: Tensor

    def __init__(self, ends: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self.ends = {s: pair for s, pair in enumerate(ends) if any(map(math.isfinite, pair))}
        if self.ends:
            self.register_buffer("units", torch.ones(len(ends)))

    def initialize(self, s: int, values: Tensor) -> None:
        """Set the unit of column s by its values ``(n,)``."""
        if s in self.ends and not self._between(s):
            end, sign = self._end(s)
            distance = sign * (values - end)
            self.units[s] = torch.maximum(distance.median(), distance.amax() / FARTHEST)

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Open all columns ``(..., S)``: z, and the logarithms of its derivatives."""
        if not self.ends:
            return value, torch.zeros_like(value)
        z, logs = zip(*(self.open(s, column) for s, column in enumerate(value.unbind(-1))), strict=True)
        return torch.stack(z, -1), torch.stack(logs, -1)

    def open(self, s: int, value: Tensor) -> tuple[Tensor, Tensor]:
        """Open column s: z, and the logarithm of its derivative. What is out of bounds is taken to be just inside.

        Args:
            s: the number of the column.
            value: ``(...)``.
        """
        if s not in self.ends:
            return value, torch.zeros_like(value)
        least = torch.finfo(value.dtype).tiny
        if self._between(s):
            low, high = self.ends[s]
            below, above = ((each / (high - low)).clamp_min(least) for each in (value - low, high - value))
            return below.log() - above.log(), -below.log() - above.log() - math.log(high - low)
        end, sign = self._end(s)
        distance = (sign * (value - end).div(self.units[s])).clamp_min(least)
        bend = torch.log(-torch.expm1(-distance))  # the inverse of softplus is y + log(1 - e^-y)
        return sign * (distance + bend), -bend - self.units[s].log()

    def close(self, s: int, z: Tensor) -> Tensor:
        """Map back: values of column s, strictly within its bounds.

        Args:
            s: the number of the column.
            z: ``(...)``.
        """
        if s not in self.ends:
            return z
        if self._between(s):
            low, high = self.ends[s]
            share = (high - low) * torch.sigmoid(-z.abs())  # of the nearer end
            value = torch.where(z < 0, low + share, high - share)
        else:
            end, sign = self._end(s)
            value = end + sign * self.units[s] * F.softplus(sign * z)
        return value.clamp(*strictly_inside(*map(value.new_tensor, self.ends[s])))

    def _between(self, s: int) -> bool:
        """Whether column s has two ends."""
        return s in self.ends and all(map(math.isfinite, self.ends[s]))

    def _end(self, s: int) -> tuple[float, float]:
        """The only end of column s, and which way the column goes from there."""
        low, high = self.ends[s]
        return (low, 1.0) if math.isfinite(low) else (high, -1.0)

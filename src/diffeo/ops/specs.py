"""Plain descriptions of what is computed, without numbers: they pickle, and mean the same to every backend."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = [
    "FieldSpec",
    "MapSpec",
    "Matching",
    "NetworkSpec",
    "PathSpec",
    "Trained",
    "Univariate",
    "WaveNetSpec",
    "Wiring",
]


class MapSpec(NamedTuple):
    """A univariate map by its name: "shift", "scale", "affine", "spline" or "logistics"."""

    kind: str
    bins: int = 0
    bound: float = 0.0
    min_bin: float = 0.0
    max_log_bend: float = 0.0


class Univariate(Protocol):
    """A monotone map of each element, of ``size`` parameters ``(size, *value.shape)``; see transforms/univariate.py."""

    size: int

    def generate(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """x = f(z) and log dx/dz, in PyTorch's operations."""

    def normalize(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """z = f^-1(x) and log dz/dx, in PyTorch's operations."""

    def specs(self) -> tuple[MapSpec, ...] | None:
        """The map as a chain of maps with a name, in the order of generation; None where it is none."""


class _Described:
    """A description, beside which backends keep what they make of it: neither copied nor stored."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": {}}


class Wiring(_Described):
    """What the units of a layer see. Units and columns are sorted, so that a mask is a staircase.

    Args:
        seen: unit u sees the first ``seen[u]`` columns; ascending.
        columns: how many there are.
        ends: ``ends[k]`` counts the units computable once k inputs are known; None where there is no such order.
    """

    def __init__(self, seen: Sequence[int], columns: int, ends: Sequence[int] | None = None) -> None:
        self.seen, self.columns = tuple(seen), columns
        self.ends = None if ends is None else tuple(ends)
        self.kept: dict[Any, Tensor] = {}

    @classmethod
    def dense(cls, units: int, columns: int) -> Wiring:
        """Every unit sees every column."""
        return cls([columns] * units, columns)

    @classmethod
    def layers(cls, sizes: Sequence[int]) -> list[Wiring]:
        """Dense layers from one size to the next."""
        return [cls.dense(units, columns) for columns, units in pairwise(sizes)]

    @classmethod
    def masked(cls, degrees: Tensor, seen: Tensor, elements: int) -> Wiring:
        """A unit of degree m sees the columns of degree at most m; degrees are sorted."""
        columns = torch.searchsorted(seen, degrees, right=True)
        return cls(columns.tolist(), len(seen), ends_of(degrees, elements))

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(self.seen)

    @property
    def full(self) -> bool:
        """Whether there is nothing to mask."""
        return self.seen[0] == self.columns

    @property
    def first(self) -> list[int]:
        """Column j is seen by the units from ``first[j]`` on; ascending."""
        return [bisect_right(self.seen, j) for j in range(self.columns)]

    def mask(self, weight: Tensor, *, keep: bool) -> Tensor:
        """The staircase ``(units, columns)`` as zeros and ones like a weight; ``keep`` it for the next call."""
        key = weight.device, weight.dtype
        if not keep:
            return self._mask(*key)
        if key not in self.kept:
            with torch.inference_mode(False):  # or no training could use it
                self.kept[key] = self._mask(*key)
        return self.kept[key]

    def _mask(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        seen = torch.tensor(self.seen, device=device)
        return (torch.arange(self.columns, device=device) < seen[:, None]).to(dtype)


def ends_of(degrees: Tensor, elements: int) -> list[int]:
    """How many of the units (sorted by degree) are computable once k = 0 .. elements elements are known."""
    return torch.searchsorted(degrees, torch.arange(elements + 1), right=True).tolist()


@dataclass(eq=False)
class NetworkSpec(_Described):
    """A feed-forward network, dense or masked: see ``reference.network``.

    Its tensors are the weight ``(units, columns)`` and the bias of each layer, then the weights of the direct
    connections and of the context's where there are any.

    Attributes:
        layers: wiring of each layer, the output layer last.
        direct: wiring of the connections from inputs to outputs, or None.
        context: wiring of those from a context to the first layer, dense, or None.
        residual: for each layer, whether its input is added to its output.
        activation: its name.
        bound: the network sees ``bound tanh(x / bound)``, of a context as well.
        interleaved: whether outputs that are parameters of univariate maps are ordered element by element, or else
            parameter by parameter.
    """

    layers: Sequence[Wiring]
    direct: Wiring | None
    context: Wiring | None
    residual: Sequence[bool]
    activation: str
    bound: float
    interleaved: bool
    kept: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def sources(self) -> list[Wiring]:
        """Where sums come from, each of which has a weight: the layers, then direct connections and the context's."""
        return [*self.layers, *(each for each in (self.direct, self.context) if each is not None)]

    def direct_weight(self, tensors: Sequence[Tensor]) -> Tensor:
        """That of the direct connections among its tensors."""
        return tensors[2 * len(self.layers)]

    def params(self, outputs: Tensor, size: int) -> Tensor:
        """View outputs ``(size * n, rows)`` as the parameters of n elements, ``(size, n, rows)``."""
        if self.interleaved:
            return outputs.unflatten(0, (-1, size)).transpose(0, 1)
        return outputs.unflatten(0, (size, -1))


@dataclass(eq=False)
class WaveNetSpec(_Described):
    """A stack of dilated causal convolutions: see ``reference.wavenet``.

    Its twelve tensors: first weight and bias; taps ``(depth, kernel, 2 channels, channels)`` and gate biases; residual
    ``(depth - 1, channels, channels)`` and biases; weight and bias of skip, mid and last.
    """

    size: int
    channels: int
    dilations: Sequence[int]
    kernel: int
    skip: int
    hop: int
    kept: dict[str, Any] = field(default_factory=dict, repr=False)


class PathSpec(NamedTuple):
    """A path from noise to data by its name; the rates are those of "vp" at the data and at the noise."""

    kind: str
    low: float = 0.0
    high: float = 0.0


@dataclass(eq=False)
class FieldSpec:
    """A velocity: that of a Gaussian in closed form, and a network's correction to it (nets/velocity.py).

    Attributes:
        network: reads ``[(x - mean_t) / std_t, t, sines, cosines, context]``.
        tensors: its weights and biases.
        moments: means of the data and of the noise, standard deviations of the data and of the noise, ``(size,)``.
        context: what else the network sees of each row, ``(rows, context)``, or None.
        frequencies: how many sines and how many cosines, of 2^k pi t.
        path: between noise and data.
        bound: the correction is ``std_t bound tanh(output / bound)`` of the network's outputs, ``std_t output`` where
            it is infinite.
    """

    network: NetworkSpec
    tensors: Sequence[Tensor] = field(repr=False)
    moments: Sequence[Tensor] = field(repr=False)
    context: Tensor | None
    frequencies: int
    path: PathSpec
    bound: float


class Matching(NamedTuple):
    """What flow matching asks of a velocity: std_t times its network's bounded outputs at ``inputs`` are ``target``.

    Inputs are ``(inputs, rows)``, std and target ``(size, rows)``.
    """

    inputs: Tensor
    std: Tensor
    target: Tensor


class Trained(NamedTuple):
    """A parameter and what its update reads and writes.

    Attributes:
        value: the parameter.
        average: its moving average.
        mean: the first moment of its gradient.
        square: the second one.
        steps: how many it took, a number.
        rate: its full learning rate.
        decay: the share of the rate by which it decays.
    """

    value: Tensor
    average: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor
    rate: float
    decay: float

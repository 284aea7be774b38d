"""Incremental inversion: a triangular network evaluated one element at a time, at the price of one pass in total.

Let every unit of a masked network be computable once its first k inputs are known (its *degree*), with units sorted by
degree. For k = 0, 1, ..., each layer computes only the units of degree k, the output for element k is read, and the
caller turns it into the next input. Every weight is multiplied once: all elements together take the multiply-adds of
**one** masked pass, instead of one pass per element.

Elements are taken in blocks: what earlier blocks contribute to a block comes from large matrix products, and only the
triangles on the diagonal are left to small steps. Everything is feature-major, (units, rows), so that every slice is
contiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["TriangularLayer", "evaluate_incrementally"]


@dataclass
class TriangularLayer:
    """One layer of a triangular network.

    Attributes:
        sources: pairs (index of the layer read, weight ``(units, units of that layer)``); layer 0 is the input.
        ends: ``ends[k]`` counts the units computable once k elements are known, k = 0 .. elements.
        finish: maps (slice of units, their weighted sums ``(units, rows)``) to their values.
    """

    sources: list[tuple[int, Tensor]]
    ends: Sequence[int]
    finish: Callable[[slice, Tensor], Tensor]


def evaluate_incrementally(
    layers: Sequence[TriangularLayer],
    step: Callable[[int, Tensor], Tensor],
    elements: int,
    size: int,
    like: Tensor,
    block: int = 16,
) -> None:
    """Go over the elements, calling ``step(k, output of element k)`` for the input ``(size, rows)`` of element k.

    Args:
        layers: the network's layers in order, the output layer last.
        step: turns the last layer's units for element k ``(units, rows)`` into the network's input for element k.
        elements: the number of elements D.
        size: input units per element.
        like: a tensor ``(., rows)`` that gives rows, dtype and device.
        block: elements per block.
    """
    rows = like.shape[1]
    ends = [[k * size for k in range(elements + 1)], *(layer.ends for layer in layers)]
    values = [like.new_empty(end[-1], rows) for end in ends]
    for first in range(0, elements, block):
        last = min(first + block, elements)
        # Complete before this block: inputs of the first `first` elements, units of degree below `first`.
        done = [ends[0][first], *(end[first - 1] if first else 0 for end in ends[1:])]
        sums: list[Tensor] = []
        for index, layer in enumerate(layers, start=1):
            units = slice(done[index], ends[index][last - 1])
            total = like.new_zeros(units.stop - units.start, rows)
            for source, weight in layer.sources:
                if done[source] and units.stop > units.start:
                    total.addmm_(weight[units, : done[source]], values[source][: done[source]])
            sums.append(total)
        for k in range(first, last):
            for index, layer in enumerate(layers, start=1):
                start, stop = ends[index][k - 1] if k else 0, ends[index][k]
                if start == stop:
                    continue
                total = sums[index - 1][start - done[index] : stop - done[index]]
                for source, weight in layer.sources:
                    known = slice(done[source], ends[source][k])
                    if known.stop > known.start:
                        total.addmm_(weight[start:stop, known], values[source][known])
                values[index][start:stop] = layer.finish(slice(start, stop), total)
            values[0][k * size : (k + 1) * size] = step(k, values[-1][ends[-1][k - 1] if k else 0 : ends[-1][k]])

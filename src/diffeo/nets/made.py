"""MADE: a masked network whose output i sees only the inputs before i, read all at once or one element at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffeo.nets.activations import derivative, soften
from diffeo.nets.feedforward import Feedforward
from diffeo.nets.walk import WalkLayer, walk
from diffeo.ops.cpu.maps import MapSpec
from diffeo.ops.cpu.network import Wiring, ends_of
from diffeo.ops.cpu.walk import walk_fused

__all__ = ["MADE"]


class MADE(Feedforward):
    """Masked autoregressive network (Germain et al. 2015, arXiv:1502.03509).

    Input i has degree i = 1 .. D. Hidden degrees are spread evenly over 1 .. D - 1 (over 0 .. D - 1 given a context, so
    that the first output sees it too); a hidden unit of degree m sees what has degree <= m, output i sees hidden units
    of degree < i. Where a hidden layer is too narrow to hold every degree, masked direct connections from inputs to
    outputs are added, so that every output depends on every earlier input at any width.

    All readings are feature-major, ``(features, rows)``: units are sorted by degree, so that what a group of units may
    see is one contiguous slice.

    Args:
        features: the number of inputs D.
        size: the number of parameters per input; there are ``features * size`` outputs, ordered input by input.
        hidden: widths of the hidden layers.
        context: size of the context, 0 for none; it reaches every output.
        activation: a name in ``ACTIVATIONS``.
        residual: add each hidden layer's input to its output where the widths agree.
    """

    def __init__(
        self,
        features: int,
        size: int,
        hidden: Sequence[int] = (128, 128),
        context: int = 0,
        activation: str = "relu",
        residual: bool = False,
    ) -> None:
        if features < 1 or size < 1 or any(width < 1 for width in hidden):
            raise ValueError(f"expected positive sizes, got features={features}, size={size}, hidden={tuple(hidden)}")
        if features == 1 and not context:
            hidden = ()  # nothing to see: the outputs are constants
        lowest = 0 if context else 1
        degrees = [
            torch.arange(1, features + 1),
            *(spread_degrees(width, lowest, features - 1) for width in hidden),
            torch.arange(features).repeat_interleave(size),  # an output sees what has at most this degree
        ]
        wirings = [Wiring.masked(own, seen, features) for seen, own in zip(degrees, degrees[1:], strict=False)]
        narrow = bool(hidden) and min(hidden) < features - lowest
        direct = Wiring.masked(degrees[-1], degrees[0], features) if narrow else None
        super().__init__(wirings, direct, context, activation, residual)
        self.features, self.size, self.degrees = features, size, degrees

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Read all at once: x ``(features, rows)``, context ``(rows, context)`` to ``(size, features, rows)``."""
        return self.read(x, context).unflatten(0, (self.features, self.size)).transpose(0, 1)

    def walk(self, step: Callable[[int, Tensor], Tensor], like: Tensor, context: Tensor | None = None) -> None:
        """Read one element at a time: ``step(i, params_i)`` gets ``(size, rows)`` and returns element i, ``(rows,)``.

        The whole walk costs the multiply-adds of one masked pass. Not differentiable; see ``walk_back``.

        Args:
            step: computes element i from its parameters.
            like: a tensor ``(features, rows)`` that gives rows, dtype and device.
            context: ``(rows, context)``.
        """
        shared = self._shared(context)
        added = None if shared is None else shared.mT.contiguous()
        last = len(self.layers) - 1
        hidden: list[Tensor] = [like.new_empty(len(layer.bias), like.shape[1]) for layer in self.layers[:-1]]

        def finish(index: int) -> Callable[[slice, Tensor], Tensor]:
            def apply(units: slice, sums: Tensor) -> Tensor:
                sums += self.layers[index].bias[units, None]
                if index == 0 and added is not None:
                    sums += added[units]
                if index == last:
                    return sums
                value = self.activation(sums)
                if self.residual[index]:
                    value += hidden[index - 1][units]
                hidden[index][units] = value
                return value

            return apply

        layers = [
            WalkLayer([(index, layer.weight)], wiring.ends or (), finish(index))
            for index, (layer, wiring) in enumerate(zip(self.layers, self.structure.layers, strict=True))
        ]
        if self.direct is not None:
            layers[-1].sources.append((0, self.direct.weight))
        walk(layers, lambda i, params: soften(step(i, params))[None], self.features, 1, like)

    def walk_fused(
        self, maps: Sequence[MapSpec], z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Walk and map z ``(rows, features)`` in one call, where the kernel for it is at hand; None elsewhere."""
        return walk_fused(self.structure, self._tensors(), self._shared(context), maps, z)

    def walk_back(self, step: Callable[[int, Tensor], Tensor], x: Tensor, context: Tensor | None = None) -> None:
        """Walk the transposed network from the last element to the first, at the price of one backward pass.

        ``step(i, total)`` gets d/dx_i ``(rows,)`` of what the gradients fed so far (for later elements) send back
        through the network, and returns the gradient with respect to params_i, ``(size, rows)``.

        In reversed order, of the elements and of the units of each layer, the transposed network is masked just as the
        network is: a unit of degree m has degree D - m there.

        Args:
            step: computes the gradient of the parameters of element i.
            x: where the network is linearised, ``(features, rows)``.
            context: ``(rows, context)``.
        """
        totals: list[Tensor] = []
        self._plain(x, self._shared(context), *self._tensors(), sums=totals)
        slopes = [derivative(self.activation, total).flip(0) for total in totals]
        outer = derivative(soften, x)
        backward = [layer.weight.mT.flip(0, 1) for layer in self.layers]
        depth = len(slopes)
        gradients = [torch.empty_like(slope) for slope in slopes]  # with respect to each layer's values

        def finish(index: int) -> Callable[[slice, Tensor], Tensor]:
            def apply(units: slice, sums: Tensor) -> Tensor:
                if index + 1 < depth and self.residual[index + 1]:
                    sums += gradients[index + 1][units]
                gradients[index][units] = sums
                return sums * slopes[index][units]

            return apply

        layers = [
            WalkLayer(
                [(position, backward[index + 1])],
                ends_of((self.features - self.degrees[index + 1]).flip(0), self.features),
                finish(index),
            )
            for position, index in enumerate(reversed(range(depth)))
        ]
        sources = [(depth, backward[0])]
        if self.direct is not None:
            sources.append((0, self.direct.weight.mT.flip(0, 1)))
        ends = [min(k + 1, self.features) for k in range(self.features + 1)]
        layers.append(WalkLayer(sources, ends, lambda units, sums: sums))
        last = self.features - 1
        walk(
            layers,
            # the parameters of an element, too, are met in reversed order
            lambda k, total: step(last - k, total[0] * outer[last - k]).flip(0),
            self.features,
            self.size,
            x,
        )


def spread_degrees(width: int, lowest: int, highest: int) -> Tensor:
    """Degrees of a hidden layer, sorted, spread evenly over lowest .. highest, both ends included where width allows.

    ``arange(width) % highest`` would leave the last inputs unseen where width < highest.
    """
    if width == 1:
        return torch.tensor([lowest])  # what a unit sees, most outputs may use; direct connections do the rest
    return torch.linspace(lowest, highest, width, dtype=torch.float64).round().long()

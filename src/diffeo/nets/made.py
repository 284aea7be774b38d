"""MADE: a masked network whose output i sees only the inputs before i, read all at once or one element at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffeo.kernels.walk import DenseLayer, MapSpec, walk_fused
from diffeo.nets.activations import INPUT_BOUND, derivative, get_activation, rate_for_width, soften, zero_last
from diffeo.nets.masked import Blocks, masked_linear
from diffeo.nets.walk import WalkLayer, walk

__all__ = ["MADE"]


class MADE(nn.Module):
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
        super().__init__()
        if features < 1 or size < 1 or any(width < 1 for width in hidden):
            raise ValueError(f"expected positive sizes, got features={features}, size={size}, hidden={tuple(hidden)}")
        if features == 1 and not context:
            hidden = ()  # nothing to see: the outputs are constants
        self.features, self.size = features, size
        self.activation_name = activation
        self.activation = get_activation(activation)
        self.lr_scale = rate_for_width(hidden)
        lowest = 0 if context else 1
        self.degrees = [
            torch.arange(1, features + 1),
            *(spread_degrees(width, lowest, features - 1) for width in hidden),
            torch.arange(features).repeat_interleave(size),  # an output sees what has at most this degree
        ]
        widths = [len(degree) for degree in self.degrees]
        self.layers: Any = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.context = nn.Linear(context, widths[1], bias=False) if context else None
        self.residual = [
            residual and 0 < index < len(hidden) and widths[index] == widths[index + 1]
            for index in range(len(self.layers))
        ]
        narrow = bool(hidden) and min(hidden) < features - lowest
        self.direct: Any = nn.Linear(features, widths[-1], bias=False) if narrow else None
        self.ends = [self._ends(degree) for degree in self.degrees[1:]]
        self.blocks = []
        for index, (seen, own) in enumerate(zip(self.degrees, self.degrees[1:], strict=False)):
            self.register_buffer(f"mask{index}", (own[:, None] >= seen[None, :]).float(), persistent=False)
            self.blocks.append(Blocks.of(own, seen))
        if self.direct is not None:
            mask = (self.degrees[-1][:, None] >= self.degrees[0][None, :]).float()
            self.register_buffer("mask_direct", mask, persistent=False)
            self.direct_blocks = Blocks.of(self.degrees[-1], self.degrees[0])
            nn.init.zeros_(self.direct.weight)
        zero_last(self.layers)
        if len(self.layers) == 1 and self.context is not None:
            nn.init.zeros_(self.context.weight)

    def _weights(self) -> list[Tensor]:
        """The masked weights, applied at every reading so that no weight, however set, can break the order."""
        return [layer.weight * self.get_buffer(f"mask{index}") for index, layer in enumerate(self.layers)]

    def _direct_weight(self) -> Tensor | None:
        return None if self.direct is None else self.direct.weight * self.get_buffer("mask_direct")

    def _read(self, x: Tensor, context: Tensor | None, pre_activations: list[Tensor] | None = None) -> Tensor:
        inputs = h = soften(x)
        shared = self._shared(context)
        last = len(self.layers) - 1
        for index, (layer, weight) in enumerate(zip(self.layers, self._weights(), strict=True)):
            pre = masked_linear(h, weight, layer.bias, self.blocks[index])
            if index == 0 and shared is not None:
                pre = pre + shared.mT
            if index == last:
                break
            if pre_activations is not None:
                pre_activations.append(pre)
            new = self.activation(pre)
            h = new + h if self.residual[index] else new
        direct = self._direct_weight()
        return pre if direct is None else pre + masked_linear(inputs, direct, None, self.direct_blocks)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Read all at once: x ``(features, rows)``, context ``(rows, context)`` to ``(size, features, rows)``."""
        return self._read(x, context).unflatten(0, (self.features, self.size)).transpose(0, 1)

    def walk(self, step: Callable[[int, Tensor], Tensor], like: Tensor, context: Tensor | None = None) -> None:
        """Read one element at a time: ``step(i, params_i)`` gets ``(size, rows)`` and returns element i, ``(rows,)``.

        The whole walk costs the multiply-adds of one masked pass. Not differentiable; see ``walk_back``.

        Args:
            step: computes element i from its parameters.
            like: a tensor ``(features, rows)`` that gives rows, dtype and device.
            context: ``(rows, context)``.
        """
        dense, direct, shared = self._by_degree(context)
        last = len(dense) - 1
        added = None if shared is None else shared.mT.contiguous()
        hidden: list[Tensor] = [like.new_empty(len(layer.bias), like.shape[1]) for layer in dense[:-1]]

        def finish(index: int, layer: DenseLayer) -> Callable[[slice, Tensor], Tensor]:
            def apply(units: slice, sums: Tensor) -> Tensor:
                sums += layer.bias[units, None]
                if index == 0 and added is not None:
                    sums += added[units]
                if index == last:
                    return sums
                value = self.activation(sums)
                if layer.residual:
                    value += hidden[index - 1][units]
                hidden[index][units] = value
                return value

            return apply

        layers = [
            WalkLayer([(index, layer.weight)], layer.ends, finish(index, layer)) for index, layer in enumerate(dense)
        ]
        if direct is not None:
            layers[-1].sources.append((0, direct))
        walk(layers, lambda i, params: soften(step(i, params))[None], self.features, 1, like)

    def walk_fused(
        self, maps: Sequence[MapSpec], z: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Walk and map z ``(rows, features)`` in one call, where the kernel for it is at hand; None elsewhere."""
        dense, direct, shared = self._by_degree(context)
        return walk_fused(dense, direct, shared, self.activation_name, INPUT_BOUND, maps, z)

    def _by_degree(self, context: Tensor | None) -> tuple[list[DenseLayer], Tensor | None, Tensor | None]:
        """The masked layers with how many of their units k elements decide; direct weights; the context's sums."""
        layers = [
            DenseLayer(weight, layer.bias, ends, residual)
            for weight, layer, ends, residual in zip(
                self._weights(), self.layers, self.ends, self.residual, strict=True
            )
        ]
        return layers, self._direct_weight(), self._shared(context)

    def _shared(self, context: Tensor | None) -> Tensor | None:
        """The context's part of the first layer's sums, ``(rows, units)``."""
        return None if self.context is None or context is None else self.context(soften(context))

    def _ends(self, degrees: Tensor) -> list[int]:
        """How many of the units (sorted by degree) are computable once k = 0 .. features elements are known."""
        return torch.searchsorted(degrees, torch.arange(self.features + 1), right=True).tolist()

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
        pre_activations: list[Tensor] = []
        self._read(x, context, pre_activations)
        slopes = [derivative(self.activation, pre).flip(0) for pre in pre_activations]
        outer = derivative(soften, x)
        backward = [weight.mT.flip(0, 1) for weight in self._weights()]
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
                self._ends((self.features - self.degrees[index + 1]).flip(0)),
                finish(index),
            )
            for position, index in enumerate(reversed(range(depth)))
        ]
        sources = [(depth, backward[0])]
        direct = self._direct_weight()
        if direct is not None:
            sources.append((0, direct.mT.flip(0, 1)))
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

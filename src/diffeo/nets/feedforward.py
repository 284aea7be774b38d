"""What the multilayer perceptron and MADE share: a feed-forward network, dense or masked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffeo.nets.activations import INPUT_BOUND, get_activation, rate_for_width, soften, zero_last
from diffeo.nets.precision import autocast, in_bfloat16
from diffeo.ops.cpu.network import Mapping, Structure, Wiring, mapped, network

__all__ = ["Feedforward"]


class Feedforward(nn.Module):
    """h_1 = act(W_1 soften(x) + C c + b_1), h_l = act(W_l h_{l-1} + b_l) (+ h_{l-1}), y = W h_L + b (+ V soften(x)).

    Values are feature-major, ``(features, rows)``. The last layer starts at zero: a flow starts as the identity.

    Args:
        wirings: what the units of each layer see, the output layer last.
        direct: the same of connections V from inputs to outputs, or None.
        context: size of the context, 0 for none.
        activation: a name in ``ACTIVATIONS``.
        residual: add each hidden layer's input to its output where the widths agree.
    """

    def __init__(
        self, wirings: Sequence[Wiring], direct: Wiring | None, context: int, activation: str, residual: bool
    ) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(nn.Linear(each.columns, each.units) for each in wirings)
        self.context = nn.Linear(context, wirings[0].units, bias=False) if context else None
        self.direct: Any = None if direct is None else nn.Linear(direct.columns, direct.units, bias=False)
        self.activation = get_activation(activation)
        hidden = [each.units for each in wirings[:-1]]
        self.lr_scale = rate_for_width(hidden)
        self.residual = [
            residual and 0 < index < len(hidden) and each.units == each.columns for index, each in enumerate(wirings)
        ]
        self.structure = Structure(list(wirings), direct, self.residual, activation, INPUT_BOUND, self._plain)
        for index, each in enumerate([*wirings, *([] if direct is None else [direct])]):
            self.register_buffer(f"mask{index}", None if each.full else each.mask(), persistent=False)
        zero_last(self.layers)
        if self.direct is not None:
            nn.init.zeros_(self.direct.weight)
        if not hidden and self.context is not None:
            nn.init.zeros_(self.context.weight)

    def read(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Read at x ``(inputs, rows)``, context ``(rows, context)``: ``(outputs, rows)``."""
        if in_bfloat16():
            with autocast(x):
                return self._plain(x, self._shared(context), *self._tensors()).to(x.dtype)
        return network(self.structure, x, self._shared(context), self._tensors())

    def mapped(self, mapping: Mapping, x: Tensor, value: Tensor, context: Tensor | None = None) -> Any:
        """Map values ``(n, rows)`` by the parameters read at x, in one call where a kernel is at hand; None elsewhere.

        Returns:
            The mapped values ``(n, rows)`` and the log-derivatives summed over elements, ``(rows,)``.
        """
        if in_bfloat16():
            return None
        return mapped(self.structure, mapping, x, self._shared(context), value, self._tensors())

    def _tensors(self) -> list[Tensor]:
        """Weight and bias of each layer, the weight of the direct connections."""
        tensors = [tensor for layer in self.layers for tensor in (layer.weight, layer.bias)]
        return tensors if self.direct is None else [*tensors, self.direct.weight]

    def _shared(self, context: Tensor | None) -> Tensor | None:
        """The context's part of the first layer's sums, ``(rows, units)``."""
        return None if self.context is None or context is None else self.context(soften(context))

    def _masked(self, index: int, weight: Tensor) -> Tensor:
        """A layer's weight, masked at every reading, so that no weight, however set, can break the order."""
        mask = getattr(self, f"mask{index}")
        return weight if mask is None else weight * mask

    def _plain(self, x: Tensor, shared: Tensor | None, *tensors: Tensor, sums: list[Tensor] | None = None) -> Tensor:
        """The network in PyTorch's operations; ``sums`` receives what each activation gets."""
        inputs = h = soften(x)
        last = len(self.residual) - 1
        for index in range(last + 1):
            weight, bias = tensors[2 * index : 2 * index + 2]
            total = torch.addmm(bias[:, None], self._masked(index, weight), h)
            if index == 0 and shared is not None:
                total = total + shared.mT
            if index < last:
                if sums is not None:
                    sums.append(total)
                new = self.activation(total)
                h = new + h if self.residual[index] else new
        return total if self.direct is None else total + self._masked(last + 1, tensors[-1]) @ inputs

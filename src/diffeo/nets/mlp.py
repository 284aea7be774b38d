"""A multilayer perceptron: the conditioner of couplings on vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from diffeo.nets.activations import get_activation, rate_for_width, soften, zero_last

__all__ = ["MLP"]


class MLP(nn.Module):
    """(x, context) -> outputs, with the last layer initialised to zero so that a flow starts as the identity.

    h_1 = act(W_1 soften(x) + C c + b_1), h_l = act(W_l h_{l-1} + b_l) (+ h_{l-1} if residual), output = W h_L + b.

    Args:
        inputs: size of x.
        outputs: size of the output.
        hidden: widths of the hidden layers.
        context: size of the context, 0 for none.
        activation: a name in ``ACTIVATIONS``.
        residual: add each hidden layer's input to its output where the widths agree.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int] = (128, 128),
        context: int = 0,
        activation: str = "relu",
        residual: bool = False,
    ) -> None:
        super().__init__()
        sizes = [inputs, *hidden, outputs]
        self.layers: Any = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.context = nn.Linear(context, sizes[1], bias=False) if context else None
        self.activation = get_activation(activation)
        self.lr_scale = rate_for_width(hidden)
        self.residual = residual
        zero_last(self.layers)
        if not hidden and self.context is not None:
            nn.init.zeros_(self.context.weight)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map x ``(*batch, inputs)`` and the context ``(*batch, context)`` to ``(*batch, outputs)``."""
        h = soften(x)
        for index, layer in enumerate(self.layers):
            pre = layer(h)
            if index == 0 and self.context is not None and context is not None:
                pre = pre + self.context(soften(context))
            if index == len(self.layers) - 1:
                return pre
            new = self.activation(pre)
            h = new + h if self.residual and new.shape == h.shape and index else new
        raise AssertionError("unreachable: there is always an output layer")

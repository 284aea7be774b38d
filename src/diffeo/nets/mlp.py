"""A multilayer perceptron: the conditioner of couplings on vectors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from diffeo.kernels.network import Wiring
from diffeo.nets.feedforward import Feedforward

__all__ = ["MLP"]


class MLP(Feedforward):
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
        sizes = [inputs, *hidden, outputs]
        wirings = [Wiring.dense(b, a) for a, b in zip(sizes, sizes[1:], strict=False)]
        super().__init__(wirings, None, context, activation, residual)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map x ``(*batch, inputs)`` and the context ``(*batch, context)`` to ``(*batch, outputs)``."""
        rows = x.reshape(-1, x.shape[-1])
        given = None if context is None else context.reshape(-1, context.shape[-1])
        return self.read(rows.mT, given).mT.reshape(*x.shape[:-1], self.layers[-1].out_features)

"""A multilayer perceptron that reads a context for other networks: an embedding of vectors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from diffeo import ops
from diffeo.nets.activations import as_widths
from diffeo.nets.feedforward import Feedforward

__all__ = ["Reader"]

FAR = 1e3  # standard deviations: what is further out is as good as equal


class Reader(Feedforward):
    r"""Contexts ``(n, ...)``, flattened -> ``(n, outputs)``: h_l = act(W_l h_{l-1} + b_l) + h_{l-1}, y = W h_L + b.

    It differs from ``MLP`` in what it begins with and how far it sees. Its last layer has random weights at first: from
    zero it would tell the other networks nothing. Its inputs are bounded softly at a thousand standard deviations, not
    at three, so that an observation far out is told from one further out.

    Args:
        inputs: how many numbers a context has.
        outputs: how many numbers the other networks see.
        hidden: widths of the hidden layers.
        activation: a name in ``ACTIVATIONS``.

    Raises:
        ValueError: for an unknown activation.
        TypeError: for hidden widths that are no whole numbers.
    """

    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int] = (128, 128), activation: str = "silu") -> None:
        wirings = ops.Wiring.layers([inputs, *as_widths(hidden), outputs])
        super().__init__(wirings, None, 0, activation, residual=True, interleaved=False, bound=FAR)
        self.layers[-1].reset_parameters()

    def forward(self, context: Tensor) -> Tensor:
        """Read contexts.

        Args:
            context: ``(n, ...)``, standardised.

        Returns:
            ``(n, outputs)``.
        """
        return self.outputs(context.flatten(1).mT).mT

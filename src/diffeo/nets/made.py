"""MADE: a masked network whose output i sees only the inputs before i, and that can be inverted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffeo import ops
from diffeo.nets.activations import as_widths
from diffeo.nets.feedforward import Feedforward
from diffeo.ops import reference

__all__ = ["MADE"]


class MADE(Feedforward):
    """Masked autoregressive network (Germain et al. 2015, arXiv:1502.03509).

    Input i has degree i = 1 .. D. Hidden degrees are spread evenly over 1 .. D - 1 (over 0 .. D - 1 given a context, so
    that the first output sees it too); a hidden unit of degree m sees what has degree <= m, output i sees hidden units
    of degree < i. Where a hidden layer is too narrow to hold every degree, masked direct connections from inputs to
    outputs are added, so that every output depends on every earlier input at any width.

    All values are feature-major, ``(features, rows)``: units are sorted by degree, so that what a group of units may
    see is one contiguous slice.

    Args:
        features: the number of inputs D.
        size: the number of parameters per input; there are ``features * size`` outputs, ordered input by input.
        hidden: widths of the hidden layers.
        context: size of the context, 0 for none; it reaches every output.
        activation: a name in ``ACTIVATIONS``.
        residual: add each hidden layer's input to its output where the widths agree.

    Raises:
        ValueError: for sizes that are not positive, or an unknown activation.
        TypeError: for hidden widths that are no whole numbers.
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
        hidden = as_widths(hidden)
        if features < 1 or size < 1 or any(width < 1 for width in hidden):
            raise ValueError(f"expected positive sizes, got features={features}, size={size}, hidden={hidden}")
        if features == 1 and not context:
            hidden = ()  # nothing to see: the outputs are constants
        lowest = 0 if context else 1
        degrees = [
            torch.arange(1, features + 1),
            *(spread_degrees(width, lowest, features - 1) for width in hidden),
            torch.arange(features).repeat_interleave(size),  # an output sees what has at most this degree
        ]
        wirings = [
            ops.Wiring.masked(outputs, inputs, features) for inputs, outputs in zip(degrees, degrees[1:], strict=False)
        ]
        narrow = bool(hidden) and min(hidden) < features - lowest
        direct = ops.Wiring.masked(degrees[-1], degrees[0], features) if narrow else None
        super().__init__(wirings, direct, context, activation, residual, interleaved=True)
        self.features, self.size, self.degrees = features, size, degrees

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Give all parameters in one parallel pass.

        Args:
            x: ``(features, rows)``.
            context: ``(rows, context)``, or None.

        Returns:
            ``(size, features, rows)``.
        """
        return self.spec.params(self.outputs(x, context), self.size)

    def invert(self, univariate: ops.Univariate, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Solve :math:`x_i = f(z_i; \mathrm{net}(x)_i)` incrementally, at the price of about one pass, no gradients.

        Args:
            univariate: the map f.
            z: ``(rows, features)``.
            context: ``(rows, context)``, or None.

        Returns:
            x ``(rows, features)`` and log|det dx/dz| ``(rows,)``.

        Raises:
            ValueError: for z of another shape.
        """
        return ops.invert_network(self.spec, univariate, z, context, self._tensors())

    def unroll(self, univariate: ops.Univariate, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Solve as ``invert`` does, in operations that anything can differentiate and trace.

        Args:
            univariate: the map f.
            z: ``(features, rows)``.
            context: ``(rows, context)``, or None.

        Returns:
            x ``(features, rows)`` and log|det dx/dz| ``(rows,)``.
        """
        return reference.unroll_network(self.spec, univariate, z, context, self._tensors())

    def solve_transposed(
        self, x: Tensor, context: Tensor | None, by_params: Tensor, diagonal: Tensor, grad: Tensor
    ) -> Tensor:
        r"""Solve :math:`J^T u = g`, J = dz/dx of an inversion, g ``grad``; see ``reference.solve_transposed_network``.

        Args:
            x: where the network is linearised, ``(features, rows)``.
            context: ``(rows, context)``, or None.
            by_params: dz_i/dparams_i, ``(size, features, rows)``.
            diagonal: dz_i/dx_i at fixed parameters, ``(features, rows)``.
            grad: ``(features, rows)``.

        Returns:
            u ``(features, rows)``.
        """
        return reference.solve_transposed_network(
            self.spec, self.degrees, x, context, self._tensors(), by_params, diagonal, grad
        )


def spread_degrees(width: int, lowest: int, highest: int) -> Tensor:
    """Degrees of a hidden layer, sorted, spread evenly over lowest .. highest, both ends included where width allows.

    ``arange(width) % highest`` would leave the last inputs unseen where width < highest.
    """
    if width == 1:
        return torch.tensor([lowest])  # what a unit sees, most outputs may use; direct connections do the rest
    return torch.linspace(lowest, highest, width, dtype=torch.float64).round().long()

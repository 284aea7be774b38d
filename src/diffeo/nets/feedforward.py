"""What the multilayer perceptron and MADE share: a feed-forward network, dense or masked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from diffeo import ops
from diffeo.arguments import KnowsArguments
from diffeo.nets.activations import INPUT_BOUND, get_activation, rate_for_width, zero_last
from diffeo.nets.precision import autocast, in_bfloat16

__all__ = ["Feedforward"]


class Feedforward(KnowsArguments, nn.Module):
    """h_1 = act(W_1 x' + C c' + b_1), h_l = act(W_l h_{l-1} + b_l) (+ h_{l-1}), y = W h_L + b (+ V x').

    x' and c' are x and a context c, softly bounded. Values are feature-major, ``(features, rows)``. The last layer
    starts at zero: a flow starts as the identity.

    Args:
        wirings: what the units of each layer see, the output layer last.
        direct: the same of connections V from inputs to outputs, or None.
        context: size of the context, 0 for none.
        activation: a name in ``ACTIVATIONS``.
        residual: add each hidden layer's input to its output where the widths agree.
        interleaved: whether outputs are ordered element by element, or else parameter by parameter.
        bound: that ``soften`` keeps inputs within.
    """

    def __init__(
        self,
        wirings: Sequence[ops.Wiring],
        direct: ops.Wiring | None,
        context: int,
        activation: str,
        residual: bool,
        *,
        interleaved: bool,
        bound: float = INPUT_BOUND,
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
        beside = ops.Wiring.dense(wirings[0].units, context) if context else None
        self.spec = ops.NetworkSpec(list(wirings), direct, beside, self.residual, activation, bound, interleaved)
        zero_last(self.layers[-1])
        if self.direct is not None:
            nn.init.zeros_(self.direct.weight)
        if not hidden and self.context is not None:
            nn.init.zeros_(self.context.weight)

    def outputs(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The outputs ``(outputs, rows)`` at x ``(inputs, rows)``, context ``(rows, context)``."""
        if in_bfloat16():
            with autocast(x), ops.using("reference"):
                return ops.network(self.spec, x, context, self._tensors()).to(x.dtype)
        return ops.network(self.spec, x, context, self._tensors())

    def mapped(
        self,
        univariate: ops.Univariate,
        x: Tensor,
        value: Tensor,
        context: Tensor | None = None,
        *,
        generate: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Map values ``(n, rows)`` by the parameters that the network gives at x ``(inputs, rows)``.

        Returns:
            The mapped values ``(n, rows)`` and the log-derivatives summed over elements, ``(rows,)``.
        """
        if in_bfloat16():
            params = self.spec.params(self.outputs(x, context), univariate.size)
            mapped, log_det = ops.map_values(univariate, value, params, generate=generate)
            return mapped, log_det.sum(0)
        return ops.mapped_network(self.spec, univariate, x, context, value, self._tensors(), generate=generate)

    def _tensors(self) -> list[Tensor]:
        """Weight and bias of each layer, the weights of the direct connections and of the context's."""
        tensors = [tensor for layer in self.layers for tensor in (layer.weight, layer.bias)]
        return [*tensors, *(each.weight for each in (self.direct, self.context) if each is not None)]

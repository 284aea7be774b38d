"""A multilayer perceptron: the conditioner of couplings on vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffeo import ops
from diffeo.nets.activations import as_widths, soften, with_slope
from diffeo.nets.feedforward import Feedforward
from diffeo.ops import reference

__all__ = ["MLP"]

_TANGENTS = 2**23  # numbers of a layer's tangents that are held at a time


class MLP(Feedforward):
    r"""(x, context) -> outputs, with the last layer initialised to zero so that a flow starts as the identity.

    .. math::
        h_1 &= \mathrm{act}(W_1\, \mathrm{soften}(x) + C\, \mathrm{soften}(c) + b_1), \qquad \text{out} = W h_L + b \\
        h_l &= \mathrm{act}(W_l h_{l-1} + b_l) \; (+\, h_{l-1} \text{ if residual})

    Args:
        inputs: size of x.
        outputs: size of the output.
        hidden: widths of the hidden layers.
        context: size of the context, 0 for none.
        activation: a name in ``ACTIVATIONS``.
        residual: add each hidden layer's input to its output where the widths agree.

    Raises:
        ValueError: for an unknown activation.
        TypeError: for hidden widths that are no whole numbers.
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
        wirings = ops.Wiring.layers([inputs, *as_widths(hidden), outputs])
        super().__init__(wirings, None, context, activation, residual, interleaved=False)
        both = ops.Wiring.dense(wirings[0].units, inputs + context)
        self.joint_spec = replace(self.spec, layers=[both, *wirings[1:]], context=None, kept={})

    @property
    def widths(self) -> tuple[int, int]:
        """How many inputs and outputs there are."""
        return self.layers[0].in_features, self.layers[-1].out_features

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Apply the network.

        Args:
            x: ``(*batch, inputs)``.
            context: ``(*batch, context)``, or None.

        Returns:
            ``(*batch, outputs)``.
        """
        rows = x.reshape(-1, x.shape[-1])
        contexts = None if context is None else context.reshape(-1, context.shape[-1])
        return self.outputs(rows.mT, contexts).mT.reshape(*x.shape[:-1], self.layers[-1].out_features)

    def joined(self) -> tuple[ops.NetworkSpec, list[Tensor]]:
        """The network as one that reads x and its context side by side: description, weights and biases."""
        weight, *tensors = self._tensors()
        if self.context is not None:
            weight = torch.cat([weight, tensors.pop()], 1)
        return self.joint_spec, [weight, *tensors]

    def with_trace(self, x: Tensor, context: Tensor | None = None, bound: float | None = None) -> tuple[Tensor, Tensor]:
        """Map as ``forward`` does, outputs like inputs, and return tr dy/dx ``(*batch,)`` as well.

        The tangents of all inputs go through a layer in one product: ``(units, inputs * rows)``.

        Args:
            x: ``(*batch, inputs)``.
            context: ``(*batch, context)``, or None.
            bound: of the outputs, ``bound tanh(y / bound)``; None leaves them as they are.
        """
        contexts = None if context is None else context.reshape(-1, context.shape[-1])
        h, first = with_slope(soften, x.reshape(-1, x.shape[-1]).mT)  # (inputs, rows)
        added = reference.context_sums(self.spec, contexts, self._tensors())
        *hidden, last = self.layers
        slopes = []
        for index, layer in enumerate(hidden):
            total = torch.addmm(layer.bias[:, None], layer.weight, h)
            new, slope = with_slope(self.activation, total if index or added is None else total + added)
            h = new + h if self.residual[index] else new
            slopes.append(slope)
        y = torch.addmm(last.bias[:, None], last.weight, h)
        if not hidden and added is not None:
            y = y + added
        outer = None
        if bound is not None:
            tanh = torch.tanh(y / bound)
            y, outer = bound * tanh, 1 - tanh.square()
        trace = torch.zeros_like(y[0])
        widest = max(layer.out_features for layer in self.layers)
        inputs = torch.arange(y.shape[0], device=x.device)
        several = y.shape[0] if ops.tracing() else max(1, _TANGENTS // (widest * max(1, trace.shape[0])))
        for some in inputs.split(several):
            tangents = torch.eye(len(y)).to(x)[:, some, None] * first[some]  # (units, some, rows)
            for index, (layer, slope) in enumerate(zip(hidden, slopes, strict=True)):
                if index:
                    moved = (layer.weight @ tangents.flatten(1)).unflatten(1, tangents.shape[1:])
                else:  # each of these tangents has one entry
                    moved = layer.weight[:, some, None] * first[some]
                moved = moved * slope[:, None]
                tangents = moved + tangents if self.residual[index] else moved
            diagonal = (last.weight[some].mT[..., None] * tangents).sum(0)  # dy_i/dx_i, (some, rows)
            trace = trace + (diagonal if outer is None else outer[some] * diagonal).sum(0)
        return y.mT.reshape(x.shape), trace.reshape(x.shape[:-1])

"""What is exported: a module over plain tensors, from the data's own numbers to likelihoods, noise or samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffeo.bases import Gaussians
from diffeo.exporting.noise import KINDS, Leaves, drawn, kinds_of, leaves_of
from diffeo.flow import Flow, sobol_points
from diffeo.mixture import Mixture
from diffeo.modalities.base import Plain
from diffeo.transforms import Affine, Autoregressive, Inverse, Mixed, Scale, Shift

__all__ = ["WHAT", "Input", "PlainTensors", "Program"]

WHAT = {
    "log-prob": "log_likelihood",
    "sample": "x",
    "encode": "z",
    "decode": "x",
}  # what a program may compute, and what its output is called
UNROLLED = 8000  # operations of what goes over elements one by one: minutes of exporting
# Operations: for an element of an affine map, of a spline, of a mixed density; and for its search for a root.
SIMPLE, CURVED, CHOSEN, SEARCHED = 25, 110, 100, 460


class PlainTensors(Plain):
    """Examples of a flow that belongs to no data: what it takes itself.

    Args:
        flow: any.
    """

    def __init__(self, flow: Flow) -> None:
        self.shape, self.context_shape = tuple(flow.event_shape), tuple(flow.context_shape)
        self.dtype = flow.base.device_marker.dtype
        self.draws = 0
        self.described = {"encoding": f"what the flow takes: examples of shape {self.shape}"}

    def inwards(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same."""
        return x, None

    def context_inwards(self, context: Tensor) -> Tensor:
        """The same."""
        return context

    def outwards(self, x: Tensor, context: Tensor | None, exact: bool = False) -> Tensor:
        """The same."""
        return x

    def context_outwards(self, context: Tensor) -> Tensor:
        """The same."""
        return context


@dataclass(frozen=True)
class Input:
    """One input of a program: a tensor ``(rows, *shape)``."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    meaning: str


class Program(nn.Module):
    """One of a flow's functions, of tensors by name, in the data's own units, with all randomness as an input.

    - ``log-prob``: ``x`` to ``log_likelihood``, in nats, -inf where the model has no mass. Discrete values of tables
      are spread by the same points for all rows, as ``diffeo score`` does; those of images by ``uniform``.
    - ``sample``: noise (``diffeo.exporting.noise``) to ``x``.
    - ``encode``: ``x`` to ``z``; discrete values are spread by ``uniform``.
    - ``decode``: ``z`` to ``x``.

    Of a mixture ``encode`` and ``decode`` are those of its principal member. A ``context`` is an input where the flow
    has one.

    Args:
        flow: in evaluation mode.
        what: one of ``WHAT``.
        plain: how the data's own numbers are those that the flow takes; by default they are.
        steps: in how many equal steps of the classical Runge-Kutta method a continuous flow is solved, whose own steps
            would follow from the numbers.

    Raises:
        ValueError: for another ``what``, or a flow that has it not.
    """

    points: Tensor

    def __init__(self, flow: Flow, what: str, plain: Plain | None = None, steps: int | None = None) -> None:
        super().__init__()
        if what not in WHAT:
            raise ValueError(f"expected one of {', '.join(WHAT)}, got {what!r}")
        if flow.has_bound:
            raise ValueError("expected a flow, got a VAE, which has bounds of a likelihood and is no bijection")
        if what == "log-prob" and not flow.has_log_prob:
            raise ValueError("expected a flow that has a likelihood, got one that has samples alone")
        self.flow, self.what = flow, what
        # What numbers decide is asked for once: they are not known while a graph is made.
        self.principal = flow.principal if isinstance(flow, Mixture) else flow
        whole = leaves_of(flow if what in ("log-prob", "sample") else self.principal)
        if what == "encode" and any(leaf.transform.branches > 1 or leaf.transform.takes_missing for _, leaf in whole):
            raise ValueError("expected noise that follows from an example, got one that is drawn among several")
        self.solves = any(_adaptive(leaf) for _, leaf in whole)
        self.leaves: Leaves = [(weight, solved(leaf, steps)) for weight, leaf in whole]
        self.spreads = flow.spreads
        for part in flow.modules():
            if isinstance(part, Autoregressive):
                part.unrolls = self.operations(False) <= UNROLLED
            elif isinstance(part, Gaussians):
                part.settle()
        self.plain = PlainTensors(flow) if plain is None else plain
        self.inputs: dict[str, Input] = dict(self._inputs())
        event, draws = flow.event_shape, self.plain.draws
        if what == "log-prob" and self.spreads and draws:
            points = sobol_points(event.numel(), draws).reshape(draws, 1, *event)
            self.register_buffer("points", points.to(flow.base.device_marker))

    def _inputs(self) -> Mapping[str, Input]:
        flow, plain = self.flow, self.plain
        dtype = flow.base.device_marker.dtype
        inputs: dict[str, Input] = {}
        if self.what in ("log-prob", "encode"):
            inputs["x"] = Input(plain.shape, plain.dtype, "examples, in the data's own units")
            if self.spreads and not (self.what == "log-prob" and plain.draws):
                meaning = f"what discrete values are spread over their cells by: {KINDS['uniform']}"
                inputs["uniform"] = Input(tuple(flow.event_shape), dtype, meaning)
        elif self.what == "decode":
            inputs["z"] = Input(tuple(flow.base.event_shape), dtype, f"noise of {type(flow.base).__name__}")
        else:
            for kind in kinds_of(self.leaves):
                shape = () if kind == "choice" else tuple(flow.base.event_shape)
                inputs[kind] = Input(shape, torch.float64 if kind == "choice" else dtype, KINDS[kind])
        if flow.context_shape:
            inputs["context"] = Input(plain.context_shape, plain.dtype, "what the density is conditional on")
        return inputs

    def operations(self, looped: bool = True) -> int:
        """About how many operations of the graph go over elements one by one.

        Args:
            looped: whether by a loop where there can be one.
        """
        way = "inverse" if self.what in ("log-prob", "encode") else "forward"
        return sum(_operations(leaf.transform, way, leaf.event_shape.numel(), looped) for _, leaf in self.leaves)

    @property
    def output(self) -> str:
        """What the output is called."""
        return WHAT[self.what]

    def described(self) -> dict[str, Any]:
        """What is computed of what, plain data for a file."""
        inputs = {
            name: {"shape": ["rows", *each.shape], "dtype": str(each.dtype).removeprefix("torch."), "is": each.meaning}
            for name, each in self.inputs.items()
        }
        units = {
            "log_likelihood": "nats, of a density in the data's own units; of discrete values per step",
            "x": "examples, in the data's own units",
            "z": f"noise of {type(self.flow.base).__name__}",
        }
        return {
            "what": self.what,
            "inputs": inputs,
            "output": {self.output: units[self.output]},
            **self.plain.described,
        }

    def forward(
        self,
        x: Tensor | None = None,
        context: Tensor | None = None,
        z: Tensor | None = None,
        uniform: Tensor | None = None,
        normal: Tensor | None = None,
        choice: Tensor | None = None,
    ) -> Tensor:
        """Compute; which of the tensors there have to be ``inputs`` says."""
        contexts = None if context is None else self.plain.context_inwards(context)
        if x is not None:
            rows, more = self.plain.inwards(x)
            return (
                self._encode(rows, contexts, uniform)
                if self.what == "encode"
                else self._log_prob(rows, contexts, uniform, more)
            )
        if z is not None:
            return self.plain.outwards(self._one.decode(z, contexts), context)
        every = {"uniform": uniform, "normal": normal, "choice": choice}
        noise = {name: value for name, value in every.items() if value is not None}
        return self.plain.outwards(drawn(self.leaves, contexts, noise), context)

    def _encode(self, x: Tensor, context: Tensor | None, uniform: Tensor | None) -> Tensor:
        if uniform is None:
            return self._one.encode(x, context)
        with self.flow.spread_by(uniform):
            return self._one.encode(x, context)

    def _log_prob(self, x: Tensor, context: Tensor | None, uniform: Tensor | None, more: Tensor | None) -> Tensor:
        if uniform is not None:
            with self.flow.spread_by(uniform):
                log_prob = self._density(x, context)
        elif self.spreads:
            log_prob = self._log_mass(x, context)
        else:
            log_prob = self._density(x, context)
        return log_prob if more is None else log_prob + more.to(log_prob.dtype)

    @property
    def _one(self) -> Flow:
        """The flow of which there is but one, as it is computed."""
        ((_, flow),) = self.leaves
        return flow

    def _density(self, x: Tensor, context: Tensor | None) -> Tensor:
        """``Flow.log_prob``, NaN for rows that are not finite."""
        each = [flow.log_prob(x, context, "propagate") + math.log(weight) for weight, flow in self.leaves]
        return each[0] if len(each) == 1 else torch.logsumexp(torch.stack(each), 0)

    def _log_mass(self, x: Tensor, context: Tensor | None) -> Tensor:
        """``Flow.log_mass``, all draws in one pass."""
        draws = self.plain.draws

        def repeated(value: Tensor) -> Tensor:
            return value.expand(draws, x.shape[0], *value.shape[2:]).flatten(0, 1)

        with self.flow.spread_by(repeated(self.points)):
            contexts = None if context is None else repeated(context[None])
            log_prob = self._density(repeated(x[None]), contexts)
        return torch.logsumexp(log_prob.reshape(draws, -1), 0) - math.log(draws)


def _operations(transform: nn.Module, way: str, elements: int, looped: bool) -> int:
    """About how many operations a transform takes to go over elements one by one, forward or inverse."""
    if isinstance(transform, Inverse):
        return _operations(transform.transform, {"forward": "inverse", "inverse": "forward"}[way], elements, looped)
    if isinstance(transform, Autoregressive):
        plain = isinstance(transform.univariate, Affine | Shift | Scale)
        return 0 if looped or way != "forward" else elements * (SIMPLE if plain else CURVED)
    if isinstance(transform, Mixed) and way == "forward":
        return elements * CHOSEN + SEARCHED
    return sum(_operations(child, way, elements, looped) for child in transform.children())


def _adaptive(flow: Flow) -> bool:
    return flow.ode is not None and flow.ode.steps is None


def solved(flow: Flow, steps: int | None) -> Flow:
    """The flow, solved in so many steps if it is a continuous one whose steps follow from the numbers.

    Args:
        flow: any that is no mixture.
        steps: how many; None leaves it as it is.

    Raises:
        ValueError: for one whose divergence is estimated from random probes.
    """
    ode = flow.ode
    if ode is None or steps is None or not _adaptive(flow):
        return flow
    if ode.divergence != "exact":
        raise ValueError("expected an exact divergence, got one that is estimated from random probes")
    return flow.with_ode(solver="rk4", steps=steps)

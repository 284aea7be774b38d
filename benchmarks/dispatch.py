"""What a call costs by the ways of registering an operation with PyTorch, in microseconds, on one thread.

The operation is empty: it makes a network's two outputs and returns them. `kernels` is how diffeo calls its C code: a
Python function that asks `diffeo.ops.dispatch.kernels`, and an `autograd.Function` where gradients are wanted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffeo.ops.dispatch import kernels

CALLS, ROUNDS = 3000, 7


def outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    """What every way computes."""
    return x.new_empty(x.shape), x.new_empty(x.shape[0])


class Function(torch.autograd.Function):
    """The same with a gradient, as the kernels have it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Keep what the gradient needs."""
        ctx.save_for_backward(x, *tensors)
        return outputs(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Return any gradient."""
        return grad, *(None for _ in ctx.saved_tensors[1:])


def directly(x: Tensor, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """As diffeo does."""
    if kernels("network", x, tensors[0]) is not None and torch.is_grad_enabled():
        return Function.apply(x, *tensors)
    return outputs(x)


@torch.library.custom_op("diffeo_benchmark::custom", mutates_args=())
def custom(handle: int, x: Tensor, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """By `torch.library.custom_op`; the handle stands for a network's description, which no schema can hold."""
    return outputs(x)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1], *inputs[2])


def _gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    return None, grad, [None for _ in ctx.saved_tensors[1:]]


custom.register_fake(lambda handle, x, tensors: outputs(x))
custom.register_autograd(_gradient, setup_context=_keep)
LIBRARY = torch.library.Library("diffeo_benchmark", "FRAGMENT")
LIBRARY.define("raw(int handle, Tensor x, Tensor[] tensors) -> (Tensor, Tensor)")
LIBRARY.impl("raw", lambda handle, x, tensors: outputs(x), "CPU")


def microseconds(call: Callable[[], Any]) -> float:
    """The best of several rounds, per call."""
    call()
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, (time.perf_counter() - start) / CALLS)
    return 1e6 * best


def main() -> None:
    """Print a line for each way, without and with gradients."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    x, tensors = torch.randn(4, 8), [torch.randn(8, 8) for _ in range(6)]
    learned = [t.clone().requires_grad_() for t in tensors]
    ways = {
        "kernels": directly,
        "torch.library.custom_op": lambda x, tensors: custom(0, x, tensors),
        "torch.library.Library.impl": lambda x, tensors: torch.ops.diffeo_benchmark.raw(0, x, tensors),
    }
    with torch.no_grad():
        plain = {name: microseconds(lambda way=way: way(x, tensors)) for name, way in ways.items()}
    graded = {name: microseconds(lambda way=way: way(x, learned)) for name, way in ways.items() if "impl" not in name}
    for name, value in plain.items():
        print(f"{name:28} {value:6.1f} us" + (f", with gradients {graded[name]:6.1f} us" if name in graded else ""))


if __name__ == "__main__":
    main()

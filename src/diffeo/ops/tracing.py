"""What runs may be recorded or transformed instead of just computed: then only the reference may run; and its loops."""

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state, _len_torch_dispatch_stack
from torch._C._functorch import TransformType, get_interpreter_stack, peek_interpreter_stack
from torch.autograd import forward_ad

__all__ = ["loop", "numbers_are_known", "tracing"]


def tracing() -> bool:
    """Whether a compiler, an export, ``torch.jit.trace``, ``torch.func``, forward-mode AD or a mode looks on.

    Kernels read memory behind PyTorch's back: a trace would not see them, fake tensors have no memory, and tangents or
    batches would be lost.
    """
    return (
        torch.compiler.is_compiling()  # first, for Dynamo folds it and reads no further
        or peek_interpreter_stack() is not None
        or _get_tracing_state() is not None
        or _len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def numbers_are_known() -> bool:
    """Whether numbers may decide what is computed next: not while a graph is made, nor for batches of ``vmap``."""
    if torch.compiler.is_compiling() or _get_tracing_state() is not None:
        return False
    return all(each.key() != TransformType.Vmap for each in get_interpreter_stack() or ())


def loop(step: Callable[[Any, Tensor], Any], state: Any, over: Tensor) -> Any:
    """The state after ``step(state, value)`` for each value of ``over``: in a graph for export one operation.

    Args:
        step: of a state and a value ``(1,)`` to the next state, of new tensors; nothing in it may be random.
        state: to begin with: a tensor, or a tuple of tensors.
        over: one value for each step, ``(steps,)``.
    """
    if not torch.compiler.is_exporting():
        for value in over:
            state = step(state, value[None])
        return state

    def body(state: Any, value: Tensor) -> tuple[Any, Tensor]:
        return step(state, value[None]), value.double().clone()  # a loop has to have results, of real numbers, of steps

    scan: Any = import_module("torch._higher_order_ops.scan").scan
    with warnings.catch_warnings():  # a part of PyTorch that is imported here for the first time says it is deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        return scan(body, state, over)[0]

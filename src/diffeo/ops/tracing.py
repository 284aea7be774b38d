"""Whether what runs is recorded or transformed instead of just computed: then only the reference may run."""

import torch
from torch._C import _get_tracing_state, _len_torch_dispatch_stack
from torch._C._functorch import TransformType, get_interpreter_stack, peek_interpreter_stack
from torch.autograd import forward_ad

__all__ = ["numbers_are_known", "tracing"]


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

"""Building a model from somebody else's description without trusting its sizes."""

from collections.abc import Callable, Mapping
from itertools import zip_longest
from math import prod
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Allowance"]


class Allowance(TorchDispatchMode):
    """Inside its block no tensor can be made that is out of proportion to the weights a model is said to have.

    A description can ask for terabytes in a few bytes (``hidden=[10**6, 10**6]``), or for a billion layers. The size of
    each result is foreseen from the arguments, before anything is allocated. (The meta device would give it too, but
    its first use imports for a second, and layers that read values while they are built cannot be built there.)

    Args:
        shapes: the shapes of all tensors in the weights file.

    Raises:
        MemoryError: from within the block, at the first operation out of proportion.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        sizes = [prod(shape) for shape in shapes.values()]
        self.largest = max([2**22, *(4 * size for size in sizes)])  # masks and temporaries are as large as weights
        self.elements = 2**26 + 64 * sum(sizes)
        self.operations = 2_000 + 200 * len(sizes)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch asks; yes would import its compiler, which takes a second

    def __torch_dispatch__(
        self,
        operation: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Carry out an operation if there is room for its result."""
        kwargs = kwargs or {}
        made = _foreseen_size(operation, args, kwargs)
        self.operations -= 1
        self.elements -= made
        if made > self.largest or self.elements < 0 or self.operations < 0:
            raise MemoryError("it is out of proportion to the weights in the file")
        return operation(*args, **kwargs)


def _foreseen_size(operation: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return how many elements an operation is going to make."""
    schema = operation._schema  # type: ignore[attr-defined]
    if any(argument.alias_info is not None for argument in schema.arguments):
        return 0  # a view, or filled in place: nothing is made
    shapes = [leaf.shape for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    # Aligned at the right and stretched: (n, 1) < (1, n) makes (n, n), and so does (n, 1) @ (1, n).
    broadcast = prod(max(sizes) for sizes in zip_longest(*map(reversed, shapes), fillvalue=1)) if shapes else 0
    named = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    if "repeats" in named and not isinstance(named["repeats"], Tensor):
        return broadcast * _product(named["repeats"])
    if "end" in named:
        return int((named["end"] - named.get("start", 0)) / named.get("step", 1))
    asked = [_product(named[name]) for name in ("size", "n", "m", "steps") if name in named]
    return max(prod(asked) if asked else 0, broadcast)


def _product(size: Any) -> int:
    return prod(size) if isinstance(size, list | tuple) else int(size)

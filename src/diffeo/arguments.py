"""Objects that know the arguments that they were made from."""

from __future__ import annotations

import inspect
import math
import operator
from typing import Any, Self

__all__ = ["KnowsArguments", "expect_number", "expect_whole"]

LONG = 100  # characters of a value that is spelled out


def expect_whole(least: int, /, **numbers: Any) -> None:
    """Refuse arguments that are not whole numbers of at least ``least``.

    Args:
        least: the smallest.
        numbers: arguments by name.

    Raises:
        ValueError: naming the first such argument.
    """
    for name, number in numbers.items():
        try:
            whole = not isinstance(number, bool) and operator.index(number) is not None
        except TypeError:
            whole = False
        if not whole:
            raise ValueError(f"expected {name} >= {least}, got {number!r}; give a whole number")
        if number < least:
            raise ValueError(f"expected {name} >= {least}, got {number}")


def expect_number(low: float, high: float = math.inf, /, *, above: bool = False, **numbers: Any) -> None:
    """Refuse arguments that are not finite numbers from ``low`` to ``high``.

    Args:
        low: the smallest.
        high: the largest.
        above: whether ``low`` itself is none.
        numbers: arguments by name.

    Raises:
        ValueError: naming the first such argument.
    """
    for name, number in numbers.items():
        try:
            real = not isinstance(number, bool | complex) and math.isfinite(number)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            real = False
        if not real or not low <= number <= high or (above and number == low):
            span = f"{'>' if above else '>='} {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise ValueError(f"expected {name} {span}, got {number!r}")


class KnowsArguments:
    """A base class whose instances remember how they were made, so that a structure can be written down as data."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make an instance, and note the arguments; ``__init__`` will see to them."""
        self = super().__new__(cls)
        object.__setattr__(self, "_made_from", (args, kwargs))  # an nn.Module takes nothing before its own __init__
        return self

    def arguments(self) -> dict[str, Any]:
        """The arguments by which ``type(self)(**arguments)`` has the same structure."""
        args, kwargs = self._made_from  # type: ignore[attr-defined]
        bound = inspect.signature(type(self)).bind(*args, **kwargs)
        plain: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                raise TypeError(f"expected arguments that have names, got {type(self).__name__}(*{name})")
            plain |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        return plain

    def extra_repr(self) -> str:
        """The arguments in a line, as the representation of a module has them; those that are modules it has itself."""
        try:
            arguments = self.arguments()
        except TypeError:
            return ""
        return ", ".join(f"{name}={_spelled(value)}" for name, value in arguments.items() if not _of_modules(value))


def _of_modules(value: Any) -> bool:
    """Whether a value is a module, or holds some."""
    if isinstance(value, list | tuple):
        return any(map(_of_modules, value))
    return hasattr(value, "named_parameters")


def _spelled(value: Any) -> str:
    """A value in a few characters."""
    if hasattr(value, "tolist"):  # a tensor or an array
        text = str(value.tolist())
        return text if len(text) <= LONG else f"<shape {tuple(value.shape)}>"
    if isinstance(value, tuple):
        value = tuple(value)  # of a torch.Size
    if inspect.isroutine(value):
        return str(value.__qualname__)
    text = " ".join(repr(value).split())
    return text if len(text) <= LONG else f"{text[:LONG]}..."

"""How docstrings become the reference: what is public, what is left out, and what becomes a link."""

import inspect
import re
import sys
from importlib import import_module
from typing import Any

import diffeo

# ``diffeo`` comes first: a name that it has is found there, whatever module has it as well.
PUBLIC = ["diffeo", *(f"diffeo.{name}" for name in diffeo.__all__ if inspect.ismodule(getattr(diffeo, name)))]
PUBLIC += ["diffeo.inference", "diffeo.likelihoods"]


def public_names() -> dict[str, Any]:
    """Every public name under its public path, and what it is: once, though two modules have it."""
    names: dict[str, Any] = {}
    for module in map(import_module, PUBLIC):
        for name in module.__all__:
            value = getattr(module, name)
            if not inspect.ismodule(value) and not any(value is other for other in names.values()):
                names[f"{module.__name__}.{name}"] = value
    return names


def _function(member: Any) -> Any:
    """What a method, a class method or a property is made of."""
    return inspect.unwrap(getattr(member, "fget", None) or getattr(member, "__func__", member))


def leave_out(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out a method that keeps to the contract of a base class, where it is described, and scikit-learn's own."""
    function = _function(member)
    home = sys.modules.get(getattr(function, "__module__", None) or "")
    if home is None or not home.__name__.startswith("diffeo."):
        return True if re.fullmatch(r"set_\w+_request", name) else None
    kind: Any = home
    for part in function.__qualname__.split(".")[:-1]:
        kind = getattr(kind, part, None)
    for base in getattr(kind, "__mro__", ())[1:]:
        if name in vars(base) and base.__module__.startswith("diffeo.") and not base.__name__.startswith("_"):
            overridden = inspect.signature(_function(vars(base)[name])).parameters
            if overridden.keys() == inspect.signature(function).parameters.keys():
                return True
    return None


def plain_first_line(app: Any, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from taking what stands before a colon in the first line of a property for its type."""
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # an empty comment


def public_bases(kind: Any) -> list[type]:
    """The base classes of a class that have a public name, or theirs in their place."""
    public = set(map(id, public_names().values()))
    bases = getattr(kind, "__bases__", ()) if inspect.isclass(kind) else ()
    return [each for base in bases for each in ([base] if id(base) in public else public_bases(base))]


def sign(app: Any, what: str, name: str, member: Any, options: Any, signature: str | None, result: Any) -> Any:
    """Give a class the arguments of its constructor, where ``KnowsArguments.__new__`` takes any, and no result."""
    if what != "class":
        return None
    app.env.current_document.autodoc_annotations.get(name, {}).pop("return", None)
    if signature != "(*args, **kwargs)":
        return None
    from sphinx.util.inspect import stringify_signature  # not there where only the names are asked for

    plain = stringify_signature(inspect.signature(member), show_annotation=False, show_return_annotation=False)
    return "()" if plain == signature else plain, None


def link(app: Any, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Lead ``Affine`` and ``diffeo.maf`` to where they are described, papers to arXiv, and a class to its base."""
    names = public_names()
    short = {path.rpartition(".")[2]: path for path in names}

    def target(match: re.Match[str]) -> str:
        word = match[1]
        path = word if word.startswith("diffeo.") else short.get(word) if word[0].isupper() else None
        return f":py:obj:`{word} <{path}>`" if path and path != name else match[0]

    for number, line in enumerate(lines):
        line = re.sub(r"(?<![/<])\barXiv:(\d{4}\.\d{4,5})", r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", line)
        lines[number] = re.sub(r"``([\w.]+)``", target, line)
    bases = [path for base in public_bases(member) for path, value in names.items() if value is base]
    if bases:
        lines[:0] = ["Base: " + ", ".join(f":py:obj:`~{path}`" for path in bases) + ".", ""]


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", leave_out)
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-process-docstring", plain_first_line, priority=400)  # napoleon has 500
    app.connect("autodoc-process-docstring", link, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

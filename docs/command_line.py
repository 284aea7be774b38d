"""The reference of the command line, made of the signatures of the commands."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo

from diffeo.cli.app import COMMANDS

PAGE = "reference/command-line"
VALUES = {int: "INTEGER", float: "FLOAT", Path: "PATH"}


def code(text: str) -> str:
    """Set what is quoted, options and the endings of files as code: 'diffeo fit', --out, .csv."""
    pieces = re.sub(r"(?<!\w)'([^']+)'(?!\w)", r"`\1`", text).split("`")
    words = re.compile(r"(?<![\w.-])(--?[a-z][\w-]*(?: \w+=\w+)?|\.[a-z]+(?:\.gz)?)\b")
    pieces[::2] = [words.sub(r"`\1`", piece) for piece in pieces[::2]]
    return "`".join(pieces)


class Parameter:
    """An argument or an option of a command, as its signature describes it.

    Attributes:
        names: of an option, ``--out`` and ``-o``.
        value: what stands for its value; nothing for a switch.
        required: whether it must be given.
        several: whether it may be given more than once.
        help: what it does.
        default: what holds where it is not given, in words; empty where there is nothing to say.
    """

    def __init__(self, name: str, kind: Any, default: Any) -> None:
        hint, info = get_args(kind)
        kinds = [each for each in get_args(hint) or (hint,) if each is not type(None)]
        self.several = get_origin(hint) is list or any(get_origin(each) is list for each in kinds)
        self.required = default is inspect.Parameter.empty
        self.argument = isinstance(info, ArgumentInfo)
        switch = kinds == [bool]
        word = name.replace("_", "-")
        chosen = (
            [info.default, *(info.param_decls or ())] if isinstance(info.default, str) else []
        )  # typer's first place
        self.names = chosen or ([f"--{word}", f"--no-{word}"] if switch else [f"--{word}"])
        self.value = "" if switch else info.metavar or VALUES.get(kinds[0], "TEXT")
        self.help, _, said = (info.help or "").partition("  [default: ")
        known = "" if switch or self.required or default is None else str(default)
        self.default = said.rstrip("]") or known

    @property
    def usage(self) -> str:
        """How it stands in a command."""
        word = self.value if self.argument else f"{self.names[0]} {self.value}"
        return word if self.required else f"[{word}]"

    def markdown(self) -> str:
        """A definition with an anchor."""
        shown = self.value if self.argument else ", ".join(f"{name} {self.value}".strip() for name in self.names)
        notes = ["Required."] if self.required and not self.argument else []
        notes += [f"Default: {self.default}."] if self.default else []
        notes += ["May be given several times."] if self.several else []
        return f":::{{option}} {shown}\n{' '.join([code(self.help), *(f'*{note}*' for note in notes)])}\n:::"


def parameters(command: Callable[..., Any]) -> list[Parameter]:
    """The arguments of a command, then its options."""
    kinds = get_type_hints(command, include_extras=True)
    every = [Parameter(name, kinds[name], each.default) for name, each in inspect.signature(command).parameters.items()]
    return sorted(every, key=lambda each: not each.argument)


def page() -> str:
    """Every command: how it is called, what it does, its arguments and options with their defaults, in MyST."""
    parts = []
    for command in COMMANDS:
        each = parameters(command)
        name = f"diffeo {command.__name__}"
        usage = " ".join([name, *(one.usage for one in each if one.required or one.argument), "[OPTIONS]"])
        words = [code(" ".join(paragraph.split())) for paragraph in inspect.getdoc(command).split("\n\n")]
        parts += [f"## {name}", words[0], f"```text\n{usage}\n```", *words[1:], f":::{{program}} {name}\n:::"]
        parts += [one.markdown() for one in each]
    return "\n\n".join(parts)


def fill(app: Any, document: str, source: list[str]) -> None:
    """Put the commands behind the page's own words."""
    if document == PAGE:
        source[0] += "\n" + page()


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""The settings of a training: checked before any work, kept in the run directory for resuming."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffeo.errors import UserError
from diffeo.recipes import RECIPES

__all__ = ["check_reading", "option_of", "refuse_foreign", "settings_of"]


_NUMBER = int | float
_TYPES: dict[str, Any] = {
    "model": str, "student": str, "arguments": dict, "context": list, "drop": list, "size": list, "missing": str,
    "categorical": list, "integer": list, "continuous": list, "dates": list, "bounds": dict, "weights": str, "na": list,
    "method": str, "sep": str, "decimal": str, "label_pattern": str, "test": _NUMBER, "folds": int, "rate": int,
    "crop": _NUMBER, "mels": int, "epochs": int, "minutes": _NUMBER, "batch_size": int, "accumulate": int,
    "lr": _NUMBER, "seed": int, "memory": _NUMBER,
    "power": _NUMBER, "contrast": _NUMBER, "forward_share": _NUMBER,
}  # fmt: skip
_RANGES: list[tuple[str, str, Callable[[float], bool]]] = [
    ("epochs batch_size accumulate folds rate mels transforms", "of at least 1", lambda value: value >= 1),
    ("memory", "(GiB) of at least 0", lambda value: 0 <= value < math.inf),
    ("seed", "of at least 0", lambda value: value >= 0),
    ("minutes lr crop", "above 0", lambda value: 0 < value < math.inf),
    ("test", "in (0, 1)", lambda value: 0 < value < 1),
    ("power", "of at least 0", lambda value: 0 <= value < math.inf),
    ("contrast forward_share", "in [0, 1)", lambda value: 0 <= value < 1),
]


def settings_of(arguments: Mapping[str, Any], run: str | os.PathLike[str], stored: Any) -> dict[str, Any]:
    """Return the settings of a training, checked as far as possible before the data are read.

    Args:
        arguments: those of ``fit`` or ``distill``, by name; settings that say nothing (None, no columns, missing values
            that are errors) are left out.
        run: the run directory.
        stored: the settings of the training that is resumed, which hold where none are given; {} of a new one.

    Raises:
        UserError: for an unknown model, a number out of its range, or damaged stored settings.
    """
    if not isinstance(stored, dict) or not all(
        isinstance(value, _TYPES.get(name, ())) for name, value in stored.items()
    ):
        where = os.fspath(run)
        raise UserError(f"{where}: model.json is damaged: its settings are not usable; start again (--force)")
    settings = dict(stored)
    for name, kind in _TYPES.items():
        value = arguments.get(name)
        if kind in (list, dict):
            value = kind(() if value is None else value) or None
        if value is not None and (name, value) != ("missing", "error"):
            settings[name] = value.replace("-", "_") if name == "model" else value
    model = settings.get("model")
    if model is not None and model not in RECIPES:
        raise UserError(f"unknown model {model!r}; expected one of {', '.join(RECIPES)}")
    check_reading(settings)
    if "bounds" in settings:
        settings["bounds"] = {name: list(ends) for name, ends in settings["bounds"].items()}
    if stored and settings.get("bounds") != stored.get("bounds"):
        raise UserError(f"{os.fspath(run)} was trained with other bounds; leave --bounds out or start again (--force)")
    numbers = {"transforms": settings.get("arguments", {}).get("transforms"), **settings}
    for names, expected, valid in _RANGES:
        for name in names.split():
            value = numbers.get(name)
            if isinstance(value, _NUMBER) and not valid(value):
                what = "a fraction of the rows for the test" if name == "test" else name.replace("_", " ")
                raise UserError(f"expected {what} {expected}, got {value}")
    return settings


def check_reading(options: Mapping[str, Any]) -> None:
    """Refuse a separator or a decimal mark that is none.

    Raises:
        UserError: for such a one.
    """
    if len(options.get("sep", ",")) != 1:
        raise UserError(f"expected one character that separates columns (--sep), got {options['sep']!r}")
    if options.get("decimal", ".") not in (".", ","):
        raise UserError(f"expected a point or a comma as the decimal mark (--decimal), got {options['decimal']!r}")


def option_of(argument: str) -> str:
    """What the command line calls an argument."""
    others = {
        "missing": "drop-missing",
        "given_from": "given-file",
        "length": "seconds",
        "dates": "date",
        "conditions": "given",
    }
    return f"--{others.get(argument, argument.replace('_', '-'))}"


def refuse_foreign(options: Mapping[str, Sequence[str]], kind: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that only other kinds of data have.

    Args:
        options: the names of such settings, by kind.
        kind: that of the data at hand.
        settings: those that were given.

    Raises:
        UserError: for the first of them.
    """
    for other, names in options.items():
        foreign = [name for name in names if name not in options[kind] and settings.get(name)]
        if foreign:
            raise UserError(f"{option_of(foreign[0])} is for {other}, and these data are {kind}; leave it out")

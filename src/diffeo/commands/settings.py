"""The settings of a training: checked before any work, kept in the run directory for resuming."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from diffeo.errors import UserError
from diffeo.recipes import RECIPES

__all__ = ["check_settings", "earlier_settings", "refuse_foreign"]

_TYPES: dict[str, tuple[type, ...]] = {
    "model": (str,), "arguments": (dict,), "context": (list,), "drop": (list,), "size": (list,), "missing": (str,),
    "test": (int, float),
    "rate": (int,), "crop": (int, float), "mels": (int,), "label_pattern": (str,),
    "epochs": (int,), "minutes": (int, float), "batch_size": (int,), "accumulate": (int,),
    "lr": (int, float), "seed": (int,),
}  # fmt: skip


def earlier_settings(run: str | os.PathLike[str], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the model.json of an earlier training holds.

    Raises:
        UserError: if they are damaged.
    """
    settings = model["provenance"].get("settings", {})
    if not isinstance(settings, dict) or not all(
        isinstance(value, _TYPES.get(name, ())) for name, value in settings.items()
    ):
        raise UserError(f"{os.fspath(run)}: model.json is damaged: its settings are not usable; start again (--force)")
    return settings


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings as far as possible before the data are read.

    Raises:
        UserError: for an unknown model, or a number out of its range.
    """
    model = settings.get("model")
    if model is not None and model not in RECIPES:
        raise UserError(f"unknown model {model!r}; expected one of {', '.join(RECIPES)}")
    numbers = {"transforms": settings.get("arguments", {}).get("transforms"), **settings}
    for name in ("epochs", "batch_size", "accumulate", "rate", "mels", "seed", "transforms"):
        value, least = numbers.get(name), int(name != "seed")
        if isinstance(value, int) and value < least:
            raise UserError(f"expected {name.replace('_', ' ')} of at least {least}, got {value}")
    for name in ("minutes", "lr", "crop"):
        if name in settings and not 0 < settings[name] < math.inf:
            raise UserError(f"expected {name} above 0, got {settings[name]}")
    if "test" in settings and not 0 < settings["test"] < 1:
        raise UserError(f"expected a fraction of the rows for the test in (0, 1), got {settings['test']}")
    if settings.get("power", 0.0) < 0 or not math.isfinite(settings.get("power", 0.0)):
        raise UserError(f"expected power of at least 0, got {settings['power']}")
    for name in ("contrast", "forward_share"):
        if not 0 <= settings.get(name, 0.0) < 1:
            raise UserError(f"expected {name.replace('_', ' ')} in [0, 1), got {settings[name]}")


def refuse_foreign(options: Mapping[str, Sequence[str]], kind: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that only other kinds of data have.

    Args:
        options: the names of such settings, by kind.
        kind: that of the data at hand.
        settings: those that were given.

    Raises:
        UserError: for the first of them.
    """
    allowed = options[kind]
    for other, names in options.items():
        foreign = [name for name in names if name not in allowed and settings.get(name)]
        if foreign:
            option = {"missing": "drop-missing"}.get(foreign[0], foreign[0].replace("_", "-"))
            raise UserError(f"--{option} is for {other}, and these data are {kind}; leave it out")

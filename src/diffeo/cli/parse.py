"""From the words of a command line to values."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from typing import Any

from diffeo.errors import UserError

__all__ = ["assignments", "columns", "context_values", "whole_numbers"]


def columns(words: Sequence[str] | None) -> list[str]:
    """Return names from options such as ``--drop a,b --drop c``; a name with a comma in it is quoted as in csv."""
    names = [name.strip() for row in csv.reader(words or []) for name in row]
    if not all(names):
        raise UserError(f"expected column names separated by commas, got {','.join(words or [])!r}")
    return names


def whole_numbers(text: str | None, option: str) -> list[int] | None:
    """Return sizes from an option such as ``--hidden 128,128``."""
    if text is None:
        return None
    try:
        sizes = [int(word) for word in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise UserError(f"expected whole numbers separated by commas, such as {option} 128,128, got {text!r}")
    return sizes


def _texts(words: Sequence[str] | None, option: str) -> dict[str, str]:
    """Return names and texts from options such as ``--set activation=silu``."""
    result = {}
    for word in words or []:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise UserError(f"expected {option} NAME=VALUE, got {word!r}")
        result[name.strip()] = value
    return result


def assignments(words: Sequence[str] | None, option: str) -> dict[str, Any]:
    """Return names and values from options such as ``--set bins=16 --set activation=silu``; values are JSON or text."""
    result: dict[str, Any] = {}
    for name, value in _texts(words, option).items():
        try:
            result[name] = json.loads(value)
        except ValueError:
            result[name] = value
    return result


def context_values(words: Sequence[str] | None) -> dict[str, str] | None:
    """Return columns and their values, as texts, from options such as ``--given age=41``; a column may hold a ``=``."""
    result = {}
    for word in words or []:
        name, equals, value = word.rpartition("=")
        if not (name and equals):
            raise UserError(f"expected --given COLUMN=VALUE, got {word!r}")
        result[name.strip()] = value
    return result or None

"""The options that several commands have, each described once; and from the words of all to values."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from diffeo.errors import UserError

__all__ = [
    "LIMITS",
    "Data",
    "Decimal",
    "Device",
    "Figures",
    "Force",
    "Json",
    "Missing",
    "Na",
    "NewRun",
    "Out",
    "Run",
    "Seed",
    "Sep",
    "TrainingSeed",
    "arguments_of",
]

Run = Annotated[Path, Argument(help="A run directory, as 'diffeo fit' makes.", metavar="RUN")]
Data = Annotated[
    list[str],
    Argument(
        help="A table (.csv .csv.gz .tsv .parquet .feather .npy .npz; several .parquet files, a folder of them or a "
        "pattern are one table), images (a folder of .png or .jpg, .npy or .npz "
        "of rank 3 or 4), audio (a folder of .wav, .flac or .ogg, or a pattern of paths), or a built-in set: moons, "
        "rings, checkerboard, 8gaussians, pinwheel, spirals, wine, breast_cancer, flower; images: digits, mnist; "
        "audio: fsdd.",
        metavar="DATA",
    ),
]
NewRun = Annotated[Path, Option("--out", "-o", help="The run directory to make.", metavar="DIR")]
Out = Annotated[
    Path | None, Option("--out", "-o", help="Where to; the extension decides the format. Default: csv on stdout.")
]
Missing = Annotated[
    bool, Option("--drop-missing", help="Leave out rows with empty cells, NaN or infinity, else refused.")
]
Na = Annotated[
    list[str] | None, Option(help="What stands for a missing cell, beside NA, NaN, null ...", metavar="MARKS")
]
Sep = Annotated[str | None, Option(help="What separates the columns of a csv.  [default: found]")]
Decimal = Annotated[str | None, Option(help="The decimal mark of a csv.  [default: found]")]
Force = Annotated[bool, Option("--force", help="Replace what is there.")]
Figures = Annotated[bool, Option(help="Plot figures into DIR/figures.")]
Seed = Annotated[int, Option(help="Decides all that is random.", min=0)]
TrainingSeed = Annotated[int | None, Option(help="Decides all that is random.  [default: 0]")]
Device = Annotated[str | None, Option(help="cpu, cuda, cuda:1 ...; a GPU if there is one.")]
Json = Annotated[bool, Option("--json", help="Print the results as JSON on stdout.")]

LIMITS = {  # of what a file may ask for, by name
    "columns": Annotated[int | None, Option(help="Columns that are modelled at most.  [default: 4096]", min=1)],
    "pixels": Annotated[int | None, Option(help="Pixels of a picture at most.  [default: 50000000]", min=1)],
    "bytes": Annotated[
        int | None,
        Option(
            help="Bytes that a compressed file of suspicious size expands to at most.  [default: 2147483648]", min=1
        ),
    ],
}
MODEL = ("hidden", "transforms")  # arguments of the model that have options of their own


def arguments_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a command's function: options that were given, their words made values."""
    given = {name: value for name, value in options.items() if value is not None}
    values = {name: PARSERS[name](value) if name in PARSERS else value for name, value in given.items()}
    model = {name: values.pop(name) for name in MODEL if name in values}
    return {**values, "arguments": model | values.get("arguments", {})} if model else values


def _columns(words: Sequence[str]) -> list[str]:
    """Return names from options such as ``--drop a,b --drop c``; a name with a comma in it is quoted as in csv."""
    names = [name.strip() for row in csv.reader(words) for name in row]
    if not all(names):
        raise UserError(f"expected column names separated by commas, got {','.join(words)!r}")
    return names


def _whole_numbers(option: str, text: str) -> list[int]:
    """Return sizes from an option such as ``--hidden 128,128``."""
    try:
        sizes = [int(word) for word in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise UserError(f"expected whole numbers separated by commas, such as {option} 128,128, got {text!r}")
    return sizes


def _numbers(option: str, text: str) -> list[float]:
    """Return numbers from an option such as ``--quantiles .05,.5,.95``."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise UserError(f"expected numbers separated by commas, such as {option} .05,.5,.95, got {text!r}") from error


def _texts(words: Sequence[str], what: str, split: Callable[[str, str], tuple[str, str, str]]) -> dict[str, str]:
    """Return names and texts from options such as ``--set activation=silu``, split at their first or last ``=``."""
    texts = {}
    for word in words:
        name, equals, text = split(word, "=")
        if not (name and equals):
            raise UserError(f"expected {what}=VALUE, got {word!r}")
        texts[name.strip()] = text
    return texts


def _assignments(words: Sequence[str]) -> dict[str, Any]:
    """Return names and values from options such as ``--set bins=16 --set activation=silu``; values are JSON or text."""
    return {name: _json_or_text(text) for name, text in _texts(words, "--set NAME", str.partition).items()}


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _context_values(words: Sequence[str]) -> dict[str, str]:
    """Return columns and their values, as texts, from options such as ``--given age=41``; a column may hold a ``=``."""
    return _texts(words, "--given COLUMN", str.rpartition)


def _bounds(words: Sequence[str]) -> dict[str, list[float | None]]:
    """Return columns and their ends from options such as ``--bounds share=0:1 --bounds size=0:``."""
    ends: dict[str, list[float | None]] = {}
    for name, text in _texts(words, "--bounds COLUMN", str.rpartition).items():
        try:
            low, high = (float(word) if word.strip() else None for word in text.split(":"))
        except ValueError as error:
            raise UserError(f"expected --bounds COLUMN=LOW:HIGH, such as size=0:, got '{name}={text}'") from error
        ends[name] = [low, high]
    return ends


PARSERS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        (
            "context",
            "drop",
            "keep",
            "conditions",
            "categorical",
            "integer",
            "continuous",
            "dates",
            "na",
            "parameters",
            "observed",
        ),
        _columns,
    ),
    "quantiles": lambda text: _numbers("--quantiles", text),
    "size": partial(_whole_numbers, "--size"),
    "hidden": partial(_whole_numbers, "--hidden"),
    "arguments": _assignments,
    "bounds": _bounds,
    "given": _context_values,
    "source": lambda words: words[0] if isinstance(words, list) and len(words) == 1 else words,
    "missing": lambda dropped: "drop" if dropped else "error",
}

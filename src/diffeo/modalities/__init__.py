"""The kinds of data: each a folder that implements ``base.Modality``, and a line here."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from diffeo.modalities.base import Modality, OpenRun

__all__ = ["MODALITIES", "modalities", "modality_of", "open_run", "recognize"]

# Asked in this order whether data are theirs; the last one takes what no other does.
MODALITIES = [
    "diffeo.modalities.audio.modality",
    "diffeo.modalities.images.modality",
    "diffeo.modalities.tables.modality",
]


def modalities() -> list[Modality]:
    """Return all of them, loaded."""
    return [_load(name) for name in MODALITIES]


@cache
def _load(name: str) -> Modality:
    modality: Modality = import_module(name).MODALITY
    return modality


def recognize(source: Any, model: str | None = None) -> Modality:
    """Return the modality of data to learn: as the model or the suffix says, or the first one that recognizes them."""
    known = modalities()
    suffix = Path(source).suffix.lower() if isinstance(source, str | Path) else ""
    by_name = [each for each in known if model in each.recipes] or [each for each in known if suffix in each.suffixes]
    return by_name[0] if by_name else next((each for each in known[:-1] if each.recognizes(source)), known[-1])


def modality_of(run: OpenRun) -> Modality:
    """Return the modality of a run that was opened."""
    return next(each for each in modalities() if type(run) is each.run)


def open_run(run: str | os.PathLike[str], device: str | torch.device | None = None) -> OpenRun:
    """Load a run directory, of whatever it was trained on.

    Raises:
        UserError: if it is damaged, or none.
    """
    from diffeo.errors import UserError
    from diffeo.fields import problem
    from diffeo.training.contents import REPORTED
    from diffeo.training.parallel import choose_device
    from diffeo.training.place import MODEL
    from diffeo.training.run import load_run

    place = choose_device(device)
    stored = load_run(run, place)
    if stored.schema is None:
        raise UserError(f"{stored.path}: describes no data; give a run directory made by diffeo fit")
    if fault := problem({"metrics": stored.metrics, "provenance": stored.provenance}, REPORTED):
        raise UserError(f"{stored.path / MODEL} is damaged: {fault}; restore it or train again")
    kind = stored.schema.get("kind", "table")
    modality = next((each for each in modalities() if each.name == kind), None)
    if kind == "posterior":
        raise UserError(
            f"{stored.path}: is a posterior that was made in Python; take it by diffeo.load({os.fspath(run)!r})"
        )
    if modality is None:
        raise UserError(f"{stored.path}: was trained on {kind!r}, which this diffeo does not know; upgrade it")
    return modality.run.restore(stored, os.fspath(run), place)

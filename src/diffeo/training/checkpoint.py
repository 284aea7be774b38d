"""All that resuming needs, in one file."""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffeo.atomic import check_writable, remove_leftovers
from diffeo.errors import UserError
from diffeo.training.weights import digest, load_tensors, save_tensors

__all__ = [
    "Store",
    "describe",
    "load_checkpoint",
    "save_checkpoint",
    "steps_taken",
    "trained",
]

FORMAT = 1
REMEDY = "start again with force (--force)"
BUDGET = ("epochs", "minutes", "patience")  # what may differ when a training is to take longer


class Store:
    """The checkpoint of a run directory: ``OUT/train/checkpoint.safetensors``, written every so many seconds.

    Without ``out``, or where another process ``writes``, it stores nothing. ``saved`` is what an earlier process left,
    to resume from, or None; ``extended`` whether it was to be over sooner: a budget may grow.

    Raises:
        UserError: if the folder cannot be written; if it holds a checkpoint and the call does not say ``resume``; if it
            says so and there is no such folder, or the checkpoint belongs to another training.
    """

    def __init__(
        self,
        out: str | os.PathLike[str] | None,
        *,
        resume: bool,
        every: float,
        settings: Mapping[str, Any],
        writes: bool,
    ) -> None:
        self.every, self.settings = every, dict(settings)
        self.writes = writes and out is not None
        self.saved: tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None = None
        self.extended = False
        self.written, self.took = time.monotonic(), 0.0  # when, and how long it took
        if out is None:
            if resume:
                raise UserError("nothing to resume: give the run directory as out")
            return
        self.folder = Path(out) / "train"
        self.path = self.folder / "checkpoint.safetensors"
        if resume and not Path(out).is_dir():
            raise UserError(f"nothing to resume: {os.fspath(out)} is not a folder; start without resume (--resume)")
        if self.path.exists():
            if not resume:
                raise UserError(f"{os.fspath(out)} holds an unfinished or earlier training; resume it or {REMEDY}")
            scalars, tensors = load_checkpoint(self.path)
            self.extended = _is_longer(scalars["settings"], self.settings)
            _require_same(self.path, scalars["settings"], self.settings, BUDGET if self.extended else ())
            if scalars["threads"] != torch.get_num_threads():
                warnings.warn(
                    f"resuming with {torch.get_num_threads()} threads instead of {scalars['threads']}: "
                    "the weights will be as good, but not identical to the bit",
                    stacklevel=3,
                )
            self.saved = scalars["state"], tensors

    def prepare(self) -> None:
        """Create the folder, prove that it can be written, and clear away what a killed process left there."""
        if self.writes:
            check_writable(self.folder)
            remove_leftovers(self.folder)

    @property
    def due(self) -> bool:
        """Whether it is time to write again. Writing takes a twentieth of the time at most, unless ``every`` is 0."""
        wait = max(self.every, 20 * self.took) if self.every else 0.0
        return self.writes and time.monotonic() - self.written >= wait

    def write(self, state: Mapping[str, Any], groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write a checkpoint."""
        if self.writes:
            threads, started = torch.get_num_threads(), time.monotonic()
            save_checkpoint(self.path, {"settings": self.settings, "threads": threads, "state": state}, groups)
            self.written = time.monotonic()
            self.took = self.written - started


def save_checkpoint(path: Path, scalars: Mapping[str, Any], groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write plain data and named groups of named tensors to one safetensors file, atomically."""
    tensors = {f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
    save_tensors(path, tensors, {"format": str(FORMAT), "state": json.dumps(scalars)})


def steps_taken(path: Path) -> int:
    """How many steps of training a checkpoint holds, without its tensors; 0 of one that cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return int(json.loads(file.metadata()["state"])["state"]["step"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return 0


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Read what ``save_checkpoint`` wrote.

    Raises:
        UserError: if the file is corrupted or comes from a newer diffeo.
    """
    tensors, metadata = load_tensors(path, REMEDY)
    if metadata.get("format") != str(FORMAT):
        raise UserError(f"{path} has format {metadata.get('format')}, but this diffeo reads {FORMAT}: upgrade diffeo")
    groups: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        group, _, name = full_name.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return json.loads(metadata["state"]), groups


def _is_longer(saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether a budget of the same kind has grown."""
    budgets = [(saved.get(name), current.get(name)) for name in ("epochs", "minutes")]
    if any((old is None) != (new is None) for old, new in budgets):
        return False
    pairs = [(old, new) for old, new in budgets if old is not None]
    return all(new >= old for old, new in pairs) and any(new > old for old, new in pairs)


def _require_same(path: Path, saved: Mapping[str, Any], current: Mapping[str, Any], but: Sequence[str]) -> None:
    """Check that a checkpoint belongs to this very training, ``but`` for some settings.

    Raises:
        UserError: naming every setting that differs.
    """
    # Through JSON, as the saved ones went: tuples become lists.
    current = json.loads(json.dumps(current))
    changes = [
        f"{name} was {saved.get(name)}, now {current.get(name)}"
        for name in sorted({*saved, *current})
        if name not in but and saved.get(name) != current.get(name)
    ]
    if changes:
        raise UserError(f"{path} belongs to another training ({'; '.join(changes)}); repeat the first call or {REMEDY}")


def trained(objective: nn.Module) -> dict[str, Tensor]:
    """Return what training changes of an objective's state: all but the frozen parameters (a teacher's, say)."""
    frozen = {name for name, p in objective.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: tensor.detach() for name, tensor in objective.state_dict().items() if name not in frozen}


def describe(objective: nn.Module) -> dict[str, Any]:
    """Return plain data that identifies this objective, whatever its present weights."""
    shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in objective.state_dict().items()}
    frozen = {name: p for name, p in objective.named_parameters() if not p.requires_grad}
    return {
        "type": type(objective).__name__,
        "recipe": getattr(getattr(objective, "flow", None), "recipe", None),
        "shapes": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16],
        "frozen": digest(frozen)[:16] if frozen else None,
    }

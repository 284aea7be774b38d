"""The run directory: a model and all that is known of it, in files of open formats."""

import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import diffeo
from diffeo import recipes
from diffeo.atomic import atomic_write, remove_leftovers
from diffeo.errors import UserError
from diffeo.fields import Number, problem
from diffeo.flow import Flow
from diffeo.legible import legible
from diffeo.recipes.stored import completed
from diffeo.structure import described, expect_as_made, rebuilt
from diffeo.training.contents import FORMAT, MODEL_JSON
from diffeo.training.guard import Allowance
from diffeo.training.parallel import choose_device
from diffeo.training.place import MODEL, WEIGHTS, claim, claimed
from diffeo.training.weights import digest, load_tensors, read_shapes, save_tensors

__all__ = [
    "Run",
    "create_run",
    "load",
    "load_run",
    "plain",
    "provenance",
    "read_model",
    "save",
    "save_metrics",
    "save_model",
    "save_weights",
    "trained_recipe",
]

BY_HAND = "by hand"  # instead of a recipe's name: the arguments are the flow's structure
LARGEST_MODEL_BYTES = 2**26

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Run:
    """A run directory that was read: the flow, and what ``model.json`` says of it.

    Attributes:
        path: the folder.
        flow: in evaluation mode.
        recipe: the name and arguments that the flow was built from.
        schema: what the data are, or None.
        metrics: plain data.
        provenance: versions, command, date, and what else was said of its origin.
    """

    path: Path
    flow: Flow
    recipe: dict[str, Any]
    schema: dict[str, Any] | None
    metrics: dict[str, Any]
    provenance: dict[str, Any]


def provenance(**extra: Any) -> dict[str, Any]:
    """Return where a model comes from: versions, command and date.

    Args:
        extra: what else is to be said, plain data by name (the seed, the data's hash).
    """
    return {
        "versions": {
            "diffeo": diffeo.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **extra,
    }


def create_run(
    path: StrPath,
    flow: Flow,
    schema: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Make a run directory that describes ``flow`` and has no weights yet.

    Args:
        path: where; a folder that does not exist or is empty.
        flow: a flow made by a recipe, or by hand from parts of diffeo.
        schema: plain data of the caller's (columns and types).
        provenance: plain data, as from ``provenance``.

    Raises:
        UserError: if the folder is not empty, or cannot be written.
        ValueError: for a flow with parts that are not diffeo's, or that is not as its recipe made it.
    """
    recipe = _recipe(flow)
    folder = Path(path)
    claim(folder)
    remove_leftovers(folder)
    model = {
        "format": FORMAT,
        "diffeo": diffeo.__version__,
        "recipe": recipe,
        "schema": plain(schema),
        "metrics": {},
        "provenance": plain(provenance or {}),
    }
    _write_model(folder, model)
    return folder


def _write_model(folder: Path, model: Mapping[str, Any]) -> None:
    with atomic_write(folder / MODEL) as temporary:
        temporary.write_text(json.dumps(model, indent=2) + "\n")


def plain(data: Any) -> Any:
    """Return plain data with None for NaN and infinities, which JSON does not know.

    Args:
        data: mappings, sequences, numbers, strings and None.
    """
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def save_weights(path: StrPath, flow: nn.Module) -> str:
    """Write the flow's weights into its run directory, atomically, and bind ``model.json`` to them by their digest.

    Args:
        path: the run directory.
        flow: whose state is written.

    Returns:
        The SHA-256 of the weights, which the file holds as well.

    Raises:
        UserError: if it cannot be written.
    """
    folder, metadata = Path(path), {"format": str(FORMAT)}
    model = read_model(folder)
    sha256 = digest(flow.state_dict(), metadata)
    # The weights that are there still belong to the run until they are replaced: a kill leaves a run that loads.
    _write_model(folder, {**model, "weights": [sha256, *model.get("weights", [])[:1]]})
    return save_tensors(folder / WEIGHTS, flow.state_dict(), metadata)


def save_model(path: StrPath, flow: Flow) -> None:
    """Write what came of the flow that a run directory was made for: what it is, and its weights.

    ``trained_recipe`` still says what the run was made for.

    Args:
        path: the run directory.
        flow: made by a recipe, or by hand from parts of diffeo.

    Raises:
        UserError: if it is not a run directory, or cannot be written.
        ValueError: for a flow with parts that are not diffeo's.
    """
    model = read_model(path)
    model["provenance"]["trained"] = trained_recipe(model)
    model["recipe"] = _recipe(flow)
    _write_model(Path(path), model)
    save_weights(path, flow)


def trained_recipe(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of the flow that was trained, which of a mixture is not that of the whole.

    Args:
        model: what ``model.json`` says.
    """
    recipe: dict[str, Any] = model["provenance"].get("trained", model.get("recipe"))
    return recipe


def _recipe(flow: Flow) -> dict[str, Any]:
    if flow.recipe is None:
        return {"name": BY_HAND, "arguments": described(flow)}
    expect_as_made(flow)
    return flow.recipe


def save_metrics(path: StrPath, metrics: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> None:
    """Add metrics to those in a run directory, atomically.

    Args:
        path: the run directory.
        metrics: plain data by name.
        settings: those that led to the metrics, plain data, to keep in the provenance.

    Raises:
        UserError: if it is not a run directory, or cannot be written.
    """
    model = read_model(path)
    model["metrics"] = {**model["metrics"], **plain(metrics)}
    if settings is not None:
        model["provenance"]["settings"] = plain(settings)
    _write_model(Path(path), model)


def read_model(path: StrPath) -> dict[str, Any]:
    """Return what ``model.json`` says: format, diffeo, recipe, schema, metrics and provenance.

    Args:
        path: a run directory.

    Raises:
        UserError: if it is not a run directory, or its description is damaged or of a newer format.
    """
    folder, file = Path(path), Path(path) / MODEL
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}: give a run directory, as diffeo fit makes with --out")
    if not file.is_file():
        raise UserError(f"{folder} is not a run directory: it has no {MODEL}; give one that diffeo fit made with --out")
    try:
        size = file.stat().st_size
        if not 0 < size <= LARGEST_MODEL_BYTES:  # of what has no size, such as /proc/kmsg, reading may never end
            raise ValueError(f"it is larger than {LARGEST_MODEL_BYTES >> 20} MiB" if size else "it is empty")
        model = json.loads(file.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise UserError(f"{file} cannot be read: permission denied; change its permissions") from error
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}); restore it or train again") from error
    if not isinstance(model, dict) or Number(1, math.inf, whole=True).fault(model.get("format")):
        raise UserError(f"{file} is no description of a model: it has no format number; restore it or train again")
    if model["format"] > FORMAT:
        raise UserError(
            f"{file} has format {legible(model['format'], 24)}, written by diffeo"
            f" {legible(model.get('diffeo', '?'), 24)}; this is diffeo {diffeo.__version__},"
            f" which reads up to {FORMAT}: upgrade diffeo"
        )
    model = {"metrics": {}, "provenance": {}, **model}
    if fault := problem(model, MODEL_JSON):
        raise UserError(f"{file} is damaged: {fault}; restore it or train again")
    model["recipe"]["arguments"] = completed(model["recipe"]["name"], model["recipe"]["arguments"])
    return model


def save(flow: Flow, path: StrPath, force: bool = False) -> None:
    """Write a run directory of a flow as it is; see ``Flow.save``.

    Args:
        flow: made by a recipe, or by hand from parts of diffeo.
        path: a folder that does not exist or is empty.
        force: replace a run that is there.

    Raises:
        UserError: if it cannot be written.
        ValueError: for a flow with parts that are not diffeo's, that is not as its recipe made it, or whose weights are
            not finite.
    """
    for name, parameter in flow.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"expected finite weights, got NaN or infinity in {name}")
    with claimed(path, force=force) as folder:
        create_run(folder, flow, provenance=provenance())
        save_weights(folder, flow)


def load(path: StrPath, device: str | torch.device = "cpu") -> Any:
    """Make the flow of a run directory, in evaluation mode; no code that came with it is run.

    Args:
        path: a run directory, as ``Flow.save``, ``diffeo.fit(out=...)`` or the command line make.
        device: where to put it.

    Returns:
        The flow; of a directory that ``Posterior.save`` made, the posterior.

    Raises:
        UserError: if anything about the directory is wrong, or the device does not exist.

    Example:
        >>> flow = diffeo.maf(features=3, hidden=(8,)).eval()
        >>> flow.save("run")
        >>> again, x = diffeo.load("run"), torch.randn(5, 3)
        >>> torch.equal(again.log_prob(x), flow.log_prob(x))
        True
    """
    run = load_run(path, device)
    if (run.schema or {}).get("kind") == "posterior":
        return import_module("diffeo.inference.posterior").restored(run)
    return run.flow


def load_run(path: StrPath, device: str | torch.device = "cpu") -> Run:
    """Rebuild the flow of a run directory from its recipe and load its weights; no code that came with them is run.

    Args:
        path: a run directory.
        device: where to put the flow.

    Raises:
        UserError: if anything about the directory is wrong, or the device does not exist.
    """
    folder = Path(path)
    model = read_model(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise UserError(
            f"{folder} has no weights yet ({WEIGHTS}): its training did not end; "
            f"resume it with the command that began it and --resume"
        )
    remedy = "restore it or train again"
    place = choose_device(device)

    name, arguments = model["recipe"]["name"], model["recipe"]["arguments"]
    shapes = read_shapes(weights, remedy)
    try:
        with Allowance(shapes), torch.random.fork_rng([]):  # the weights drawn here are thrown away
            flow = rebuilt(arguments) if name == BY_HAND else recipes.build(name, arguments)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, MemoryError, ArithmeticError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder / MODEL}: no model can be built from its recipe: {reason:.300}; {remedy}") from error
    expected = {key: tuple(tensor.shape) for key, tensor in flow.state_dict().items()}
    for fault, keys in (
        ("lacks", expected.keys() - shapes.keys()),
        ("has unexpectedly", shapes.keys() - expected.keys()),
    ):
        if keys:
            raise UserError(
                f"{weights} {fault} the tensor {min(keys)} ({len(keys)} in all): "
                f"it does not belong to {MODEL}; {remedy}"
            )
    for key, shape in expected.items():
        if shapes[key] != shape:
            raise UserError(
                f"{weights}: expected {key} of shape {shape}, got {shapes[key]}: "
                f"it does not belong to {MODEL}; {remedy}"
            )

    tensors, metadata = load_tensors(weights, remedy)
    precisions = set()
    for key, entry in flow.state_dict(keep_vars=True).items():
        tensor = tensors[key]
        if tensor.dtype != entry.dtype and not (tensor.is_floating_point() and entry.is_floating_point()):
            raise UserError(f"{weights}: expected {key} of type {entry.dtype}, got {tensor.dtype}; {remedy}")
        if tensor.is_floating_point():
            precisions.add(tensor.dtype)
            # A buffer may be infinite (an open bound), a learned weight never.
            if tensor.isnan().any() or (isinstance(entry, nn.Parameter) and tensor.isinf().any()):
                raise UserError(f"{weights}: {key} holds values that are not finite; train again")
    if "weights" in model and metadata["sha256"] not in model["weights"]:  # runs of before do not say it
        raise UserError(f"{weights} is of another run: {MODEL} has another digest of its weights; {remedy}")
    if len(precisions) == 1:  # of a flow that was made double, say
        flow.to(precisions.pop())
    flow.load_state_dict(tensors)
    return Run(folder, flow.to(place).eval(), model["recipe"], model["schema"], model["metrics"], model["provenance"])

"""A flow's structure as plain data: which parts it is made of, and with which arguments. No code is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from diffeo import bases, likelihoods, nets, transforms
from diffeo.arguments import KnowsArguments
from diffeo.flow import Flow
from diffeo.mixture import Mixture
from diffeo.objectives.paths import PATHS, Path
from diffeo.recipes import build
from diffeo.transforms.univariate import UNIVARIATES, Gated, MixtureOfLogistics, Univariate, as_univariate, describe
from diffeo.variational import VAE

__all__ = ["described", "expect_as_made", "rebuilt"]

LARGEST = 100_000  # numbers in a tensor among the arguments: a mask or an order, not weights

# PyTorch's own modules that a conditioner may be made of, and their arguments.
_TORCH: dict[type[nn.Module], Callable[[Any], dict[str, Any]]] = {
    nn.Linear: lambda m: {"in_features": m.in_features, "out_features": m.out_features, "bias": m.bias is not None},
    nn.LeakyReLU: lambda m: {"negative_slope": m.negative_slope},
    nn.Dropout: lambda m: {"p": m.p},
    nn.LayerNorm: lambda m: {"normalized_shape": list(m.normalized_shape), "eps": m.eps},
    nn.Flatten: lambda m: {"start_dim": m.start_dim, "end_dim": m.end_dim},
    **dict.fromkeys((nn.ReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity), lambda m: {}),
}


@cache
def _parts() -> dict[str, type]:
    """What a flow can be made of, by name."""
    classes = {
        name: value
        for module in (bases, likelihoods, transforms, nets)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, KnowsArguments)
    }
    return {**classes, **{f"torch.{kind.__name__}": kind for kind in (*_TORCH, nn.Sequential)}}


def _maps() -> dict[str, Callable[..., Univariate]]:
    return {**UNIVARIATES, "logistics": MixtureOfLogistics, "gated": Gated}


def described(flow: Flow) -> dict[str, Any]:
    """Return the structure of a flow as plain data, from which ``rebuilt`` makes another one, freshly initialised.

    Raises:
        ValueError: naming the part that is not diffeo's, or was changed after it was made.
    """
    if isinstance(flow, Mixture):
        return {"members": [_recipe_or_structure(member) for member in flow.members]}
    if isinstance(flow, VAE):
        return {
            "posterior": _recipe_or_structure(flow.posterior),
            "prior": _recipe_or_structure(flow.prior),
            **{name: _describe(getattr(flow, name), name) for name in ("encoder", "decoder", "likelihood")},
            "event_shape": list(flow.event_shape),
        }
    structure = {
        "base": _describe(flow.base, "base"),
        "transform": _describe(flow.transform, "transform"),
        "event_shape": list(flow.event_shape),
        "context_shape": list(flow.context_shape),
        "context_transform": _describe(flow.context_transform, "context_transform"),
        "embedding": _describe(flow.embedding, "embedding"),
    }
    again = {name: tensor.shape for name, tensor in rebuilt(structure).state_dict().items()}
    for name, tensor in flow.state_dict().items():
        if again.pop(name, None) != tensor.shape:
            raise ValueError(f"expected a flow whose parts are as they were made, got another {name}")
    if again:
        raise ValueError(f"expected a flow whose parts are as they were made, got none of {min(again)}")
    return structure


def _recipe_or_structure(flow: Flow) -> dict[str, Any]:
    if flow.recipe is None:
        return described(flow)
    expect_as_made(flow)
    return {"recipe": flow.recipe}


def expect_as_made(flow: Flow) -> None:
    """Refuse a recipe's flow that was changed since it was made: the recipe would make another one.

    Args:
        flow: with a recipe.

    Raises:
        ValueError: naming the first part that is another one.
    """
    assert flow.recipe is not None
    with torch.random.fork_rng([]):  # what is made draws weights
        usual = _anatomy(rebuilt({"recipe": flow.recipe}))
    parts = _anatomy(flow)
    other = next((name for name in {**usual, **parts} if usual.get(name) != parts.get(name)), None)
    if other is not None:
        raise ValueError(
            f"expected a flow as its recipe {flow.recipe['name']!r} made it, got another {other}; make it by hand, "
            "diffeo.Flow(base, transforms)"
        )


def _anatomy(flow: Flow) -> dict[str, Any]:
    """What a flow is made of, by name: kinds of modules and of maps, and shapes of tensors."""
    modules = {name: type(part) for name, part in flow.named_modules()}
    maps = {name: getattr(part, "univariate", None) for name, part in flow.named_modules()}
    kinds = {f"{name}.univariate": describe(each) for name, each in maps.items() if each is not None}
    return modules | kinds | {name: tensor.shape for name, tensor in flow.state_dict().items()}


def rebuilt(structure: Mapping[str, Any]) -> Flow:
    """Make a flow of the structure that ``described`` returned.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        if "recipe" in structure:
            return build(structure["recipe"]["name"], structure["recipe"]["arguments"])
        if "members" in structure:
            return Mixture([rebuilt(member) for member in structure["members"]])
        if "posterior" in structure:
            parts = {name: _rebuild(structure[name]) for name in ("encoder", "decoder", "likelihood", "event_shape")}
            return VAE(posterior=rebuilt(structure["posterior"]), prior=rebuilt(structure["prior"]), **parts)
        base, transform, context = (_rebuild(structure[name]) for name in ("base", "transform", "context_transform"))
        embedding = _rebuild(structure.get("embedding"))  # runs of before embeddings have none
        return Flow(base, transform, structure["event_shape"], structure["context_shape"], context, embedding)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"expected the structure of a flow, got a damaged one: {error}") from error


def _describe(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_describe(each, f"{where}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, Mapping):
        return {"dict": {str(name): _describe(each, f"{where}[{name!r}]") for name, each in value.items()}}
    if isinstance(value, Tensor):
        if value.numel() > LARGEST:
            raise ValueError(f"expected a tensor of at most {LARGEST:,} numbers as {where}, got {value.numel():,}")
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Path) and value in PATHS.values():
        return {"path": next(name for name, path in PATHS.items() if path == value)}
    if isinstance(value, Univariate) and (plain := describe(value, _maps())) is not None:
        return {"univariate": plain}
    if isinstance(value, KnowsArguments) and _parts().get(type(value).__name__) is type(value):
        name, arguments = type(value).__name__, value.arguments()
    elif type(value) is nn.Sequential:
        name, arguments = "torch.Sequential", {"parts": [*value]}
    elif type(value) in _TORCH:
        name, arguments = f"torch.{type(value).__name__}", _TORCH[type(value)](value)
    else:
        raise ValueError(
            f"expected parts of diffeo, or torch.nn's own layers, got {type(value).__name__} as {where}: a flow with "
            "it cannot be stored; keep its state_dict instead"
        )
    return {"part": name, "arguments": {key: _describe(each, f"{where}.{key}") for key, each in arguments.items()}}


def _rebuild(value: Any) -> Any:
    if isinstance(value, list):
        return [_rebuild(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    if "path" in value:
        return PATHS[value["path"]]
    if "univariate" in value:
        return as_univariate(value["univariate"], _maps())
    if "dict" in value:
        return {name: _rebuild(each) for name, each in value["dict"].items()}
    part = _parts()[value["part"]]
    arguments = {name: _rebuild(each) for name, each in value["arguments"].items()}
    if part is nn.Sequential:
        return nn.Sequential(*arguments["parts"])
    return part(**arguments)

"""Recipes' arguments as runs of earlier versions hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["upgraded"]

# Until univariate maps had names, affine ones were wired into these recipes, which took their bound as an argument.
_AFFINE = ("realnvp", "maf", "iaf", "glow", "parallel_wavenet")


def upgraded(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recipe takes today for arguments as any version stored them: of the same flow, to the bit.

    Args:
        name: of the recipe.
        arguments: as they were stored.
    """
    result = dict(arguments)
    if name in _AFFINE and "bound" in result and "univariate" not in result:
        result["univariate"] = {"name": "affine", "bound": result.pop("bound")}
    if name == "flow_matching":  # these were among them once; they are settings of the objective
        for setting in ("coupling", "time", "pool"):
            result.pop(setting, None)
        result["droppable"] = result.get("droppable", result.pop("dropout", 0.0) > 0)
        result.pop("dropout", None)
        result.setdefault("bound", None)  # corrections had none
    return result

"""From a program to a graph of plain operations of any number of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from diffeo.exporting.program import Program

__all__ = ["END", "traced"]

aten = torch.ops.aten
END = 2**63 - 1  # of a slice, for "to the end"


@torch.no_grad()
def traced(program: Program, examples: Mapping[str, Tensor]) -> ExportedProgram:
    """The graph of a program: the reference implementation, its weights and what follows from them constants.

    Args:
        program: in evaluation mode.
        examples: a tensor for each of its inputs.
    """
    rows = Dim("rows", min=1)
    shapes = {name: {0: rows} for name in examples}
    exported = torch.export.export(program, (), dict(examples), dynamic_shapes=shapes)
    module = folded(exported.module(check_guards=False))
    return torch.export.export(module, (), dict(examples), dynamic_shapes=shapes)


def folded(module: GraphModule) -> GraphModule:
    """The same graph with everything computed that depends on no input.

    Args:
        module: is changed.
    """
    for node in [*module.graph.nodes]:
        if node.target is aten.detach_.default:  # of a constant just made; else a mutation, which nothing may be
            source: Any = node.args[0]
            node.replace_all_uses_with(source)
        if node.target in (aten.detach_.default, aten._assert_tensor_metadata.default):
            module.graph.erase_node(node)
    known: dict[Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = _attribute(module, str(node.target))
            if isinstance(value, Tensor):
                known[node] = value.detach()
        elif node.op == "call_function" and _pure(node) and all(each in known for each in node.all_input_nodes):
            arguments, keywords = map_arg((node.args, node.kwargs), lambda each: known[each])
            known[node] = node.target(*arguments, **keywords)  # type: ignore[operator]
    count = 0
    for node in [*module.graph.nodes]:
        wanted = node.op != "get_attr" and any(user not in known for user in node.users)
        if node in known and wanted and isinstance(known[node], Tensor):
            name = f"constant_{count}"
            count += 1
            module.register_buffer(name, known[node].contiguous().clone())
            with module.graph.inserting_before(node):
                constant = module.graph.get_attr(name)
            constant.meta.update(node.meta)
            node.replace_all_uses_with(constant)
    for node in [*module.graph.nodes]:
        if node.target is aten.slice.Tensor:
            _bound(node)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _bound(node: Node) -> None:
    """Say where a slice ends: "to the end", a number beyond all sizes, is not understood everywhere."""
    arguments: Any = node.args
    source, dim, start, end, step = (*arguments, *(0, 0, END, 1)[len(arguments) - 1 :])
    size = source.meta["val"].shape[dim]
    if end is None or (isinstance(end, int) and end >= END):
        if start in (0, None) and step == 1:
            node.replace_all_uses_with(source)
        elif isinstance(size, int):
            node.args = (source, dim, start, size, step)


def _attribute(module: GraphModule, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _pure(node: Node) -> bool:
    target = node.target
    if not callable(target) or node.is_impure():
        return False
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace == "aten" and torch.Tag.nondeterministic_seeded not in target.tags
    return getattr(target, "__name__", "") == "getitem"

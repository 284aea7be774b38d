"""From a program to a graph of plain operations of any number of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from diffeo.exporting.program import Program

__all__ = ["traced"]

aten = torch.ops.aten
END = 2**63 - 1  # of a slice, for "to the end"
WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@torch.no_grad()
def traced(program: Program, examples: Mapping[str, Tensor]) -> ExportedProgram:
    """The graph of a program: the reference implementation, its weights and what follows from them constants.

    Args:
        program: in evaluation mode.
        examples: a tensor for each of its inputs.

    Raises:
        ValueError: for a program in which something is drawn at random.
    """
    rows = Dim("rows", min=1)
    shapes = {name: {0: rows} for name in examples}
    return folded(torch.export.export(program, (), dict(examples), dynamic_shapes=shapes))


def folded(exported: ExportedProgram) -> ExportedProgram:
    """The same program with everything computed that depends on no input, and with slices that say where they end.

    Args:
        exported: a program that changes nothing but its output.
    """
    graph, signature = exported.graph_module.graph, exported.graph_signature
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    for part in exported.graph_module.modules():
        if isinstance(part, GraphModule):  # the bodies of loops as well
            _simplify(part.graph)
            part.recompile()
    known: dict[Node, Any] = {}
    constants: dict[str, Any] = {}
    first = next(node for node in graph.nodes if node.op == "placeholder")

    def constant(value: Tensor) -> Node:
        """A new input of the graph that is a constant."""
        name = f"constant_{len(constants)}"
        constants[name] = value.contiguous().clone()
        with graph.inserting_before(first):
            made = graph.placeholder(name)
        made.meta["val"] = first.meta["val"].fake_mode.from_tensor(constants[name])
        return made

    for node in graph.nodes:
        if node.op == "placeholder" and specs[node.name].kind in WEIGHTS:
            target = str(specs[node.name].target)
            weight = exported.state_dict[target] if target in exported.state_dict else exported.constants[target]
            known[node] = weight.detach()
        elif node.target is torch.ops.higher_order.scan:
            _fold_body(node, exported.graph_module, known, constant)
        elif node.op == "call_function" and _pure(node) and all(each in known for each in node.all_input_nodes):
            known[node] = _computed(node, known)
    for node, value in known.items():
        if _needed(node, value, known):
            made = constant(value)
            node.replace_all_uses_with(made, delete_user_cb=lambda user: user not in known)
    graph.eliminate_dead_code()
    for node in [*graph.nodes]:
        if node.op == "placeholder" and node in known:
            graph.erase_node(node)
    kind = InputKind.CONSTANT_TENSOR
    inputs = [
        InputSpec(kind, TensorArgument(node.name), node.name) if node.name in constants else specs[node.name]
        for node in graph.nodes
        if node.op == "placeholder"
    ]
    graph.lint()
    exported.graph_module.recompile()
    return ExportedProgram(
        exported.graph_module, graph, ExportGraphSignature(inputs, signature.output_specs), {},
        exported.range_constraints, exported.module_call_graph, exported.example_inputs, constants,
        verifiers=exported.verifiers,
    )  # fmt: skip


def _simplify(graph: Graph) -> None:
    """Leave out what computes nothing, refuse what is random, write numbers and slices as every format reads them."""
    for node in [*graph.nodes]:
        source: Any = node.args[0] if node.args else None
        if node.target is aten.dropout.default and not node.args[2]:  # not in training
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            continue
        if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
            raise ValueError(f"expected a program in which nothing is random, got {node.target}")
        if node.target is aten.detach_.default:  # of a constant just made
            node.replace_all_uses_with(source)
        if node.target in (aten.detach_.default, aten._assert_tensor_metadata.default):
            graph.erase_node(node)
        elif node.target is aten.slice.Tensor:
            _bound(node)
        elif node.target is aten.log_sigmoid.default:
            _write_log_sigmoid(node)
        elif isinstance(node.target, torch._ops.OpOverload) and node.target._overloadname == "Tensor":
            _keep_double(node)


def _computed(node: Node, known: Mapping[Node, Any]) -> Any:
    """The value of a call whose arguments are known."""
    arguments, keywords = map_arg((node.args, node.kwargs), lambda each: known[each])
    return node.target(*arguments, **keywords)  # type: ignore[operator]


def _needed(node: Node, value: Any, known: Mapping[Node, Any]) -> bool:
    """Whether what is computed later takes this tensor."""
    return isinstance(value, Tensor) and any(user not in known for user in node.users)


def _fold_body(
    loop: Node, module: GraphModule, outside: Mapping[Node, Any], constant: Callable[[Tensor], Node]
) -> None:
    """Compute what is the same in all steps of a loop, and let its body take that.

    Args:
        loop: the loop, an operation ``scan``.
        module: of the graph that the loop is in.
        outside: what is known there.
        constant: makes a tensor an input of that graph.
    """
    which, state, over, extra = loop.args
    body: Any = getattr(module, str(which.target))  # type: ignore[union-attr]
    inputs = [node for node in body.graph.nodes if node.op == "placeholder"]
    taken: list[Node] = [*extra]  # type: ignore[misc]
    inner = inputs[len(inputs) - len(taken) :]
    known = {inside: outside[node] for inside, node in zip(inner, taken, strict=True) if node in outside}
    for node in body.graph.nodes:
        if node.op == "get_attr" and isinstance(getattr(body, node.target), Tensor):
            known[node] = getattr(body, node.target)
        elif node.op == "call_function" and _pure(node) and all(each in known for each in node.all_input_nodes):
            known[node] = _computed(node, known)
    last = inputs[-1]
    for node, value in [*known.items()]:
        if node not in inner and _needed(node, value, known):
            with body.graph.inserting_after(last):
                last = body.graph.placeholder(f"same_{len(inner)}")
            last.meta.update(node.meta)
            node.replace_all_uses_with(last, delete_user_cb=lambda user: user not in known)
            inner.append(last)
            taken.append(constant(value))
    body.graph.eliminate_dead_code()
    for inside, node in [*zip(inner, taken, strict=True)]:
        if not inside.users:
            body.graph.erase_node(inside)
            taken.remove(node)
    used = {node.target for node in body.graph.nodes if node.op == "get_attr"}
    for name in {name for name, _ in body.named_buffers()} - used:
        delattr(body, name)
    body.recompile()
    loop.args = (which, state, over, tuple(taken))


def _keep_double(node: Node) -> None:
    """Make numbers beside doubles tensors of doubles: ONNX's exporter rounds a plain one to single precision first."""
    source: Any = node.args[0]
    like = source.meta.get("val") if isinstance(source, Node) else None
    if not isinstance(like, Tensor) or like.dtype != torch.float64:
        return
    for place, value in enumerate(node.args):
        if isinstance(value, float) and math.isfinite(value):
            with node.graph.inserting_before(node):
                number = node.graph.call_function(aten.full.default, ([], value), {"dtype": torch.float64})
            with like.fake_mode:  # type: ignore[attr-defined]
                number.meta["val"] = torch.full((), value, dtype=torch.float64)
            node.update_arg(place, number)


def _write_log_sigmoid(node: Node) -> None:
    """log sigmoid(x) = min(x, 0) - log(1 + exp(-|x|)): onnxruntime's sigmoid is precise beside one, not beside zero."""
    (x,) = node.args
    with node.graph.inserting_before(node):

        def call(target: Any, *arguments: Any) -> Node:
            made = node.graph.call_function(target, arguments)
            made.meta.update(node.meta)
            return made

        power = call(aten.exp.default, call(aten.neg.default, call(aten.abs.default, x)))
        value = call(aten.sub.Tensor, call(aten.clamp_max.default, x, 0), call(aten.log1p.default, power))
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


def _bound(node: Node) -> None:
    """Say where a slice ends: "to the end", a number beyond all sizes, is not understood everywhere."""
    positional: list[Any] = [*node.args]
    defaults: list[Any] = [None, 0, 0, END, 1]
    source, dim, start, end, step = positional + defaults[len(positional) :]
    size = source.meta["val"].shape[dim]
    if end is None or (isinstance(end, int) and end >= END):
        if start in (0, None) and step == 1:
            node.replace_all_uses_with(source)
        elif isinstance(size, int):
            node.args = (source, dim, start, size, step)


def _pure(node: Node) -> bool:
    target = node.target
    if not callable(target) or node.is_impure():
        return False
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace == "aten" and torch.Tag.nondeterministic_seeded not in target.tags
    return getattr(target, "__name__", "") == "getitem"

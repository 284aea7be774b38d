"""The files that programs are exported to: ONNX, and PyTorch's own exported programs."""

from __future__ import annotations

import io
import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from diffeo.errors import UserError

__all__ = ["FORMATS", "METADATA", "Format"]

METADATA = "diffeo"  # the key in a file of what its numbers mean, as JSON
OPSET = 20
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")

Runnable = Callable[[Mapping[str, Tensor]], Tensor]


class Format(ABC):
    """A kind of file.

    Attributes:
        name: for a user.
        runtime: what runs it.
        needs: the packages that are needed to write it.
    """

    name: str
    runtime: str
    needs: Sequence[str] = ()

    def check(self) -> None:
        """Refuse to begin without the packages that it takes.

        Raises:
            UserError: naming the first that is not installed.
        """
        for package in self.needs:
            try:
                import_module(package)
            except ImportError as error:
                raise UserError(
                    f"--to {self.name} needs the package {package}, which is not installed; install it with: "
                    "pip install 'diffeo[export]'"
                ) from error

    @abstractmethod
    def content(self, graph: ExportedProgram, output: str, described: Mapping[str, Any]) -> bytes:
        """The content of a file.

        Args:
            graph: as ``traced`` makes.
            output: the name of its output.
            described: what its numbers mean, plain data.
        """

    @abstractmethod
    def loaded(self, content: bytes, threads: int) -> Runnable:
        """The program in a file's content, run by ``runtime`` with so many threads."""


class Onnx(Format):
    """ONNX, for onnxruntime and whatever else reads it."""

    name, runtime, needs = "onnx", "onnxruntime", ("onnx", "onnxscript", "onnxruntime")

    def content(self, graph: ExportedProgram, output: str, described: Mapping[str, Any]) -> bytes:
        """A model of opset 20; its metadata have the description as JSON under "diffeo"."""
        with _quiet():
            program: Any = torch.onnx.export(
                graph, dynamo=True, verbose=False, opset_version=OPSET, output_names=[output], external_data=False,
                optimize=False,
            )  # fmt: skip
            model, optimizer = program.model, import_module("onnxscript.optimizer")
            # Constants alone: to simplify a stack of folds further takes five minutes; runtimes do it when they load.
            optimizer.fold_constants(model, onnx_shape_inference=False)
            optimizer.remove_unused_nodes(model)
        import_module("onnx_ir.passes.common").LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(
            model
        )
        rows = import_module("onnx_ir").SymbolicDim("rows")
        for value in (*model.graph.inputs, *model.graph.outputs):
            value.shape = type(value.shape)([rows, *[*value.shape][1:]])
        for node in model.graph.all_nodes():
            _bound(node)
            if node.op_type in RANDOM:
                raise ValueError(f"expected a program without random operators, got {node.op_type}")
        model.producer_name = "diffeo"
        model.metadata_props[METADATA] = json.dumps(described)
        content: bytes = program.model_proto.SerializeToString()
        return content

    def loaded(self, content: bytes, threads: int) -> Runnable:
        """A session on the CPU."""
        runtime = import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

        def run(inputs: Mapping[str, Tensor]) -> Tensor:
            (result,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
            return torch.from_numpy(result)

        return run


class Pt2(Format):
    """A program of ``torch.export``, for ``torch.export.load`` and AOTInductor."""

    name, runtime = "pt2", "PyTorch"

    def content(self, graph: ExportedProgram, output: str, described: Mapping[str, Any]) -> bytes:
        """An archive, with the description as JSON in the extra file "diffeo"."""
        buffer = io.BytesIO()
        with _quiet():
            torch.export.save(graph, buffer, extra_files={METADATA: json.dumps(described)})
        return buffer.getvalue()

    def loaded(self, content: bytes, threads: int) -> Runnable:
        """The module that PyTorch loads."""
        with _quiet():
            module = torch.export.load(io.BytesIO(content)).module()

        def run(inputs: Mapping[str, Tensor]) -> Tensor:
            with torch.no_grad():
                result: Tensor = module(**inputs)
            return result

        return run


FORMATS: dict[str, Format] = {each.name: each for each in (Onnx(), Pt2())}


@contextmanager
def _quiet() -> Iterator[None]:
    """A block without what exporters say to their own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _bound(node: Any) -> None:
    """Say where a slice ends: "to the end", a number beyond all sizes, is not understood everywhere."""
    if node.op_type != "Slice":
        return
    source, _, ends, axes = node.inputs[:4]
    bounds = [] if ends.const_value is None else ends.const_value.numpy().tolist()
    if not bounds:
        raise ValueError("expected slices of constant ends, got one whose end is computed")
    if all(end < 2**31 - 1 for end in bounds):
        return
    along = axes.const_value.numpy().tolist()
    sizes = [None if source.shape is None else source.shape[axis] for axis in along]
    known = [end if end < 2**31 - 1 else size for end, size in zip(bounds, sizes, strict=True)]
    if not all(isinstance(each, int) for each in known):
        raise ValueError("expected slices along dimensions of known sizes, got one to the end of another")
    ir = import_module("onnx_ir")
    tensor = ir.tensor(known, dtype=ir.DataType.INT64, name=f"{node.name}_ends")
    constant = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(ir.DataType.INT64))
    constant.shape = ir.Shape([len(known)])
    node.graph.register_initializer(constant)
    node.replace_input_with(2, constant)

"""From an eager module to an ONNX file whose initializers are spans of the checkpoint's own files."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes

from export.modules.weights import spans

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from torch import Tensor, nn

Axes = dict[int, str]
"""Names of an input's dynamic axes: `tokens`, or `4*tokens` for an axis that is always four times as long."""

_OPSET = 20


def trace(
    module: nn.Module,
    inputs: Sequence[Tensor | list[Tensor]],
    dynamic_axes: Sequence[Axes | list[Axes]],
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> ir.Model:
    """Trace a module; axes of inputs that share a name share a size.

    inputs: example tensors of any size but 0 and 1 along dynamic axes, which tracing would take for constants.
    """
    dims: dict[str, torch.export.Dim] = {}

    def size(name: str) -> torch.export.Dim:
        factor, _, of = name.rpartition("*")
        dim = dims.setdefault(of, torch.export.Dim(of))
        return int(factor) * dim if factor else dim

    def sizes(axes: Axes) -> dict[int, torch.export.Dim]:
        return {axis: size(name) for axis, name in axes.items()}

    shapes = tuple([sizes(each) for each in axes] if isinstance(axes, list) else sizes(axes) for axes in dynamic_axes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own use of deprecated torch functions
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs),
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=_OPSET,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=shapes,
        )
    assert program is not None
    _tidy(program.model)
    return program.model


def _tidy(model: ir.Model) -> None:
    """Drop what only the tracer needs; nothing that would compute with a weight, whose bytes are not here."""
    for step in (
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.ClearMetadataAndDocStringPass(),
    ):
        step(model)


def save(model: ir.Model, module: nn.Module, path: Path, as_inputs: Collection[str] = ()) -> None:
    """Write the graph beside the weights; what the module stores is referenced, not copied.

    as_inputs: initializers that become inputs of the graph.
    """
    for name in as_inputs:
        model.graph.inputs.append(model.graph.initializers.pop(name))
    stored = spans(module)
    for name, initializer in model.graph.initializers.items():
        if name in stored:
            span, value = stored[name], initializer.const_value
            assert value is not None and isinstance(value.shape, ir.Shape)
            initializer.const_value = ir.ExternalTensor(
                span.file, span.offset, span.nbytes, value.dtype, shape=value.shape, name=name, base_dir=path.parent
            )
    ir.save(model, path)

"""A PyTorch module as an ONNX file whose initializers are byte ranges of the checkpoint's own files."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes

from export.modules.weights import byte_ranges
from export.repeat import Repeated

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
    layers: Sequence[nn.Module] = (),
) -> ir.Model:
    """Trace a module.

    inputs: example tensors. Sizes along dynamic axes must not be 0 or 1, which tracing takes for constants.
    dynamic_axes: for each input. Axes with the same name have the same size.
    layers: modules in it that may be alike; each kind of them is traced once (see `Repeated`).
    """
    repeated = Repeated(module, layers)
    with repeated.once(), warnings.catch_warnings():
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
            dynamic_shapes=_dynamic_shapes(dynamic_axes),
        )
    assert program is not None
    repeated.expand(program.model)
    _clean(program.model)
    return program.model


def _dynamic_shapes(
    dynamic_axes: Sequence[Axes | list[Axes]],
) -> tuple[dict[int, torch.export.Dim] | list[dict[int, torch.export.Dim]], ...]:
    """The same with one torch dimension for each name."""
    dims: dict[str, torch.export.Dim] = {}

    def dim(size: str) -> torch.export.Dim:
        factor, _, name = size.rpartition("*")
        base = dims.setdefault(name, torch.export.Dim(name))
        return int(factor) * base if factor else base

    def shape(axes: Axes) -> dict[int, torch.export.Dim]:
        return {axis: dim(size) for axis, size in axes.items()}

    return tuple([shape(each) for each in axes] if isinstance(axes, list) else shape(axes) for axes in dynamic_axes)


def _clean(model: ir.Model) -> None:
    """Remove what only the tracer needs. No pass may compute with a weight, whose bytes are not here."""
    for step in (
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.ClearMetadataAndDocStringPass(),
    ):
        step(model)


def save(model: ir.Model, module: nn.Module, path: Path, weights_as_inputs: Collection[str] = ()) -> None:
    """Write the graph next to the weights, which it references by file, offset and length.

    weights_as_inputs: names of initializers that become inputs of the graph.
    """
    for name in weights_as_inputs:
        model.graph.inputs.append(model.graph.initializers.pop(name))
    ranges = byte_ranges(module)
    for name, initializer in model.graph.initializers.items():
        if name in ranges:
            stored, value = ranges[name], initializer.const_value
            assert value is not None and isinstance(value.shape, ir.Shape)
            initializer.const_value = ir.ExternalTensor(
                stored.file, stored.offset, stored.nbytes, value.dtype, shape=value.shape, name=name,
                base_dir=path.parent,
            )  # fmt: skip
    ir.save(model, path)

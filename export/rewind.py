"""The graph that takes back rejected drafts from window buffers.

A window buffer holds the latest tokens from row 0 on, so drafts push out its earliest rows. The runtime copies these
rows before it checks drafts, and puts them back in front of the remaining rows when drafts are rejected. One graph does
both: it joins rows [start, stop) of the copy and the first rows of the buffer. To make the copy, the first part is
empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

from runtime.ort import graph_io

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
}
_ROW_AXIS = 2


def save_rewind(windows: Sequence[int | None], kv_heads: int, head_dim: int, dtype: str, path: Path) -> None:
    """Write the graph for the window buffers of these layers. windows: tokens of each; None for a layer without."""
    names = [graph_io.past_names(len(windows)), graph_io.kept_names(len(windows)), graph_io.present_names(len(windows))]
    limited = [2 * layer + part for layer, window in enumerate(windows) if window is not None for part in range(2)]
    inputs = [_rows(name) for name in (graph_io.REWIND_START, graph_io.REWIND_STOP, graph_io.REWIND_ROWS)]
    outputs, nodes = [], []
    for number in limited:
        past, kept, present = (each[number] for each in names)
        inputs += [_buffer(past, kv_heads, head_dim, dtype), _buffer(kept, kv_heads, head_dim, dtype)]
        outputs.append(_buffer(present, kv_heads, head_dim, dtype))
        # Each Slice has memory of its own, so that the joined rows may overwrite the buffer they come from.
        nodes += [
            helper.make_node(
                "Slice", [kept, graph_io.REWIND_START, graph_io.REWIND_STOP, "axis"], [f"{kept}_put_back"]
            ),
            helper.make_node("Slice", [past, "zero", graph_io.REWIND_ROWS, "axis"], [f"{past}_stays"]),
            helper.make_node("Concat", [f"{kept}_put_back", f"{past}_stays"], [present], axis=_ROW_AXIS),
        ]
    constants = [
        helper.make_tensor("axis", TensorProto.INT64, [1], [_ROW_AXIS]),
        helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
    ]
    graph = helper.make_graph(nodes, "rewind", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)


def _rows(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, [1])


def _buffer(name: str, kv_heads: int, head_dim: int, dtype: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _TYPES[dtype], [1, kv_heads, f"{name}_rows", head_dim])

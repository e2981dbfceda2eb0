"""Matrix products with packed weights at the released widths: microseconds, and the share of the bandwidth.

A graph has so many products of one shape that their weights exceed the GPU's cache: in a decoder every weight comes
from memory too. Codes are random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from bench.gpu.bench import BANDWIDTH, PRODUCT
from bench.gpu.figures import Figure
from bench.timing import timed
from runtime.ort.buffer import Buffer
from runtime.ort.sessions import Options, open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bench.gpu.bench import Bench

Dtype = Literal["float16", "bfloat16", "float32"]

SHAPES = {  # outputs, inputs
    "gate, up": (54784, 5120),
    "down": (5120, 27392),
    "q, k, v": (7168, 5120),
    "o": (5120, 5120),
    "head": (153600, 5120),
}
TINY = {"gate, up": (768, 256), "head": (512, 256)}
ROWS, TINY_ROWS = (1, 2, 4, 8, 16, 17, 32, 1024), (1, 2, 17)
BEYOND_CACHE = 256 << 20  # bytes of weights; an H100 caches 50 MB
COMPUTES = 1024  # rows from which a product is bound by arithmetic, not by memory
_TYPES = {
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
}


@dataclass(frozen=True)
class Kind:
    """How weights are packed."""

    name: str
    dtype: Dtype
    """Type of activations and scales."""
    block: int
    """Weights that share a scale."""
    nf4: bool = False

    def bits(self, shape: str) -> int:
        """Bits of a code."""
        return 8 if shape == "head" and not self.nf4 else 4

    def nbytes(self, shape: str, outputs: int, inputs: int) -> int:
        """Bytes of codes and scales that the kernel reads."""
        return outputs * inputs * self.bits(shape) // 8 + outputs * inputs // self.block * _itemsize(self.dtype)


KINDS = (
    Kind("block 128, fp16", "float16", 128),
    Kind("block 32, fp16", "float16", 32),
    Kind("block 128, bf16", "bfloat16", 128),
    Kind("block 32, bf16", "bfloat16", 32),
    Kind("NF4, fp16", "float16", 64, nf4=True),
)
CPU_KINDS = (  # the CPU has no kernels for bfloat16, and slow ones for float16
    Kind("block 128, fp32", "float32", 128),
    Kind("block 32, fp32", "float32", 32),
    Kind("NF4, fp32", "float32", 64, nf4=True),
)


def measure(bench: Bench) -> Iterator[Figure]:
    """Time every kind of weights, shape and number of rows; the most used first."""
    shapes, rows = (TINY, TINY_ROWS) if bench.tiny else (SHAPES, ROWS)
    tasks = [(kind, shape) for kind in (KINDS if bench.on_gpu else CPU_KINDS) for shape in shapes]
    for kind, shape in bench.within(tasks, seconds=0 if bench.tiny else 5):
        yield from _shape(bench, kind, shape, shapes[shape], rows)


def _shape(bench: Bench, kind: Kind, shape: str, widths: tuple[int, int], rows: tuple[int, ...]) -> Iterator[Figure]:
    outputs, inputs = widths
    stored = kind.nbytes(shape, outputs, inputs)
    copies = 2 if bench.tiny else math.ceil(BEYOND_CACHE / stored)
    path = bench.scratch / "kernels.onnx"
    save_products(path, kind, kind.bits(shape), outputs, inputs, copies)
    session = open_session(path, bench.runtime_device, Options(cutlass=kind.block == 32, capture=bench.on_gpu))
    for count in rows:
        call = _call(session, bench, kind, count, outputs, inputs, copies)
        timing = timed(call, seconds=0.0 if bench.tiny else 0.15).scaled(1 / copies)
        ceiling, work = (PRODUCT, 2 * count * outputs * inputs) if count >= COMPUTES else (BANDWIDTH, stored)
        share = bench.share_of(ceiling, work / timing.median)
        name = f"{kind.name}; {shape} [{outputs}, {inputs}], {kind.bits(shape)} bits; {count} rows"
        yield Figure.of(name, timing, "us", share=share, note=f"{ceiling}; {copies} in a call")


def _call(
    session: ort.InferenceSession, bench: Bench, kind: Kind, rows: int, outputs: int, inputs: int, copies: int
) -> Callable[[], None]:
    """Run all products once. A GPU replays them: to launch a product takes longer than some of them run."""
    binding, options = session.io_binding(), ort.RunOptions()
    if bench.on_gpu:
        options.add_run_config_entry("gpu_graph_id", str(rows))
    x = Buffer.from_array(
        np.random.default_rng(0).normal(size=(rows, inputs)).astype(np.float32), kind.dtype, bench.runtime_device
    )
    x.bind_input(binding, "x")
    held = [x, *(Buffer.empty((rows, outputs), kind.dtype, bench.runtime_device) for _ in range(copies))]
    for number, buffer in enumerate(held[1:]):
        buffer.bind_output(binding, f"y{number}")

    def run() -> None:
        assert held  # keeps the bound memory alive
        session.run_with_iobinding(binding, options)

    return run


def save_products(path: Path, kind: Kind, bits: int, outputs: int, inputs: int, copies: int) -> None:
    """Write a graph of `copies` products of x [rows, inputs] with weights of one shape, and their weights file.

    All initializers are the same bytes of that file, but ONNX Runtime gives each its own memory.
    """
    random = np.random.default_rng(0)
    groups = inputs // kind.block
    codes = random.integers(0, 256, outputs * inputs * bits // 8, np.uint8)
    magnitudes = random.uniform(0.5, 1.5, outputs * groups) * 1e-3
    scales = magnitudes.astype(ml_dtypes.bfloat16 if kind.dtype == "bfloat16" else kind.dtype)
    weights = path.with_suffix(".bin")
    weights.write_bytes(codes.tobytes() + scales.tobytes())
    flat = kind.nf4
    parts = {
        "w": ("uint8", [len(codes)] if flat else [outputs, groups, kind.block * bits // 8], 0, codes.nbytes),
        "s": (kind.dtype, [len(scales)] if flat else [outputs, groups], codes.nbytes, scales.nbytes),
    }
    attributes: dict[str, Any] = {"K": inputs, "N": outputs, "block_size": kind.block}
    attributes |= {"quant_type": 1} if flat else {"bits": bits, "accuracy_level": 1}
    operator = "MatMulBnb4" if flat else "MatMulNBits"
    nodes, initializers, results = [], [], []
    for number in range(copies):
        names = [f"{part}{number}" for part in parts]
        node = helper.make_node(operator, ["x", *names], [f"y{number}"], domain="com.microsoft", **attributes)
        nodes.append(node)
        initializers += [_stored(name, weights.name, *part) for name, part in zip(names, parts.values(), strict=True)]
        results.append(helper.make_tensor_value_info(f"y{number}", _TYPES[kind.dtype], ["rows", outputs]))
    given = [helper.make_tensor_value_info("x", _TYPES[kind.dtype], ["rows", inputs])]
    graph = helper.make_graph(nodes, "products", given, results, initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def _stored(name: str, file: str, dtype: str, shape: list[int], offset: int, length: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=_TYPES[dtype], dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _itemsize(dtype: Dtype) -> int:
    return 4 if dtype == "float32" else 2

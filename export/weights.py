"""Weights as the graph sees them: spans of bytes inside the checkpoint's own files, in whatever format they are stored.

A module built here owns buffers that know where their bytes lie. For tracing they are only shapes, without memory;
loaded, the same module runs in eager mode. Tensors that lie next to each other in one file become one buffer, which is
how q, k, v and gate, up are fused without a copy.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from calib_data.errors import InputError
from export import ops
from quantize.checkpoint import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantize.checkpoint import Checkpoint, StoredTensor

_NF4_STATE = ".weight.quant_state.bitsandbytes__nf4"


@dataclass(frozen=True)
class Span:
    """Bytes of one weights file that one initializer of a graph reads."""

    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Source:
    """Where modules take their weights from. load: read them; otherwise they are shapes without memory."""

    checkpoint: Checkpoint
    load: bool
    exact: bool = True  # False: the CPU kernel of packed weights may round activations to int8

    def tensor(self, name: str) -> StoredTensor:
        """The stored tensor of that name, or an error that says the checkpoint lacks it."""
        if name not in self.checkpoint.tensors:
            raise InputError(f"{self.checkpoint.folder}: the checkpoint has no tensor {name}; is it complete?")
        return self.checkpoint.tensors[name]


def adjacent(source: Source, names: list[str]) -> bool:
    """Whether these tensors follow each other byte by byte in one file."""
    tensors = [source.tensor(name) for name in names]
    return all(
        (b.file, b.offset, b.dtype) == (a.file, a.offset + a.nbytes, a.dtype) for a, b in itertools.pairwise(tensors)
    )


class Stored(nn.Module):
    """A module whose buffers are spans of stored bytes: `spans` by buffer name."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: dict[str, Span] = {}

    def bind(self, source: Source, buffer: str, names: list[str], shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Register a buffer over the bytes of adjacent tensors, seen with this shape and dtype."""
        tensors = [source.tensor(name) for name in names]
        span = Span(tensors[0].file.name, tensors[0].offset, sum(tensor.nbytes for tensor in tensors))
        if math.prod(shape) * dtype.itemsize != span.nbytes:
            raise InputError(f"{names[0]}: {span.nbytes} bytes stored, {list(shape)} of {dtype} expected")
        if source.load:
            parts = [source.checkpoint.load(name).reshape(-1).view(torch.uint8) for name in names]
            value = torch.cat(parts).view(dtype).reshape(shape)
        else:
            # The tracer's own operators only live on the CPU, so not the meta device: one element, seen as many.
            value = torch.zeros((), dtype=dtype).expand(shape)
        self.register_buffer(buffer, value)
        self.spans[buffer] = span


def spans(module: nn.Module) -> dict[str, Span]:
    """Spans of all stored buffers below a module, by their full name."""
    found: dict[str, Span] = {}
    for prefix, child in module.named_modules():
        if isinstance(child, Stored):
            found |= {f"{prefix}.{name}" if prefix else name: span for name, span in child.spans.items()}
    return found


class RMSNorm(Stored):
    """Root-mean-square normalisation over the last axis."""

    weight: Tensor

    def __init__(self, source: Source, name: str, eps: float) -> None:
        super().__init__()
        stored = source.tensor(f"{name}.weight")
        self.eps = eps
        self.bind(source, "weight", [stored.name], stored.shape, DTYPES[stored.dtype])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., H]."""
        return ops.rms_norm(x, self.weight.to(x.dtype), self.eps)


class _Dense(Stored):
    """16- or 32-bit weight, stored [N, K] (further axes, as a convolution over whole patches has, count as K)."""

    weight: Tensor

    def __init__(self, source: Source, names: list[str]) -> None:
        super().__init__()
        tensors = [source.tensor(f"{name}.weight") for name in names]
        rows = sum(tensor.shape[0] for tensor in tensors)
        width = math.prod(tensors[0].shape[1:])
        self.bind(source, "weight", [tensor.name for tensor in tensors], (rows, width), DTYPES[tensors[0].dtype])

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight.to(x.dtype))


class _Packed(Stored):
    """compressed-tensors `pack-quantized`, symmetric, 4 or 8 bits: byte for byte the layout of MatMulNBits."""

    weight_packed: Tensor
    weight_scale: Tensor

    def __init__(self, source: Source, names: list[str]) -> None:
        super().__init__()
        packed = [source.tensor(f"{name}.weight_packed") for name in names]
        scales = [source.tensor(f"{name}.weight_scale") for name in names]
        if f"{names[0]}.weight_zero_point" in source.checkpoint.tensors or f"{names[0]}.weight_g_idx" in (
            source.checkpoint.tensors
        ):
            raise InputError(f"{names[0]}: asymmetric or act-ordered groups are not supported; quantize symmetrically")
        width = int(source.checkpoint.load(f"{names[0]}.weight_shape")[1])
        rows, groups = sum(tensor.shape[0] for tensor in packed), scales[0].shape[1]
        self.bits = packed[0].shape[1] * 32 // width
        if self.bits not in (4, 8):
            raise InputError(f"{names[0]}: {self.bits}-bit weights; 4 and 8 are supported")
        self.accuracy_level = 1 if source.exact else 4
        blob = width // groups * self.bits // 8
        self.bind(source, "weight_packed", [tensor.name for tensor in packed], (rows, groups, blob), torch.uint8)
        self.bind(source, "weight_scale", [t.name for t in scales], (rows, groups), DTYPES[scales[0].dtype])

    def forward(self, x: Tensor) -> Tensor:
        return ops.matmul_nbits(x, self.weight_packed, self.weight_scale.to(x.dtype), self.bits, self.accuracy_level)


class _Nf4(Stored):
    """bitsandbytes NF4 without double quantization: byte for byte the layout of MatMulBnb4."""

    weight: Tensor
    absmax: Tensor

    def __init__(self, source: Source, names: list[str]) -> None:
        super().__init__()
        if f"{names[0]}.weight.nested_absmax" in source.checkpoint.tensors:
            raise InputError(f"{names[0]}: NF4 with double quantization is not supported; quantize without it")
        shapes = [_nf4_shape(source, name) for name in names]
        self.rows, self.width = sum(rows for rows, _ in shapes), shapes[0][1]
        weights = [f"{name}.weight" for name in names]
        absmax = [f"{name}.weight.absmax" for name in names]
        blocks = sum(math.prod(source.tensor(name).shape) for name in absmax)
        self.block_size = self.rows * self.width // blocks
        self.bind(source, "weight", weights, (self.rows * self.width // 2,), torch.uint8)
        self.bind(source, "absmax", absmax, (blocks,), torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return ops.matmul_nf4(x, self.weight, self.absmax.to(x.dtype), self.rows, self.width, self.block_size)


def _nf4_shape(source: Source, name: str) -> tuple[int, int]:
    state = json.loads(bytes(source.checkpoint.load(name + _NF4_STATE).tolist()))
    rows, width = state["shape"]
    return rows, width


class Bias(Stored):
    """A bias added to the last axis."""

    bias: Tensor

    def __init__(self, source: Source, names: list[str]) -> None:
        super().__init__()
        tensors = [source.tensor(f"{name}.bias") for name in names]
        rows = sum(tensor.shape[0] for tensor in tensors)
        self.bind(source, "bias", [tensor.name for tensor in tensors], (rows,), DTYPES[tensors[0].dtype])

    def forward(self, x: Tensor) -> Tensor:
        """Add the bias to x [..., N]."""
        return x + self.bias.to(x.dtype)


def _weight_module(source: Source, names: list[str]) -> Stored:
    if f"{names[0]}.qweight" in source.checkpoint.tensors:
        raise InputError(
            f"{source.checkpoint.folder}: stored as qweight (GPTQ or AWQ), a format for other tools; for a folder to "
            "export, run on the original checkpoint: python -m quantize --model ORIGINAL --bits 4"
        )
    if f"{names[0]}.weight_packed" in source.checkpoint.tensors:
        return _Packed(source, names)
    if f"{names[0]}{_NF4_STATE}" in source.checkpoint.tensors:
        return _Nf4(source, names)
    return _Dense(source, names)


def _stored_names(source: Source, names: list[str]) -> Iterator[list[str]]:
    """The tensors that must be adjacent for these linears to be one matrix product, one list a kind."""
    tensors = source.checkpoint.tensors
    for suffix in (".weight_packed", ".weight_scale", ".weight", ".weight.absmax", ".bias"):
        if names[0] + suffix in tensors:
            yield [name + suffix for name in names]


class Linear(nn.Module):
    """Linear layers that read the same input: one matrix product where their tensors are neighbours in the file."""

    def __init__(self, source: Source, *names: str) -> None:
        super().__init__()
        together = all(adjacent(source, stored) for stored in _stored_names(source, list(names)))
        parts = [list(names)] if together else [[name] for name in names]
        self.products = nn.ModuleList(_weight_module(source, part) for part in parts)
        has_bias = f"{names[0]}.bias" in source.checkpoint.tensors
        self.biases = nn.ModuleList(Bias(source, part) for part in parts) if has_bias else None
        self.widths = [_output_width(source, name) for name in names]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., K] to one output [..., N] per name."""
        outputs = [product(x) for product in self.products]
        if self.biases is not None:
            outputs = [bias(output) for bias, output in zip(self.biases, outputs, strict=True)]
        return ops.split(outputs[0], self.widths) if len(outputs) < len(self.widths) else tuple(outputs)


def _output_width(source: Source, name: str) -> int:
    if f"{name}{_NF4_STATE}" in source.checkpoint.tensors:
        return _nf4_shape(source, name)[0]
    packed = source.checkpoint.tensors.get(f"{name}.weight_packed")
    return packed.shape[0] if packed else source.tensor(f"{name}.weight").shape[0]

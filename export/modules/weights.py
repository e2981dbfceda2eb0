"""Weights as the graph sees them: spans of bytes inside the checkpoint's own files, in whatever format they are stored.

A module built here owns buffers that know where their bytes lie. For tracing they are only shapes, without memory;
loaded, the same module runs in eager mode. Tensors that lie next to each other in one file become one buffer, which is
how q, k, v and gate, up are fused without a copy.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from console.errors import InputError
from export.formats import Format, check_config, floating, read_format
from export.modules import ops
from quantize.checkpoint.reader import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from quantize.checkpoint.reader import Checkpoint, StoredTensor


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
    block_size: int | None = None  # of packed weights in graphs, whose scales are repeated; None: as stored

    def __post_init__(self) -> None:
        check_config(self.checkpoint)

    def tensor(self, name: str) -> StoredTensor:
        """The stored tensor of that name, or an error that says the checkpoint lacks it."""
        return self.checkpoint.tensor(name)


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

    def fill(self, folder: Path) -> None:
        """Read what `bind` was told of; the module was made without memory."""
        for name, span in self.spans.items():
            shape = self.get_buffer(name)
            raw = torch.empty(span.nbytes, dtype=torch.uint8)
            with (folder / span.file).open("rb") as file:
                file.seek(span.offset)
                file.readinto(raw.numpy().data)
            setattr(self, name, raw.view(shape.dtype).reshape(shape.shape))

    def free(self) -> None:
        """Become shapes without memory again."""
        for name in self.spans:
            value = self.get_buffer(name)
            setattr(self, name, torch.zeros((), dtype=value.dtype).expand(value.shape))


def read_when_used(module: nn.Module, folder: Path) -> None:
    """Let a module without memory run in eager mode: weights are read when their turn comes, and freed after it."""
    for child in module.modules():
        if isinstance(child, Stored):
            child.register_forward_pre_hook(lambda stored, _: stored.fill(folder))
            child.register_forward_hook(lambda stored, *_: stored.free())


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
        stored = floating(source.tensor(f"{name}.weight"))
        self.eps = eps
        self.bind(source, "weight", [stored.name], stored.shape, DTYPES[stored.dtype])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., H]."""
        return ops.rms_norm(x, self.weight.to(x.dtype), self.eps)


class _Dense(Stored):
    """16- or 32-bit weight, stored [N, K] (further axes, as a convolution over whole patches has, count as K)."""

    weight: Tensor

    def __init__(self, source: Source, names: list[str], rows: int, stored: Format) -> None:
        super().__init__()
        weights = [f"{name}.weight" for name in names]
        self.bind(source, "weight", weights, (rows, stored.width), DTYPES[source.tensor(weights[0]).dtype])

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight.to(x.dtype))


class _Packed(Stored):
    """compressed-tensors `pack-quantized`, symmetric, 4 or 8 bits: byte for byte the layout of MatMulNBits."""

    weight_packed: Tensor
    weight_scale: Tensor

    def __init__(self, source: Source, names: list[str], rows: int, stored: Format) -> None:
        super().__init__()
        scales = [f"{name}.weight_scale" for name in names]
        self.bits, self.accuracy_level = stored.bits, ops.EXACT if source.exact else ops.INT8
        self.repeats = _repeats(source.block_size, rows, stored)
        groups, block = stored.width // stored.block, stored.block // self.repeats
        codes = (rows, stored.width // block, block * stored.bits // 8)
        self.bind(source, "weight_packed", [f"{name}.weight_packed" for name in names], codes, torch.uint8)
        self.bind(source, "weight_scale", scales, (rows, groups), DTYPES[source.tensor(scales[0]).dtype])

    def forward(self, x: Tensor) -> Tensor:
        scales = self.weight_scale.to(x.dtype)
        if self.repeats > 1:  # ONNX Runtime folds Concat as it loads; Expand has no bfloat16 kernel to fold with
            scales = ops.reshape(torch.stack([scales] * self.repeats, dim=-1), 0, -1)
        return ops.matmul_nbits(x, self.weight_packed, scales, self.bits, self.accuracy_level)


def _repeats(block: int | None, rows: int, stored: Format) -> int:
    """How often each scale is repeated; once where ONNX Runtime's CUTLASS kernels do not take so many rows."""
    if block is None or stored.block % block or rows % (64 if stored.bits == 4 else 32):
        return 1
    return stored.block // block


class _Nf4(Stored):
    """bitsandbytes NF4 without double quantization: byte for byte the layout of MatMulBnb4."""

    weight: Tensor
    absmax: Tensor

    def __init__(self, source: Source, names: list[str], rows: int, stored: Format) -> None:
        super().__init__()
        self.rows, self.width, self.block_size = rows, stored.width, stored.block
        codes, blocks = rows * stored.width, rows * stored.width // stored.block
        self.bind(source, "weight", [f"{name}.weight" for name in names], (codes // 2,), torch.uint8)
        self.bind(source, "absmax", [f"{name}.weight.absmax" for name in names], (blocks,), torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return ops.matmul_nf4(x, self.weight, self.absmax.to(x.dtype), self.rows, self.width, self.block_size)


class Bias(Stored):
    """A bias added to the last axis."""

    bias: Tensor

    def __init__(self, source: Source, names: list[str]) -> None:
        super().__init__()
        tensors = [floating(source.tensor(f"{name}.bias")) for name in names]
        rows = sum(tensor.shape[0] for tensor in tensors)
        self.bind(source, "bias", [tensor.name for tensor in tensors], (rows,), DTYPES[tensors[0].dtype])

    def forward(self, x: Tensor) -> Tensor:
        """Add the bias to x [..., N]."""
        return x + self.bias.to(x.dtype)


_MODULES: dict[str, Callable[[Source, list[str], int, Format], Stored]] = {
    "dense": _Dense,
    "packed": _Packed,
    "nf4": _Nf4,
}
_FUSED = {
    "dense": (".weight",),
    "packed": (".weight_packed", ".weight_scale"),
    "nf4": (".weight", ".weight.absmax"),
}
"""Tensors of each kind that must be adjacent for several linears to be one matrix product."""


class Linear(nn.Module):
    """Linear layers that read the same input: one matrix product where their tensors are neighbours of one format."""

    def __init__(self, source: Source, *names: str) -> None:
        super().__init__()
        found = [read_format(source.checkpoint, name) for name in names]
        self.widths = [rows for rows, _ in found]
        if _one_product(source, names, [stored for _, stored in found]):
            parts = [(list(names), sum(self.widths), found[0][1])]
        else:
            parts = [([name], rows, stored) for name, (rows, stored) in zip(names, found, strict=True)]
        self.products = nn.ModuleList(_MODULES[stored.kind](source, part, rows, stored) for part, rows, stored in parts)
        self.biases = nn.ModuleList(Bias(source, part) if s.has_bias else nn.Identity() for part, _, s in parts)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., K] to one output [..., N] per name."""
        outputs = [bias(product(x)) for product, bias in zip(self.products, self.biases, strict=True)]
        return ops.split(outputs[0], self.widths) if len(outputs) < len(self.widths) else tuple(outputs)


def _one_product(source: Source, names: Sequence[str], formats: list[Format]) -> bool:
    suffixes = [*_FUSED[formats[0].kind], *([".bias"] if formats[0].has_bias else [])]
    return len(set(formats)) == 1 and all(adjacent(source, [name + end for name in names]) for end in suffixes)

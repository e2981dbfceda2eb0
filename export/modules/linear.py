"""Normalisation and linear layers over stored weights, in each of their formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from export.formats import Format, read_format, require_float
from export.modules.basic_ops import reshape, rms_norm, split
from export.modules.products import EXACT, INT8, matmul_dense, matmul_nbits, matmul_nf4
from export.modules.weights import Source, StoredModule, contiguous
from runtime.sizes import fits_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class RMSNorm(StoredModule):
    """Root-mean-square normalisation over the last axis."""

    weight: Tensor

    def __init__(self, source: Source, name: str, eps: float) -> None:
        super().__init__()
        stored = require_float(source.checkpoint.tensor(f"{name}.weight"))
        self.eps = eps
        self.register_stored(source, "weight", [stored.name], stored.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., H]."""
        return rms_norm(x, self.weight.to(x.dtype), self.eps)


class _Dense(StoredModule):
    """16- or 32-bit weight, stored [N, K] (further axes, as a convolution over whole patches has, count as K)."""

    weight: Tensor

    def __init__(self, source: Source, names: list[str], rows: int, stored: Format) -> None:
        super().__init__()
        weights = [f"{name}.weight" for name in names]
        self.register_stored(source, "weight", weights, (rows, stored.width))

    def forward(self, x: Tensor) -> Tensor:
        return matmul_dense(x, self.weight.to(x.dtype))


class _Packed(StoredModule):
    """compressed-tensors `pack-quantized`, symmetric, 4 or 8 bits: byte for byte the layout of MatMulNBits."""

    weight_packed: Tensor
    weight_scale: Tensor

    def __init__(self, source: Source, names: list[str], rows: int, stored: Format) -> None:
        super().__init__()
        scales = [f"{name}.weight_scale" for name in names]
        self.bits, self.accuracy_level = stored.bits, EXACT if source.exact else INT8
        self.repeats = _repeats(source.block_size, rows, stored)
        groups, block = stored.width // stored.block, stored.block // self.repeats
        codes = (rows, stored.width // block, block * stored.bits // 8)
        self.register_stored(source, "weight_packed", [f"{name}.weight_packed" for name in names], codes, torch.uint8)
        self.register_stored(source, "weight_scale", scales, (rows, groups))

    def forward(self, x: Tensor) -> Tensor:
        scales = self.weight_scale.to(x.dtype)
        if self.repeats > 1:  # ONNX Runtime folds Concat as it loads; Expand has no bfloat16 kernel to fold with
            scales = reshape(torch.stack([scales] * self.repeats, dim=-1), 0, -1)
        return matmul_nbits(x, self.weight_packed, scales, self.bits, self.accuracy_level)


def _repeats(block: int | None, rows: int, stored: Format) -> int:
    """How often each scale is repeated; once where ONNX Runtime's CUTLASS kernels do not take this number of rows."""
    if block is None or not fits_blocks(rows, stored.bits, stored.block):
        return 1
    return stored.block // block


class _Nf4(StoredModule):
    """bitsandbytes NF4 without double quantization: byte for byte the layout of MatMulBnb4."""

    weight: Tensor
    absmax: Tensor

    def __init__(self, source: Source, names: list[str], rows: int, stored: Format) -> None:
        super().__init__()
        self.rows, self.width, self.block_size = rows, stored.width, stored.block
        codes, blocks = rows * stored.width, rows * stored.width // stored.block
        self.register_stored(source, "weight", [f"{name}.weight" for name in names], (codes // 2,), torch.uint8)
        self.register_stored(source, "absmax", [f"{name}.weight.absmax" for name in names], (blocks,), torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return matmul_nf4(x, self.weight, self.absmax.to(x.dtype), self.rows, self.width, self.block_size)


class Bias(StoredModule):
    """A bias added to the last axis."""

    bias: Tensor

    def __init__(self, source: Source, names: list[str]) -> None:
        super().__init__()
        tensors = [require_float(source.checkpoint.tensor(f"{name}.bias")) for name in names]
        rows = sum(tensor.shape[0] for tensor in tensors)
        self.register_stored(source, "bias", [tensor.name for tensor in tensors], (rows,))

    def forward(self, x: Tensor) -> Tensor:
        """Add the bias to x [..., N]."""
        return x + self.bias.to(x.dtype)


_MODULES: dict[str, Callable[[Source, list[str], int, Format], StoredModule]] = {
    "dense": _Dense,
    "packed": _Packed,
    "nf4": _Nf4,
}
_FUSED = {
    "dense": (".weight",),
    "packed": (".weight_packed", ".weight_scale"),
    "nf4": (".weight", ".weight.absmax"),
}
"""Tensors of each kind that must be contiguous for several linear layers to be one matrix product."""


class Linear(nn.Module):
    """Linear layers of one input: one matrix product where their tensors are contiguous and of one format."""

    def __init__(self, source: Source, *names: str) -> None:
        super().__init__()
        stored_as = [read_format(source.checkpoint, name) for name in names]
        self.widths = [rows for rows, _ in stored_as]
        if _can_fuse(source, names, [stored for _, stored in stored_as]):
            parts = [(list(names), sum(self.widths), stored_as[0][1])]
        else:
            parts = [([name], rows, stored) for name, (rows, stored) in zip(names, stored_as, strict=True)]
        self.products = nn.ModuleList(_MODULES[stored.kind](source, part, rows, stored) for part, rows, stored in parts)
        self.biases = nn.ModuleList(Bias(source, part) if s.has_bias else nn.Identity() for part, _, s in parts)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., K] to one output [..., N] per name."""
        outputs = [bias(product(x)) for product, bias in zip(self.products, self.biases, strict=True)]
        return split(outputs[0], self.widths) if len(outputs) < len(self.widths) else tuple(outputs)


def _can_fuse(source: Source, names: Sequence[str], formats: list[Format]) -> bool:
    suffixes = [*_FUSED[formats[0].kind], *([".bias"] if formats[0].has_bias else [])]
    return len(set(formats)) == 1 and all(contiguous(source, [name + end for name in names]) for end in suffixes)

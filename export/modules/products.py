"""Products of activations with 16/32-bit, packed 4/8-bit and NF4 weights, one ONNX node each (see `basic_ops`)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from export.modules import products_16bit
from quantize.solver.quantizers import NF4_VALUES, ROWS

EXACT, INT8 = 1, 4
"""MatMulNBits' accuracy_level: keep activations as they are, or let the CPU kernel round them to int8."""
_NF4 = 1  # MatMulBnb4's quant_type


def matmul_dense(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., K] times weight [N, K] transposed. The node has a flag for that, so no transposed copy exists."""
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            "com.microsoft::FusedMatMul",
            (x, weight),
            {"transA": 0, "transB": 1, "alpha": 1.0},
            dtype=x.dtype,
            shape=(*x.shape[:-1], weight.shape[0]),
            version=1,
        )
    return F.linear(x, weight)


def matmul_nbits(x: Tensor, packed: Tensor, scales: Tensor, bits: int, accuracy_level: int) -> Tensor:
    """x [..., K] times a symmetric 4/8-bit weight, transposed.

    packed: uint8 [N, K/group, group*bits/8], lowest bits first, zero point 2^(bits-1). scales: [N, K/group], x's dtype.
    accuracy_level: EXACT or INT8, which rounds x in groups as long as those of the weight.
    """
    n, groups, blob = packed.shape
    group_size = blob * 8 // bits
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            (x, packed, scales),
            {
                "N": n,
                "K": groups * group_size,
                "bits": bits,
                "block_size": group_size,
                "accuracy_level": accuracy_level,
            },
            dtype=x.dtype,
            shape=(*x.shape[:-1], n),
            version=1,
        )
    if accuracy_level == INT8:
        x = _rounded_to_int8(x, group_size)
    multiply, outputs = products_16bit.linear if bits == 4 else F.linear, []
    for rows, scale in zip(packed.split(ROWS), scales.split(ROWS), strict=True):
        codes = rows if bits == 8 else torch.stack((rows & 15, rows >> 4), dim=-1).reshape(-1, groups, group_size)
        weight = codes.to(scale.dtype).sub_(2 ** (bits - 1)).mul_(scale.unsqueeze(-1))
        outputs.append(multiply(x, weight.reshape(-1, groups * group_size)))
    return torch.cat(outputs, dim=-1)


def _rounded_to_int8(x: Tensor, group_size: int) -> Tensor:
    """Activations as the CPU kernel rounds them: 127 steps up to the largest magnitude of each group."""
    groups = x.unflatten(-1, (-1, group_size))
    step = groups.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny) / 127
    return ((groups / step).round() * step).flatten(-2)


def matmul_nf4(x: Tensor, packed: Tensor, absmax: Tensor, n: int, k: int, block_size: int) -> Tensor:
    """x [..., K] times an NF4 weight, transposed.

    packed: uint8 [N*K/2], high nibble first, row-major over [N, K]. absmax: [N*K/block_size], x's dtype.
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            "com.microsoft::MatMulBnb4",
            (x, packed, absmax),
            {"N": n, "K": k, "block_size": block_size, "quant_type": _NF4},
            dtype=x.dtype,
            shape=(*x.shape[:-1], n),
            version=1,
        )
    codes = torch.stack((packed >> 4, packed & 15), dim=-1).reshape(-1, block_size).long()
    levels = torch.tensor(NF4_VALUES, dtype=absmax.dtype, device=absmax.device)
    return F.linear(x, (levels[codes] * absmax.unsqueeze(-1)).reshape(n, k))

"""Normalisation and changes of shape as functions.

In all `export.modules`, such a function becomes one ONNX node while a graph is traced and is plain PyTorch arithmetic
otherwise. So an exported module also runs in eager mode, and tests compare ONNX Runtime's kernels with this arithmetic.
Schemas of the contrib operators: docs/ContribOperators.md of onnxruntime 1.31.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation over the last axis, computed in float32; x [..., H], weight [H]."""
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            "::SimplifiedLayerNormalization",
            (x, weight),
            {"axis": -1, "epsilon": eps, "stash_type": 1},
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def split(x: Tensor, widths: list[int]) -> tuple[Tensor, ...]:
    """Split the last axis into pieces of these widths.

    torch's own export makes a sequence, which has no CUDA kernels.
    """
    if torch.onnx.is_in_onnx_export():
        return tuple(
            torch.onnx.ops.symbolic_multi_out(
                "::Split",
                (x, torch.tensor(widths, dtype=torch.int64)),
                {"axis": -1},
                dtypes=[x.dtype] * len(widths),
                shapes=[(*x.shape[:-1], width) for width in widths],
                version=18,
            )
        )
    return x.split(widths, dim=-1)


def reshape(x: Tensor, *shape: int) -> Tensor:
    """Reshape to a constant shape; 0 keeps the size of an axis, -1 infers it.

    torch's own export computes dynamic sizes with several nodes, which run on the host.
    """
    sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    if -1 in sizes:
        sizes[sizes.index(-1)] = x.numel() // -math.prod(sizes)
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            "::Reshape", (x, torch.tensor(shape, dtype=torch.int64)), dtype=x.dtype, shape=sizes, version=14
        )
    return x.reshape(sizes)


def select_positions(x: Tensor, index: Tensor) -> Tensor:
    """Select rows of x [B, T, H] at the positions index [B, L]; [B, L, H]."""
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            "::GatherND",
            (x, index.unsqueeze(-1)),
            {"batch_dims": 1},
            dtype=x.dtype,
            shape=(*index.shape, x.shape[-1]),
            version=13,
        )
    return torch.gather(x, 1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

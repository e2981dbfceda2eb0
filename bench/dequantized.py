"""Dequantize the weights of a folder by the published layouts, with their own libraries and none of our code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

from quantize.checkpoint.reader import open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from quantize.checkpoint.reader import Checkpoint


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """All quantized weights [N, K] (float32) of a folder, by name: `pack-quantized` integers, or bitsandbytes NF4."""
    checkpoint, weights = open_checkpoint(folder), {}
    for name in checkpoint.tensors:
        if name.endswith(".weight_packed"):
            weights[name.removesuffix("_packed")] = _integers(checkpoint, name.removesuffix("_packed"))
        elif name.endswith(".weight.absmax"):
            weights[name.removesuffix(".absmax")] = _nf4(checkpoint, name.removesuffix(".absmax"))
    return weights


def _integers(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    N, K = checkpoint.load(f"{name}_shape").tolist()
    packed, scales = checkpoint.load(f"{name}_packed"), checkpoint.load(f"{name}_scale", torch.float32)
    bits = packed.shape[1] * 32 // K
    codes = unpack_from_int32(packed, bits, torch.Size((N, K)))
    weight: torch.Tensor = (codes.view(N, scales.shape[1], -1) * scales[..., None]).view(N, K)
    return weight


def _nf4(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    parts = {key: checkpoint.load(key) for key in checkpoint.tensors if key.startswith(f"{name}.")}
    state = QuantState.from_dict(parts, device="cpu")
    state.dtype = torch.float32
    weight: torch.Tensor = dequantize_4bit(checkpoint.load(name), state)
    return weight

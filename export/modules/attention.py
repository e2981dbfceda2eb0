"""Softmax attention in plain PyTorch, with the precision of ONNX Runtime's kernels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, heads*D] to [B, heads, T, D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Grouped-query softmax attention, [B, heads, T, D] by [B, kv_heads, S, D] to [B, T, heads*D].

    allowed: bool, broadcast to [B, 1, T, S].
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = (q.float() @ k.float().transpose(-1, -2)) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1).nan_to_num()  # a padded row may see no key at all
    attended = weights.to(v.dtype).float() @ v.float()  # flash kernels multiply 16-bit weights
    return attended.to(v.dtype).transpose(1, 2).flatten(-2)

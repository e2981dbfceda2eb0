"""Attention of the vision encoder within windows or frames of unequal size: right-padded rows of a batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from export.modules.attention import attend, split_heads
from export.modules.basic_ops import reshape

if TYPE_CHECKING:
    from collections.abc import Sequence

_MASKED, _MASKED_16BIT = -1e30, -6e4  # scores whose softmax is 0; the second fits float16
_CUDA_WIDTHS = 8  # CUDA's GroupQueryAttention takes head widths that are multiples of this


class Rows(NamedTuple):
    """Patches as right-padded rows of a batch, so that one attention operator takes windows or frames of any size."""

    slots: Tensor
    """int64 [rows, T]: the patch in each slot; an arbitrary one in padding."""
    padding: Tensor
    """[rows, T], dtype of the patches: 0 for a patch, a large negative number in padding."""
    lengths: Tensor
    """int32 [rows]: number of patches."""
    longest: Tensor
    """int32 scalar on the host: T."""
    scatter: Tensor
    """int64 [P]: the slot of each patch among rows * T."""

    @classmethod
    def from_gather(cls, gather: Tensor, lengths: Tensor, longest: Tensor, scatter: Tensor, dtype: torch.dtype) -> Rows:
        """Make rows from gather [rows, T], which is negative in padding."""
        padding = (gather < 0).to(dtype) * (_MASKED if dtype == torch.float32 else _MASKED_16BIT)
        return cls(gather.clamp(min=0), padding, lengths, longest, scatter)


def padded_attention(q: Tensor, k: Tensor, v: Tensor, rows: Rows, head_dim: int, *, on_cuda: bool) -> Tensor:
    """Bidirectional attention within right-padded rows (GroupQueryAttention, causal=0).

    q [rows, T, heads*D], k and v [rows, T, kv_heads*D]. Returns [P, heads*D].
    The CPU kernel reads the lengths, and holds the T x T scores of all heads. The CUDA kernel ignores the lengths of a
    call without a past. So on CUDA padding is marked as in `flash_attention`, in 8 extra channels, because head widths
    must be multiples of 8.
    """
    if not torch.onnx.is_in_onnx_export():
        return _in_torch(q, k, v, rows, head_dim)
    heads, kv_heads, width = q.shape[-1] // head_dim, k.shape[-1] // head_dim, head_dim
    if on_cuda:
        width += _CUDA_WIDTHS
        q, k = _mark_padding(q, k, rows.padding, head_dim, _CUDA_WIDTHS)
        v = _widen(v, rows.padding * 0, head_dim, _CUDA_WIDTHS)
        q, k, v = (reshape(x, 0, 0, -1) for x in (q, k, v))
    cache_shape = (k.shape[0], kv_heads, k.shape[1], width)
    output, *cache = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (q, k, v, None, None, rows.lengths - 1, rows.longest),
        {"num_heads": heads, "kv_num_heads": kv_heads, "causal": 0, "scale": 1 / math.sqrt(head_dim)},
        dtypes=(q.dtype, k.dtype, v.dtype),
        shapes=(q.shape, cache_shape, cache_shape),
        version=1,
    )
    output = reshape(output, -1, heads * width).index_select(0, _consume(cache, rows.scatter))
    if on_cuda:
        output = reshape(reshape(output, 0, heads, width)[..., :head_dim], 0, -1)
    return output


def flash_attention(q: Tensor, k: Tensor, v: Tensor, rows: Rows, head_dim: int) -> Tensor:
    """`padded_attention` for the CPU without a T x T tensor (MultiHeadAttention); same arguments.

    MultiHeadAttention's own padding mask would make that tensor, so padding is marked in one extra channel. KV heads
    are repeated.
    """
    if not torch.onnx.is_in_onnx_export():
        return _in_torch(q, k, v, rows, head_dim)
    heads, kv_heads = q.shape[-1] // head_dim, k.shape[-1] // head_dim
    wide_q, wide_k = _mark_padding(q, k, rows.padding, head_dim, 1)
    k, v = (
        reshape(x.unsqueeze(3).expand(-1, -1, -1, heads // kv_heads, -1), 0, 0, -1)
        for x in (wide_k, reshape(v, 0, 0, kv_heads, head_dim))
    )
    output = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (reshape(wide_q, 0, 0, -1), k, v),
        {"num_heads": heads, "scale": 1 / math.sqrt(head_dim)},
        dtype=q.dtype,
        shape=q.shape,
        version=1,
    )
    return reshape(output, -1, q.shape[-1]).index_select(0, rows.scatter)


def _in_torch(q: Tensor, k: Tensor, v: Tensor, rows: Rows, head_dim: int) -> Tensor:
    """Both functions in PyTorch."""
    q, k, v = (split_heads(x, x.shape[-1] // head_dim) for x in (q, k, v))
    return attend(q, k, v, rows.padding[:, None, None, :] == 0).flatten(0, 1)[rows.scatter]


def _mark_padding(q: Tensor, k: Tensor, padding: Tensor, head_dim: int, channels: int) -> tuple[Tensor, Tensor]:
    """Add channels to the heads of q and k so that the weight of padding is 0: 1 in q, `padding` in k.

    Returns [rows, T, heads, D + channels] each.
    """
    return _widen(q, padding * 0 + 1, head_dim, channels), _widen(k, padding, head_dim, channels)


def _widen(x: Tensor, values: Tensor, head_dim: int, channels: int) -> Tensor:
    """Append channels with these values [rows, T] to each head of x [rows, T, heads*D].

    Returns [rows, T, heads, D + channels].
    """
    heads = x.shape[-1] // head_dim
    more = values[:, :, None, None] + torch.zeros(heads, channels, dtype=x.dtype)
    return torch.cat((reshape(x, 0, 0, heads, head_dim), more), dim=-1)


def _consume(unused: Sequence[Tensor], index: Tensor) -> Tensor:
    """Return `index` through a node that also reads zero rows of each of `unused`; only while tracing.

    CUDA's attention must write keys and values, and ONNX Runtime keeps an output that nothing reads until the run
    ends. At 33 B that is 32 MiB for each vision block, most of a gigabyte in all.
    """
    zero = torch.tensor([0], dtype=torch.int64)
    parts = [index]
    for x in unused:
        shape = (0, *x.shape[1:])
        empty = torch.onnx.ops.symbolic("::Slice", (x, zero, zero, zero), dtype=x.dtype, shape=shape, version=13)
        to: dict[str, Any] = {"to": 7}  # TensorProto.INT64
        parts.append(
            torch.onnx.ops.symbolic("::Cast", (reshape(empty, -1),), to, dtype=torch.int64, shape=(0,), version=13)
        )
    return torch.onnx.ops.symbolic("::Concat", parts, {"axis": 0}, dtype=index.dtype, shape=index.shape, version=13)

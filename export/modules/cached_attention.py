"""Attention of the decoder and the MTP layer over a KV cache (ONNX Runtime's GroupQueryAttention)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from export.modules.attention import attend, split_heads

KvScales = tuple[Tensor, Tensor]
"""Step sizes of int8 keys and of int8 values, each float32 [1, kv_heads, 1, D]."""


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    seqlens_k: Tensor,
    total_sequence_length: Tensor,
    rope: tuple[Tensor, Tensor] | None,
    window: int | None,
    kv_scales: KvScales | None = None,
    *,
    full_buffers: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal grouped-query attention over KV buffers, which it also extends.

    q: [B, T, heads*D].
    k, v: [B, T, kv_heads*D].
    past_key, past_value: [B, kv_heads, S, D], S the capacity.
    seqlens_k: int32 [B], number of tokens after this step, less one.
    total_sequence_length: int32 scalar, the longest row's tokens after this step.
    rope: cos and sin [context, D/2]; None for a layer without positions.
    window: number of keys that a query sees, its own included; None for all. The buffers of a layer with a window hold
        the most recent tokens from row 0 on, so a capacity of one window is enough.
    kv_scales: step size of each channel, where the buffers are int8.
    full_buffers: buffers of a layer with a window keep all tokens, too.
    Returns the output [B, T, heads*D] and the buffers after the step.
    """
    if torch.onnx.is_in_onnx_export():
        inputs = [q, k, v, past_key, past_value, seqlens_k, total_sequence_length, *(rope or (None, None))]
        return _node(inputs, past_key, window, kv_scales, full_buffers=full_buffers)
    kv_heads, head_dim = past_key.shape[1], past_key.shape[3]
    queries = split_heads(q, q.shape[-1] // head_dim)
    keys, values = split_heads(k, kv_heads), split_heads(v, kv_heads)
    new_key, new_value = past_key.clone(), past_value.clone()
    outputs = []
    for row in range(q.shape[0]):
        sequence = slice(row, row + 1)
        total = int(seqlens_k[row]) + 1
        tensors = (queries[sequence], keys[sequence], values[sequence], new_key[sequence], new_value[sequence])
        outputs.append(_attend_row(*tensors, total, rope, window, kv_scales))
    return torch.cat(outputs), new_key, new_value


def _node(
    inputs: list[Tensor | None],
    past_key: Tensor,
    window: int | None,
    kv_scales: KvScales | None,
    *,
    full_buffers: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The GroupQueryAttention node of `cached_attention`. inputs: its first nine."""
    q, has_rope = inputs[0], inputs[-1] is not None
    assert q is not None
    kv_heads, head_dim = past_key.shape[1], past_key.shape[3]
    attributes: dict[str, Any] = {
        "num_heads": q.shape[-1] // head_dim,
        "kv_num_heads": kv_heads,
        "do_rotary": int(has_rope),
    }
    if window is not None:
        attributes |= {"local_window_size": window, "sliding_window_cache": int(not full_buffers)}
    if kv_scales is not None:
        attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        inputs = [*inputs, None, None, None, *kv_scales]  # no position ids, bias or sinks
    output, key, value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        inputs,
        attributes,
        dtypes=(q.dtype, past_key.dtype, past_key.dtype),
        shapes=(q.shape, past_key.shape, past_key.shape),
        version=1,
    )
    return output, key, value


def _attend_row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_buffer: Tensor,
    value_buffer: Tensor,
    total: int,
    rope: tuple[Tensor, Tensor] | None,
    window: int | None,
    kv_scales: KvScales | None,
) -> Tensor:
    """`cached_attention` in PyTorch for one sequence of `total` tokens; writes its buffers in place."""
    capacity, before = key_buffer.shape[2], total - q.shape[2]
    positions = torch.arange(before, total).unsqueeze(0)
    if rope is not None:
        q, k = rotate(q, positions, *rope), rotate(k, positions, *rope)
    if kv_scales is not None:
        k, v = _to_int8(k, kv_scales[0]), _to_int8(v, kv_scales[1])
    kept = before if window is None else resident(before, capacity, window)
    keys = torch.cat((key_buffer[:, :, :kept], k), dim=2)
    values = torch.cat((value_buffer[:, :, :kept], v), dim=2)
    distance = positions[0].unsqueeze(1) - torch.arange(before - kept, total)
    allowed = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    stay = total if window is None else resident(total, capacity, window)
    key_buffer[:, :, :stay], value_buffer[:, :, :stay] = keys[:, :, -stay:], values[:, :, -stay:]
    if kv_scales is not None:
        keys, values = keys * kv_scales[0], values * kv_scales[1]
    return attend(q, keys.to(q.dtype), values.to(q.dtype), allowed)


def rotate(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in the half-split layout, in float32; x [B, heads, T, D], positions [B, T], cos/sin [context, D/2]."""
    c, s = cos[positions].unsqueeze(1).float(), sin[positions].unsqueeze(1).float()
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * c - second * s, second * c + first * s), dim=-1).to(x.dtype)


def _to_int8(x: Tensor, scale: Tensor) -> Tensor:
    return (x / scale).round().clamp(-128, 127).to(torch.int8)


def resident(total: int, capacity: int, window: int) -> int:
    """Number of the latest tokens that a window buffer holds after `total` tokens (GroupQueryAttention's L(T))."""
    if total <= capacity:
        return total
    step = capacity - window + 1
    return total - step * -(-(total - capacity) // step)

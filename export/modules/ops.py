"""ONNX Runtime's operators as functions: one node each while a graph is traced, plain torch arithmetic otherwise.

Because both sides of a function live side by side, an exported module also runs in eager mode, and the tests hold
ONNX Runtime's kernels against the torch arithmetic written here. Schemas: the contrib operators of onnxruntime 1.31
(docs/ContribOperators.md of that project).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from export.modules import half
from quantize.solver.quantizers import NF4_VALUES, ROWS

KvScales = tuple[Tensor, Tensor]
"""What one step of an int8 key and of an int8 value stands for, each float32 [1, kv_heads, 1, D]."""

if TYPE_CHECKING:
    from collections.abc import Sequence

_NF4 = 1  # MatMulBnb4's quant_type
_NEVER, _NEVER_IN_HALF = -1e30, -6e4  # scores that no other comes near; the latter in 16 bits
_CUDA_WIDTHS = 8  # what CUDA's GroupQueryAttention wants the width of a head to be a multiple of
EXACT, INT8 = 1, 4  # MatMulNBits' accuracy_level: keep activations as they are, or round them on the CPU


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


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., K] times weight [N, K] transposed by a flag: a transposed copy of the weight never exists."""
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


def split(x: Tensor, widths: list[int]) -> tuple[Tensor, ...]:
    """Cut the last axis into pieces of these widths (torch's own export makes a sequence, which CUDA has not)."""
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
    """ONNX's Reshape to a constant shape: 0 keeps an axis, -1 takes what is left.

    torch's own export computes dynamic sizes with a handful of nodes, which run on the host.
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
    """Rows of x [B, T, H] at the positions index [B, L]: [B, L, H]."""
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


def matmul_nbits(x: Tensor, packed: Tensor, scales: Tensor, bits: int, accuracy_level: int) -> Tensor:
    """x [..., K] times a symmetric 4/8-bit weight, transposed.

    packed: uint8 [N, K/group, group*bits/8], lowest bits first, zero point 2^(bits-1). scales: [N, K/group], x's dtype.
    accuracy_level: EXACT keeps x as it is, INT8 lets the CPU kernel round it per group.
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
    multiply, outputs = half.linear if bits == 4 else F.linear, []
    for rows, scale in zip(packed.split(ROWS), scales.split(ROWS), strict=True):
        codes = rows if bits == 8 else torch.stack((rows & 15, rows >> 4), dim=-1).reshape(-1, groups, group_size)
        weight = codes.to(scale.dtype).sub_(2 ** (bits - 1)).mul_(scale.unsqueeze(-1))
        outputs.append(multiply(x, weight.reshape(-1, groups * group_size)))
    return torch.cat(outputs, dim=-1)


def _rounded_to_int8(x: Tensor, group_size: int) -> Tensor:
    """What the CPU kernel makes of activations: 127 steps up to the largest of each group."""
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


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, heads*D] to [B, heads, T, D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Grouped-query softmax attention, [B, heads, T, D] by [B, kv_heads, S, D] to [B, T, heads*D].

    allowed: bool, broadcast to [B, 1, T, S].
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = (q.float() @ k.float().transpose(-1, -2)) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1).nan_to_num()  # a padded row may see no key at all
    attended = weights.to(v.dtype).float() @ v.float()  # flash kernels multiply 16-bit weights
    return attended.to(v.dtype).transpose(1, 2).flatten(-2)


def _rotate(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in the half-split layout, in float32; x [B, heads, T, D], positions [B, T], cos/sin [context, D/2]."""
    c, s = cos[positions].unsqueeze(1).float(), sin[positions].unsqueeze(1).float()
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * c - second * s, second * c + first * s), dim=-1).to(x.dtype)


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
    """Causal grouped-query attention over a KV buffer that it also extends (GroupQueryAttention).

    q [B, T, heads*D], k and v [B, T, kv_heads*D]; past_key and past_value [B, kv_heads, S, D], S its capacity.
    seqlens_k int32 [B]: tokens after this step, less one; total_sequence_length int32 scalar: their maximum.
    rope: cos and sin [context, D/2]; None for a layer without positions. window: how many keys a query sees, itself
    included; then the buffer keeps the most recent positions from row 0 on, and its capacity need not exceed the
    window. kv_scales: the buffers are int8, each channel in steps of its own. full_buffers: that of a window has
    capacity for all tokens too, and keeps them.
    Returns the output [B, T, heads*D] and the buffers after the step.
    """
    kv_heads, head_dim = past_key.shape[1], past_key.shape[3]
    heads = q.shape[-1] // head_dim
    if torch.onnx.is_in_onnx_export():
        attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": int(rope is not None)}
        if window is not None:
            attributes |= {"local_window_size": window, "sliding_window_cache": int(not full_buffers)}
        inputs = [q, k, v, past_key, past_value, seqlens_k, total_sequence_length, *(rope or (None, None))]
        if kv_scales is not None:
            attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
            inputs += [None, None, None, *kv_scales]  # no position ids, bias or sinks
        output, key, value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            inputs,
            attributes,
            dtypes=(q.dtype, past_key.dtype, past_value.dtype),
            shapes=(q.shape, past_key.shape, past_value.shape),
            version=1,
        )
        return output, key, value
    return _cached_attention(_heads(q, heads), _heads(k, kv_heads), _heads(v, kv_heads), past_key, past_value,
                             seqlens_k, rope, window, kv_scales)  # fmt: skip


def _cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    seqlens_k: Tensor,
    rope: tuple[Tensor, Tensor] | None,
    window: int | None,
    kv_scales: KvScales | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The arithmetic of `cached_attention`, one row of the batch at a time; heads are split already."""
    outputs, new_key, new_value = [], past_key.clone(), past_value.clone()
    capacity, tokens = past_key.shape[2], q.shape[2]
    for row in range(q.shape[0]):
        total = int(seqlens_k[row]) + 1
        before = total - tokens
        positions = torch.arange(before, total).unsqueeze(0)
        q_row, k_row = q[row : row + 1], k[row : row + 1]
        if rope is not None:
            q_row, k_row = _rotate(q_row, positions, *rope), _rotate(k_row, positions, *rope)
        v_row = v[row : row + 1]
        if kv_scales is not None:
            k_row, v_row = _to_int8(k_row, kv_scales[0]), _to_int8(v_row, kv_scales[1])
        kept = before if window is None else resident(before, capacity, window)
        keys = torch.cat((past_key[row : row + 1, :, :kept], k_row), dim=2)
        values = torch.cat((past_value[row : row + 1, :, :kept], v_row), dim=2)
        at = torch.arange(before - kept, total)  # absolute position of each key
        distance = positions[0].unsqueeze(1) - at
        allowed = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        read = (keys, values) if kv_scales is None else (keys * kv_scales[0], values * kv_scales[1])
        outputs.append(_attend(q_row, read[0].to(q.dtype), read[1].to(q.dtype), allowed))
        stay = total if window is None else resident(total, capacity, window)
        new_key[row, :, :stay], new_value[row, :, :stay] = keys[0, :, -stay:], values[0, :, -stay:]
    return torch.cat(outputs), new_key, new_value


def _to_int8(x: Tensor, scale: Tensor) -> Tensor:
    return (x / scale).round().clamp(-128, 127).to(torch.int8)


def resident(total: int, capacity: int, window: int) -> int:
    """How many of the latest positions a windowed buffer holds after `total` tokens (GroupQueryAttention's L(T))."""
    if total <= capacity:
        return total
    step = capacity - window + 1
    return total - step * -(-(total - capacity) // step)


class Rows(NamedTuple):
    """Patches as right-padded rows of a batch, so that one attention operator takes windows or frames of any sizes.

    slots: int64 [rows, T], the patch in each slot, any in padding. padding: [rows, T] in the dtype of the patches, 0 in
    front of a patch and hugely negative in padding. lengths: int32 [rows]. longest: int32 scalar on the host, T.
    scatter: int64 [P], the slot of each patch among rows * T.
    """

    slots: Tensor
    padding: Tensor
    lengths: Tensor
    longest: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, gather: Tensor, lengths: Tensor, longest: Tensor, scatter: Tensor, dtype: torch.dtype) -> Rows:
        """From gather [rows, T], which is negative in padding."""
        padding = (gather < 0).to(dtype) * (_NEVER if dtype == torch.float32 else _NEVER_IN_HALF)
        return cls(gather.clamp(min=0), padding, lengths, longest, scatter)


def padded_attention(q: Tensor, k: Tensor, v: Tensor, rows: Rows, head_dim: int, *, on_cuda: bool) -> Tensor:
    """Attention within right-padded rows, every token of a row seeing the whole row (GroupQueryAttention, causal=0).

    q [rows, T, heads*D], k and v [rows, T, kv_heads*D]. Output [P, heads*D].
    On the CPU the kernel looks at the lengths, and holds the T x T scores of all heads. CUDA's takes every row of a
    call without a past as full, which is right where tokens see only those before them; so padding is marked there, as
    in `flash_attention`, in eight channels more: its widths of heads are multiples of 8.
    """
    if not torch.onnx.is_in_onnx_export():
        return _padded_attention(q, k, v, rows, head_dim)
    heads, kv_heads, width = q.shape[-1] // head_dim, k.shape[-1] // head_dim, head_dim
    if on_cuda:
        width += _CUDA_WIDTHS
        q, k = _with_marks(q, k, rows.padding, head_dim, _CUDA_WIDTHS)
        v = _widened(v, rows.padding * 0, head_dim, _CUDA_WIDTHS)
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
    output = reshape(output, -1, heads * width).index_select(0, _with_no_rows_of(cache, rows.scatter))
    if on_cuda:
        output = reshape(reshape(output, 0, heads, width)[..., :head_dim], 0, -1)
    return output


def _with_marks(q: Tensor, k: Tensor, padding: Tensor, head_dim: int, channels: int) -> tuple[Tensor, Tensor]:
    """Heads of q and k [rows, T, heads, D + channels]: 1 in q, and in k what makes the weight of padding exactly 0."""
    return _widened(q, padding * 0 + 1, head_dim, channels), _widened(k, padding, head_dim, channels)


def _widened(x: Tensor, values: Tensor, head_dim: int, channels: int) -> Tensor:
    """Heads of x [rows, T, heads*D] with channels [rows, T] more, of the same value: [rows, T, heads, D + channels]."""
    heads = x.shape[-1] // head_dim
    more = values[:, :, None, None] + torch.zeros(heads, channels, dtype=x.dtype)
    return torch.cat((reshape(x, 0, 0, heads, head_dim), more), dim=-1)


def _with_no_rows_of(unused: Sequence[Tensor], index: Tensor) -> Tensor:
    """`index` as it is, from a node that reads none of the rows of `unused` as well; while tracing only.

    CUDA's attention must be given keys and values to write, and ONNX Runtime keeps an output that nothing reads until
    the run ends: in the vision tower 32 MiB a block at 33 B, most of a gigabyte in all.
    """
    zero = torch.tensor([0], dtype=torch.int64)
    parts = [index]
    for x in unused:
        shape = (0, *x.shape[1:])
        none = torch.onnx.ops.symbolic("::Slice", (x, zero, zero, zero), dtype=x.dtype, shape=shape, version=13)
        to: dict[str, Any] = {"to": 7}  # TensorProto.INT64
        parts.append(
            torch.onnx.ops.symbolic("::Cast", (reshape(none, -1),), to, dtype=torch.int64, shape=(0,), version=13)
        )
    return torch.onnx.ops.symbolic("::Concat", parts, {"axis": 0}, dtype=index.dtype, shape=index.shape, version=13)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, rows: Rows, head_dim: int) -> Tensor:
    """`padded_attention` for the CPU, where no T x T tensor exists (MultiHeadAttention); arguments as there.

    MultiHeadAttention's own padding mask would bring that tensor back, so padding is marked in one channel more. KV
    heads are repeated.
    """
    if not torch.onnx.is_in_onnx_export():
        return _padded_attention(q, k, v, rows, head_dim)
    heads, kv_heads = q.shape[-1] // head_dim, k.shape[-1] // head_dim
    wide_q, wide_k = _with_marks(q, k, rows.padding, head_dim, 1)
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


def _padded_attention(q: Tensor, k: Tensor, v: Tensor, rows: Rows, head_dim: int) -> Tensor:
    """The arithmetic of both."""
    q, k, v = (_heads(x, x.shape[-1] // head_dim) for x in (q, k, v))
    return _attend(q, k, v, rows.padding[:, None, None, :] == 0).flatten(0, 1)[rows.scatter]

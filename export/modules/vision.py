"""The vision encoder as it is traced: one graph for images of any size, exact for windows of unequal size.

The host computes all indices (`runtime.inputs.windows`). Windows become rows of a batch, right-padded to a full window;
frames become rows right-padded to the longest frame of the call. Equals transformers' `Exaone4_5_VisionModel`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from export.modules.basic_ops import reshape, split
from export.modules.decoder import MLP
from export.modules.linear import Linear, RMSNorm
from export.modules.padded_attention import Rows, flash_attention, padded_attention

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from export.modules.weights import Source
    from quantize.model.families import Family

_EPS = 1e-6  # fixed in transformers' modules, not a setting of the checkpoint


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in float32; x [P, heads*D], cos and sin [P, D], whose halves are equal."""
    width = cos.shape[-1]
    halves = [width // 2, width // 2]
    first, second = split(reshape(x, 0, -1, width).float(), halves)
    c, s = (split(table.unsqueeze(1), halves)[0] for table in (cos, sin))
    return reshape(torch.cat((first * c - second * s, second * c + first * s), dim=-1), 0, -1).to(x.dtype)


class VisionAttention(nn.Module):
    """Grouped-query attention, within windows or within whole frames."""

    def __init__(self, source: Source, name: str, config: PreTrainedConfig, *, full: bool, on_cuda: bool) -> None:
        super().__init__()
        self.full, self.on_cuda = full, on_cuda
        self.head_dim = config.hidden_size // config.num_heads
        kv_width = config.num_key_value_heads * self.head_dim
        self.widths = [config.hidden_size, kv_width, kv_width]
        self.qkv = Linear(source, f"{name}.qkv")
        self.output = Linear(source, f"{name}.proj")

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], windows: Rows, frames: Rows) -> Tensor:
        """x [P, C] in window order; rope as `VisionEncoder.forward` takes it."""
        (qkv,) = self.qkv(x)
        q, k, v = split(qkv, self.widths)
        q, k = _rotate(q, *rope), _rotate(k, *rope)
        rows = frames if self.full else windows
        q, k, v = (F.embedding(rows.slots, part) for part in (q, k, v))  # one Gather each, to [rows, slots, width]
        if self.full and not self.on_cuda:
            attended = flash_attention(q, k, v, rows, self.head_dim)
        else:
            attended = padded_attention(q, k, v, rows, self.head_dim, on_cuda=self.on_cuda)
        (output,) = self.output(attended)
        return output


class VisionBlock(nn.Module):
    """x = x + attention(norm(x)); x = x + mlp(norm(x))."""

    def __init__(self, source: Source, name: str, config: PreTrainedConfig, *, full: bool, on_cuda: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(source, f"{name}.norm1", _EPS)
        self.mlp_norm = RMSNorm(source, f"{name}.norm2", _EPS)
        self.attention = VisionAttention(source, f"{name}.attn", config, full=full, on_cuda=on_cuda)
        self.mlp = MLP(source, f"{name}.mlp")

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], windows: Rows, frames: Rows) -> Tensor:
        """x [P, C] in window order."""
        x = x + self.attention(self.attention_norm(x), rope, windows, frames)
        return x + self.mlp(self.mlp_norm(x))


class VisionEncoder(nn.Module):
    """Patches of images and video frames of any size to embeddings for the decoder.

    on_cuda: full-attention blocks use GroupQueryAttention. Its CPU kernel makes an N x N tensor, so on the CPU they use
        MultiHeadAttention.
    dtype: dtype of activations.
    """

    def __init__(
        self, source: Source, family: Family, config: PreTrainedConfig, *, on_cuda: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.dtype = dtype
        vision = config.vision_config
        self.merge = vision.spatial_merge_size**2
        self.window_patches = (vision.window_size // vision.patch_size) ** 2
        self.patch_embed = Linear(source, f"{family.patch_embed}.proj")
        self.blocks = nn.ModuleList(
            VisionBlock(
                source,
                name,
                vision,
                full=number in vision.fullatt_block_indexes,
                on_cuda=on_cuda,
            )
            for number, name in enumerate(family.vision_blocks(config))
        )
        self.merger_norm = RMSNorm(source, f"{family.merger}.ln_q", _EPS)
        self.merger_in = Linear(source, f"{family.merger}.mlp.0")
        self.merger_out = Linear(source, f"{family.merger}.mlp.2")

    def forward(
        self,
        patches: Tensor,
        patch_cos: Tensor,
        patch_sin: Tensor,
        window_index: Tensor,
        window_inverse: Tensor,
        window_gather: Tensor,
        window_scatter: Tensor,
        window_lengths: Tensor,
        frame_gather: Tensor,
        frame_scatter: Tensor,
        frame_lengths: Tensor,
        frame_length: Tensor,
    ) -> Tensor:
        """Compute embeddings [P / merge^2, H] in float32, in reading order; inputs as in `runtime.ort.graph_io`."""
        (x,) = self.patch_embed(patches.to(self.dtype))
        width = x.shape[-1]
        x = reshape(reshape(x, -1, self.merge * width).index_select(0, window_index), -1, width)
        rope = (patch_cos, patch_sin)
        window_length = torch.tensor(self.window_patches, dtype=torch.int32)
        windows = Rows.from_gather(window_gather, window_lengths, window_length, window_scatter, x.dtype)
        frames = Rows.from_gather(frame_gather, frame_lengths, frame_length, frame_scatter, x.dtype)
        for block in self.blocks:
            x = block(x, rope, windows, frames)
        merged = reshape(self.merger_norm(x), -1, self.merge * width)
        (hidden,) = self.merger_in(merged)
        (embeds,) = self.merger_out(F.gelu(hidden))
        return embeds.index_select(0, window_inverse).float()

"""The decoder as it is traced: one graph for prompts and single steps, the KV cache goes in and out.

EXAONE 4.x normalises after attention and MLP, never before, and it normalises each head's queries and keys. Sliding
layers have RoPE and a window; the global layers between them have neither. Equals transformers' `Exaone4Model`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from console.errors import InputError
from export.modules.basic_ops import reshape, select_positions
from export.modules.cached_attention import cached_attention
from export.modules.linear import Linear, RMSNorm
from quantize.model.text_config import head_dim
from quantize.scheme import is_tied

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from export.modules.cached_attention import KvScales
    from export.modules.weights import Source
    from quantize.model.families import Family


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys over the KV buffers of one layer."""

    def __init__(
        self,
        source: Source,
        name: str,
        config: PreTrainedConfig,
        layer: int,
        kv_scales: KvScales | None,
        *,
        full_buffers: bool,
    ) -> None:
        super().__init__()
        self.full_buffers, self.has_scales = full_buffers, kv_scales is not None
        if kv_scales is not None:
            self.key_scale, self.value_scale = map(nn.Buffer, kv_scales)
        self.window: int | None = config.sliding_window if config.layer_types[layer] == "sliding_attention" else None
        self.has_rope = self.window is not None or config.sliding_window is None
        self.head_dim = head_dim(config)
        self.qkv = Linear(source, f"{name}.q_proj", f"{name}.k_proj", f"{name}.v_proj")
        query, key = (heads * self.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
        if self.qkv.widths != [query, key, key]:
            raise InputError(
                f"{name}: q, k and v have {self.qkv.widths} outputs, config.json says {[query, key, key]}; download "
                "the folder again"
            )
        self.q_norm = RMSNorm(source, f"{name}.q_norm", config.rms_norm_eps)
        self.k_norm = RMSNorm(source, f"{name}.k_norm", config.rms_norm_eps)
        self.output = Linear(source, f"{name}.o_proj")

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor], seqlens_k: Tensor, total: Tensor, rope: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend from x [B, T, H] to itself and to `past`, key and value [B, kv_heads, S, D].

        Returns the output [B, T, H] and the two extended buffers.
        """
        q, k, v = self.qkv(x)
        q = reshape(self.q_norm(reshape(q, 0, 0, -1, self.head_dim)), 0, 0, -1)
        k = reshape(self.k_norm(reshape(k, 0, 0, -1, self.head_dim)), 0, 0, -1)
        scales = (self.key_scale, self.value_scale) if self.has_scales else None
        attended, key, value = cached_attention(
            q, k, v, *past, seqlens_k, total, rope if self.has_rope else None, self.window, scales,
            full_buffers=self.full_buffers,
        )  # fmt: skip
        (output,) = self.output(attended)
        return output, key, value


class MLP(nn.Module):
    """Gated SiLU. Vision blocks have it too, with biases."""

    def __init__(self, source: Source, name: str) -> None:
        super().__init__()
        self.gate_up = Linear(source, f"{name}.gate_proj", f"{name}.up_proj")
        self.down = Linear(source, f"{name}.down_proj")

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] to [..., H]."""
        gate, up = self.gate_up(x)
        (output,) = self.down(F.silu(gate) * up)
        return output


class DecoderLayer(nn.Module):
    """h = h + norm(attention(h)); h = h + norm(mlp(h)). kv_scales: steps of an int8 KV cache."""

    def __init__(
        self,
        source: Source,
        name: str,
        config: PreTrainedConfig,
        layer: int,
        kv_scales: KvScales | None = None,
        *,
        full_buffers: bool,
    ) -> None:
        super().__init__()
        self.attention = Attention(source, f"{name}.self_attn", config, layer, kv_scales, full_buffers=full_buffers)
        self.mlp = MLP(source, f"{name}.mlp")
        self.attention_norm = RMSNorm(source, f"{name}.post_attention_layernorm", config.rms_norm_eps)
        self.mlp_norm = RMSNorm(source, f"{name}.post_feedforward_layernorm", config.rms_norm_eps)

    def forward(
        self, h: Tensor, past: tuple[Tensor, Tensor], seqlens_k: Tensor, total: Tensor, rope: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the new h [B, T, H] and the layer's extended KV buffers."""
        attended, key, value = self.attention(h, past, seqlens_k, total, rope)
        h = h + self.attention_norm(attended)
        return h + self.mlp_norm(self.mlp(h)), key, value


def head(source: Source, family: Family, config: PreTrainedConfig) -> Linear:
    """The linear layer that computes logits: its own weight, or the embeddings where they are tied.

    Its blocks are always as stored: with an MTP layer the head is an input of CUDA graphs, and CUTLASS kernels can only
    repack initializers.
    """
    tied = is_tied(source.checkpoint, family, config)
    return Linear(replace(source, block_size=None), family.embeddings if tied else family.head)


class Decoder(nn.Module):
    """All decoder layers, the final norm and the head; inputs and outputs as in `runtime.ort.graph_io`.

    with_hidden: also return hidden states. The MTP layer needs them, and so does the check for NaN that an int8 cache
        would hide.
    kv_scales: steps of an int8 KV cache, one pair a layer; None for a cache in the dtype of activations.
    full_buffers: sliding layers keep all tokens, too.
    """

    def __init__(
        self,
        source: Source,
        family: Family,
        config: PreTrainedConfig,
        *,
        with_hidden: bool = False,
        kv_scales: list[KvScales] | None = None,
        full_buffers: bool = False,
    ) -> None:
        super().__init__()
        self.with_hidden, self.int8_cache, self.full_buffers = with_hidden, kv_scales is not None, full_buffers
        text = config.get_text_config()
        self.layers = nn.ModuleList(
            DecoderLayer(source, name, text, layer, kv_scales[layer] if kv_scales else None, full_buffers=full_buffers)
            for layer, name in enumerate(family.decoder_blocks(config))
        )
        self.norm = RMSNorm(source, family.norm, text.rms_norm_eps)
        self.head = head(source, family, config)

    def forward(
        self,
        inputs_embeds: Tensor,
        seqlens_k: Tensor,
        total_sequence_length: Tensor,
        logit_index: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Compute logits [B, L, vocabulary] in float32 at the L positions of logit_index.

        Returns the logits, hidden states [B, T, H] after the last norm if with_hidden, and the extended KV buffers.
        """
        h = inputs_embeds
        present: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            pair = (past[2 * number], past[2 * number + 1])
            h, key, value = layer(h, pair, seqlens_k, total_sequence_length, (rope_cos, rope_sin))
            present += (key, value)
        hidden = self.norm(h)
        (logits,) = self.head(select_positions(hidden, logit_index))
        return logits.float(), *([hidden] if self.with_hidden else []), *present

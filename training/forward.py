"""The reader's forward pass in training: transformers' own modules, batched.

transformers runs vision attention in a Python loop over windows; here windows of equal size run as one batch. Pages of
one shape are stacked, so the vision blocks see [pages x windows, patches, width]. A test compares it with
transformers' forward. The MTP layer, which transformers does not have, is here too.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Exaone4_5_Config, Exaone4_5_ForConditionalGeneration
from transformers.models.exaone4.modeling_exaone4 import Exaone4Attention, Exaone4DecoderLayer, Exaone4RMSNorm
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from training.architecture import config_dict

if TYPE_CHECKING:
    from transformers.models.exaone4.configuration_exaone4 import Exaone4Config
    from transformers.models.exaone4_5.modeling_exaone4_5 import Exaone4_5_RMSNorm, Exaone4_5_VisionAttention


class MtpLayer(nn.Module):
    """Predict the token after next from the decoder's hidden state and the next token's embedding."""

    def __init__(self, config: Exaone4Config) -> None:
        super().__init__()
        self.pre_fc_norm_embedding = Exaone4RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_fc_norm_hidden = Exaone4RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList([Exaone4DecoderLayer(config, layer_idx=0)])  # layer 0 is a sliding one, as here
        self.norm = Exaone4RMSNorm(config.hidden_size, config.rms_norm_eps)


class Reader(nn.Module):
    """The transformers model and the MTP layer; `state_dict` names are the released checkpoint's."""

    def __init__(self) -> None:
        super().__init__()
        config = Exaone4_5_Config(**config_dict())
        released = Exaone4_5_ForConditionalGeneration(config)
        self.model, self.lm_head = released.model, released.lm_head
        self.mtp = MtpLayer(config.text_config)
        for layer in self.mtp.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        # One 14x14 frame twice: the two temporal taps start equal, as both see the same picture.
        weight = self.model.visual.patch_embed.proj.weight
        nn.init.normal_(weight, std=0.02)
        weight.data[:, :, 1] = weight.data[:, :, 0]
        self.config = copy.deepcopy(config)


@lru_cache(maxsize=64)
def _page_plan(height: int, width: int) -> tuple[Tensor, list[int], Tensor]:
    """Window order of merged tokens, window lengths and positions of patches, for a page of height x width patches.

    Windows come sorted by length, so that those of one length are one slice.
    """
    grid = torch.tensor([[1, height, width]])
    order, edges = get_vision_window_index(grid, spatial_merge_size=2, window_size=112, patch_size=14)
    windows = sorted(order.split((edges.diff() // 4).tolist()), key=len)
    return torch.cat(windows), [4 * len(window) for window in windows], get_vision_position_ids(grid, 2)


def vision(reader: Reader, patches: Tensor, height: int, width: int) -> Tensor:
    """Encode pages of one shape: patches [B, height * width, 588] -> image embeddings [B, height * width / 4, 256].

    Patches are in the processor's order (2x2 blocks of patches together), one temporal frame.
    """
    visual = reader.model.visual
    order, lengths, positions = _page_plan(height, width)
    kernel = visual.patch_embed.proj.weight.sum(2).flatten(1)  # both frames are the same picture
    states = _windowed(functional.linear(patches.to(kernel.dtype), kernel), order)
    cos, sin = (_windowed(table[None], order)[0].to(states.dtype) for table in visual.rotary_pos_emb(states, positions))
    for number, block in enumerate(visual.blocks):
        full = number in visual.fullatt_block_indexes
        attended = _vision_attention(
            block.attn, norm(block.norm1, states), cos, sin, [states.shape[1]] if full else lengths
        )
        states = states + attended
        states = states + block.mlp(norm(block.norm2, states))
    merger = visual.merger
    merged: Tensor = merger.mlp(norm(merger.ln_q, states).reshape(states.shape[0], -1, merger.hidden_size))
    return merged[:, order.argsort()]


def _windowed(states: Tensor, order: Tensor) -> Tensor:
    """Reorder patches [B, P, C] in groups of four (a merged token) into window order."""
    batch, patches, channels = states.shape
    return states.view(batch, patches // 4, 4, channels)[:, order].reshape(batch, patches, channels)


def _vision_attention(
    attention: Exaone4_5_VisionAttention, states: Tensor, cos: Tensor, sin: Tensor, lengths: list[int]
) -> Tensor:
    """Attention within consecutive windows of these lengths, sorted: states [B, P, C] -> [B, P, C]."""
    batch, patches, _ = states.shape
    sizes = [attention.q_dim, attention.kv_dim, attention.kv_dim]
    query, key, value = (
        part.view(batch, patches, -1, attention.head_dim) for part in attention.qkv(states).split(sizes, -1)
    )
    query, key = rotate(query, cos[:, None], sin[:, None]), rotate(key, cos[:, None], sin[:, None])
    results, start = [], 0
    for length, group in itertools.groupby(lengths):  # at most four sizes: inner, right edge, bottom edge, corner
        stop = start + length * len(list(group))
        q, k, v = (
            part[:, start:stop].unflatten(1, (-1, length)).flatten(0, 1).transpose(1, 2) for part in (query, key, value)
        )
        results.append(attend(q, k, v).transpose(1, 2).reshape(batch, stop - start, -1))
        start = stop
    projected: Tensor = attention.proj(torch.cat(results, 1))
    return projected


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Grouped attention: query [B, H, T, D], key and value [B, G, T, D] -> [B, H, T, D]; mask [T, T] is added.

    Plain products: with a backward pass, in bfloat16 and at a few hundred tokens, two to six times as fast on a CPU as
    `scaled_dot_product_attention`.
    """
    batch, heads, length, width = query.shape
    groups = batch * key.shape[1]
    query = (query * width**-0.5).reshape(groups, -1, width)
    key, value = key.reshape(groups, length, width), value.reshape(groups, length, width)
    scores = (query @ key.mT).unflatten(1, (-1, length))
    weights = (scores if mask is None else scores + mask).softmax(-1).flatten(1, 2)
    mixed: Tensor = weights @ value
    return mixed.view(batch, heads, length, width)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, halves convention: states [..., D], cos and sin broadcast to it."""
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat((-second, first), -1) * sin


def norm(layer: Exaone4RMSNorm | Exaone4_5_RMSNorm, states: Tensor) -> Tensor:
    """RMSNorm as one fused call."""
    return functional.rms_norm(states, layer.weight.shape, layer.weight, layer.variance_epsilon)


@dataclass(frozen=True)
class Masks:
    """Rotary tables and attention masks, the same for every decoder layer."""

    cos: Tensor
    """[T, D]."""
    sin: Tensor
    """[T, D]."""
    full: Tensor
    """Additive causal mask [T, T] of global layers."""
    sliding: Tensor
    """Additive mask [T, T] of sliding-window layers."""


def masks(reader: Reader, length: int) -> Masks:
    """Make them for positions 0 .. length - 1. Padding is on the right, so the causal mask hides it."""
    text = reader.model.language_model
    cos, sin = text.rotary_emb(text.norm.weight, torch.arange(length)[None])
    distance = torch.arange(length)[:, None] - torch.arange(length)[None]
    full = torch.zeros(length, length, dtype=cos.dtype).masked_fill(distance < 0, float("-inf"))
    return Masks(cos[0], sin[0], full, full.masked_fill(distance >= text.config.sliding_window, float("-inf")))


@dataclass(frozen=True)
class LinearInputs:
    """Inputs of the linears of a decoder layer, each [B, T, K]."""

    qkv: Tensor
    """Of q_proj, k_proj and v_proj: the layer's input."""
    o: Tensor
    """Of o_proj."""
    gate_up: Tensor
    """Of gate_proj and up_proj."""
    down: Tensor
    """Of down_proj."""


def decoder_layer(layer: Exaone4DecoderLayer, states: Tensor, shared: Masks) -> tuple[Tensor, LinearInputs]:
    """Run one post-norm decoder layer: states [B, T, H] -> [B, T, H], and the inputs of its linears."""
    attention: Exaone4Attention = layer.self_attn
    batch, length, _ = states.shape
    query, key, value = (
        linear(states).view(batch, length, -1, attention.head_dim).transpose(1, 2)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = norm(attention.q_norm, query), norm(attention.k_norm, key)
    if attention.is_sliding:
        query, key = rotate(query, shared.cos, shared.sin), rotate(key, shared.cos, shared.sin)
    mask = shared.sliding if attention.is_sliding else shared.full
    mixed = attend(query, key, value, mask).transpose(1, 2).flatten(2)
    attended = states + norm(layer.post_attention_layernorm, attention.o_proj(mixed))
    inner = layer.mlp.act_fn(layer.mlp.gate_proj(attended)) * layer.mlp.up_proj(attended)
    output = attended + norm(layer.post_feedforward_layernorm, layer.mlp.down_proj(inner))
    return output, LinearInputs(qkv=states, o=mixed, gate_up=attended, down=inner)


def decoder(reader: Reader, embeddings: Tensor, shared: Masks) -> tuple[Tensor, list[LinearInputs]]:
    """Input embeddings [B, T, H] -> hidden states [B, T, H] after the final norm, and the inputs of each layer."""
    text = reader.model.language_model
    states, inputs = embeddings, []
    for layer in text.layers:
        states, linear_inputs = decoder_layer(layer, states, shared)
        inputs.append(linear_inputs)
    return norm(text.norm, states), inputs


def log_attention(layer: Exaone4DecoderLayer, states: Tensor, full: Tensor, heads: list[int]) -> Tensor:
    """Log attention weights of some heads of a global layer: states (its input) [B, T, H] -> [B, heads, T, T].

    full: additive causal mask [T, T].
    """
    attention: Exaone4Attention = layer.self_attn
    query = attention.q_proj(states).unflatten(-1, (-1, attention.head_dim))
    key = attention.k_proj(states).unflatten(-1, (-1, attention.head_dim))
    query = norm(attention.q_norm, query[:, :, heads]).transpose(1, 2)
    key = norm(attention.k_norm, key[:, :, [head // attention.num_key_value_groups for head in heads]]).transpose(1, 2)
    scores: Tensor = (query @ key.mT * attention.scaling).float() + full
    return scores.log_softmax(-1)


def mtp(reader: Reader, embeddings: Tensor, hidden: Tensor, shared: Masks) -> Tensor:
    """Next tokens' embeddings and hidden states, both [B, T, H] -> hidden states that predict the token after."""
    layer = reader.mtp
    parts = [norm(layer.pre_fc_norm_embedding, embeddings), norm(layer.pre_fc_norm_hidden, hidden)]
    states, _ = decoder_layer(layer.layers[0], layer.fc(torch.cat(parts, -1)), shared)
    return norm(layer.norm, states)

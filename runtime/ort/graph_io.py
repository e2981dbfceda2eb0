"""Names, shapes and dtypes of every graph's inputs and outputs. Only this file spells the names."""

from __future__ import annotations

# Decoder: prompt and step are one graph.
INPUTS_EMBEDS = "inputs_embeds"  # [batch, tokens, hidden], the target's dtype
SEQLENS_K = "seqlens_k"  # int32 [batch]: tokens in the cache after this call, minus one
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"  # int32 scalar on the host: the longest row's tokens after this call
LOGIT_INDEX = "logit_index"  # int64 [batch, selected]: positions of this call to compute logits for
ROPE_COS, ROPE_SIN = "rope_cos", "rope_sin"  # [context, head_dim/2], the target's dtype
LOGITS = "logits"  # float32 [batch, selected, vocabulary]
HIDDEN = "hidden"  # [batch, tokens, hidden] after the last norm, where there is an MTP layer or an int8 cache

# The MTP layer. Its inputs_embeds belong to the next tokens. The next draft reads its hidden states.
PREVIOUS_HIDDEN = "previous_hidden"  # [batch, tokens, hidden]: from the decoder, or from the draft before

# Rewinding drafts (`export.rewind`): each window buffer becomes saved rows [start, stop), then its own first rows.
REWIND_START, REWIND_STOP, REWIND_ROWS = "start", "stop", "rows"  # int64 [1] on the host

# Vision: images and frames of videos, of any sizes.
PATCHES = "patches"  # float32 [patches, channels * temporal * patch * patch], the image processor's order
PATCH_COS, PATCH_SIN = "patch_cos", "patch_sin"  # float32 [patches, head_dim], window order
WINDOW_INDEX = "window_index"  # int64 [patches / merge^2]: merged token at each place of the window order
WINDOW_INVERSE = "window_inverse"  # int64 [patches / merge^2]: the inverse
WINDOW_GATHER = "window_gather"  # int64 [windows, window_patches]: row of each slot of the padded windows, or -1
WINDOW_SCATTER = "window_scatter"  # int64 [patches]: slot of each row
WINDOW_LENGTHS = "window_lengths"  # int32 [windows]: patches of each window
FRAME_GATHER = "frame_gather"  # int64 [frames, longest]: row of each slot of the padded frames, or -1
FRAME_SCATTER = "frame_scatter"  # int64 [patches]: slot of each row
FRAME_LENGTHS = "frame_lengths"  # int32 [frames]: patches of each frame
FRAME_LENGTH = "frame_length"  # int32 scalar on the host: the longest of them
VISION_INPUTS = (
    PATCHES,
    PATCH_COS,
    PATCH_SIN,
    WINDOW_INDEX,
    WINDOW_INVERSE,
    WINDOW_GATHER,
    WINDOW_SCATTER,
    WINDOW_LENGTHS,
    FRAME_GATHER,
    FRAME_SCATTER,
    FRAME_LENGTHS,
    FRAME_LENGTH,
)
IMAGE_EMBEDS = "image_embeds"  # float32 [patches / merge^2, hidden]


def past_names(layers: int) -> list[str]:
    """Names of KV inputs, key and value of each layer in turn; each [batch, kv_heads, capacity, head_dim]."""
    return _buffer_names("past", layers)


def present_names(layers: int) -> list[str]:
    """Names of KV outputs, in the order of `past_names`; each may share the buffer of its input."""
    return _buffer_names("present", layers)


def kept_names(layers: int) -> list[str]:
    """Names of the rows saved from each KV buffer, in the order of `past_names`."""
    return _buffer_names("kept", layers)


def _buffer_names(what: str, layers: int) -> list[str]:
    return [f"{what}_{part}_{layer}" for layer in range(layers) for part in ("key", "value")]


def decoder_inputs(layers: int, *, mtp: bool = False) -> list[str]:
    """Every input of the decoder graph, or of the MTP layer's, in order."""
    first = [INPUTS_EMBEDS, PREVIOUS_HIDDEN] if mtp else [INPUTS_EMBEDS]
    return [*first, SEQLENS_K, TOTAL_SEQUENCE_LENGTH, LOGIT_INDEX, ROPE_COS, ROPE_SIN, *past_names(layers)]


def decoder_outputs(layers: int, *, hidden: bool) -> list[str]:
    """Every output of the decoder graph, or of the MTP layer's, in order. hidden: HIDDEN is one of them."""
    return [LOGITS, *([HIDDEN] if hidden else []), *present_names(layers)]

"""Traces the decoder, the MTP layer and the vision encoder: example inputs, dynamic axes and names of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from export.modules.decoder import Decoder
from export.modules.mtp import Mtp
from export.onnx_graph import Axes, trace
from quantize.model.text_config import head_dim, mtp_windows, windows
from runtime.ort import graph_io
from runtime.sizes import KvLayout, buffer_limits

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor
    from transformers import PreTrainedConfig

    from export.modules.vision import VisionEncoder

# Sizes of the example inputs.
_BATCH, _TOKENS, _SELECTED, _CONTEXT = 2, 3, 2, 11
_CAPACITY, _WINDOW_CAPACITY = 7, 5
_IMAGE_TOKENS, _WINDOWS, _FRAMES = 6, 3, 2


def trace_decoder(decoder: Decoder | Mtp, config: PreTrainedConfig, dtype: torch.dtype) -> ir.Model:
    """Trace the decoder or the MTP layer; its weights are not bound to files yet. dtype: of activations."""
    text = config.get_text_config()
    is_mtp = isinstance(decoder, Mtp)
    past, past_axes = _past(decoder, config, dtype)
    rope = torch.zeros(_CONTEXT, head_dim(text) // 2, dtype=dtype)
    hidden_inputs: list[Tensor | list[Tensor]] = [
        torch.zeros(_BATCH, _TOKENS, text.hidden_size, dtype=dtype) for _ in range(2 if is_mtp else 1)
    ]
    inputs = [
        *hidden_inputs,
        torch.zeros(_BATCH, dtype=torch.int32),
        torch.zeros((), dtype=torch.int32),
        torch.zeros(_BATCH, _SELECTED, dtype=torch.int64),
        rope,
        rope.clone(),
        past,
    ]
    axes: list[Axes | list[Axes]] = [
        *({0: "batch", 1: "tokens"} for _ in hidden_inputs),
        {0: "batch"},
        {},
        {0: "batch", 1: "selected"},
        {0: "context"},
        {0: "context"},
        past_axes,
    ]
    layers = len(past) // 2
    outputs = graph_io.decoder_outputs(layers, hidden=isinstance(decoder, Mtp) or decoder.with_hidden)
    repeated = [] if isinstance(decoder, Mtp) else [*decoder.layers]
    return trace(decoder, inputs, axes, graph_io.decoder_inputs(layers, mtp=is_mtp), outputs, repeated)


def _past(decoder: Decoder | Mtp, config: PreTrainedConfig, dtype: torch.dtype) -> tuple[list[Tensor], list[Axes]]:
    """KV buffers [B, kv_heads, S, D], key and value of each layer, and their dynamic axes."""
    text = config.get_text_config()
    if isinstance(decoder, Decoder) and decoder.int8_cache:
        dtype = torch.int8
    layout: KvLayout = "full" if decoder.full_buffers else "window"
    tensors: list[Tensor] = []
    axes: list[Axes] = []
    for limit in buffer_limits(mtp_windows(config) if isinstance(decoder, Mtp) else windows(config), layout):
        capacity, name = (_CAPACITY, "capacity") if limit is None else (_WINDOW_CAPACITY, "window_capacity")
        for _ in ("key", "value"):
            tensors.append(torch.zeros(_BATCH, text.num_key_value_heads, capacity, head_dim(text), dtype=dtype))
            axes.append({0: "batch", 2: name})
    return tensors, axes


def trace_vision(vision: VisionEncoder, config: PreTrainedConfig) -> ir.Model:
    """Trace the vision encoder; its weights are not bound to files yet."""
    settings = config.vision_config
    width = settings.hidden_size // settings.num_heads
    pixels = settings.in_channels * settings.temporal_patch_size * settings.patch_size**2
    window_patches = (settings.window_size // settings.patch_size) ** 2
    merge = settings.spatial_merge_size**2
    rows = _IMAGE_TOKENS * merge
    patches = f"{merge}*image_tokens"  # without the factor torch traces a second time, once it has found it out

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    examples: dict[str, tuple[Tensor, Axes]] = {
        graph_io.PATCHES: (zeros(rows, pixels), {0: patches}),
        graph_io.PATCH_COS: (zeros(rows, width), {0: patches}),
        graph_io.PATCH_SIN: (zeros(rows, width), {0: patches}),
        graph_io.WINDOW_INDEX: (zeros(_IMAGE_TOKENS, dtype=torch.int64), {0: "image_tokens"}),
        graph_io.WINDOW_INVERSE: (zeros(_IMAGE_TOKENS, dtype=torch.int64), {0: "image_tokens"}),
        graph_io.WINDOW_GATHER: (zeros(_WINDOWS, window_patches, dtype=torch.int64), {0: "windows"}),
        graph_io.WINDOW_SCATTER: (zeros(rows, dtype=torch.int64), {0: patches}),
        graph_io.WINDOW_LENGTHS: (zeros(_WINDOWS, dtype=torch.int32), {0: "windows"}),
        graph_io.FRAME_GATHER: (zeros(_FRAMES, rows, dtype=torch.int64), {0: "frames", 1: "longest_frame"}),
        graph_io.FRAME_SCATTER: (zeros(rows, dtype=torch.int64), {0: patches}),
        graph_io.FRAME_LENGTHS: (zeros(_FRAMES, dtype=torch.int32), {0: "frames"}),
        graph_io.FRAME_LENGTH: (zeros(dtype=torch.int32), {}),
    }
    inputs, axes = zip(*(examples[name] for name in graph_io.VISION_INPUTS), strict=True)
    return trace(vision, inputs, axes, graph_io.VISION_INPUTS, [graph_io.IMAGE_EMBEDS], [*vision.blocks])

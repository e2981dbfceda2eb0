"""What a card holds beside the weights: the KV cache and the workspace of both graphs.

KV cache, RoPE tables and prompt chunks have the sizes of `runtime.sizes`, from which the runtime allocates. The rest is
what ONNX Runtime's kernels need. Sizes are in bytes; they grow linearly with the context, or not at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantize.model.families import full_paths
from quantize.model.text_config import head_dim, mtp_windows, windows
from quantize.plan.sizes import HALF
from runtime.sizes import CHUNKINGS, buffer_limits, rope_shape
from runtime.sizes import kv_bytes as kv_bytes_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quantize.plan.sizes import Architecture
    from quantize.scheme import Quantizers
    from runtime.sizes import KvLayout

LARGEST_IMAGE = 16384  # patches of 3211264 pixels, the most that EXAONE 4.5's image processor gives
FLOAT = 4  # bytes of float32


@dataclass(frozen=True)
class Line:
    """One part of the workspace. tensors: what it is made of, so that the bytes can be checked."""

    name: str
    tensors: str
    bytes: int


def kv_bytes(model: Architecture, context: int, itemsize: int, *, full_buffers: bool = False) -> int:
    """Keys and values of `context` tokens: sliding layers keep a buffer of their window, global layers all tokens.

    full_buffers: sliding layers keep all tokens too.
    """
    return _kv_bytes(model, buffer_limits(windows(model.config), _layout(full_buffers)), context, itemsize)


def workspace(
    model: Architecture, quantizers: Quantizers, context: int, *, with_mtp: bool, full_buffers: bool = False
) -> list[Line]:
    """List what the graphs need while they run. full_buffers: that of the MTP layer keeps all tokens.

    The lines add up, to more than a first question holds at once: the vision session gives back what it took before the
    KV cache is filled, which is larger than what is missing in its line here. That is 2.3 GiB at the largest image
    (`bench.scale`), for ONNX Runtime's memory does not fit the next tensor; a later picture of the same run
    takes them beside the cache. Attention is flash, so nothing is quadratic.
    """
    family, text = model.family, model.text
    hidden, mlp, chunk = text.hidden_size, text.intermediate_size, CHUNKINGS["cuda"].longest
    table = rope_shape(head_dim(text), context)
    decoder = [full_paths(path, family.decoder_linears) for path in family.decoder_blocks(model.config)]
    lines = [
        Line(
            f"prompt chunk, {chunk} tokens",
            # Input and residual; gate and up side by side, and split.
            f"[{chunk}, 2 x {hidden} + 4 x {mlp}] in 16 bits: hidden states and MLP",
            chunk * (2 * hidden + 4 * mlp) * HALF,
        ),
        _unpacked("decoder weight, unpacked", model, quantizers, sum(decoder, ())),
        Line("logits", f"[1, {text.vocab_size}] in 16 bits and in float32", text.vocab_size * (HALF + FLOAT)),
        Line("RoPE tables", f"2 x {list(table)} in 16 bits", 2 * math.prod(table) * HALF),
    ]
    if with_mtp:
        limits = buffer_limits(mtp_windows(model.config), _layout(full_buffers)) * model.mtp_layers
        shape = f"[{text.num_key_value_heads}, {limits[0] or context}, {head_dim(text)}]"
        tensors = f"{model.mtp_layers} x 2 x {shape} in 16 bits"
        lines.append(Line("MTP ring", tensors, _kv_bytes(model, limits, context, HALF)))
    return lines + (_vision_workspace(model, quantizers) if family.vision else [])


def kv_workspace(model: Architecture, context: int, itemsize: int, *, full_buffers: bool = False) -> Line:
    """What an int8 KV cache takes beside itself: of one layer at a time, and of all tokens that it has capacity for.

    ONNX Runtime's CUDA attention reads int8 as it is in single steps only, and not with EXAONE's 5 queries to a key.
    """
    text = model.text
    rows = context if full_buffers or "full_attention" in text.layer_types else text.sliding_window
    name = "int8 KV layer, unpacked"
    if itemsize == HALF:
        return Line(name, "none is packed", 0)
    tensors = f"2 x [{text.num_key_value_heads}, {rows}, {head_dim(text)}] in 16 bits"
    return Line(name, tensors, _kv_bytes(model, [rows], context, HALF))


def _vision_workspace(model: Architecture, quantizers: Quantizers) -> list[Line]:
    family, vision, P = model.family, model.config.vision_config, LARGEST_IMAGE
    width, mlp, head = vision.hidden_size, vision.intermediate_size, vision.hidden_size // vision.num_heads
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    blocks = [full_paths(path, family.vision_linears) for path in family.vision_blocks(model.config)]
    assert family.merger
    return [
        Line(
            f"image of {P} patches",
            # Residual and its norm; gate and up side by side, and split. Pixels and angles come in float32.
            f"[{P}, 2 x {width} + 4 x {mlp}] in 16 bits, [{P}, {pixels} + 2 x {head}] in float32",
            P * ((2 * width + 4 * mlp) * HALF + (pixels + 2 * head) * FLOAT),
        ),
        _unpacked(
            "vision weight, unpacked", model, quantizers, sum(blocks, full_paths(family.merger, family.merger_linears))
        ),
    ]


def _unpacked(name: str, model: Architecture, quantizers: Quantizers, groups: Iterable[tuple[str, ...]]) -> Line:
    """For more than one row, ONNX Runtime's CUDA kernels unpack a whole weight to 16 bits and call cuBLAS."""
    quantized = [
        [model.shapes[f"{path}.weight"] for path in group] for group in groups if quantizers[group[0]] is not None
    ]
    fused = [(sum(rows for rows, _ in group), group[0][1]) for group in quantized]
    rows, width = max(fused, key=math.prod, default=(0, 0))
    return Line(name, f"[{rows}, {width}] in 16 bits" if fused else "none is packed", rows * width * HALF)


def _kv_bytes(model: Architecture, limits: list[int | None], context: int, itemsize: int) -> int:
    return kv_bytes_of(limits, model.text.num_key_value_heads, head_dim(model.text), context, itemsize)


def _layout(full_buffers: bool) -> KvLayout:
    return "full" if full_buffers else "window"

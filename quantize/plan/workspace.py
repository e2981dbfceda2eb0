"""GPU memory for the workspace of both graphs: activations, unpacked weights and tables.

Sizes are in bytes. They grow linearly with the context, or not at all. `runtime.sizes` says what the runtime allocates;
activations follow from the graphs that export writes and from ONNX Runtime's kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantize.model.families import full_paths
from quantize.plan.weights import HALF
from runtime.sizes import CALL_PATCHES, CHUNKINGS, KvLayers, logits_shape, rope_shape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quantize.plan.architecture import Architecture
    from quantize.scheme import Quantizers
    from runtime.sizes import KvLayout

FLOAT = 4  # bytes of float32


@dataclass(frozen=True)
class Allocation:
    """One allocation of the workspace."""

    name: str
    """What it is for."""
    tensors: str
    """Shapes and types, so that the bytes can be checked."""
    bytes: int
    """Its size."""


def workspace(
    model: Architecture, quantizers: Quantizers, context: int, *, with_mtp: bool, layout: KvLayout = "window"
) -> list[Allocation]:
    """List what the graphs allocate while they run. layout: of the MTP layer's KV cache.

    The sum is more than a first request holds at once: the vision session frees its memory before the KV cache is
    filled. But a later image is encoded next to that cache, and takes 2.3 GiB at the largest size
    (`bench.scale`), more than its allocation here, because ONNX Runtime's freed memory rarely fits the next
    tensor. Attention is flash, so nothing is quadratic.
    """
    family, text, chunk = model.family, model.text, CHUNKINGS["cuda"].longest
    hidden, mlp = text.hidden_size, text.intermediate_size
    linears = [full_paths(path, family.decoder_linears) for path in family.decoder_blocks(model.config)]
    logits, rope = math.prod(logits_shape(1, text.vocab_size)), rope_shape(context, model.head_dim)
    allocations = [
        Allocation(
            f"prompt chunk, {chunk} tokens",
            # Input and residual; gate and up fused, and split.
            f"[{chunk}, 2 x {hidden} + 4 x {mlp}] in 16 bits: hidden states and MLP",
            chunk * (2 * hidden + 4 * mlp) * HALF,
        ),
        _unpacked_weight("decoder weight, unpacked", model, quantizers, sum(linears, ())),
        Allocation("logits", f"[1, {text.vocab_size}] in 16 bits and in float32", logits * (HALF + FLOAT)),
        Allocation("RoPE tables", f"2 x {list(rope)} in 16 bits", 2 * math.prod(rope) * HALF),
    ]
    if with_mtp:
        layers = model.mtp_kv_layers(layout)
        _, heads, rows, width = layers.shapes(context)[0]
        tensors = f"{len(layers.limits)} x 2 x [{heads}, {rows}, {width}] in 16 bits"
        allocations.append(Allocation("MTP KV cache", tensors, layers.bytes(context, HALF)))
    return allocations + (_vision_workspace(model, quantizers) if family.vision else [])


def kv_workspace(model: Architecture, context: int, itemsize: int, *, layout: KvLayout = "window") -> Allocation:
    """What attention over an int8 KV cache allocates: one layer at a time in 16 bits, at its full capacity.

    ONNX Runtime's CUDA attention reads int8 directly in single steps only, and not with EXAONE's 5 queries per key.
    """
    name = "int8 KV layer, unpacked"
    if itemsize == HALF:
        return Allocation(name, "none is packed", 0)
    decoder = model.kv_layers(layout)
    limit = None if None in decoder.limits else max(filter(None, decoder.limits))
    largest = KvLayers([limit], decoder.heads, decoder.head_dim)
    _, heads, rows, width = largest.shapes(context)[0]
    return Allocation(name, f"2 x [{heads}, {rows}, {width}] in 16 bits", largest.bytes(context, HALF))


def _vision_workspace(model: Architecture, quantizers: Quantizers) -> list[Allocation]:
    family, vision, P = model.family, model.config.vision_config, CALL_PATCHES
    width, mlp, head = vision.hidden_size, vision.intermediate_size, vision.hidden_size // vision.num_heads
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    linears = [full_paths(path, family.vision_linears) for path in family.vision_blocks(model.config)]
    assert family.merger
    return [
        Allocation(
            f"image of {P} patches",
            # Residual and its norm; gate and up fused, and split. Pixels and angles come in float32.
            f"[{P}, 2 x {width} + 4 x {mlp}] in 16 bits, [{P}, {pixels} + 2 x {head}] in float32",
            P * ((2 * width + 4 * mlp) * HALF + (pixels + 2 * head) * FLOAT),
        ),
        _unpacked_weight(
            "vision weight, unpacked", model, quantizers, sum(linears, full_paths(family.merger, family.merger_linears))
        ),
    ]


def _unpacked_weight(
    name: str, model: Architecture, quantizers: Quantizers, groups: Iterable[tuple[str, ...]]
) -> Allocation:
    """The largest weight in 16 bits. For several rows, ONNX Runtime's CUDA kernels unpack it and call cuBLAS.

    groups: linears that are fused to one weight.
    """
    quantized = [
        [model.shapes[f"{path}.weight"] for path in group] for group in groups if quantizers[group[0]] is not None
    ]
    fused = [(sum(rows for rows, _ in group), group[0][1]) for group in quantized]
    rows, width = max(fused, key=math.prod, default=(0, 0))
    tensors = f"[{rows}, {width}] in 16 bits" if fused else "none is packed"
    return Allocation(name, tensors, rows * width * HALF)

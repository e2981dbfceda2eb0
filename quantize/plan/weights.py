"""Bytes of the weights that quantize writes, by component, from a config alone.

`quantize.checkpoint.formats` measures them: the code that writes a folder.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

from quantize.checkpoint.formats import pack_weight
from quantize.scheme import ties_head
from quantize.solver.quantizers import NF4Quantizer, UniformQuantizer
from runtime.sizes import BLOCK, fits_blocks

if TYPE_CHECKING:
    from quantize.model.families import Family
    from quantize.plan.architecture import Architecture
    from quantize.scheme import Quantizers
    from quantize.settings import Format
    from quantize.solver.quantizers import Quantizer

Component = Literal["decoder", "head", "vision", "small", "mtp", "embeddings"]

COMPONENTS: dict[Component, str] = {
    "decoder": "decoder linears",
    "head": "head",
    "vision": "vision tower",
    "small": "decoder norms",
    "mtp": "MTP layer",
    "embeddings": "embeddings",
}
HALF = 2  # bytes of float16 and of bfloat16


def stored_bytes(model: Architecture, quantizers: Quantizers) -> dict[Component, int]:
    """Bytes of each component in the folder.

    Left out: the few dozen bytes that describe each quantized linear to loaders. No graph reads them.
    """
    family, tied = model.family, ties_head(model.config)
    sizes: dict[Component, int] = dict.fromkeys(COMPONENTS, 0)
    for name, shape in model.shapes.items():
        path = name.removesuffix(".weight")
        quantizer = quantizers.get(path) if name.endswith(".weight") else None
        if path == family.head and tied and quantizer is None:
            continue  # it is the embedding
        sizes[component_of(name, family, quantizers)] += (
            shape[0] * row_bytes(shape[1], quantizer) if quantizer else HALF * math.prod(shape)
        )
    return sizes


def unblocked_quantizers(model: Architecture, quantizers: Quantizers) -> Quantizers:
    """The same quantizers, with None for weights that `export --block-size 32` stores in blocks."""
    blocked = {
        path: isinstance(quantizer, UniformQuantizer)
        and path != model.family.head
        and fits_blocks(model.shapes[f"{path}.weight"][0], quantizer.bits, quantizer.group_size)
        for path, quantizer in quantizers.items()
    }
    return {path: None if blocked[path] else quantizer for path, quantizer in quantizers.items()}


def repeated_scale_bytes(model: Architecture, quantizers: Quantizers) -> int:
    """Bytes that scales take in addition, in blocks of 32."""
    unblocked, added = unblocked_quantizers(model, quantizers), 0
    for path, quantizer in quantizers.items():
        if quantizer is not None and unblocked[path] is None:
            rows, width = model.shapes[f"{path}.weight"]
            added += rows * (width // BLOCK - width // quantizer.group_size) * HALF
    return added


def component_of(name: str, family: Family, quantizers: Quantizers) -> Component:
    """Component of a tensor of the original checkpoint. The vision tower includes merger and patch embedding."""
    path = name.removesuffix(".weight")
    if family.vision and name.startswith(f"{family.vision}."):
        return "vision"
    if family.mtp and name.startswith(f"{family.mtp}."):
        return "mtp"
    if path == family.embeddings:
        return "embeddings"
    if path == family.head:
        return "head"
    return "decoder" if path in quantizers else "small"


def row_bytes(width: int, quantizer: Quantizer) -> int:
    """Bytes of one output's weights, codes and scales. Every format stores row after row."""
    codes = torch.zeros(1, width, dtype=torch.int8)
    form: Format = "bitsandbytes" if isinstance(quantizer, NF4Quantizer) else "compressed-tensors"
    return sum(tensor.nbytes for tensor in pack_weight(codes, quantizer.fit(codes), quantizer, form).values())

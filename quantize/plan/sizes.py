"""Bytes of the weights that quantize writes, part by part, from a config alone.

Shapes are those of modules on the meta device and formats those of `quantize.checkpoint.formats`: the code that
writes a folder also measures it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from quantize.checkpoint.formats import pack_weight
from quantize.model.families import find_family, model_config
from quantize.scheme import ties_head
from quantize.solver.quantizers import NF4Quantizer, UniformQuantizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from quantize.model.families import Family
    from quantize.scheme import Quantizers
    from quantize.settings import Format
    from quantize.solver.quantizers import Quantizer

Part = Literal["decoder", "head", "vision", "small", "mtp", "embeddings"]
Shapes = dict[str, tuple[int, ...]]
"""The shape of every tensor of the original checkpoint, by its name."""

PARTS: dict[Part, str] = {
    "decoder": "decoder linears",
    "head": "head",
    "vision": "vision tower",
    "small": "decoder norms",
    "mtp": "MTP layer",
    "embeddings": "embeddings",
}
BLOCK = 32  # weights that share a scale in ONNX Runtime's CUTLASS kernels
HALF = 2  # bytes of float16 and of bfloat16


@dataclass(frozen=True)
class Architecture:
    """A model without its weights. shapes: of everything that its checkpoint has, MTP layer included."""

    family: Family
    config: PreTrainedConfig
    shapes: Shapes

    @property
    def text(self) -> PreTrainedConfig:
        """The decoder's part of the config."""
        return self.config.get_text_config()

    @property
    def mtp_layers(self) -> int:
        """How many layers predict further tokens; 0 without any."""
        return self.family.mtp_layers(self.config)

    @property
    def limit(self) -> int:
        """The longest context, in tokens."""
        return int(self.text.max_position_embeddings)


def read_architecture(raw: dict[str, Any]) -> Architecture:
    """Lay out the model of a raw config.json without memory. Raises InputError for a config that cannot be used."""
    family, config = find_family(raw), model_config(raw)
    model = family.skeleton(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters(remove_duplicate=False)}
    return Architecture(family, config, shapes)


def stored_bytes(model: Architecture, quantizers: Quantizers) -> dict[Part, int]:
    """Bytes of each part in the folder.

    The few dozen bytes a quantized linear that describe it to loaders are left out: no graph reads them.
    """
    family, tied = model.family, ties_head(model.config)
    sizes: dict[Part, int] = dict.fromkeys(PARTS, 0)
    for name, shape in model.shapes.items():
        path = name.removesuffix(".weight")
        quantizer = quantizers.get(path) if name.endswith(".weight") else None
        if path == family.head and tied and quantizer is None:
            continue  # it is the embedding
        sizes[part_of(name, family, quantizers)] += (
            shape[0] * row_bytes(shape[1], quantizer) if quantizer else HALF * math.prod(shape)
        )
    return sizes


def outside_blocks(model: Architecture, quantizers: Quantizers) -> Quantizers:
    """The same quantizers, None for weights that `export --block-size 32` (`export.modules.weights`) has in blocks."""
    inside = {
        path: isinstance(quantizer, UniformQuantizer)
        and path != model.family.head
        and quantizer.group_size % BLOCK == 0
        and model.shapes[f"{path}.weight"][0] % (64 if quantizer.bits == 4 else 32) == 0
        for path, quantizer in quantizers.items()
    }
    return {path: None if inside[path] else quantizer for path, quantizer in quantizers.items()}


def repeated_scales(model: Architecture, quantizers: Quantizers) -> int:
    """Bytes that scales take more in blocks of 32."""
    outside, added = outside_blocks(model, quantizers), 0
    for path, quantizer in quantizers.items():
        if quantizer is not None and outside[path] is None:
            rows, width = model.shapes[f"{path}.weight"]
            added += rows * (width // BLOCK - width // quantizer.group_size) * HALF
    return added


def part_of(name: str, family: Family, quantizers: Quantizers) -> Part:
    """Tell which part a tensor of the original checkpoint belongs to. The vision tower includes merger and pixels."""
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
    """Bytes of one output's weights, codes and scales; every format stores row after row."""
    codes = torch.zeros(1, width, dtype=torch.int8)
    form: Format = "bitsandbytes" if isinstance(quantizer, NF4Quantizer) else "compressed-tensors"
    return sum(tensor.nbytes for tensor in pack_weight(codes, quantizer.fit(codes), quantizer, form).values())

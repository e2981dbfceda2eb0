"""Bytes of the weights that quantize writes, part by part, from a config alone.

Shapes are those of modules on the meta device and formats those of `quantize.checkpoint.formats`: the code that
writes a folder also measures it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from quantize.checkpoint.formats import stored
from quantize.model.families import find_family, model_config
from quantize.scheme import ties_head
from quantize.solver.quantizers import NF4Quantizer, UniformQuantizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from quantize.model.families import Family
    from quantize.scheme import Grids
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


def stored_bytes(model: Architecture, grids: Grids) -> dict[Part, int]:
    """Bytes of each part in the folder.

    The few dozen bytes a quantized linear that describe it to loaders are left out: no graph reads them.
    """
    family, tied = model.family, ties_head(model.config)
    sizes: dict[Part, int] = dict.fromkeys(PARTS, 0)
    for name, shape in model.shapes.items():
        path = name.removesuffix(".weight")
        grid = grids.get(path) if name.endswith(".weight") else None
        if path == family.head and tied and grid is None:
            continue  # it is the embedding
        sizes[part_of(name, family, grids)] += shape[0] * row_bytes(shape[1], grid) if grid else HALF * math.prod(shape)
    return sizes


def outside_blocks(model: Architecture, grids: Grids) -> Grids:
    """The same grids, None for weights that `export --block-size 32` (`export.modules.weights`) has in blocks."""
    inside = {
        path: isinstance(grid, UniformQuantizer)
        and path != model.family.head
        and grid.group_size % BLOCK == 0
        and model.shapes[f"{path}.weight"][0] % (64 if grid.bits == 4 else 32) == 0
        for path, grid in grids.items()
    }
    return {path: None if inside[path] else grid for path, grid in grids.items()}


def repeated_scales(model: Architecture, grids: Grids) -> int:
    """Bytes that scales take more in blocks of 32."""
    outside, added = outside_blocks(model, grids), 0
    for path, grid in grids.items():
        if grid is not None and outside[path] is None:
            rows, width = model.shapes[f"{path}.weight"]
            added += rows * (width // BLOCK - width // grid.group_size) * HALF
    return added


def part_of(name: str, family: Family, grids: Grids) -> Part:
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
    return "decoder" if path in grids else "small"


def row_bytes(width: int, grid: Quantizer) -> int:
    """Bytes of one output's weights, codes and scales; every format stores row after row."""
    codes = torch.zeros(1, width, dtype=torch.int8)
    form: Format = "bitsandbytes" if isinstance(grid, NF4Quantizer) else "compressed-tensors"
    return sum(tensor.nbytes for tensor in stored(codes, grid.fit(codes), grid, form).values())

"""Formats in which checkpoints store linear layers, and which of them graphs can read without a conversion.

Folders written by other tools are read, too. A format that ONNX Runtime has no operator for is refused with the name of
the tensor.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from console.errors import InputError
from quantize.settings import GROUP_SIZES
from runtime.weights import NF4_STATE

if TYPE_CHECKING:
    from pathlib import Path

    from quantize.checkpoint.reader import Checkpoint, StoredTensor

_FLOATS = ("F16", "BF16", "F32")
_BITS = (4, 8)
_ADVICE = "run on the original checkpoint: python -m quantize --model ORIGINAL"

# Tensors next to a weight that change its meaning, and the format that they belong to.
_REFUSED = {
    ".weight_zero_point": "asymmetric groups",
    ".weight_g_idx": "act-ordered groups",
    ".weight_global_scale": "4-bit floats",
    ".weight_scale_inv": "8-bit floats",
    ".input_scale": "quantized activations",
    ".input_global_scale": "quantized activations",
    ".input_zero_point": "quantized activations",
    ".weight.nested_absmax": "NF4 with double quantization",
    ".weight.quant_state.bitsandbytes__fp4": "FP4",
    ".SCB": "int8 of bitsandbytes",
}


@dataclass(frozen=True)
class Format:
    """How a linear layer is stored. Layers of one format that read the same input can be one product."""

    kind: Literal["dense", "packed", "nf4"]
    """16/32-bit weight, compressed-tensors `pack-quantized`, or bitsandbytes' NF4."""
    width: int
    """Number of inputs."""
    bits: int
    """Bits of a weight."""
    block: int
    """Weights that share a scale; 0 for a dense weight."""
    has_bias: bool
    """Whether the checkpoint has a bias."""


def check_config(checkpoint: Checkpoint) -> None:
    """Raise InputError if config.json says that activations are quantized or rotated."""
    path = checkpoint.folder / "config.json"
    config = _object(checkpoint.config, "quantization_config", path)
    for name, group in _object(config, "config_groups", path).items():
        for part in ("input_activations", "output_activations"):
            if isinstance(group, dict) and group.get(part):
                raise InputError(f"{path}: {name} quantizes {part}, which graphs do not; {_ADVICE}")
    if _object(config, "transform_config", path).get("config_groups"):
        raise InputError(f"{path}: transform_config rotates activations, which graphs do not; {_ADVICE}")


def _object(config: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """Return an object of config.json; empty if it is missing."""
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise InputError(f"{path}: {name} is not a JSON object; restore it from the original")
    return value


def read_format(checkpoint: Checkpoint, name: str) -> tuple[int, Format]:
    """Read the number of outputs and the format of a linear layer. Raises InputError if graphs cannot read it."""
    tensors = checkpoint.tensors
    if f"{name}.qweight" in tensors:
        raise InputError(
            f"{checkpoint.folder}: stored as qweight (GPTQ or AWQ), a format for other tools; for a folder to export, "
            f"{_ADVICE} --bits 4"
        )
    for suffix, meaning in _REFUSED.items():
        if name + suffix in tensors:
            raise InputError(f"{name + suffix}: {meaning} are not supported; {_ADVICE}")
    read = _packed if f"{name}.weight_packed" in tensors else _nf4 if name + NF4_STATE in tensors else _dense
    bias = tensors.get(f"{name}.bias")
    rows, stored = read(checkpoint, name, bias is not None)
    if bias is not None and bias.shape != (rows,):
        raise InputError(f"{bias.name}: {list(bias.shape)} for {rows} outputs; {_ADVICE}")
    return rows, stored


def require_float(tensor: StoredTensor) -> StoredTensor:
    """Return the tensor. Raises InputError unless it has floats of 16 or 32 bits."""
    if tensor.dtype not in _FLOATS:
        raise InputError(f"{tensor.name}: stored as {tensor.dtype}; graphs read {', '.join(_FLOATS)} here; {_ADVICE}")
    return tensor


def _dense(checkpoint: Checkpoint, name: str, has_bias: bool) -> tuple[int, Format]:
    """A weight in 16 or 32 bits."""
    weight = require_float(checkpoint.tensor(f"{name}.weight"))
    if f"{name}.weight_scale" in checkpoint.tensors:
        raise InputError(f"{name}.weight_scale: scales next to a weight that is not packed; {_ADVICE}")
    width = math.prod(weight.shape[1:])
    return weight.shape[0], Format("dense", width, 32 if weight.dtype == "F32" else 16, 0, has_bias)


def _packed(checkpoint: Checkpoint, name: str, has_bias: bool) -> tuple[int, Format]:
    """compressed-tensors `pack-quantized`: int32 [N, K * bits / 32], and a scale for each group, [N, K / group]."""
    packed, scale = checkpoint.tensor(f"{name}.weight_packed"), require_float(checkpoint.tensor(f"{name}.weight_scale"))
    if packed.dtype != "I32" or len(packed.shape) != 2:
        raise InputError(f"{packed.name}: {packed.dtype} {list(packed.shape)}; graphs read rows of I32; {_ADVICE}")
    shape = checkpoint.tensor(f"{name}.weight_shape")
    if shape.dtype not in ("I32", "I64") or shape.shape != (2,):
        raise InputError(f"{shape.name}: {shape.dtype} {list(shape.shape)}; graphs read two numbers of I64; {_ADVICE}")
    rows, width = packed.shape[0], int(checkpoint.load(shape.name)[1])
    if width < 1 or packed.shape[1] * 32 % width or packed.shape[1] * 32 // width not in _BITS:
        bits = f"{packed.shape[1] * 32} bits for {width} weights"
        raise InputError(f"{packed.name}: {bits}; 4 and 8 a weight are supported; {_ADVICE}")
    if len(scale.shape) != 2 or scale.shape[0] != rows or not scale.shape[1] or width % scale.shape[1]:
        raise InputError(
            f"{scale.name}: {list(scale.shape)} for [{rows}, {width}] weights, not a scale a group; {_ADVICE}"
        )
    block = width // scale.shape[1]
    _check_block(scale.name, block)
    return rows, Format("packed", width, packed.shape[1] * 32 // width, block, has_bias)


def _nf4(checkpoint: Checkpoint, name: str, has_bias: bool) -> tuple[int, Format]:
    """bitsandbytes' NF4: two codes a byte, and a float32 scale for each block of the flattened weight."""
    absmax = checkpoint.tensor(f"{name}.weight.absmax")
    try:
        rows, width = json.loads(bytes(checkpoint.load(name + NF4_STATE).tolist()))["shape"]
        block, left = divmod(rows * width, math.prod(absmax.shape))
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{name + NF4_STATE}: not readable ({error}); download the folder again") from error
    if absmax.dtype != "F32" or left:
        raise InputError(f"{absmax.name}: {absmax.dtype} {list(absmax.shape)} for [{rows}, {width}] weights; {_ADVICE}")
    _check_block(absmax.name, block)
    return rows, Format("nf4", width, 4, block, has_bias)


def _check_block(name: str, block: int) -> None:
    if block not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise InputError(f"{name}: one scale for {block} weights; ONNX Runtime takes groups of {sizes}; {_ADVICE}")

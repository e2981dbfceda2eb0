"""How quantized weights are stored: as other tools load them, in the bytes that ONNX Runtime's operators take.

compressed-tensors `pack-quantized` for integers, bitsandbytes without double quantization for NF4. GPTQ, the checkpoint
format of auto-gptq that GPTQModel keeps, is for other tools only: ONNX Runtime takes another layout. Scales may be
negative in all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from quantize.solver.quantizers import NF4_VALUES, ROWS, Quantizer, UniformQuantizer, pack_nibbles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quantize.model.families import Family, Linears
    from quantize.settings import Format, Settings


def stored(codes: torch.Tensor, scales: torch.Tensor, grid: Quantizer, form: Format | None) -> dict[str, torch.Tensor]:
    """Store a quantized weight [N, K]: tensors by what follows the linear's path, codes and then scales."""
    if form == "bitsandbytes":
        return {"weight": pack_nibbles(codes), "weight.absmax": scales.reshape(-1)}
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    if form == "gptq":  # inputs first: [K * bits / 32, N], consecutive inputs in a word, and [K / group, N]
        return {"qweight": pack_to_int32(codes.T, grid.bits, packed_dim=0), "scales": scales.T}
    packed = torch.cat([pack_to_int32(rows, grid.bits) for rows in codes.split(ROWS)])  # which takes 12 bytes a code
    return {"weight_packed": packed, "weight_scale": scales}


def neighbours(groups: Linears, parts: Mapping[str, Mapping[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    """Name and order the tensors of linears: of a group's, which read the same inputs, those of a kind side by side.

    parts: tensors of every linear, by its path.
    """
    return [(f"{path}.{kind}", parts[path][kind]) for group in groups for kind in parts[group[0]] for path in group]


def described(
    codes: torch.Tensor, scales: torch.Tensor, grid: Quantizer, settings: Settings
) -> dict[str, torch.Tensor]:
    """Describe a quantized weight [N, K]: the small tensors that loaders want beside codes and scales."""
    if settings.format == "compressed-tensors":
        return {"weight_shape": torch.tensor(codes.shape)}
    if settings.format == "gptq":
        return _gptq_groups(codes, grid)
    from bitsandbytes.functional import QuantState

    state = QuantState(
        absmax=scales.reshape(-1),
        shape=codes.shape,
        code=torch.tensor(NF4_VALUES),
        blocksize=grid.group_size,
        quant_type="nf4",
        dtype=settings.torch_dtype,  # what bitsandbytes dequantizes to
    )
    small = {key: value for key, value in state.as_dict(packed=True).items() if key != "absmax"}
    return {f"weight.{key}": value for key, value in small.items()}


def _gptq_groups(codes: torch.Tensor, grid: Quantizer) -> dict[str, torch.Tensor]:
    """Zero points [K / group, N * bits / 32] and the group [K] of every input.

    Version 1 of the format stores a zero point minus one. Packing adds the zero point, so that is the code -1.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    outputs, inputs = codes.shape
    minus_one = torch.full((inputs // grid.group_size, outputs), -1, dtype=torch.int8)
    g_idx = torch.arange(inputs, dtype=torch.int32) // grid.group_size
    return {"qzeros": pack_to_int32(minus_one, grid.bits), "g_idx": g_idx}


def quantization_config(
    settings: Settings, grids: dict[str, Quantizer], plain: list[str], family: Family
) -> dict[str, Any]:
    """Make the `quantization_config` of config.json.

    grids: the grid of every quantized linear, by its full path. plain: linears that stay in 16 bits. Full paths are
    given wherever a format knows them, because a pattern such as `gate_proj` is in the decoder and in the vision tower.
    """
    if settings.format == "gptq":
        return _gptq_config(settings, family)
    if settings.format == "bitsandbytes":
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": settings.dtype,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": _skipped(plain, family.vision),
        }
    from compressed_tensors.quantization import QuantizationConfig

    config: dict[str, Any] = QuantizationConfig(
        config_groups={
            f"group_{i}": {"targets": [path for path in grids if grids[path] == grid], "weights": _scheme(grid)}
            for i, grid in enumerate(dict.fromkeys(grids.values()))
        },
        ignore=plain,
        format="pack-quantized",
        quantization_status="compressed",
    ).to_dict()
    return config


def _gptq_config(settings: Settings, family: Family) -> dict[str, Any]:
    """Say which linears are quantized in the ways in which loaders ask.

    optimum (for transformers) replaces the linears below `block_name_to_quantize`, SGLang all but those that `dynamic`
    excludes; GPTQModel knows the family, and vLLM looks at the tensors. `modules_in_block_to_quantize` must be absent:
    vLLM would find names such as `mlp.gate_proj` in the vision tower, too.
    """
    outside = [part.split(".")[-1] for part in (family.vision, family.mtp) if part]
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": settings.bits,
        "group_size": settings.group_size,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "block_name_to_quantize": f"{family.text}.layers",
        "dynamic": {f"-:.*{part}.*": {} for part in outside},
    }


def _scheme(grid: Quantizer) -> dict[str, Any]:
    assert isinstance(grid, UniformQuantizer)
    return {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": grid.group_size,
        "dynamic": False,
    }


def _skipped(plain: list[str], vision: str | None) -> list[str]:
    """Name the vision tower once instead of each of its linears."""
    inside = [path for path in plain if vision and path.startswith(f"{vision}.")]
    return [vision for _ in inside[:1] if vision] + [path for path in plain if path not in inside]

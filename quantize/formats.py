"""How quantized weights are stored: as other tools load them, in the bytes that ONNX Runtime's operators take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from quantize.grids import NF4_VALUES, Grid, NF4Grid, UniformGrid, pack_nibbles

if TYPE_CHECKING:
    from quantize.settings import Settings


def stored(codes: torch.Tensor, scales: torch.Tensor, grid: Grid) -> dict[str, torch.Tensor]:
    """Store a quantized weight [N, K]: tensors by what follows the linear's path, codes and then scales.

    Integer grids: compressed-tensors `pack-quantized`. NF4: bitsandbytes without double quantization.
    """
    if isinstance(grid, NF4Grid):
        return {"weight": pack_nibbles(codes), "weight.absmax": scales.reshape(-1)}
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    return {"weight_packed": pack_to_int32(codes, grid.bits), "weight_scale": scales}


def described(codes: torch.Tensor, scales: torch.Tensor, grid: Grid, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Describe a quantized weight [N, K]: the small tensors that loaders want beside codes and scales.

    dtype: what bitsandbytes dequantizes to.
    """
    if not isinstance(grid, NF4Grid):
        return {"weight_shape": torch.tensor(codes.shape)}
    from bitsandbytes.functional import QuantState

    state = QuantState(
        absmax=scales.reshape(-1),
        shape=codes.shape,
        code=torch.tensor(NF4_VALUES),
        blocksize=grid.group_size,
        quant_type="nf4",
        dtype=dtype,
    )
    small = {key: value for key, value in state.as_dict(packed=True).items() if key != "absmax"}
    return {f"weight.{key}": value for key, value in small.items()}


def quantization_config(
    settings: Settings, grids: dict[str, Grid], plain: list[str], vision: str | None
) -> dict[str, Any]:
    """Make the `quantization_config` of config.json.

    grids: the grid of every quantized linear, by its full path. plain: linears that stay in 16 bits. vision: the path
    of the vision tower. Only full paths are given, because a pattern such as `gate_proj` is in the decoder and in the
    vision tower.
    """
    if settings.grid == "nf4":
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": settings.dtype,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": _skipped(plain, vision),
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


def _scheme(grid: Grid) -> dict[str, Any]:
    assert isinstance(grid, UniformGrid)
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

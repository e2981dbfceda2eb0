"""Checkpoint formats: how quantized weights are packed and described.

Integers: compressed-tensors `pack-quantized`. NF4: bitsandbytes without double quantization. ONNX Runtime's operators
take the bytes of both. GPTQ, the format of auto-gptq that GPTQModel keeps, is for other tools only: its layout differs.
Scales may be negative in all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from quantize.solver.quantizers import NF4_VALUES, ROWS, Quantizer, UniformQuantizer, pack_nibbles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quantize.model.families import Family, Linears
    from quantize.settings import Format, Settings


def pack_weight(
    codes: torch.Tensor, scales: torch.Tensor, quantizer: Quantizer, to: Format | None
) -> dict[str, torch.Tensor]:
    """Pack a quantized weight [N, K]. Returns codes and scales, in this order, by the suffix of their name."""
    if to == "bitsandbytes":
        return {"weight": pack_nibbles(codes), "weight.absmax": scales.reshape(-1)}
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    if to == "gptq":  # inputs first: [K * bits / 32, N], consecutive inputs in a word, and [K / group, N]
        return {"qweight": pack_to_int32(codes.T, quantizer.bits, packed_dim=0), "scales": scales.T}
    packed = torch.cat([pack_to_int32(rows, quantizer.bits) for rows in codes.split(ROWS)])  # it takes 12 bytes a code
    return {"weight_packed": packed, "weight_scale": scales}


def side_by_side(groups: Linears, parts: Mapping[str, Mapping[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    """Name and order the tensors of linears: tensors of one kind lie side by side for linears of one group.

    groups: linears that read the same inputs. parts: the tensors of every linear, by its path.
    """
    return [(f"{path}.{kind}", parts[path][kind]) for group in groups for kind in parts[group[0]] for path in group]


def weight_metadata(
    codes: torch.Tensor, scales: torch.Tensor, quantizer: Quantizer, settings: Settings
) -> dict[str, torch.Tensor]:
    """Make the small tensors that loaders need in addition to codes and scales of a weight [N, K], by suffix."""
    if settings.format == "compressed-tensors":
        return {"weight_shape": torch.tensor(codes.shape)}
    if settings.format == "gptq":
        return _gptq_groups(codes, quantizer)
    from bitsandbytes.functional import QuantState

    state = QuantState(
        absmax=scales.reshape(-1),
        shape=codes.shape,
        code=torch.tensor(NF4_VALUES),
        blocksize=quantizer.group_size,
        quant_type="nf4",
        dtype=settings.torch_dtype,  # bitsandbytes dequantizes to it
    )
    return {f"weight.{key}": value for key, value in state.as_dict(packed=True).items() if key != "absmax"}


def _gptq_groups(codes: torch.Tensor, quantizer: Quantizer) -> dict[str, torch.Tensor]:
    """Make zero points [K / group, N * bits / 32] and the group [K] of every input.

    Version 1 of the format stores a zero point minus one. Packing adds the zero point, so that is the code -1.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    outputs, inputs = codes.shape
    minus_one = torch.full((inputs // quantizer.group_size, outputs), -1, dtype=torch.int8)
    g_idx = torch.arange(inputs, dtype=torch.int32) // quantizer.group_size
    return {"qzeros": pack_to_int32(minus_one, quantizer.bits), "g_idx": g_idx}


def quantization_config(
    settings: Settings, quantizers: Mapping[str, Quantizer | None], family: Family
) -> dict[str, Any]:
    """Make the `quantization_config` of config.json. quantizers: of every linear, by its full path.

    Linears are named by full path where the format allows it: a pattern such as `gate_proj` matches the decoder and the
    vision tower. vLLM renames full paths to those of its own modules, all but the head's.
    """
    plain = [path for path, quantizer in quantizers.items() if quantizer is None]
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

    kinds = dict.fromkeys(quantizer for quantizer in quantizers.values() if quantizer is not None)
    config: dict[str, Any] = QuantizationConfig(
        config_groups={
            f"group_{i}": {
                "targets": [_target(path, family) for path in quantizers if quantizers[path] == kind],
                "weights": _scheme(kind),
            }
            for i, kind in enumerate(kinds)
        },
        ignore=[_target(path, family) for path in plain],
        format="pack-quantized",
        quantization_status="compressed",
    ).to_dict()
    # transformers then unpacks while it loads, so that `generate` finds the weights of the vision tower. It takes the
    # first group's bits for every linear, so this is right for one group only.
    return config | ({"dequantize": True} if len(kinds) == 1 else {})


def _gptq_config(settings: Settings, family: Family) -> dict[str, Any]:
    """Name the quantized linears in the way of each loader.

    optimum (for transformers) replaces the linears below `block_name_to_quantize`, SGLang all but those that `dynamic`
    excludes; GPTQModel knows the family, and vLLM looks at the tensors. `modules_in_block_to_quantize` must be absent:
    vLLM would match names such as `mlp.gate_proj` in the vision tower, too.
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


def _target(path: str, family: Family) -> str:
    """Name a linear for compressed-tensors.

    The head is a pattern: vLLM has it at `language_model.lm_head`, and renames only names with a dot.
    """
    return f"re:.*{family.head}$" if path == family.head else path


def _scheme(quantizer: Quantizer) -> dict[str, Any]:
    assert isinstance(quantizer, UniformQuantizer)
    return {
        "num_bits": quantizer.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": quantizer.group_size,
        "dynamic": False,
    }


def _skipped(plain: list[str], vision: str | None) -> list[str]:
    """Name the vision tower once instead of each of its linears.

    transformers looks for its path, vLLM for its last part: there the tower is `visual`, and this list is not renamed.
    """
    inside = [path for path in plain if vision and path.startswith(f"{vision}.")]
    tower = [vision, vision.split(".")[-1]] if vision and inside else []
    return tower + [path for path in plain if path not in inside]

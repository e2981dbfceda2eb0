"""GPTQModel, as peer.py calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ATTENTION = "sdpa"


def quantize(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,  # noqa: ARG001 (it loads its own)
    calls: list[dict[str, Any]],
    settings: dict[str, Any],
) -> PreTrainedModel:
    """Replace the decoder's weights by 4-bit values, symmetric in groups.

    settings: `group_size`; `mse`, the exponent of the error that chooses scales, 0 (its default) for the largest weight
    of a group. A group-aware order of columns and a damping of 0.05 are defaults. It loads the model itself.
    """
    config = QuantizeConfig(
        bits=4, group_size=settings["group_size"], sym=True, mse=settings["mse"], offload_to_disk=False
    )
    loaded = GPTQModel.load(model.config._name_or_path, config, device="cpu", dtype=torch.float32)
    given = [{"input_ids": call["input_ids"], "attention_mask": torch.ones_like(call["input_ids"])} for call in calls]
    loaded.quantize(given, calibration_sort=None, batch_size=1, backend=BACKEND.TORCH)
    for name, module in loaded.model.named_modules():
        if hasattr(module, "qweight"):
            model.get_parameter(f"{name}.weight").data = _dequantized(module)
    return model


def _dequantized(linear: Any) -> torch.Tensor:  # noqa: ANN401 (a class of GPTQModel)
    """The weights [N, K] of GPTQ's layout: eight codes of consecutive inputs in an int32 [K / 8, N]."""
    shifts = torch.arange(0, 32, 4)[:, None]
    codes = ((linear.qweight[:, None] >> shifts) & 15).flatten(0, 1)
    scales: torch.Tensor = linear.scales.float()[linear.g_idx.long()]
    weight: torch.Tensor = ((codes - 8) * scales).T.contiguous()
    return weight

"""llm-compressor's GPTQ on given documents. Run by its own interpreter; nothing of this project is imported.

    python llm_compressor.py MODEL DOCUMENTS RESULT SETTINGS

DOCUMENTS: safetensors, `ids.<i>` [T], `patches.<i>` [P, 1176] and `grid.<i>` [1, 3] of document i. RESULT: safetensors,
the decoder's linears as float32 values of their codes, and the seconds they took. SETTINGS: JSON, `actorder` and the
`observer` that chooses scales.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoTokenizer

if TYPE_CHECKING:
    from typing import Any

DECODER = r"re:.*language_model\.layers\.\d+\.(self_attn|mlp)\..*_proj$"


def documents(path: str) -> list[dict[str, torch.Tensor]]:
    """What the model is called with, a document at a time: a batch of one without padding."""
    tensors = load_file(path)
    count = sum(name.startswith("ids.") for name in tensors)
    return [
        {
            "input_ids": tensors[f"ids.{i}"][None],
            "pixel_values": tensors[f"patches.{i}"],
            "image_grid_thw": tensors[f"grid.{i}"],
        }
        for i in range(count)
    ]


def quantize(model: Any, tokenizer: Any, calls: list[dict[str, torch.Tensor]], settings: dict[str, str]) -> None:
    """Put 4-bit values, symmetric in groups of 128, in the place of the decoder's weights."""
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 128,
        "observer": settings["observer"],
    }
    recipe = GPTQModifier(
        config_groups={"decoder": {"targets": [DECODER], "weights": weights}}, actorder=settings["actorder"]
    )
    oneshot(
        model=model,
        processor=tokenizer,
        dataset=DataLoader(calls, batch_size=None, shuffle=False),
        recipe=recipe,
        num_calibration_samples=len(calls),
        sequential_targets=["Exaone4DecoderLayer"],
    )


def main(folder: str, calibration: str, result: str, settings: str) -> None:
    """Load, quantize, save."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    calls, started = documents(calibration), time.perf_counter()
    quantize(model, AutoTokenizer.from_pretrained(folder), calls, json.loads(settings))
    seconds = time.perf_counter() - started
    linears = {
        f"{name}.weight": module.weight.detach().float().contiguous()
        for name, module in model.named_modules()
        if getattr(module, "quantization_scheme", None) is not None
    }
    save_file(linears, result, metadata={"seconds": str(seconds)})


if __name__ == "__main__":
    main(*sys.argv[1:])

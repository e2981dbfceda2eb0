"""Run a peer on given documents, in the environment of that peer. Imports nothing of this project.

    python peer.py MODULE MODEL DOCUMENTS RESULT SETTINGS

MODULE: the file next to this one that calls the peer. DOCUMENTS: safetensors with `ids.<i>` [T] of document i, and with
an image `patches.<i>` [P, 1176] and `grid.<i>` [1, 3]. RESULT: safetensors with all parameters that changed (float32)
and the seconds it took. SETTINGS: JSON for the module.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

NAMES = {"ids": "input_ids", "patches": "pixel_values", "grid": "image_grid_thw"}


def calls(path: str) -> list[dict[str, Any]]:
    """The arguments of a call of the model for each document: a batch of one without padding."""
    given: dict[int, dict[str, Any]] = {}
    for name, tensor in load_file(path).items():
        part, _, i = name.partition(".")
        call = given.setdefault(int(i), {"use_cache": False})
        call[NAMES[part]] = tensor[None] if part == "ids" else tensor
    return [given[i] for i in range(len(given))]


def main(module: str, folder: str, documents: str, result: str, settings: str) -> None:
    """Load, quantize, save."""
    quantizer = importlib.import_module(module)
    has_vision = hasattr(AutoConfig.from_pretrained(folder), "vision_config")
    auto_class = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
    model = auto_class.from_pretrained(folder, dtype=torch.float32, attn_implementation=quantizer.ATTENTION)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    given, started = calls(documents), time.perf_counter()
    model = quantizer.quantize(model, tokenizer, given, json.loads(settings))
    seconds = time.perf_counter() - started
    after = {name: parameter.detach().float().contiguous() for name, parameter in model.named_parameters()}
    changed = {name: after[name] for name in before if not torch.equal(before[name], after[name])}
    save_file(changed, result, metadata={"seconds": str(seconds)})


if __name__ == "__main__":
    main(*sys.argv[1:])

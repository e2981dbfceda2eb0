"""Transformers as the reference, the PyTorch modules of `export`, and the tolerance of each step of the parity ladder.

Tolerances are relative to the largest value of the reference.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from calib_data import READER
from calib_data.document import Document
from export.modules.decoder import Decoder
from export.modules.vision import VisionEncoder
from export.modules.weights import Source
from quantize.checkpoint.reader import open_checkpoint
from quantize.model.families import find_family, model_config

EAGER = 1e-5  # the same float32 arithmetic in another order
ONNX = 1e-5  # as above, with ONNX Runtime's kernels
VISION = 1e-4  # the trained vision encoder magnifies rounding: on noise transformers is 3e-5 off its float64 result
CACHED = 1e-5  # sums over keys in other chunks
PACKED = 2e-5  # weights dequantized inside the kernel, in other block sizes
INT8_ACTIVATIONS = 0.08  # MatMulNBits at accuracy_level 4 rounds its input to int8: about 6e-3 a linear, 25 in a row


def relative_error(value: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> float:
    value, reference = np.asarray(value), np.asarray(reference)
    assert value.shape == reference.shape
    return float(np.abs(value - reference).max() / np.abs(reference).max())


def transformers_inputs(document: Document) -> dict[str, torch.Tensor]:
    """The document as transformers' own tokenizer, template and image processor see it."""
    tokenizer = AutoTokenizer.from_pretrained(READER)
    pixels = Qwen2VLImageProcessorPil.from_pretrained(READER)(document.image, return_tensors="pt")
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": document.prompt}]}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True, enable_thinking=False)
    tokens = int(pixels["image_grid_thw"].prod()) // 4
    text = text.replace("<|image_pad|>", "<|image_pad|>" * tokens)
    return {**tokenizer(text, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False), **pixels}


def transformers_logits(model: torch.nn.Module, document: Document, answer: list[int]) -> np.ndarray:
    inputs = transformers_inputs(document)
    prompt = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat((inputs["input_ids"], torch.tensor([answer])), dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        return model(**inputs).logits[0, prompt - 1 : -1].float().numpy()


def eager(folder: Path) -> tuple[Decoder, VisionEncoder]:
    """The PyTorch modules of a folder, in float32."""
    checkpoint = open_checkpoint(folder)
    family, config = find_family(checkpoint.config), model_config(checkpoint.config)
    source = Source(checkpoint, load=True)
    return (
        Decoder(source, family, config),
        VisionEncoder(source, family, config, on_cuda=False, dtype=torch.float32),
    )

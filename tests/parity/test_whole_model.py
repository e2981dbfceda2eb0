"""Parity of whole models on documents: transformers against ONNX Runtime, in every format."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CompressedTensorsConfig,
    GenerationConfig,
)

from calib_data import READER
from calib_data.document import Document
from runtime.decoding.forward import teacher_forced
from runtime.decoding.generate import generate
from runtime.decoding.sampling import greedy
from runtime.inputs.video import Video, VideoSettings, video_patches
from runtime.model import Model
from runtime.prompt import build_prompt

from .references import INT8_ACTIVATIONS, ONNX, PACKED, relative_error, transformers_inputs, transformers_logits


def test_whole_model_on_documents(reference, answered, exported):
    model = Model(exported("fp16"), "cpu")
    for document, answer in answered:
        prompt = build_prompt(model, document.prompt, [document.image])
        logits = np.concatenate(list(teacher_forced(model, prompt, answer)))
        assert relative_error(logits, transformers_logits(reference, document, answer)) < ONNX


def test_whole_model_on_a_video(reference, documents, answered, exported, monkeypatch):
    """Three frames of unlike pages after a picture, in transformers' two inputs; two calls of the vision graph."""
    model = Model(exported("fp16"), "cpu")
    pages = [document.image.resize((140, 168)) for document in documents[:3]]
    video = Video("film", 3, 168, 140, None, None, lambda numbers: (pages[number] for number in numbers))
    document, answer = answered[0]
    prompt = build_prompt(model, document.prompt, [document.image], [video])
    settings = VideoSettings.from_folder(model.folder)
    ((patches, grid),) = video_patches(video, settings)
    assert grid == (2, 12, 10)
    image = transformers_inputs(document)
    inputs = {
        "input_ids": torch.tensor([[*prompt.ids.tolist(), *answer]]),
        "pixel_values": image["pixel_values"],
        "image_grid_thw": image["image_grid_thw"],
        "pixel_values_videos": torch.from_numpy(patches),
        "video_grid_thw": torch.tensor([grid]),
    }
    with torch.no_grad():
        expected = reference(**inputs).logits[0, len(prompt.ids) - 1 : -1].numpy()
    monkeypatch.setattr("runtime.inputs.video.CALL_PATCHES", 120)
    assert len(list(video_patches(video, settings))) == 2
    prompt = build_prompt(model, document.prompt, [document.image], [video])
    assert relative_error(np.concatenate(list(teacher_forced(model, prompt, answer))), expected) < ONNX


@pytest.mark.parametrize("name", ["w4", "w8"])
@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_packed_onnx_is_the_folder_in_transformers(name, answered, exported):
    loaded = AutoModelForImageTextToText.from_pretrained(
        exported(name),
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=CompressedTensorsConfig(),  # unpacks in float32; the folder's own setting in float16
    ).eval()
    model = Model(exported(name), "cpu")
    for document, answer in answered:
        prompt = build_prompt(model, document.prompt, [document.image])
        logits = np.concatenate(list(teacher_forced(model, prompt, answer)))
        assert relative_error(logits, transformers_logits(loaded, document, answer)) < PACKED


def test_nf4_onnx_is_bitsandbytes(answered, exported):
    """Against a float32 model whose weights bitsandbytes itself dequantized."""
    model = Model(exported("nf4"), "cpu")
    filled = nf4_dequantized(exported("nf4"))
    for document, answer in answered:
        prompt = build_prompt(model, document.prompt, [document.image])
        logits = np.concatenate(list(teacher_forced(model, prompt, answer)))
        assert relative_error(logits, transformers_logits(filled, document, answer)) < PACKED


def nf4_dequantized(folder: Path) -> torch.nn.Module:
    stored: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        stored |= load_file(path)
    weights = {}
    for name, value in stored.items():
        state = {key: part for key, part in stored.items() if key.startswith(f"{name}.")}
        if state:
            shape = json.loads(bytes(state[f"{name}.quant_state.bitsandbytes__nf4"].tolist()))["shape"]
            state = QuantState.from_dict(state, device="cpu")
            state.dtype = torch.float32  # else the result would be rounded to float16
            value = dequantize_4bit(value, state).reshape(shape)
        if not any(part in name for part in (".absmax", ".quant_map", ".quant_state")):
            weights[name] = value.float()
    config = AutoConfig.from_pretrained(READER)
    config._attn_implementation = "eager"
    filled = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    missing = filled.load_state_dict(weights, strict=False).missing_keys
    assert missing == []
    return filled


def test_int8_activations_stay_near(answered, exported):
    """The default CPU export, whose kernels round activations, against the exact one of the same folder."""
    exact, fast = Model(exported("w4"), "cpu"), Model(exported("w4", exact=False), "cpu")
    assert not fast.target.exact
    for document, answer in answered:
        logits = [
            np.concatenate(list(teacher_forced(model, build_prompt(model, document.prompt, [document.image]), answer)))
            for model in (exact, fast)
        ]
        assert 0 < relative_error(logits[1], logits[0]) < INT8_ACTIVATIONS


def test_greedy_tokens_are_those_of_transformers(documents, reference, exported):
    """On 20 documents, and on a picture of 12 x 10 patches, whose windows are of four sizes."""
    model = Model(exported("fp16"), "cpu")
    config = GenerationConfig(do_sample=False, max_new_tokens=40, eos_token_id=53, pad_token_id=0, bos_token_id=1)
    odd = Document(documents[0].image.resize((140, 168)), documents[0].prompt, None, "12 x 10 patches")
    for document in (*documents, odd):
        inputs = transformers_inputs(document)
        with torch.no_grad():
            expected = reference.generate(**inputs, generation_config=config)[0, inputs["input_ids"].shape[1] :]
        prompt = build_prompt(model, document.prompt, [document.image])
        assert prompt.ids.tolist() == inputs["input_ids"][0].tolist()
        tokens = list(generate(model, prompt, greedy, 40))
        assert tokens == [token for token in expected.tolist() if token != 53], document.name
    assert inputs["image_grid_thw"].tolist() == [[1, 12, 10]]

"""Folders in transformers' own `generate`, asked about a picture as its documentation does."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bench.dequantized import dequantized
from calib_data import READER
from calib_data.sources import open_documents
from quantize.pipeline import quantize
from quantize.settings import Settings

ROOT = Path(__file__).parents[3]
DEFAULTS = {"w4": True, "w8": False, "nf4": False}  # whether the folder needs the lines of docs/engines.md
MIXED = [
    ({"vision_bits": 16}, False),
    ({"vision_bits": 16, "head_bits": 16}, False),
    ({"head_bits": 16}, True),
    ({"bits": 8, "head_bits": 16}, False),
    ({"bits": 8, "head_bits": 4}, True),
    ({"quant_type": "nf4", "vision_bits": 4, "head_bits": 4}, False),
]


@pytest.fixture(scope="module")
def page():
    """A page, as transformers' own tokenizer, template and image processor see it."""
    tokenizer = AutoTokenizer.from_pretrained(READER)
    document = open_documents("rendered", split="evaluation", count=1, seed=9, kind="transcription")[0]
    pixels = Qwen2VLImageProcessorPil.from_pretrained(READER)(document.image, return_tensors="pt")
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": document.prompt}]}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True, enable_thinking=False)
    text = text.replace("<|image_pad|>", "<|image_pad|>" * (int(pixels["image_grid_thw"].prod()) // 4))
    return {**tokenizer(text, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False), **pixels}


def answer(model, page):
    """Greedy tokens about the page, at most 24."""
    output = model.generate(**page, max_new_tokens=24, do_sample=False)
    return output[0, page["input_ids"].shape[1] :].tolist()


def as_documented(folder, monkeypatch):
    """Load a folder by the lines of docs/engines.md, exactly. Its last line is also in README.md."""
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    lines = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    unpacking = re.search(r"model\.generate\(.*\)(?=  #)", lines)[0]
    assert f"`{unpacking}`" in (ROOT / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(folder.parent)
    (folder.parent / "exaone-w4").symlink_to(folder)
    names = {}
    exec(lines, names)
    return names["model"]


def rounded(folder):
    """The original reader with the folder's weights, dequantized by the layouts' own libraries."""
    model = AutoModelForImageTextToText.from_pretrained(READER, dtype=torch.float16)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, weight in dequantized(folder).items():
        if not name.startswith("mtp."):
            parameters[name].data = weight.half()
    return model


def check(folder, needs_lines, page, monkeypatch):
    if needs_lines:
        model = as_documented(folder, monkeypatch)
    else:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    expected = answer(rounded(folder), page)
    assert answer(model, page) == expected
    assert len(set(expected)) > 8  # it reads


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_folder_reads_a_page_in_transformers(name, page, quantized, tmp_path, monkeypatch):
    (tmp_path / "folder").symlink_to(quantized(name))
    check(tmp_path / "folder", DEFAULTS[name], page, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "needs_lines"), MIXED, ids=str)
def test_other_bits_of_vision_tower_and_head_read_it_too(options, needs_lines, page, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    quantize(Settings(READER, folder, count=1, reference=0, solver="rtn", **options))
    check(folder, needs_lines, page, monkeypatch)

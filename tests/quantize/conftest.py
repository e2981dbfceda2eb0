"""One quantization of the bundled reader per format, and a model without vision, shared by the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Exaone4Config

from calib_data import READER
from quantize.pipeline import quantize
from quantize.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from quantize.report import Report


@dataclass(frozen=True)
class Quantized:
    settings: Settings
    report: Report

    @property
    def folder(self) -> Path:
        return self.settings.folder


def _quantized(tmp_path_factory, name, **options):
    torch.set_num_threads(1)
    settings = Settings(READER, tmp_path_factory.mktemp("quantized") / name, count=12, reference=8, **options)
    report = quantize(settings)
    assert report is not None
    return Quantized(settings, report)


@pytest.fixture(scope="session")
def w4(tmp_path_factory):
    """4-bit decoder, 8-bit vision and head: the defaults."""
    return _quantized(tmp_path_factory, "w4")


@pytest.fixture(scope="session")
def w8(tmp_path_factory):
    """8-bit decoder, 16-bit vision, 4-bit head, groups of 32, bfloat16."""
    return _quantized(tmp_path_factory, "w8", bits=8, vision_bits=16, head_bits=4, group_size=32, dtype="bfloat16")


@pytest.fixture(scope="session")
def nf4(tmp_path_factory):
    """The NF4 defaults."""
    return _quantized(tmp_path_factory, "nf4", quant_type="nf4")


@pytest.fixture(scope="session")
def nf4_all(tmp_path_factory):
    """NF4 everywhere, each weight as bitsandbytes rounds it."""
    return _quantized(tmp_path_factory, "nf4_all", quant_type="nf4", vision_bits=4, head_bits=4, solver="rtn")


@pytest.fixture(scope="session")
def text_only(tmp_path_factory):
    """A small EXAONE 4.0 with random weights: no vision, tied embeddings, no sliding window, two files."""
    folder = tmp_path_factory.mktemp("exaone4") / "text"
    config = Exaone4Config(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=None,
        sliding_window_pattern=None,
        layer_types=["full_attention"] * 2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=53,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="300KB")
    AutoTokenizer.from_pretrained(READER).save_pretrained(folder)
    return folder

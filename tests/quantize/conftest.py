"""One quantization of the bundled reader per format, and a model without vision, shared by the tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, Exaone4Config

from calib_data import READER
from quantize.output import REPORT
from quantize.pipeline import quantize
from quantize.report import LinearReport, Report
from quantize.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Quantized:
    """A finished quantization. Not to be written to."""

    settings: Settings

    @property
    def folder(self) -> Path:
        return self.settings.folder

    @property
    def report(self) -> Report:
        """The report, read back from the folder: another process may have quantized it."""
        report = json.loads((self.folder / REPORT).read_text(encoding="utf-8"))
        linears = [LinearReport(**linear) for linear in report["linears"]]
        return Report(report["settings"], linears, **{k: v for k, v in report["totals"].items() if k != "linears"})


@pytest.fixture(scope="session")
def quantized_once(shared):
    """Quantizes the reader once per name, in however many processes the tests run."""

    def once(name, **options):
        torch.set_num_threads(1)
        settings = Settings(READER, shared / "quantize" / name, count=8, reference=4, **options)
        settings.folder.parent.mkdir(exist_ok=True)
        with FileLock(shared / f"quantize-{name}.lock"):
            quantize(settings)  # once: then it is there
        return Quantized(settings)

    return once


@pytest.fixture(scope="session")
def w4(quantization):
    """4-bit decoder, 8-bit vision and head: the defaults."""
    return Quantized(quantization("w4"))


@pytest.fixture(scope="session")
def w8(quantized_once):
    """8-bit decoder, 16-bit vision, 4-bit head, groups of 32, bfloat16."""
    return quantized_once("w8", bits=8, vision_bits=16, head_bits=4, group_size=32, dtype="bfloat16")


@pytest.fixture(scope="session")
def nf4(quantization):
    """The NF4 defaults."""
    return Quantized(quantization("nf4"))


@pytest.fixture(scope="session")
def nf4_all(quantized_once):
    """NF4 everywhere, by RTN: each weight as bitsandbytes rounds it."""
    return quantized_once("nf4_all", quant_type="nf4", vision_bits=4, head_bits=4, solver="rtn")


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

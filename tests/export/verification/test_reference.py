"""Modules in 16 bits: the tolerance that follows from their error passes what a GPU may round, and little else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from export.modules import products_16bit
from export.modules.decoder import Decoder
from export.modules.mtp import Mtp
from export.modules.weights import Source
from export.verification.inputs import CALLS, TOKENS
from export.verification.reference import relative_error, run_with_cache
from export.verification.tolerances import EXACT, ROUNDING
from quantize.checkpoint.reader import open_checkpoint
from quantize.model.families import find_family, model_config
from runtime.ort.manifest import Text, load_manifest

ONE = [(0, TOKENS)]
DTYPES = {"w4": torch.float16, "bf16": torch.bfloat16}
each_reader = pytest.mark.parametrize("name", DTYPES)


class Reader:
    """A reader's decoder and MTP layer, new ones each time, and what they are asked."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        described, self.checkpoint = load_manifest(folder), open_checkpoint(folder)
        random = np.random.default_rng(seed)
        ids = random.integers(described.text.vocab_size, size=TOKENS)
        self.text, self.embeds = described.text, described.embeddings.map(folder)[ids].astype(np.float32)
        self.hidden = random.normal(size=self.embeds.shape).astype(np.float32)

    def module(self, kind: type[Decoder | Mtp] = Decoder) -> Decoder | Mtp:
        config = self.checkpoint.config
        return kind(Source(self.checkpoint, load=True), find_family(config), model_config(config))

    def answer(self, module: Decoder | Mtp, calls, dtype: torch.dtype, text: Text | None = None) -> np.ndarray:
        read = [self.embeds, self.hidden] if isinstance(module, Mtp) else [self.embeds]
        with torch.no_grad():
            return run_with_cache(module, text or self.text, read, calls, dtype)[0]


@pytest.mark.parametrize("kind", [Decoder, Mtp])
def test_calls_of_any_size_answer_alike(kind, on_cuda):
    reader = Reader(on_cuda("w4"))
    module = reader.module(kind)
    at_once, in_calls = (reader.answer(module, calls, torch.float32) for calls in (ONE, CALLS))
    assert 0 < relative_error(in_calls, at_once) < EXACT


FEW_ROWS = products_16bit.few_rows


def in_another_order(x: Tensor, weight: Tensor) -> Tensor:
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(1))
    return FEW_ROWS(x[:, order], weight[:, order])


@each_reader
@pytest.mark.parametrize("kind", [Decoder, Mtp])
@pytest.mark.parametrize("seed", range(3))
def test_other_orders_of_sums_are_within(seed, kind, name, on_cuda, monkeypatch):
    """And not by far: only tokens read in calls of few are off by anything else than before."""
    reader = Reader(on_cuda(name), seed)
    module = reader.module(kind)
    expected, rounded = (reader.answer(module, *how) for how in ((ONE, torch.float32), (CALLS, DTYPES[name])))
    monkeypatch.setattr(products_16bit, "few_rows", in_another_order)
    found = reader.answer(module, CALLS, DTYPES[name])
    few = CALLS[0][1]
    assert np.array_equal(found[:few], rounded[:few])
    assert not np.array_equal(found[few:], rounded[few:])
    assert relative_error(found[few:], expected[few:]) < ROUNDING / 1.5 * relative_error(rounded[few:], expected[few:])
    assert relative_error(found, expected) < ROUNDING / 2 * relative_error(rounded, expected)


def roll_a_weight(decoder: Decoder) -> None:
    down = decoder.layers[1].mlp.down.products[0]
    down.weight_packed = down.weight_packed.roll(1, 0)


def roll_scales(decoder: Decoder) -> None:
    down = decoder.layers[1].mlp.down.products[0]
    down.weight_scale = down.weight_scale.roll(1, 1)


def swap_gate_and_up(decoder: Decoder) -> None:
    both = decoder.layers[0].mlp.gate_up.products[0]
    for buffer in both.byte_ranges:
        setattr(both, buffer, torch.cat(both.get_buffer(buffer).chunk(2)[::-1]))


def forget_a_norm(decoder: Decoder) -> None:
    norm = decoder.layers[1].attention.q_norm
    norm.weight = torch.ones_like(norm.weight)


def rotate_global_layers(decoder: Decoder) -> None:
    for layer in decoder.layers:
        layer.attention.has_rope = True


def ignore_windows(decoder: Decoder) -> None:
    for layer in decoder.layers:
        layer.attention.window = None


def narrow_a_window(decoder: Decoder) -> None:
    decoder.layers[0].attention.window -= 1


def repeat_an_output(decoder: Decoder) -> None:
    down = decoder.layers[2].mlp.down.products[0]
    down.weight_packed = down.weight_packed.clone()
    down.weight_packed[3] = down.weight_packed[4]


FAULTS = [roll_a_weight, roll_scales, swap_gate_and_up, forget_a_norm, rotate_global_layers, ignore_windows]
SUBTLE = [narrow_a_window, repeat_an_output]  # 0.02 to 0.05 off, as bfloat16 is


@pytest.mark.parametrize(("name", "faults"), [("w4", FAULTS + SUBTLE), ("bf16", FAULTS)], ids=["float16", "bfloat16"])
def test_faults_are_not_within(name, faults, on_cuda):
    reader, dtype = Reader(on_cuda(name)), DTYPES[name]
    expected = reader.answer(reader.module(), ONE, torch.float32)
    tolerance = ROUNDING * relative_error(reader.answer(reader.module(), CALLS, dtype), expected)
    everything = replace(reader.text, windows=[None] * len(reader.text.windows))
    for fault in faults:
        decoder = reader.module()
        fault(decoder)
        found = reader.answer(decoder, CALLS, dtype, everything if fault is ignore_windows else None)
        assert relative_error(found, expected) > 2 * tolerance, fault.__name__

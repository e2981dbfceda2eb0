"""What quantizing costs the whole model: next-token distributions on documents that it was not calibrated on."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForImageTextToText

from calib_data import READER
from quantize.calibration import read_samples
from quantize.checkpoint import open_checkpoint
from quantize.grids import NF4Grid, UniformGrid, dequantize, unpack_nibbles
from quantize.settings import Settings
from quantize.walk import quantize


@pytest.fixture(scope="module")
def reader():
    return AutoModelForImageTextToText.from_pretrained(READER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def held_out(reader):
    return list(read_samples(Settings(READER, samples=24, seed=11), reader.config, split="evaluation"))


@torch.no_grad()
def answers(model, samples):
    """Log-probabilities [tokens, vocabulary] of every answer token, teacher-forced on the true answer."""
    rows = []
    for sample in samples:
        logits = model(input_ids=sample.ids[None], pixel_values=sample.patches, image_grid_thw=sample.grid).logits[0]
        rows.append(logits[-sample.answer - 1 : -1].double().log_softmax(-1))
    return torch.cat(rows)


def divergence(settings, reader, samples, tmp_path):
    """Mean KL(full precision ‖ quantized) in nats a token. Weights are unpacked here, so that all computes in fp32."""
    settings = dataclasses.replace(settings, output=tmp_path / "quantized")
    report = quantize(settings)
    checkpoint = open_checkpoint(settings.folder)
    original = {name: parameter.data for name, parameter in reader.named_parameters()}
    reference = answers(reader, samples)
    try:
        for linear in report.linears:
            if linear.tower == "mtp":  # no part of what transformers computes
                continue
            name = f"{linear.name}.weight"
            if settings.grid == "nf4":
                codes = unpack_nibbles(checkpoint.load(name)).view(linear.shape)
                scales = checkpoint.load(f"{name}.absmax").view(linear.shape[0], -1)
                weight = dequantize(codes, scales, NF4Grid())
            else:
                packed = checkpoint.load(f"{name}_packed").view(torch.uint8)
                nibbles = torch.stack([packed & 15, packed >> 4], -1).flatten(1) if linear.bits == 4 else packed
                codes = (nibbles.int() - 2 ** (linear.bits - 1)).to(torch.int8)
                grid = UniformGrid(linear.bits, linear.group_size)
                weight = dequantize(codes, checkpoint.load(f"{name}_scale"), grid)
            reader.get_parameter(name).data = weight
        found = answers(reader, samples)
    finally:
        for name, data in original.items():
            reader.get_parameter(name).data = data
    return float((reference.exp() * (reference - found)).sum(-1).mean())


@pytest.mark.parametrize("grid", ["int", "nf4"])
def test_solving_leaves_half_of_what_rounding_costs(reader, held_out, tmp_path, grid):
    settings = Settings(READER, grid=grid, samples=48)
    rounded = divergence(dataclasses.replace(settings, solver="rtn", samples=1), reader, held_out, tmp_path / "rtn")
    solved = divergence(settings, reader, held_out, tmp_path / "gptq")
    assert 0 < solved <= 0.5 * rounded


def test_eight_bits_cost_next_to_nothing(reader, held_out, tmp_path):
    assert divergence(Settings(READER, bits=8, samples=12), reader, held_out, tmp_path) < 1e-4

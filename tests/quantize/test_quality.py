"""What quantizing costs the whole model: next-token distributions on documents that it was not calibrated on."""

import dataclasses

import numpy as np
import pytest
from transformers import AutoConfig

from bench.dequantized import dequantized
from bench.divergence import Divergence
from calib_data import READER
from quantize.calibration.samples import read_samples
from quantize.pipeline import quantize
from quantize.settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def divergence():
    held_out = Settings(READER, count=48, seed=11)
    return Divergence(READER, list(read_samples(held_out, AutoConfig.from_pretrained(READER), split="evaluation")))


def cost(settings, divergence, tmp_path):
    """Mean KL(full precision ‖ quantized) in nats a token of the true answers, computed in float32.

    Single tokens, near a tie, reach a nat and would decide for all the others: none counts for more than 0.03.
    """
    quantize(dataclasses.replace(settings, output=tmp_path / "quantized", reference=0))
    weights = {name: w for name, w in dequantized(tmp_path / "quantized").items() if not name.startswith("mtp.")}
    return float(np.minimum(np.concatenate(divergence(weights)), 0.03).mean())


@pytest.mark.parametrize("grid", ["int", "nf4"])
def test_solving_leaves_less_than_two_fifths_of_what_rounding_costs(divergence, tmp_path, grid):
    settings = Settings(READER, quant_type=grid, count=24)
    rounded = cost(dataclasses.replace(settings, solver="rtn", count=1), divergence, tmp_path / "rtn")
    solved = cost(settings, divergence, tmp_path / "gptq")
    assert 0 < solved < 0.4 * rounded


def test_eight_bits_cost_next_to_nothing(divergence, tmp_path):
    assert cost(Settings(READER, bits=8, count=12, vision_bits=16), divergence, tmp_path) < 1e-4

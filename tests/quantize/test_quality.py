"""What quantizing costs the whole model: next-token distributions on documents that it was not calibrated on."""

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


def cost(folder, divergence):
    """Mean KL(full precision ‖ quantized) in nats a token of the true answers, computed in float32.

    Single tokens, near a tie, reach a nat and would decide for all the others: none counts for more than 0.03.
    """
    weights = {name: w for name, w in dequantized(folder).items() if not name.startswith("mtp.")}
    return float(np.minimum(np.concatenate(divergence(weights)), 0.03).mean())


@pytest.mark.parametrize(("name", "grid"), [("w4", "int"), ("nf4", "nf4")])
def test_solving_leaves_less_than_two_fifths_of_what_rounding_costs(divergence, quantized, tmp_path, name, grid):
    quantize(Settings(READER, tmp_path / "rtn", quant_type=grid, solver="rtn", count=1, reference=0))
    assert 0 < cost(quantized(name), divergence) < 0.4 * cost(tmp_path / "rtn", divergence)


def test_eight_bits_cost_next_to_nothing(divergence, tmp_path):
    quantize(Settings(READER, tmp_path / "w8", bits=8, count=12, vision_bits=16, reference=0))
    assert cost(tmp_path / "w8", divergence) < 1e-4

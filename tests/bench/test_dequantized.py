"""Unpacked weights against what transformers makes of the same folder, and bitsandbytes' against our own grid."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from bench.dequantized import dequantized
from calib_data import READER
from quantize.checkpoint.reader import open_checkpoint
from quantize.pipeline import quantize
from quantize.settings import Settings
from quantize.solver.quantizers import NF4Quantizer, dequantize, unpack_nibbles

pytestmark = pytest.mark.slow


def rounded(folder, **options):
    quantize(Settings(READER, folder, count=1, reference=0, solver="rtn", **options))
    return dequantized(folder)


@pytest.mark.parametrize(
    ("options", "linears"),
    [({"bits": 4}, 4 * 7 + 4 * 5 + 2 + 1), ({"bits": 8, "group_size": 32, "vision_bits": 16}, 4 * 7 + 1)],
    ids=["4-bit", "8-bit"],
)
@torch.no_grad()
def test_integers_are_those_that_transformers_computes_with(options, linears, tmp_path):
    weights = {name: w for name, w in rounded(tmp_path / "out", **options).items() if not name.startswith("mtp.")}
    assert len(weights) == linears
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    model(input_ids=torch.arange(1, 9)[None])  # compressed-tensors unpacks at the first call
    for name, weight in weights.items():
        torch.testing.assert_close(model.get_parameter(name).data, weight, rtol=1e-3, atol=1e-6)


def test_nf4_is_that_of_our_grid(tmp_path):
    weights = rounded(tmp_path / "out", quant_type="nf4", vision_bits=4)
    assert len(weights) == 4 * 7 + 4 * 5 + 2 + 8
    checkpoint = open_checkpoint(tmp_path / "out")
    for name, weight in weights.items():
        codes = unpack_nibbles(checkpoint.load(name)).view(weight.shape)
        scales = checkpoint.load(f"{name}.absmax").view(len(weight), -1)
        torch.testing.assert_close(weight, dequantize(codes, scales, NF4Quantizer()), rtol=1e-6, atol=0)

"""Grids against compressed-tensors' and bitsandbytes' own arithmetic."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize as ct_quantize
from compressed_tensors.quantization.utils import calculate_qparams

from calib_data import READER
from quantize.checkpoint.formats import pack_weight, weight_metadata
from quantize.settings import Settings
from quantize.solver.quantizers import (
    NF4Quantizer,
    UniformQuantizer,
    dequantize,
    pack_nibbles,
    rtn,
    unpack_nibbles,
)


def weights(N=48, K=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(N, K, generator=generator) * 0.05
    W[0] = 0  # a dead output
    W[1, :64] = 0
    W[2] *= 1e-4  # scales that are subnormal in float16
    W[3, 5] = 7.0  # an outlier
    return W


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [16, 64, 128])
def test_rounding_is_that_of_compressed_tensors(bits, group_size):
    W = weights()[3:]
    quantizer = UniformQuantizer(bits, group_size, torch.float16)
    codes, scales = rtn(W, quantizer)
    groups = W.reshape(len(W), -1, group_size)
    args = QuantizationArgs(num_bits=bits, symmetric=True, strategy="group", group_size=group_size)
    scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    assert torch.equal(scales, scale.half())
    expected = ct_quantize(W, scales.float(), torch.zeros_like(scales, dtype=torch.int8), args, dtype=torch.int8)
    assert torch.equal(codes, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_no_weight_moves_by_more_than_half_a_step(bits, dtype):
    W, quantizer = weights(), UniformQuantizer(bits, 32, dtype)
    codes, scales = rtn(W, quantizer)
    assert scales.dtype == dtype
    # the rounding of the scale itself can push the largest weight of a group a little further out of the range
    step = scales.float().repeat_interleave(32, 1)
    slack = 2 ** (bits - 1) * torch.maximum(step * torch.finfo(dtype).eps, torch.tensor(2.0**-25))
    assert ((W - dequantize(codes, scales, quantizer)).abs() <= 0.5 * step + slack).all()
    assert (dequantize(codes, scales, quantizer)[0] == 0).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_format_unpacks_with_compressed_tensors(bits):
    W, quantizer = weights().repeat(200, 1), UniformQuantizer(bits, 128)  # 9600 rows: more than are worked on together
    codes, scales = rtn(W, quantizer)
    parts = pack_weight(codes, scales, quantizer, "compressed-tensors")
    assert torch.equal(unpack_from_int32(parts["weight_packed"], bits, W.shape), codes)
    assert parts["weight_packed"].shape == (9600, 256 * bits // 32)
    assert torch.equal(dequantize(codes, scales, quantizer), codes.float() * scales.float().repeat_interleave(128, 1))
    assert torch.equal(parts["weight_scale"], scales)
    assert weight_metadata(codes, scales, quantizer, Settings(READER))["weight_shape"].tolist() == [9600, 256]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nf4_is_bitsandbytes_bit_for_bit(dtype):
    W, quantizer = weights().to(dtype), NF4Quantizer()
    packed, state = quantize_4bit(W, blocksize=64, quant_type="nf4")
    codes, scales = rtn(W.float(), quantizer)
    parts = pack_weight(codes, scales, quantizer, "bitsandbytes")
    assert torch.equal(parts["weight"], packed)
    assert torch.equal(parts["weight.absmax"], state.absmax)
    # our own rounding, which the solver uses, is the same
    assert torch.equal(quantizer.round(W.float(), scales.repeat_interleave(64, 1)), codes)
    assert torch.equal(dequantize(codes, scales, quantizer).to(dtype), dequantize_4bit(packed, state).view_as(W))


def test_nf4_ties_fall_as_in_bitsandbytes():
    code = torch.tensor(quantize_4bit(torch.ones(1, 64), quant_type="nf4")[1].code.tolist())
    middles = (code[1:] + code[:-1]) / 2
    W = torch.cat([torch.ones(1), middles, middles.nextafter(torch.tensor(2.0)), -middles, torch.zeros(18)])[None]
    quantizer = NF4Quantizer()
    assert W.shape == (1, 64)
    assert torch.equal(pack_nibbles(quantizer.round(W, torch.ones(1, 64))), quantize_4bit(W, quant_type="nf4")[0])


def test_nibbles_round_trip():
    codes = torch.arange(16, dtype=torch.int8).repeat(3)
    assert torch.equal(unpack_nibbles(pack_nibbles(codes)), codes)
    assert pack_nibbles(torch.tensor([1, 2])).tolist() == [[0x12]]

"""Products of few rows in 16 bits against plain loops, and how exact they are."""

import numpy as np
import pytest
import torch
from torch import Tensor

from export.modules import products_16bit
from export.modules.products import EXACT, matmul_nbits

DTYPES = [torch.float16, torch.bfloat16]
f32 = np.float32


def packed(codes: Tensor, group: int) -> Tensor:
    """4-bit codes [N, K] as MatMulNBits stores them: the first of two in the low half of a byte."""
    low, high = codes.to(torch.uint8).unflatten(1, (-1, group // 2, 2)).unbind(-1)
    return low | high << 4


def by_the_weight(x: Tensor, weight: Tensor, kept: int) -> float:
    """One row times one column, weight by weight."""

    def rounded(value: np.float32) -> np.float32:
        return f32(torch.tensor(value).to(x.dtype).float())

    sums = np.zeros((32, kept), f32)
    for k, (a, b) in enumerate(zip(x.float().numpy(), weight.float().numpy(), strict=True)):
        lane, slot = k % 256 // 8, k % kept
        sums[lane, slot] = rounded(sums[lane, slot] + a * b)
    if kept == 8:
        lanes = sums[:, 0]
        for slot in (4, 1, 5, 2, 6, 3, 7):
            lanes = np.array([rounded(total) for total in lanes + sums[:, slot]])
    else:
        lanes = sums[:, 0] + sums[:, 1]
    for offset in (16, 8, 4, 2, 1):
        lanes = lanes[:offset] + lanes[offset : 2 * offset]
    return float(rounded(lanes[0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "kept"), [(1, 8), (2, 2), (16, 2)])
def test_few_rows_are_added_as_by_the_kernel(rows, kept, dtype):
    random = torch.Generator().manual_seed(rows)
    codes = torch.randint(16, (3, 608), generator=random)  # two times all lanes, and then 12 of them
    scales = (torch.rand(3, 19, generator=random) / 100).to(dtype)
    x = torch.randn(rows, 608, generator=random).to(dtype)
    weight = ((codes.unflatten(1, (19, 32)) - 8).to(dtype) * scales.unsqueeze(-1)).flatten(1)
    found = matmul_nbits(x, packed(codes, 32), scales, 4, EXACT)
    assert found.dtype == dtype
    assert found.tolist() == [[by_the_weight(row, column, kept) for column in weight] for row in x]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "rows", "exact"), [(4, 1, False), (4, 16, False), (4, 17, True), (8, 1, True)])
def test_other_products_are_added_in_float32(bits, rows, exact, dtype):
    """Whole numbers, whose sums float32 holds and 16 bits do not."""
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(2**bits, (64, 4096), generator=random)
    x = torch.randint(-400 // bits, 400 // bits, (rows, 4096), generator=random).to(dtype)
    weight = (codes - 2 ** (bits - 1)).double()
    stored = packed(codes, 128) if bits == 4 else codes.to(torch.uint8).reshape(64, 32, 128)
    found = matmul_nbits(x, stored, torch.ones(64, 32, dtype=dtype), bits, EXACT)
    expected = (x.double() @ weight.T).float().to(dtype)
    assert torch.equal(found, expected) == exact


def relative_rms(rows: int, dtype: torch.dtype) -> float:
    """Of what a product of 5120 inputs is off; weights and inputs are exact in either dtype."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 5120, generator=random).bfloat16().to(dtype)
    weight = torch.randn(128, 5120, generator=random).bfloat16().to(dtype)
    expected = x.double() @ weight.double().T
    return float((products_16bit.linear(x, weight).double() - expected).norm() / expected.norm())


def test_how_exact_products_are():
    """float16 has three more bits than bfloat16."""
    errors = {(rows, dtype): relative_rms(rows, dtype) for rows in (1, 4, 17) for dtype in DTYPES}
    assert 0.004 < errors[1, torch.bfloat16] < 0.008
    assert errors[1, torch.bfloat16] < errors[4, torch.bfloat16] < 0.017
    for rows in (1, 4, 17):
        assert 6 < errors[rows, torch.bfloat16] / errors[rows, torch.float16] < 10
    for dtype in DTYPES:
        assert errors[17, dtype] < errors[1, dtype] / 3


def test_float32_is_left_to_torch():
    x, weight = torch.randn(1, 2, 64), torch.randn(8, 64)
    assert torch.equal(products_16bit.linear(x, weight), torch.nn.functional.linear(x, weight))
    assert products_16bit.linear(x.half(), weight.half()).shape == (1, 2, 8)

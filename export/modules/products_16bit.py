"""Emulation of ONNX Runtime's CUDA products of 4-bit weights with float16 or bfloat16 activations.

MatMulNBits has kernels of its own for up to 16 rows (1.31). The 32 lanes of a warp share a column: lane l reads weights
8l to 8l + 7 of every 256. A lane's sums are rounded to 16 bits after every weight. With one row a lane has eight sums,
added in 16 bits; with more rows it has two, for the even and the odd weights, added in float32. Lanes are added in
float32, the second half to the first. For more than 16 rows weights are unpacked and cuBLAS adds in float32. That is so
for 8-bit weights with any number of rows.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

if TYPE_CHECKING:
    from torch import Tensor

FEW_ROWS = 16
LANES = 32  # of a warp
LANE_WEIGHTS = 8  # that a lane reads in each turn
_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # in which the eight sums of a lane are added


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., K] times weight [N, K] transposed, of the same dtype.

    Products in float32 or of many rows are torch's own: torch adds 16-bit numbers in float32 and rounds once.
    """
    rows = x.reshape(-1, x.shape[-1])
    if x.dtype == torch.float32 or len(rows) > FEW_ROWS:
        return F.linear(x, weight)
    return few_rows(rows, weight).unflatten(0, x.shape[:-1])


def few_rows(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, K] times weight [N, K] transposed, M at most FEW_ROWS, K a multiple of 8.

    torch rounds each sum to float32 before it rounds to 16 bits, where the GPU rounds once: one sum in 100,000 differs.
    """
    lane_sums = LANE_WEIGHTS if len(x) == 1 else 2
    turns = LANE_WEIGHTS // lane_sums
    sums = x.new_zeros(len(x), len(weight), LANES, lane_sums)
    for start in range(0, x.shape[1], LANES * LANE_WEIGHTS):
        columns = slice(start, start + LANES * LANE_WEIGHTS)
        w, v = (_by_turn(matrix[:, columns], turns, lane_sums) for matrix in (weight, x))
        for turn in range(turns):
            sums[:, :, : w.shape[2]].addcmul_(w[:, turn], v[:, None, turn])
    added = sums[..., _ORDER] if len(x) == 1 else sums.float()
    lanes = reduce(torch.add, added.unbind(-1)).float()
    while lanes.shape[-1] > 1:
        near, far = lanes.chunk(2, dim=-1)
        lanes = near + far
    return lanes.squeeze(-1).to(x.dtype)


def _by_turn(matrix: Tensor, turns: int, lane_sums: int) -> Tensor:
    """[rows, K] to [rows, turns, lanes, lane_sums]."""
    return matrix.unflatten(1, (-1, turns, lane_sums)).transpose(1, 2).contiguous()

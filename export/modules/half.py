"""Products with 4-bit weights in float16 or bfloat16, as ONNX Runtime's CUDA kernels add them.

For up to 16 rows MatMulNBits has kernels of its own (1.31): the 32 lanes of a warp share a column, lane l takes weights
8l to 8l + 7 of every 256, and each of its sums is rounded to 16 bits after every weight. One row: eight sums a lane,
added in 16 bits. Two rows and more: two, of the even and of the odd weights, added in float32. Lanes are added in
float32, the far half to the near one. For more rows weights are unpacked and cuBLAS adds in float32; the kernels for
8-bit weights do so, too.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

if TYPE_CHECKING:
    from torch import Tensor

FEW_ROWS = 16
LANES, EACH = 32, 8  # weights a lane takes at a time
_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # in which one row's sums of a lane are added


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., K] times weight [N, K] transposed, of one dtype; in float32 any product is torch's own.

    torch, too, adds 16-bit numbers in float32 and rounds once.
    """
    rows = x.reshape(-1, x.shape[-1])
    if x.dtype == torch.float32 or len(rows) > FEW_ROWS:
        return F.linear(x, weight)
    return few_rows(rows, weight).unflatten(0, x.shape[:-1])


def few_rows(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, K] times weight [N, K] transposed, M at most FEW_ROWS, K a multiple of 8.

    torch multiplies and adds in float32 before it rounds, where the card rounds once: one sum in 100,000 differs.
    """
    kept = EACH if len(x) == 1 else 2
    sums = x.new_zeros(len(x), len(weight), LANES, kept)
    for at in range(0, x.shape[1], LANES * EACH):
        parts = (each[:, at : at + LANES * EACH].unflatten(1, (-1, EACH // kept, kept)) for each in (weight, x))
        w, v = (part.transpose(1, 2).contiguous() for part in parts)  # [rows, turns, lanes, kept]
        for turn in range(EACH // kept):
            sums[:, :, : w.shape[2]].addcmul_(w[:, turn], v[:, None, turn])
    lanes = reduce(torch.add, sums[..., _ORDER].unbind(-1) if kept == EACH else sums.float().unbind(-1)).float()
    while lanes.shape[-1] > 1:
        near, far = lanes.chunk(2, dim=-1)
        lanes = near + far
    return lanes.squeeze(-1).to(x.dtype)

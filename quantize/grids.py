"""The values a quantized weight can take: what a solver rounds to.

Weights are matrices W [N, K], one row an output. Every `group_size` consecutive inputs of a row share a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch

# The 16 quantiles of QLoRA (Dettmers et al. 2023, appendix E), as bitsandbytes stores them.
NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


class Grid(Protocol):
    """A grid turns weights into small integers (codes) and a scale a group, and back."""

    @property
    def bits(self) -> int:
        """Bits of a code."""
        ...

    @property
    def group_size(self) -> int:
        """Consecutive inputs that share a scale."""
        ...

    def fit(self, W: torch.Tensor) -> torch.Tensor:
        """Scales [N, K / group_size] of W [N, K], as they are stored."""
        ...

    def round(self, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Codes (int8) of the nearest values, for weights and scales that broadcast."""
        ...

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Weights (float32) that codes and scales, which broadcast, stand for."""
        ...


@dataclass(frozen=True)
class UniformGrid:
    """Whole numbers -2^(bits-1) .. 2^(bits-1)-1 times a scale: symmetric integers, as MatMulNBits computes them."""

    bits: int
    group_size: int
    dtype: torch.dtype = torch.float16

    def fit(self, W: torch.Tensor) -> torch.Tensor:
        """Choose scales such that the largest weight of a group is half a step inside the range, rounded to `dtype`."""
        largest = W.float().reshape(len(W), -1, self.group_size).abs().amax(-1)
        scale = (largest / (2 ** (self.bits - 1) - 0.5)).to(self.dtype)
        # A group of zeros, or one too small for the dtype, still needs a scale that can be divided by: the smallest one
        # (a subnormal one in float16, where it matters: 8 bits of weights up to 0.0078 need it).
        smallest = 2.0**-24 if self.dtype == torch.float16 else 2.0**-126
        return torch.clamp(scale, min=smallest)

    def round(self, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Codes of the nearest values, computed with the scale as it is stored."""
        top = 2 ** (self.bits - 1)
        codes: torch.Tensor = torch.round(w / scale.to(w.dtype)).clamp(-top, top - 1).to(torch.int8)
        return codes

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Weights that the codes stand for."""
        return codes.float() * scale.float()


@cache
def _nf4(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of the codebook, and the middles between neighbours."""
    values = torch.tensor(NF4_VALUES, device=device)
    return values, (values[:-1] + values[1:]) / 2


@dataclass(frozen=True)
class NF4Grid:
    """The NF4 codebook times a float32 scale: bitsandbytes' format without double quantization."""

    group_size: int = 64
    bits: int = 4

    def fit(self, W: torch.Tensor) -> torch.Tensor:
        """Take the largest magnitude of a block as its scale."""
        return W.float().reshape(len(W), -1, self.group_size).abs().amax(-1)

    def round(self, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Codes 0..15 of the nearest values, by the arithmetic of bitsandbytes so that ties fall as they do there."""
        unit = (w * (1.0 / scale.clamp(min=1e-38))).clamp_(-1, 1)
        return torch.bucketize(unit, _nf4(w.device)[1], out_int32=True).to(torch.int8)

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Weights that the codes stand for."""
        return _nf4(codes.device)[0][codes.int()] * scale


def round_to_nearest(W: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [N, K] and scales [N, K / group_size] of W, every weight on its own.

    NF4 codes are those of bitsandbytes' own quantizer.
    """
    scales = grid.fit(W)
    if isinstance(grid, NF4Grid):
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(W.contiguous(), blocksize=grid.group_size, quant_type="nf4")
        return unpack_nibbles(packed).view(W.shape), state.absmax.view_as(scales)
    return grid.round(W.float(), expand(scales, grid)), scales


def expand(scales: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Repeat scales [N, K / group_size] to [N, K], one a weight."""
    return scales.repeat_interleave(grid.group_size, dim=-1)


def dequantize(codes: torch.Tensor, scales: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Weights [N, K] (float32) of codes [N, K] and scales [N, K / group_size]."""
    return grid.values(codes, expand(scales, grid))


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Pack codes 0..15 two a byte, the first in the high half: bitsandbytes' order. Returns uint8 [numel / 2, 1]."""
    flat = codes.reshape(-1).to(torch.uint8)
    return ((flat[::2] << 4) | flat[1::2]).unsqueeze(1)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Undo `pack_nibbles`. Returns int8 [2 * numel]."""
    flat = packed.reshape(-1)
    return torch.stack([flat >> 4, flat & 15], dim=1).reshape(-1).to(torch.int8)
